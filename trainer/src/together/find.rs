//! The file in which ranks find the coordinator that rank 0 hosts: written by that one, read by the others.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_proto::address::{Address, Early};

use crate::error::TrainerError;

/// Ranks of one job start so far apart at most, and rank 0 needs its time to read config and data.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the file is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// After so long a wait it is said what is waited for.
const SAID_AFTER: Duration = Duration::from_secs(5);

/// What a glance at the file shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// The coordinator of this job.
    Address(String),
    /// Its early end.
    Ended(Early),
    /// Nothing of this job yet, and what instead.
    NotYet(String),
}

/// What became of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Its address.
    Address(String),
    /// It has ended before it served.
    Ended(Early),
}

/// Waits for the address of this job's coordinator.
///
/// # Errors
/// It does not come: what stands in its place, and what to do.
pub(super) fn find(file: &Path, job: &str) -> Result<Found, TrainerError> {
    let began = Instant::now();
    let mut said = false;
    loop {
        let seen = glance(Address::read_file(file), file.exists(), job);
        let missing = match seen {
            Seen::Address(url) => return Ok(Found::Address(url)),
            Seen::Ended(early) => return Ok(Found::Ended(early)),
            Seen::NotYet(missing) => missing,
        };
        if began.elapsed() >= PATIENCE {
            return Err(TrainerError::Refused(format!(
                "rank 0 has not said within {} s where its coordinator is: {} {missing}. See what rank 0 says; if it lives, its \
                 folder is not this host's: put the run's folder on a file system that all hosts share, or give \
                 coordinator.bind a port of its own and name the hostfile (--hostfile), or name a coordinator with \
                 --coordinator",
                PATIENCE.as_secs(),
                file.display()
            )));
        }
        if !said && began.elapsed() >= SAID_AFTER {
            said = true;
            tracing::info!(
                "waiting for the coordinator that rank 0 hosts: {} {missing}",
                file.display()
            );
        }
        std::thread::sleep(GLANCE);
    }
}

/// What a file says to the ranks of a job; another job's word is not believed.
fn glance(address: Option<Address>, exists: bool, job: &str) -> Seen {
    let Some(address) = address else {
        return Seen::NotYet(match exists {
            true => "cannot be read as an address".to_owned(),
            false => "is not there".to_owned(),
        });
    };
    if address.job.as_deref() != Some(job) {
        let other = address
            .job
            .map_or_else(|| "none".to_owned(), |job| format!("\"{job}\""));
        return Seen::NotYet(format!(
            "is of another job (it says {other}, and this one is \"{job}\")"
        ));
    }
    match address.ended {
        Some(early) => Seen::Ended(early),
        None => Seen::Address(address.url),
    }
}

/// What the file says of an early end of this job's coordinator, if it is seen from here.
pub(super) fn early_end(file: &Path, job: Option<&str>) -> Option<Early> {
    match glance(Address::read_file(file), true, job?) {
        Seen::Ended(early) => Some(early),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_this_job_is_believed() {
        let served = Address::served("http://a:1".to_owned(), 7);
        let of = |job: Option<&str>| served.clone().for_job(job.map(str::to_owned));
        assert_eq!(
            glance(Some(of(Some("7 0"))), true, "7 0"),
            Seen::Address("http://a:1".to_owned())
        );
        for stale in [of(Some("6 0")), of(None)] {
            assert!(matches!(glance(Some(stale), true, "7 0"), Seen::NotYet(why) if why.contains("another job")));
        }
        assert_eq!(glance(None, false, "7 0"), Seen::NotYet("is not there".to_owned()));
        assert!(matches!(glance(None, true, "7 0"), Seen::NotYet(why) if why.contains("cannot be read")));
        let early = Early {
            code: 2,
            reason: "no data".to_owned(),
        };
        let ended = |job: &str| Some(Address::ended(Some(job.to_owned()), early.clone()));
        assert_eq!(glance(ended("7 0"), true, "7 0"), Seen::Ended(early.clone()));
        assert!(matches!(glance(ended("6 0"), true, "7 0"), Seen::NotYet(_)));
    }
}
