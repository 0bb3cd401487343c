//! The committed steps of a run, as `metrics.jsonl` has them while it is written.
//!
//! A step that was seen here is committed for good: one that is seen again, because a coordinator that was started again has
//! written the file anew, must be the same, and none may be missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::{Failure, on_path};

/// A committed step.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Step {
    pub(super) step: u64,
    /// Samples that all steps so far have consumed.
    pub(super) samples: u64,
    /// Samples that this one has consumed.
    pub(super) batch: u64,
    pub(super) generation: u64,
    pub(super) ranks: u32,
    pub(super) parameter_hash: String,
}

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Step(Step),
    /// The run went back.
    Rewind {
        rewind: Rewind,
    },
    /// What a step of these was validated with.
    Validation {
        #[serde(rename = "validation_loss")]
        _loss: f64,
    },
}

/// What a rewind did.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) struct Rewind {
    to: u64,
    skipped_samples: [u64; 2],
}

/// Reads the file on from where it ended last.
pub(super) struct Steps {
    path: PathBuf,
    read: u64,
    /// The beginning of a line whose end is not written yet.
    begun: String,
    /// The newest step that the file has had since it was begun anew, and the rewinds before it.
    newest: u64,
    rewinds: Vec<Rewind>,
    /// Steps that the file has had since then, those that a rewind left behind among them.
    made: u64,
    /// Which of them was committed last.
    last: Option<(usize, u64)>,
    /// By the number of rewinds before it, and step.
    known: BTreeMap<(usize, u64), Step>,
}

impl Steps {
    pub(super) fn new(run_folder: &Path) -> Steps {
        Steps {
            path: run_folder.join("metrics.jsonl"),
            read: 0,
            begun: String::new(),
            newest: 0,
            rewinds: Vec::new(),
            made: 0,
            last: None,
            known: BTreeMap::new(),
        }
    }

    /// The file will be written anew, and all of it is read again.
    pub(super) fn begin_anew(&mut self) {
        self.read = 0;
        self.begun.clear();
        self.rewinds.clear();
        (self.newest, self.made, self.last) = (0, 0, None);
    }

