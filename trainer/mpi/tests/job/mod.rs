//! Jobs of mpirun over this very test binary: every rank runs one ignored test of it.
#![allow(dead_code)] // Each test file uses its part.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_collective::Aborter;
use lockstep_collective_script::PATIENCE;
use lockstep_trainer::started::mpi_rank;
use lockstep_trainer::train::Mpi as _;
use lockstep_trainer_mpi::{Communicator, Library, Options};

/// What the ranks of a job are told.
const TOLD: &str = "LOCKSTEP_JOB";
/// Where ranks show each other that they have come to a place, in the job's own folder.
const HERE: &str = "here";

/// A started mpirun, ended with its ranks when dropped.
pub(crate) struct Job {
    child: Child,
    said: thread::JoinHandle<String>,
    /// Where the ranks run, and Open MPI keeps its files. Two jobs that begin at once in its usual place can be in each other's way.
    _scratch: tempfile::TempDir,
}

/// Starts `ranks` processes on this machine alone, each of which runs the ignored test `test` and is told `told`.
pub(crate) fn start(ranks: u32, test: &str, told: &str) -> Job {
    let scratch = tempfile::Builder::new().prefix("ls").tempdir().unwrap();
    let mut child = Command::new("mpirun")
        .args(["-n", &ranks.to_string()])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(TOLD, told)
        .current_dir(scratch.path())
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        .env("OMPI_MCA_hwloc_base_binding_policy", "none")
        .env("OMPI_MCA_btl", "self,vader")
        .env("OMPI_MCA_orte_tmpdir_base", scratch.path())
        .env("PRTE_MCA_prte_tmpdir_base", scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("mpirun cannot be started ({error}); `cargo xtask setup` installs it"));
    let mut stderr = child.stderr.take().unwrap();
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    Job {
        child,
        said,
        _scratch: scratch,
    }
}

impl Job {
    /// Waits for the end. Whether it was a good one, and all that was said.
    pub(crate) fn end(mut self) -> (bool, String) {
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if started.elapsed() > PATIENCE => break None,
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        if status.is_none() {
            self.stop();
        }
        let said = self.said.join().unwrap();
        assert!(
            status.is_some(),
            "the job has not ended in {} s: {said}",
            PATIENCE.as_secs()
        );
        (status.unwrap().success(), said)
    }

    /// mpirun ends its ranks when it is asked to, not when it is killed.
    fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// In a rank: what it was told, and MPI started.
pub(crate) fn told() -> String {
    Library.start().unwrap();
    std::env::var(TOLD).unwrap()
}

/// In a rank: shows that it has come here, and waits until `ranks` of them have.
pub(crate) fn come_here(rank: u32, ranks: usize) {
    let here = std::path::Path::new(HERE);
    std::fs::create_dir_all(here).unwrap();
    std::fs::write(here.join(rank.to_string()), "").unwrap();
    let begun = Instant::now();
    while std::fs::read_dir(here).unwrap().count() < ranks && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(5));
    }
}

/// In a rank: a communicator of all ranks, whose order is turned by `turn` against MPI's own.
pub(crate) fn join(turn: u32, size: u32, options: Options, aborter: &Aborter) -> Communicator {
    let rank = (mpi_rank().unwrap() + turn) % size;
    Communicator::connect(rank, size, options, PATIENCE, aborter).unwrap()
}
