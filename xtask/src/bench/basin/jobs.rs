//! A few runs at once. Each writes a log, gives a validation loss or diverges; any other end is a failure that names the
//! run. Whatever happens, no run is left behind.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::trial::Trial;
use crate::failure::{Failure, on_path};
use crate::metrics::Summary;

/// How long a run may take over its end before the next, harder request.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// The validation loss at its end.
    Loss(f64),
    /// It stopped at a number that is not finite.
    Diverged,
}

/// A run that has ended.
pub(super) struct Ended {
    pub(super) trial: Trial,
    pub(super) outcome: Outcome,
    pub(super) seconds: f64,
}

struct Job {
    trial: Trial,
    child: Child,
    began: Instant,
    log: PathBuf,
    /// The run's folder.
    run: PathBuf,
}

/// The runs under way.
#[derive(Default)]
pub(super) struct Jobs {
    running: Vec<Job>,
}

impl Jobs {
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Starts the run of `trial` in the folder `place`.
    pub(super) fn start(
        &mut self,
        trial: Trial,
        place: &Path,
        command: impl FnOnce(&Trial) -> Command,
    ) -> Result<(), Failure> {
        let name = trial.name();
        let log = place.join(format!("{name}.log"));
        let file = File::create(&log).map_err(on_path("create", &log))?;
        let second = file.try_clone().map_err(on_path("open", &log))?;
        let child = command(&trial)
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(second)
            // A group of its own: Ctrl-C at the terminal is for the sweep, which ends its runs by their ids.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::work(format!("the run {trial} could not be started: {error}")))?;
        self.running.push(Job {
            trial,
            child,
            began: Instant::now(),
            log,
            run: place.join("runs").join(name),
        });
        Ok(())
    }

    /// Takes out what has ended, and removes its files.
    ///
    /// # Errors
    /// A run failed otherwise than by diverging; its files stay.
    pub(super) fn poll(&mut self) -> Result<Vec<Ended>, Failure> {
        let mut ended = Vec::new();
        let mut index = 0;
        while index < self.running.len() {
            let job = &mut self.running[index];
            let status = job
                .child
                .try_wait()
                .map_err(|error| Failure::work(format!("the run {} cannot be waited for: {error}", job.trial)))?;
            match status {
                Some(status) => ended.push(self.running.swap_remove(index).end(status)?),
                None => index += 1,
            }
        }
        Ok(ended)
    }

    /// Ends all runs: asks twice, which stops a run in order and then at once, and kills what is left.
    pub(super) fn end(&mut self) {
        for _ in 0..2 {
            for job in &self.running {
                if let Some(pid) = i32::try_from(job.child.id()).ok().and_then(Pid::from_raw) {
                    // It is waited for below and not before, so the id is still its own; it may have ended already.
                    let _ = kill_process(pid, Signal::INT);
                }
            }
            let asked = Instant::now();
            while !self.running.is_empty() && asked.elapsed() < PATIENCE {
                self.running.retain_mut(|job| matches!(job.child.try_wait(), Ok(None)));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        for mut job in self.running.drain(..) {
            // Both fail only for a process that is gone.
            let _ = job.child.kill();
            let _ = job.child.wait();
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.end();
    }
}

impl Job {
    fn end(self, status: ExitStatus) -> Result<Ended, Failure> {
        let outcome = match status.success() {
            true => {
                let loss = Summary::read(&self.run)?.validation_loss;
                Outcome::Loss(loss.ok_or_else(|| {
                    Failure::work(format!(
                        "the run {} has no validation_loss in {}",
                        self.trial,
                        self.run.join("summary.json").display()
                    ))
                })?)
            }
            false => {
                let log = fs::read_to_string(&self.log).map_err(on_path("read", &self.log))?;
                if !says_diverged(&log) {
                    return Err(Failure::work(format!(
                        "the run {} ended with {status}, and not for a loss that is not finite; {} says why:\n{}",
                        self.trial,
                        self.log.display(),
                        log.lines().last().unwrap_or("nothing")
                    )));
                }
                Outcome::Diverged
            }
        };
        for path in [&self.run, &self.log] {
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(path),
                false if path.exists() => fs::remove_file(path),
                false => Ok(()),
            };
            removed.map_err(on_path("remove", path))?;
        }
        Ok(Ended {
            trial: self.trial,
            outcome,
            seconds: self.began.elapsed().as_secs_f64(),
        })
    }
}

/// Whether a run's last words are that a loss, a gradient, a polar factor or an update is not finite. They stand in
/// `coordinator/src/run/machine.rs` and `trainer/src/step/slots.rs`.
fn says_diverged(log: &str) -> bool {
    let Some(sentence) = log.lines().rev().find_map(|line| line.strip_prefix("error: ")) else {
        return false;
    };
    let words: Vec<&str> = sentence.split(|c: char| !c.is_alphanumeric() && c != '-').collect();
    sentence.contains("not finite")
        || words
            .windows(2)
            .any(|pair| pair[0] == "is" && ["NaN", "inf", "-inf"].contains(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_diverged_only_if_its_last_words_say_so() {
        for words in [
            "run a failed: rank 0 (pid 7, trainer-0 on vm) failed: step 2: 160800 gradient values of wte.weight and 13 more \
             tensors are not finite (loss 5.5); no parameter has changed. Try a lower learning rate",
            "run a failed: step 9: the loss is NaN; no parameter has changed. Try a lower learning rate",
            "run a failed: the update norm of step 1 is inf: the run stops, and the parameters of step 0 are the last good \
             ones",
            "run a failed: the validation loss after step 300 is -inf: the run stops",
        ] {
            assert!(
                says_diverged(&format!("step 1/300  loss 5.5\nerror: {words}\n")),
                "{words}"
            );
        }
        for log in [
            "",
            "the loss is NaN\n",
            "error: run a failed: rank 0 (pid 7) was killed by signal 9\n",
            "error: `optimizer.clip_norm` in basin.toml is infinite; expected a number above 0\n",
            "error: the loss is NaN\nerror: the run folder runs/a is in use by another run\n",
        ] {
            assert!(!says_diverged(log), "{log}");
        }
    }
}
