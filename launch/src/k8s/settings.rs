//! What is decided about a run on Kubernetes: everything that the objects say and that is not always the same.

use std::path::{Path, PathBuf};

use lockstep_config::{CollectiveBackend, Device, RunConfig};
use lockstep_data::Dataset;

use crate::cli::Overlay;
use crate::ending::Ending;
use crate::k8s::memory::{Account, MIB, account};
use crate::k8s::names::{fingerprint, is_namespace, object_name};

/// Trainers that a run begins with, if nobody says how many.
const RANKS: u32 = 2;
/// The coordinator's port, where the config leaves it open.
const PORT: u16 = 7000;
/// What a checkpoint is written at, at the least, in bytes a second: a network disk that others use too.
const SLOW_DISK: u64 = 64 * MIB;
/// What is left for all else that a trainer does before it has left.
const LEAVING_SECONDS: u64 = 30;

/// Where things are in a pod.
pub(crate) const DATA: &str = "/data";
/// Another data folder, for validation.
pub(crate) const VALIDATION: &str = "/validation";
/// What coordinator and trainers share: checkpoints and final weights.
pub(crate) const SHARED: &str = "/shared";
/// What is the coordinator's alone: the ledger.
pub(crate) const LEDGER: &str = "/ledger";
/// The config.
pub(crate) const CONFIG: &str = "/etc/lockstep/run";
/// Certificates and other secrets.
pub(crate) const SECRET: &str = "/etc/lockstep/secret";

/// What was said on the command line.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// What starts and replaces trainers.
    pub(crate) overlay: Overlay,
    /// A GPU for each.
    pub(crate) gpu: bool,
    /// TLS.
    pub(crate) tls: bool,
    /// The image.
    pub(crate) image: Option<String>,
    /// The namespace.
    pub(crate) namespace: Option<String>,
    /// Trainers at the beginning.
    pub(crate) ranks: Option<u32>,
}

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What starts and replaces trainers.
    pub(crate) overlay: Overlay,
    /// A GPU for each.
    pub(crate) gpu: bool,
    /// TLS, and certificates of both sides.
    pub(crate) tls: bool,
    /// Name of the run's objects.
    pub(crate) name: String,
    /// The namespace, where one was named.
    pub(crate) namespace: Option<String>,
    /// The image of trainers.
    pub(crate) image: String,
    /// The image of a coordinator that is a pod of its own: it needs no libtorch.
    pub(crate) coordinator_image: String,
    /// The config as the pods read it: its paths are theirs.
    pub(crate) config: RunConfig,
    /// Trainers at the beginning.
    pub(crate) ranks: u32,
    /// The coordinator's port; the next one is that of its health.
    pub(crate) port: u16,
    /// Bytes.
    pub(crate) account: Account,
    /// Seconds that a trainer has to leave.
    pub(crate) grace_seconds: u64,
    /// Whether checkpoints go to a store of objects, whose credentials are in a Secret.
    pub(crate) has_object_store: bool,
    /// Whether the coordinator takes tokens; their hashes are in its Secret.
    pub(crate) has_tokens: bool,
    /// Whether the address of alerts is in the coordinator's Secret.
    pub(crate) has_webhook_file: bool,
    /// TCP ports outside of the run that its pods may reach.
    pub(crate) outside: Vec<u16>,
}

