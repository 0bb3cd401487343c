//! How a rank comes to its coordinator. Pure: what is known in, a [`Way`] or a sentence out. Every rank of a job decides from
//! the same words, so that they agree.
//!
//! 1. A coordinator that is named (`--coordinator`, `LOCKSTEP_COORDINATOR`) is everybody's.
//! 2. Else rank 0 hosts one, and the others find it: in the file that `--coordinator-file` names;
//! 3. at the first host of the hostfile, or of Slurm's list, where `coordinator.bind` has a port of its own and the job is on
//!    several hosts;
//! 4. else in `coordinator.json` of the run's folder, where it stands with the word that tells this job from every other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lockstep_config::place::{Place, Starter};

/// What is known before anything has started.
#[derive(Clone, Debug)]
pub(super) struct Known<'a> {
    /// A coordinator that is named.
    pub(super) named: Option<&'a str>,
    /// The file in which the address is to be, where one is named.
    pub(super) file: Option<&'a Path>,
    /// Where this process stands; none where it was started by hand.
    pub(super) place: Option<&'a Place>,
    /// The number of ranks, where a person says it.
    pub(super) ranks: Option<u32>,
    /// `coordinator.bind`.
    pub(super) bind: SocketAddr,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// The first host of the job, where a list says it.
    pub(super) first_host: Option<&'a str>,
    /// The run's folder.
    pub(super) run_dir: &'a Path,
    /// What tells this job from every other, where a person says it.
    pub(super) job: Option<&'a str>,
    /// The same, for ranks of one parent on one host.
    pub(super) parent: Option<&'a str>,
}

/// How this rank comes to its coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is named.
    Named(String),
    /// This rank starts it, for so many ranks, and writes its address into the file.
    Hosted {
        /// Ranks of the world.
        ranks: u32,
        /// Where its address goes.
        file: PathBuf,
        /// What tells this job from others.
        job: Option<String>,
        /// Whether other hosts must reach it.
        is_far: bool,
    },
    /// It is at a known address.
    At(String),
    /// Its address is in the file, as soon as it is there.
    In {
        /// The file.
        file: PathBuf,
        /// What tells this job from others.
        job: String,
    },
}

/// Decides.
///
/// # Errors
/// What is missing, and what to do about it.
pub(super) fn way(known: &Known<'_>) -> Result<Way, String> {
    if let Some(url) = known.named {
        return Ok(Way::Named(url.to_owned()));
    }
    let own_file = || known.run_dir.join(lockstep_proto::address::Address::FILE);
    let file = known.file.map_or_else(own_file, Path::to_path_buf);
    let Some(place) = known.place else {
        // By hand: a run of one rank, if nothing else is said.
        return match known.ranks {
            None | Some(1) => Ok(Way::Hosted {
                ranks: 1,
                file,
                job: known.job.map(str::to_owned),
                is_far: false,
            }),
            Some(ranks) => Err(format!(
                "--ranks {ranks} needs {ranks} processes, and nobody has started this one together with others: start it by \
                 mpirun, srun or torchrun, or use `lockstep run -n {ranks}`"
            )),
        };
    };
    let is_far = place.is_on_one_host() == Some(false);
    if is_far && known.bind.ip().is_loopback() {
        return Err(format!(
            "the ranks of this job are on several hosts, and coordinator.bind is {}, which only its own host reaches. Set \
             coordinator.bind to an address that the others reach (0.0.0.0:PORT for all of the first host's), with \
             certificates as docs/security.md says; or name a coordinator with --coordinator",
            known.bind
        ));
    }
    let job = job_of(known, place);
    // Rank 0 refuses too what the others could not find.
    let is_alone = place.size == Some(1);
    let others = match is_alone {
        true => None,
        false => Some(others(known, place, file.clone(), job.clone())?),
    };
    match others.filter(|_| place.rank > 0) {
        Some(way) => Ok(way),
        None => Ok(Way::Hosted {
            ranks: ranks(known, place)?,
            file,
            job,
            is_far,
        }),
    }
}

