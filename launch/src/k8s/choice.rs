//! What was said on the command line, held against the config: what is left open gets its value, what does not fit is refused
//! in one sentence.

use lockstep_config::{CollectiveBackend, RunConfig};
use lockstep_data::Dataset;

use crate::cli::Overlay;
use crate::ending::Ending;
use crate::k8s::names::is_namespace;

/// Trainers that a run begins with, if nobody says how many.
const RANKS: u32 = 2;

/// What was said on the command line.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// What starts and replaces trainers.
    pub(crate) overlay: Overlay,
    /// A GPU for each.
    pub(crate) gpu: bool,
    /// TLS.
    pub(crate) tls: bool,
    /// A Lease for the coordinator.
    pub(crate) lease: bool,
    /// The image.
    pub(crate) image: Option<String>,
    /// The namespace.
    pub(crate) namespace: Option<String>,
    /// Trainers at the beginning.
    pub(crate) ranks: Option<u32>,
}

/// Trainers at the beginning.
pub(super) fn ranks(given: Option<u32>, config: &RunConfig) -> Result<u32, Ending> {
    let lanes = config.run.lanes;
    let most = config.fault.max_ranks.unwrap_or(lanes);
    match given {
        Some(ranks) if ranks > lanes => Err(Ending::BadInput(format!(
            "-n {ranks} is more than run.lanes, which is {lanes}: every rank needs a lane; lower -n, or raise run.lanes"
        ))),
        Some(ranks) if ranks > most || ranks < config.fault.min_ranks => Err(Ending::BadInput(format!(
            "-n {ranks} is not between fault.min_ranks ({}) and fault.max_ranks ({most})",
            config.fault.min_ranks
        ))),
        Some(ranks) => Ok(ranks),
        None => Ok(RANKS.clamp(config.fault.min_ranks, most)),
    }
}

/// MPI needs an mpirun, which is there in one overlay only.
pub(super) fn backend_fits(config: &RunConfig, overlay: Overlay, gpu: bool) -> Result<(), Ending> {
    match (config.collective.backend, overlay) {
        (CollectiveBackend::Mpi, Overlay::Mpijob) => Ok(()),
        (CollectiveBackend::Mpi, other) => Err(Ending::BadInput(format!(
            "collective.backend is \"mpi\", which mpirun starts: --overlay mpijob has one, {} has none",
            other.word()
        ))),
        (CollectiveBackend::Host, _) if gpu => Err(Ending::BadInput(
            "collective.backend is \"host\", and GPUs exchange data over NCCL: leave collective.backend away with --gpu"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

/// The name of a namespace is one.
pub(super) fn namespace_fits(namespace: Option<&str>) -> Result<(), Ending> {
    match namespace.filter(|name| !is_namespace(name)) {
        None => Ok(()),
        Some(name) => Err(Ending::BadInput(format!(
            "--namespace {name}: write 1 to 63 small letters, digits and `-`, with a letter or digit first and last"
        ))),
    }
}

/// The vocabulary, which decides how large the model is.
pub(super) fn vocabulary(config: &RunConfig) -> Result<u32, Ending> {
    if let Some(vocabulary) = config.model.vocab {
        return Ok(vocabulary);
    }
    Dataset::open(&config.data.path).map(|data| data.vocab()).map_err(|error| {
        Ending::BadInput(format!(
            "the size of the model depends on the data's vocabulary, and the data is not here ({error}); run this where it is, or \
             say the size with --set model.vocab=SIZE (`lockstep data prepare` prints it)"
        ))
    })
}

/// The image. A name that means another content tomorrow is refused.
pub(super) fn image(given: Option<&str>, overlay: Overlay, gpu: bool) -> Result<String, Ending> {
    let version = env!("CARGO_PKG_VERSION");
    let Some(image) = given else {
        let kind = match (overlay, gpu) {
            (Overlay::Mpijob, false) => "-mpi",
            (Overlay::Mpijob, true) => "-mpi-cuda",
            (_, true) => "-cuda",
            (_, false) => "",
        };
        return Ok(format!("lockstep:{version}{kind}"));
    };
    let refused = |why: &str| {
        Ending::BadInput(format!(
            "--image {image}: {why}; name a tag that stays, such as registry.example.org/lockstep:{version}, or a digest"
        ))
    };
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"./:@_-".contains(&byte);
    if image.is_empty() || !image.bytes().all(is_allowed) {
        return Err(refused("that is no name of an image"));
    }
    // A colon before a slash belongs to the port of a registry.
    let last = image.rsplit('/').next().unwrap_or(image);
    match (last.contains("@sha256:"), last.split_once(':')) {
        (true, _) => Ok(image.to_owned()),
        (false, None | Some((_, ""))) => Err(refused("it has no tag, which means latest")),
        (false, Some((_, "latest"))) => Err(refused("latest is another image tomorrow")),
        (false, Some(_)) => Ok(image.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::k8s::in_pods::tests::config;

    #[test]
    fn an_image_stays_what_it_is() {
        for good in [
            "a:1",
            "r.example.org:5000/a/b:1.2-cuda",
            "a@sha256:00",
            "r:5000/a:1@sha256:00",
        ] {
            assert_eq!(image(Some(good), Overlay::Elastic, false).as_deref(), Ok(good));
        }
        for bad in ["a", "a:latest", "r.example.org:5000/a", "a:", "", "a b:1", "a:1\nb"] {
            assert_eq!(
                image(Some(bad), Overlay::Elastic, false).unwrap_err().code(),
                2,
                "{bad}"
            );
        }
        let own = |overlay, gpu| image(None, overlay, gpu).unwrap();
        assert!(own(Overlay::Jobset, true).ends_with("-cuda") && own(Overlay::Mpijob, false).ends_with("-mpi"));
    }

    #[test]
    fn ranks_fit_lanes_and_limits() {
        assert_eq!(ranks(None, &config(&[])), Ok(2));
        assert_eq!(ranks(None, &config(&["run.lanes=1", "batch.schedule=1"])), Ok(1));
        assert_eq!(ranks(None, &config(&["fault.min_ranks=3"])), Ok(3));
        assert_eq!(ranks(Some(6), &config(&[])), Ok(6));
        for (given, sets) in [(7, &[][..]), (2, &["fault.min_ranks=3"]), (5, &["fault.max_ranks=4"])] {
            assert_eq!(
                ranks(Some(given), &config(sets)).unwrap_err().code(),
                2,
                "{given} {sets:?}"
            );
        }
    }
}