impl Settings {
    /// Decides.
    ///
    /// # Errors
    /// What does not fit, in one sentence.
    pub(crate) fn of(config: &RunConfig, choice: &Choice) -> Result<Settings, Ending> {
        let gpu = choice.gpu || config.run.device == Device::Cuda;
        let ranks = ranks(choice.ranks, config)?;
        check_backend(config, choice.overlay, gpu)?;
        if let Some(namespace) = choice.namespace.as_deref().filter(|name| !is_namespace(name)) {
            return Err(Ending::BadInput(format!(
                "--namespace {namespace}: write 1 to 63 small letters, digits and `-`, with a letter or digit first and last"
            )));
        }
        if config.security.tokens.is_some() && !choice.tls {
            return Err(Ending::BadInput(
                "security.tokens needs --tls: a token is never sent in clear from pod to pod".to_owned(),
            ));
        }
        let least = match choice.overlay {
            Overlay::Elastic => config.fault.min_ranks,
            // A lost trainer is replaced, and until then the others have its share.
            _ => ranks.saturating_sub(1).max(config.fault.min_ranks),
        };
        let account = account(config, vocabulary(config)?, least.clamp(1, ranks))?;
        let port = match config.coordinator.bind.port() {
            0 => PORT,
            u16::MAX => {
                return Err(Ending::BadInput(
                    "coordinator.bind: port 65535 leaves none for the coordinator's health, which is the next one; take a \
                     lower one"
                        .to_owned(),
                ));
            }
            port => port,
        };
        let has_object_store = config
            .checkpoint
            .store
            .as_ref()
            .is_some_and(|store| store.starts_with("s3://"));
        Ok(Settings {
            overlay: choice.overlay,
            gpu,
            tls: choice.tls,
            name: object_name(&config.run.name),
            namespace: choice.namespace.clone(),
            image: image(choice.image.as_deref(), choice.overlay, gpu)?,
            coordinator_image: image(choice.image.as_deref(), Overlay::Elastic, false)?,
            ranks,
            port,
            account,
            grace_seconds: config.fault.patience_seconds.ceil() as u64
                + LEAVING_SECONDS
                + account.state.div_ceil(SLOW_DISK),
            has_object_store,
            has_tokens: config.security.tokens.is_some(),
            has_webhook_file: config.alerts.webhook_file.is_some(),
            outside: outside(config, has_object_store),
            config: in_pods(config, has_object_store),
        })
    }

    /// The folder that trainers are told is the run's.
    pub(crate) fn run_dir(&self) -> String {
        format!("{SHARED}/runs/{}", self.config.run.name)
    }

    /// The name of the coordinator's Service, which is its address inside the namespace.
    pub(crate) fn coordinator(&self) -> String {
        format!("{}-coordinator", self.name)
    }