    /// Takes in what was written since.
    ///
    /// # Errors
    /// When a step is not the one after the one before it, or was another one before.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(on_path("read", &self.path)(error)),
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.read))
            .and_then(|_| file.read_to_end(&mut bytes))
            .map_err(on_path("read", &self.path))?;
        self.read += bytes.len() as u64;
        self.begun.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.begun.split_once('\n') {
            let line = serde_json::from_str(line)
                .map_err(|error| Failure::work(format!("{} has the line {line:?}: {error}", self.path.display())))?;
            let rest = rest.to_owned();
            match line {
                Line::Step(step) => self.take(step)?,
                Line::Rewind { rewind } => {
                    self.newest = rewind.to;
                    self.rewinds.push(rewind);
                }
                Line::Validation { .. } => {}
            }
            self.begun = rest;
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<(), Failure> {
        if step.step != self.newest + 1 {
            return Err(Failure::work(format!(
                "step {} was committed after step {}",
                step.step, self.newest
            )));
        }
        self.newest = step.step;
        self.made += 1;
        let key = (self.rewinds.len(), step.step);
        self.last = Some(key);
        if let Some(before) = self.known.get(&key)
            && *before != step
        {
            return Err(Failure::work(format!(
                "a committed step has changed: it was {before:?} and is {step:?}"
            )));
        }
        self.known.insert(key, step);
        Ok(())
    }

    /// Whether every step that was ever seen is in the file.
    pub(super) fn are_whole(&self) -> bool {
        self.made >= self.known.len() as u64
    }

    /// The step that was committed last, also where the run has gone back since.
    pub(super) fn newest(&self) -> Option<&Step> {
        self.known.get(self.last.as_ref()?)
    }

    /// The step before one that was made after so many rewinds.
    fn step_before(&self, rewinds: usize, step: u64) -> Option<&Step> {
        let before = step.checked_sub(1)?;
        let went_back_behind = |rewind: &Rewind| rewind.to < before;
        let branch = self.rewinds[..rewinds]
            .iter()
            .rposition(went_back_behind)
            .map_or(0, |at| at + 1);
        self.known.get(&(branch, before))
    }

    /// Steps that were committed, those that a rewind left behind among them.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Samples that the run has consumed: trained or skipped.
    pub(super) fn consumed(&self) -> u64 {
        let trained = |step: Option<&Step>| step.map_or(0, |step| step.samples);
        let skipped = self.rewinds.last().map_or(0, |rewind| {
            let at = self.step_before(self.rewinds.len(), rewind.to + 1);
            rewind.skipped_samples[1] - trained(at)
        });
        trained(self.step_before(self.rewinds.len(), self.newest + 1)) + skipped
    }

    /// The number of the newest committed step; 0: none.
    pub(super) fn count(&self) -> u64 {
        self.newest
    }

    /// All of them, in the order in which they were committed, each with the number of rewinds before it.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Step)> {
        self.known.iter().map(|((rewinds, _), step)| (*rewinds, step))
    }

    /// Every sample was consumed once: each step takes up where the one before has ended.
    ///
    /// # Errors
    /// With the first step that does not.
    pub(super) fn no_gap_and_no_repeat(&self) -> Result<(), Failure> {
        for (rewinds, step) in self.all() {
            let consumed = self.step_before(rewinds, step.step).map_or(0, |before| before.samples);
            if consumed + step.batch != step.samples {
                return Err(Failure::work(format!(
                    "before step {} {consumed} samples were trained; it takes {} and then they are {}",
                    step.step, step.batch, step.samples
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(step: u64, hash: &str) -> String {
        let samples = step * 8;
        format!(
            "{{\"step\":{step},\"samples\":{samples},\"batch\":8,\"generation\":1,\"ranks\":2,\"parameter_hash\":\"{hash}\"}}\n"
        )
    }

    fn write(folder: &Path, text: &str) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(folder.join("metrics.jsonl"))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn steps_are_read_as_they_are_written_half_lines_included() {
        let folder = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(folder.path());
        steps.look().unwrap();
        assert_eq!(steps.count(), 0);
        let (one, two) = (line(1, "a"), line(2, "b"));
        write(folder.path(), &format!("{one}{}", &two[..9]));
        steps.look().unwrap();
        assert_eq!(steps.count(), 1);
        write(
            folder.path(),
            &format!("{}{{\"step\":2,\"validation_loss\":1.5}}\n", &two[9..]),
        );
        steps.look().unwrap();
        assert_eq!(steps.newest().unwrap().parameter_hash, "b");
        assert!(steps.no_gap_and_no_repeat().is_ok());
    }

    #[test]
    fn after_a_rewind_steps_are_made_once_more_and_those_of_the_closed_branch_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(folder.path());
        let rewind = "{\"rewind\":{\"number\":1,\"unusable\":4,\"to\":1,\"skipped_samples\":[8,32],\"rate_factor\":1.0,\"reason\":\"a spike\"}}\n";
        write(
            folder.path(),
            &[
                &line(1, "a"),
                &line(2, "b"),
                &line(3, "c"),
                rewind,
                &line(2, "x"),
                &line(3, "y"),
            ]
            .concat(),
        );
        steps.look().unwrap();
        assert_eq!((steps.count(), steps.made()), (3, 5));
        assert_eq!(steps.newest().unwrap().parameter_hash, "y");
        assert_eq!(steps.consumed(), 48, "24 were trained on this branch, and 24 skipped");
        steps.no_gap_and_no_repeat().unwrap();
        let order: Vec<(usize, u64)> = steps.all().map(|(rewinds, step)| (rewinds, step.step)).collect();
        assert_eq!(order, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
        assert!(steps.are_whole());
        steps.begin_anew();
        steps.look().unwrap();
        assert!(steps.are_whole() && steps.made() == 5);
    }

    #[test]
    fn a_step_that_is_left_out_or_changed_or_lost_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(folder.path());
        write(folder.path(), &format!("{}{}", line(1, "a"), line(2, "b")));
        steps.look().unwrap();
        write(folder.path(), &line(4, "d"));
        assert!(steps.look().is_err());

        std::fs::remove_file(folder.path().join("metrics.jsonl")).unwrap();
        steps.begin_anew();
        write(folder.path(), &line(1, "a"));
        steps.look().unwrap();
        assert!(!steps.are_whole());
        write(folder.path(), &line(2, "other"));
        assert!(steps.look().is_err());
    }

    #[test]
    fn samples_that_are_left_out_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut steps = Steps::new(folder.path());
        let gap = line(2, "b").replace("\"samples\":16", "\"samples\":24");
        write(folder.path(), &format!("{}{gap}", line(1, "a")));
        steps.look().unwrap();
        let told = steps.no_gap_and_no_repeat().unwrap_err();
        assert!(told.to_string().contains("before step 2"), "{told}");
    }
}
