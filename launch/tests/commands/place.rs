//! A folder in which a reader's commands find what the pages speak of: the examples, made small so that they take seconds, the
//! prepared data, and the programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::pages::{Block, repository};
use crate::stage::{Running, said, wait_at_most};

/// A block that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is smaller here than in the examples.
const SMALL: &[(&str, u32)] = &[
    ("layers", 1),
    ("heads", 2),
    ("width", 32),
    ("sequence_length", 32),
    ("micro_batch", 2),
    ("steps", 12),
];

/// The run beside which orders are given: so small that it makes hundreds of steps in seconds.
const RUN: &str = "run examples/shakespeare.toml -n 4 --set run.steps=1000000 --set batch.schedule=8 --set checkpoint.every=50 \
                   --set checkpoint.keep_last=1000";
/// A run that the pages speak of when it has ended.
const FINISHED: &str = "runs/shakespeare";
/// The pages go back to step 400 of it.
const FAR: u64 = 450;

pub(crate) struct Place {
    folder: tempfile::TempDir,
    live: Option<Running>,
}

impl Place {
    pub(crate) fn new() -> Place {
        let place = Place {
            folder: tempfile::tempdir().unwrap(),
            live: None,
        };
        let examples = place.path("examples");
        fs::create_dir_all(&examples).unwrap();
        for entry in fs::read_dir(repository().join("examples")).unwrap() {
            let path = entry.unwrap().path();
            let to = examples.join(path.file_name().unwrap());
            match path.extension().is_some_and(|end| end == "toml") {
                true => fs::write(to, smaller(&fs::read_to_string(path).unwrap())).unwrap(),
                false => std::os::unix::fs::symlink(path, to).unwrap(),
            }
        }
        fs::create_dir(place.path("target")).unwrap();
        std::os::unix::fs::symlink(programs(), place.path("target/release")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn prepare(&self) {
        if !self.path("demo/data").exists() {
            let done = self
                .bash("lockstep data prepare --tokenizer byte --out demo/data examples/data/tinyshakespeare.txt")
                .status()
                .unwrap();
            assert!(done.success());
        }
    }

    pub(crate) fn bash(&self, script: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", programs().display()))
            .env("OMP_NUM_THREADS", "1")
            .env("MKL_NUM_THREADS", "1")
            .env_remove("LOCKSTEP_TRAINER");
        command
    }

    /// A run is being trained in this place from now on, and has come far.
    pub(crate) fn train_beside(&mut self) {
        if self.live.as_mut().is_some_and(Running::is_running) {
            return;
        }
        self.prepare();
        let _gone = fs::remove_dir_all(self.path("runs/shakespeare"));
        let mut run = Running::start(&mut self.bash(&format!("exec lockstep {RUN}")));
        let metrics = self.path("runs/shakespeare/metrics.jsonl");
        wait_at_most(PATIENCE, "the run has made some hundred steps", &mut || {
            assert!(run.is_running(), "the run has ended: {}{}", run.out(), run.err());
            let text = fs::read_to_string(&metrics).unwrap_or_default();
            text.lines().count() as u64 > FAR
        });
        self.live = Some(run);
    }

    /// It is stopped.
    pub(crate) fn train_no_more(&mut self) {
        if let Some(mut run) = self.live.take() {
            run.signal(Signal::INT);
            wait_at_most(PATIENCE, "the run has stopped", &mut || !run.is_running());
        }
    }

    /// Runs the commands of a block one after the other, as bash does; what they said, where one did not succeed.
    pub(crate) fn run(&self, block: &Block) -> Option<String> {
        // The commands of a page that prepares the data itself come first.
        if !block.text.contains("data prepare") {
            self.prepare();
        }
        // What looks at a run that has ended finds one.
        let trains = ["lockstep run", "lockstep mpirun"].map(|words| block.text.contains(words));
        if block.text.contains(FINISHED) && trains == [false, false] && !self.path(FINISHED).exists() {
            let done = self
                .bash("lockstep run examples/shakespeare.toml -n 2")
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", said(&done));
        }
        let mut run = Running::start(&mut self.bash(&block.text));
        wait_at_most(PATIENCE, "the commands have ended", &mut || !run.is_running());
        let code = run.wait();
        let told = || {
            format!(
                "{}:{} ended with {code}:\n{}\n{}{}",
                block.page,
                block.line,
                block.text,
                run.out(),
                run.err()
            )
        };
        (code != 0).then(told)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.train_no_more();
        }
    }
}

/// The folder of the programs under test.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_lockstep"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// An example's text with smaller numbers.
fn smaller(text: &str) -> String {
    let line = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        match SMALL.iter().find(|(name, _)| *name == key) {
            Some((name, value)) => format!("{name} = {value}\n"),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}