    /// The coordinator's address.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.coordinator(), self.port)
    }

    /// Where the coordinator's health can be asked for, always in clear: it says that somebody serves, and nothing of the
    /// run.
    pub(crate) fn health_port(&self) -> u16 {
        self.port + 1
    }

    /// Bytes of `/dev/shm`, which count as the trainer's memory: a gradient buffer passes through it in pieces, over NCCL and
    /// over MPI. The host backend needs none of it.
    pub(crate) fn shared_memory(&self) -> u64 {
        let least = if self.gpu { 1024 * MIB } else { 64 * MIB };
        (64 * MIB + self.account.gradients)
            .next_multiple_of(64 * MIB)
            .max(least)
    }

    /// Bytes that a trainer may have, `/dev/shm` among them.
    pub(crate) fn trainer_memory(&self) -> u64 {
        self.account.trainer + self.shared_memory()
    }

    /// GiB of the shared volume: every checkpoint that stays, one that is written, and the final weights, and as much again.
    pub(crate) fn shared_gib(&self) -> u64 {
        let checkpoints = self.config.checkpoint.keep_last + 2;
        (2 * checkpoints * self.account.state).div_ceil(1024 * MIB).max(1)
    }

    /// Changes when the config does, so that pods are made anew with it.
    pub(crate) fn config_fingerprint(&self) -> String {
        fingerprint(self.config.to_toml().as_bytes())
    }

    /// The first lines of a stream.
    pub(crate) fn heading(&self) -> String {
        let mut lines = vec![format!(
            "Run {} as {}, made by lockstep {}: change the config and render it again.",
            self.config.run.name,
            self.overlay.word(),
            env!("CARGO_PKG_VERSION")
        )];
        lines.extend(self.warnings());
        lines.iter().map(|line| format!("# {line}\n")).collect()
    }

    /// What a person should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.tls {
            warnings.push(
                "the coordinator talks without TLS and asks nobody who he is (security.insecure_bind); only a NetworkPolicy keeps \
                 others away, where the cluster's network plug-in has such policies"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Trainers at the beginning.
fn ranks(given: Option<u32>, config: &RunConfig) -> Result<u32, Ending> {
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
fn check_backend(config: &RunConfig, overlay: Overlay, gpu: bool) -> Result<(), Ending> {
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

/// The vocabulary, which decides how large the model is.
fn vocabulary(config: &RunConfig) -> Result<u32, Ending> {
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
fn image(given: Option<&str>, overlay: Overlay, gpu: bool) -> Result<String, Ending> {
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

/// The config with the paths of pods, and without those of this machine.
fn in_pods(config: &RunConfig, has_object_store: bool) -> RunConfig {
    let mut config = config.clone();
    config.data.path = PathBuf::from(DATA);
    config.data.validation = config.data.validation.map(|_| PathBuf::from(VALIDATION));
    if !has_object_store {
        config.checkpoint.store = Some(format!("{SHARED}/runs/{}/checkpoints", config.run.name));
    }
    // The address and who is let in are said on the command line of the coordinator, together.
    config.coordinator.bind = ([127, 0, 0, 1], 0).into();
    config.security.certificate = None;
    config.security.key = None;
    config.security.client_ca = None;
    config.security.tokens = None;
    config.security.insecure_bind = false;
    let in_secret = |name: &str| Path::new(SECRET).join(name);
    config.alerts.webhook_file = config.alerts.webhook_file.map(|_| in_secret("webhook"));
    config
}

/// TCP ports of what the config names outside of the run.
fn outside(config: &RunConfig, has_object_store: bool) -> Vec<u16> {
    let addresses = [config.alerts.webhook.as_deref(), config.telemetry.otlp.as_deref()];
    let mut ports: Vec<u16> = addresses.into_iter().flatten().filter_map(port_of).collect();
    // Their addresses are secret, or come from the environment: the usual port.
    if config.alerts.webhook_file.is_some() || has_object_store {
        ports.push(443);
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The port of an `http://` or `https://` address.
fn port_of(address: &str) -> Option<u16> {
    let (scheme, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let after = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    match (after.rsplit_once(':'), scheme) {
        (Some((_, port)), _) => port.parse().ok(),
        (None, "https") => Some(443),
        (None, _) => Some(80),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(sets: &[&str]) -> RunConfig {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 6\n[data]\npath = \"unused\"\nsequence_length = 16\n\
                    [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\nvocab = 61\n[batch]\nmicro_batch = 1\n\
                    schedule = 6\n[learning_rate]\nschedule = 0.5\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "settings.toml", &sets).unwrap()
    }

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

    #[test]
    fn ports_outside_are_those_of_the_addresses() {
        assert_eq!(outside(&config(&[]), false), []);
        let sets = [
            "alerts.webhook=https://a.example.org/b",
            "telemetry.otlp=http://[::1]:4318",
        ];
        assert_eq!(outside(&config(&sets), false), [443, 4318]);
        assert_eq!(outside(&config(&["telemetry.otlp=http://a"]), true), [80, 443]);
    }

    #[test]
    fn the_config_of_pods_names_nothing_of_this_machine() {
        let sets = [
            "data.validation=elsewhere",
            "checkpoint.store=here",
            "security.insecure_bind=true",
            "alerts.webhook_file=secret-address",
            "coordinator.bind=\"127.0.0.1:9\"",
        ];
        let text = in_pods(&config(&sets), false).to_toml();
        for own in [
            "unused",
            "elsewhere",
            "here",
            "secret-address",
            "insecure_bind = true",
            ":9",
        ] {
            assert!(!text.contains(own), "{own} is left in {text}");
        }
        RunConfig::parse(&text, "in-pods.toml", &[]).unwrap();
        let store = "checkpoint.store=s3://bucket/prefix";
        assert!(
            in_pods(&config(&[store]), true)
                .to_toml()
                .contains("s3://bucket/prefix")
        );
    }
}
