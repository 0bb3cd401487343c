//! A folder of its own for a test: text, data, a config, and the real binary started in it.
#![allow(dead_code)] // Each test file uses its part.

pub(crate) mod hosts;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A test that waits longer than this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A small run of 4 lanes on bytes.
pub(crate) const CONFIG: &str = r#"
[run]
name = "first"
lanes = 4
steps = 6
precision = "fp32"

[data]
path = "data"
sequence_length = 32

[model]
layers = 1
heads = 2
width = 32

[batch]
micro_batch = 2
schedule = 8

[learning_rate]
schedule = 0.002

[validation]
every = 3
"#;

pub(crate) struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    /// With `text.txt`, prepared as bytes in `data`, and `run.toml`.
    pub(crate) fn new() -> Stage {
        let stage = Stage {
            folder: tempfile::tempdir().unwrap(),
        };
        let text: String = (0..600)
            .map(|line| format!("{line} bottles of beer on the wall, {line} bottles of beer.\n"))
            .collect();
        fs::write(stage.path("text.txt"), text).unwrap();
        fs::write(stage.path("run.toml"), CONFIG).unwrap();
        let output = stage.lockstep("data prepare --tokenizer byte --out data text.txt");
        assert!(output.status.success(), "{}", said(&output));
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary with these words, in this folder.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command
            .args(words.split_whitespace())
            .current_dir(self.folder.path())
            .env_remove("LOCKSTEP_TRAINER");
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn lockstep(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// A program in this folder that stands where the trainer is expected.
    pub(crate) fn stand_in(&self, script: &str) -> PathBuf {
        let path = self.path("stand-in");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts the binary.
    pub(crate) fn start(&self, command: &mut Command) -> Running {
        Running::start(command)
    }

    /// Every file with its content, and every folder.
    pub(crate) fn listing(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let content = path.is_file().then(|| fs::read(&path).unwrap_or_default());
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.insert(path, content);
            }
        }
        found
    }

    /// Processes that live in this folder.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let folder = self.folder.path().canonicalize().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)))
            .filter(|pid| !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")))
            .collect()
    }

    /// No process is left in this folder.
    pub(crate) fn nothing_runs(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "{left:?} are left");
    }

    /// A whole file as text.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Stand-ins do not ask the kernel to end them with their launcher, as real trainers do.
        for pid in self.processes() {
            send(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A started binary, killed when dropped.
pub(crate) struct Running {
    child: Child,
    output: tempfile::TempDir,
}

impl Running {
    /// Starts a command, its output kept in files of a folder of its own.
    pub(crate) fn start(command: &mut Command) -> Running {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::File::create(output.path().join(name)).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Running { child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.output.path().join("out")).unwrap()
    }

    pub(crate) fn err(&self) -> String {
        fs::read_to_string(self.output.path().join("err")).unwrap()
    }

    /// Waits for the end; the exit code.
    pub(crate) fn wait(&mut self) -> i32 {
        let mut status = None;
        wait_until("the command has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        send(self.pid(), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    // It may have gone by itself.
    let _ = rustix::process::kill_process(pid, signal);
}

pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    wait_at_most(PATIENCE, what, &mut done);
}

pub(crate) fn wait_at_most(limit: Duration, what: &str, done: &mut dyn FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "waited {} s until {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that a command said.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The trainer that lies beside the binary under test.
pub(crate) fn real_trainer() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_lockstep")).with_file_name("lockstep-trainer");
    assert!(
        path.is_file(),
        "{} is not there: build it first with `cargo build --release -p lockstep-trainer`",
        path.display()
    );
    path
}