/// How many ranks the coordinator is to wait for.
fn ranks(known: &Known<'_>, place: &Place) -> Result<u32, String> {
    match (known.ranks, place.size) {
        (Some(asked), Some(there)) if asked != there => Err(format!(
            "--ranks {asked}, but {there} processes were started together; leave --ranks out"
        )),
        (asked, there) => asked.or(there).ok_or_else(|| {
            "nobody says how many ranks there are: what has started them gives their numbers only; say --ranks N"
                .to_owned()
        }),
    }
}

/// How ranks find the coordinator that rank 0 hosts.
fn others(known: &Known<'_>, place: &Place, file: PathBuf, job: Option<String>) -> Result<Way, String> {
    let is_far = place.is_on_one_host() == Some(false);
    if let (true, None, Some(host), port @ 1..) = (is_far, known.file, known.first_host, known.bind.port()) {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        return Ok(Way::At(format!("{}://{host}:{port}", known.scheme)));
    }
    let job = job.ok_or_else(|| {
        let who = match place.starter {
            Starter::Hydra => "MPICH gives its ranks no number of their job",
            _ => "what has started the ranks gives them no number of their job",
        };
        format!(
            "{who}, so the address of an earlier coordinator could be taken for this one's. Give coordinator.bind a port of its \
             own and name the hostfile (--hostfile, LOCKSTEP_HOSTFILE), or set LOCKSTEP_JOB to a word that is new for every \
             job, or name a coordinator with --coordinator"
        )
    })?;
    Ok(Way::In { file, job })
}

fn job_of(known: &Known<'_>, place: &Place) -> Option<String> {
    let said = known.job.map(str::to_owned).or_else(|| place.job.clone());
    said.or_else(|| (place.is_on_one_host() == Some(true)).then(|| known.parent.map(str::to_owned))?)
}

