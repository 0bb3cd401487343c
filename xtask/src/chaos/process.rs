//! A process that the harness has started: its log, signals, and its certain end.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, on_path};

/// Killed when dropped, stopped or not.
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in `folder`, in which its log is kept as `NAME.log`, with `variables` in its environment. The kernel
    /// kills it if this process goes without having ended it.
    pub(super) fn start(
        name: &str,
        folder: &Path,
        words: &[String],
        variables: &[(String, String)],
    ) -> Result<Process, Failure> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let out = file.map_err(on_path("open", &log))?;
        let err = out.try_clone().map_err(on_path("open", &log))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(words)
            .current_dir(folder)
            .envs([("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1"), ("NO_COLOR", "1")])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|error| {
                Failure::work(format!(
                    "{name} cannot be started: {error}; it needs setpriv, of util-linux"
                ))
            })?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a line to it.
    pub(super) fn tell(&mut self, line: &str) -> Result<(), Failure> {
        let told = match &mut self.child.stdin {
            Some(stdin) => stdin.write_all(format!("{line}\n").as_bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        told.map_err(|error| Failure::work(format!("{} does not listen: {error}", self.name)))
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself; its id stays its own until it is waited for.
            let _sent = kill_process(pid, signal);
        }
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child
            .try_wait()
            .map_err(|error| Failure::work(format!("{} cannot be waited for: {error}", self.name)))
    }

    /// Kills it and waits for its end.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        // An error says that it was waited for before.
        let _ended = self.child.wait();
    }

    /// Where its log ends now.
    pub(super) fn log_end(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |file| file.len())
    }

    /// What it has said since its log ended at `start`; what cannot be read was not said.
    pub(super) fn log_since(&self, start: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.read_to_end(&mut text)
        });
        match read {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// The last lines that it said.
    pub(super) fn last_words(&self) -> String {
        let text = self.log_since(self.log_end().saturating_sub(2000));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(4)..].join("\n    ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Processes that live in `folder`.
pub(super) fn living_in(folder: &Path) -> Vec<u32> {
    let Ok(folder) = folder.canonicalize() else {
        return Vec::new();
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_started_is_seen_in_its_folder_and_is_gone_when_dropped_even_if_it_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start("sleeper", folder.path(), &words("sleep 600"), &[]).unwrap();
        assert_eq!(living_in(folder.path()), [process.child.id()]);
        process.signal(Signal::STOP);
        drop(process);
        assert_eq!(living_in(folder.path()), [] as [u32; 0]);
    }

    #[test]
    fn a_process_hears_what_it_is_told_and_finds_its_variables() {
        let folder = tempfile::tempdir().unwrap();
        let variables = [("ANSWER".to_owned(), "forty-two".to_owned())];
        let program = ["sh", "-c", "read question; echo $question $ANSWER"].map(str::to_owned);
        let mut process = Process::start("listener", folder.path(), &program, &variables).unwrap();
        process.tell("it is").unwrap();
        while process.ended().unwrap().is_none() {}
        assert_eq!(process.last_words(), "it is forty-two");
    }

    #[test]
    fn what_a_process_says_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::start("speaker", folder.path(), &words("echo it speaks"), &[]).unwrap();
        while process.ended().unwrap().is_none() {}
        assert_eq!(process.last_words(), "it speaks");
        assert_eq!(process.log_since(3), "speaks\n");
        assert_eq!(process.log_since(process.log_end()), "");
    }
}