/// The address at which others reach the coordinator that has said `url`; on one host that one. `host`: the name that is
/// given for this one.
pub(super) fn reached_at(url: &str, bind: SocketAddr, is_far: bool, host: &str) -> String {
    match url.rsplit_once(':') {
        Some((before, port)) if is_far && bind.ip().is_unspecified() => {
            let scheme = before.split_once("://").map_or("http", |(scheme, _)| scheme);
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            format!("{scheme}://{host}:{port}")
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rank: u32, local_size: u32) -> Place {
        Place {
            starter: Starter::OpenMpi,
            rank,
            size: Some(4),
            local_rank: Some(rank % local_size),
            local_size: Some(local_size),
            job: Some("job".to_owned()),
        }
    }

    fn known<'a>(place: Option<&'a Place>, bind: &str) -> Known<'a> {
        Known {
            named: None,
            file: None,
            place,
            ranks: None,
            bind: bind.parse().unwrap(),
            scheme: "http",
            first_host: Some("a"),
            run_dir: Path::new("runs/one"),
            job: None,
            parent: Some("7 99"),
        }
    }

    const LOOPBACK: &str = "127.0.0.1:0";

    fn own_file() -> PathBuf {
        "runs/one/coordinator.json".into()
    }

    #[test]
    fn a_named_coordinator_is_everybodys() {
        for rank in [0, 3] {
            let place = place(rank, 2);
            let named = Known {
                named: Some("http://c:1"),
                ..known(Some(&place), LOOPBACK)
            };
            assert_eq!(way(&named), Ok(Way::Named("http://c:1".to_owned())));
        }
    }

    #[test]
    fn rank_0_hosts_it_and_the_others_of_its_host_read_its_address() {
        let (first, other) = (place(0, 4), place(1, 4));
        let hosted = Way::Hosted {
            ranks: 4,
            file: own_file(),
            job: Some("job".to_owned()),
            is_far: false,
        };
        assert_eq!(way(&known(Some(&first), LOOPBACK)), Ok(hosted));
        let found = Way::In {
            file: own_file(),
            job: "job".to_owned(),
        };
        assert_eq!(way(&known(Some(&other), LOOPBACK)), Ok(found));
    }

    #[test]
    fn on_several_hosts_it_is_at_the_first_one_or_in_the_file() {
        let other = place(3, 2);
        assert_eq!(
            way(&known(Some(&other), "0.0.0.0:7000")),
            Ok(Way::At("http://a:7000".to_owned()))
        );
        let v6 = Known {
            first_host: Some("fd00::1"),
            ..known(Some(&other), "[::]:7000")
        };
        assert_eq!(way(&v6), Ok(Way::At("http://[fd00::1]:7000".to_owned())));
        let in_file = |file: &str| {
            Ok(Way::In {
                file: file.into(),
                job: "job".to_owned(),
            })
        };
        // A free port is not known before.
        assert_eq!(
            way(&known(Some(&other), "0.0.0.0:0")),
            in_file("runs/one/coordinator.json")
        );
        let named = Known {
            file: Some(Path::new("shared/it.json")),
            ..known(Some(&other), "0.0.0.0:7000")
        };
        assert_eq!(way(&named), in_file("shared/it.json"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_every_rank_with_what_to_do() {
        for rank in [0, 3] {
            let place = place(rank, 2);
            let sentence = way(&known(Some(&place), LOOPBACK)).unwrap_err();
            for part in [
                "several hosts",
                "coordinator.bind is 127.0.0.1:0",
                "0.0.0.0:PORT",
                "--coordinator",
            ] {
                assert!(sentence.contains(part), "{part} is missing in: {sentence}");
            }
        }
        let of_hydra = |rank| Place {
            starter: Starter::Hydra,
            job: None,
            ..place(rank, 2)
        };
        let (first, hydra) = (of_hydra(0), of_hydra(3));
        for place in [&first, &hydra] {
            let sentence = way(&known(Some(place), "0.0.0.0:0")).unwrap_err();
            assert!(
                sentence.contains("MPICH") && sentence.contains("LOCKSTEP_JOB"),
                "{sentence}"
            );
        }
        let named = Known {
            job: Some("mine"),
            ..known(Some(&hydra), "0.0.0.0:0")
        };
        assert!(matches!(way(&named), Ok(Way::In { job, .. }) if job == "mine"));
        let without_size = Place {
            size: None,
            ..place(0, 2)
        };
        assert!(
            way(&known(Some(&without_size), LOOPBACK))
                .unwrap_err()
                .contains("--ranks N")
        );
        let first = place(0, 4);
        let wrong = Known {
            ranks: Some(3),
            ..known(Some(&first), LOOPBACK)
        };
        assert!(way(&wrong).unwrap_err().contains("4 processes"));
    }

    #[test]
    fn mpich_on_one_host_tells_jobs_apart_by_the_process_that_started_the_ranks() {
        let hydra = Place {
            starter: Starter::Hydra,
            job: None,
            ..place(3, 4)
        };
        assert!(matches!(way(&known(Some(&hydra), LOOPBACK)), Ok(Way::In { job, .. }) if job == "7 99"));
    }

    #[test]
    fn by_hand_it_is_a_run_of_one_rank() {
        assert!(matches!(way(&known(None, LOOPBACK)), Ok(Way::Hosted { ranks: 1, .. })));
        let two = Known {
            ranks: Some(2),
            ..known(None, LOOPBACK)
        };
        assert!(way(&two).unwrap_err().contains("lockstep run -n 2"));
    }

    #[test]
    fn other_hosts_are_told_a_name_where_it_listens_everywhere() {
        let at = |url: &str, bind: &str, is_far| reached_at(url, bind.parse().unwrap(), is_far, "a");
        assert_eq!(at("https://127.0.0.1:7000", "0.0.0.0:0", true), "https://a:7000");
        assert_eq!(at("http://127.0.0.1:7000", "0.0.0.0:0", false), "http://127.0.0.1:7000");
        assert_eq!(
            at("http://10.0.0.7:7000", "10.0.0.7:7000", true),
            "http://10.0.0.7:7000"
        );
        assert_eq!(at("http://[::1]:7000", "[::]:0", true), "http://a:7000");
    }
}
