//! Whether a disturbed run is the run that it would have been: the same steps, the same bytes, and nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::chaos::network;
use crate::chaos::play::{CHECKPOINT_EVERY, DEADLINE, GIVES_UP, LEASE};
use crate::chaos::process::{Process, living_in};
use crate::chaos::report::Generation;
use crate::chaos::steps::Steps;
use crate::chaos::store;
use crate::chaos::world::{DRILL, LOOK, Place, RUN, bad_samples};
use crate::failure::{Failure, on_path};

/// What the run trains: small, so that steps take milliseconds. Nothing in it depends on the number of steps, so a run of any
/// length is the beginning of a longer one.
const CONFIG: &str = r#"
[run]
name = "chaos"
lanes = 8
steps = 10000000
precision = "bf16"
[data]
path = "data"
sequence_length = 32
[model]
kind = "gpt2"
layers = 2
heads = 2
width = 32
[batch]
micro_batch = 2
schedule = 16
[learning_rate]
schedule = 0.002
[optimizer]
method = "muonmax"
[validation]
every = 0
[fault]
snapshot_every = 10
on_not_finite = "rewind"
rewind_steps = 8
max_rewinds = 1000
"#;

/// Writes config and data into the place; `store` is where the config has its checkpoints.
pub(super) fn prepare(place: &Place, store: &str) -> Result<(), Failure> {
    let config = format!(
        "{CONFIG}patience_seconds = {:.1}\nlease_seconds = {:.1}\n[collective]\ndeadline_seconds = {:.1}\n\
         [checkpoint]\nevery = {CHECKPOINT_EVERY}\nstore = \"{store}\"\n",
        GIVES_UP.as_secs_f64(),
        LEASE.as_secs_f64(),
        DEADLINE.as_secs_f64()
    );
    let text: String = (0..2000)
        .map(|line| format!("{line} bottles of beer on the wall, {line} bottles of beer.\n"))
        .collect();
    for (name, content) in [("run.toml", &config), ("text.txt", &text)] {
        let path = place.folder.join(name);
        fs::write(&path, content).map_err(on_path("write", &path))?;
    }
    lockstep(place, "data prepare --tokenizer byte --out data text.txt").map(drop)
}

/// Runs `lockstep` in the place to a good end; what it said.
fn lockstep(place: &Place, words: &str) -> Result<String, Failure> {
    let program = place.programs.join("lockstep").display().to_string();
    let words: Vec<String> = std::iter::once(program)
        .chain(words.split_whitespace().map(str::to_owned))
        .collect();
    let variables = [(DRILL.to_owned(), bad_samples())];
    let mut process = Process::start("lockstep", &place.folder, &words, &variables)?;
    let said = process.log_end();
    loop {
        if place.interrupts.raised() {
            return Err(Failure::work("interrupted"));
        }
        match process.ended()? {
            Some(status) if status.success() => return Ok(process.log_since(said)),
            Some(status) => {
                let (words, said) = (words[1..].join(" "), process.log_since(said));
                return Err(Failure::work(format!(
                    "`lockstep {words}` ended with {status}:\n{said}"
                )));
            }
            None => std::thread::sleep(LOOK),
        }
    }
}

/// What a run's ledger says, as `lockstep ledger show --json` has it.
#[derive(Deserialize)]
pub(super) struct Ledger {
    pub(super) generations: Vec<Generation>,
    decisions: Vec<Decision>,
}

#[derive(Deserialize)]
struct Decision {
    reason: String,
}

impl Ledger {
    /// Checkpoints that could not be loaded.
    pub(super) fn checkpoints_refused(&self) -> usize {
        let refused = |decision: &&Decision| decision.reason.contains(" cannot be loaded and will not be used again");
        self.decisions.iter().filter(refused).count()
    }

    /// The processes whose memory was changed and of which the ledger does not say so, of `drilled` by process id and array.
    pub(super) fn not_set_apart<'a>(&self, drilled: &'a [(u32, &'static str)]) -> Vec<&'a (u32, &'static str)> {
        let is_named = |(pid, array): &(u32, &str)| {
            let pid = format!("(pid {pid}, ");
            self.decisions.iter().any(|Decision { reason }| {
                reason.contains(&pid) && reason.contains(" is set apart, ") && reason.contains(array)
            })
        };
        drilled.iter().filter(|drilled| !is_named(drilled)).collect()
    }
}

/// The ledger of the run, which is audited before.
pub(super) fn audited(place: &Place) -> Result<Ledger, Failure> {
    lockstep(place, &format!("ledger audit {RUN}"))?;
    lockstep(place, &format!("ledger replay {RUN}"))?;
    let text = lockstep(place, &format!("ledger show --json {RUN}"))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::work(format!("`lockstep ledger show --json` cannot be understood: {error}")))
}

/// Steps of which there is no checkpoint, with the reason in a log, because it was given up.
pub(super) fn checkpoints_given_up(place: &Path) -> Result<usize, Failure> {
    let mut steps = BTreeSet::new();
    for entry in fs::read_dir(place).map_err(on_path("read", place))? {
        let path = entry.map_err(on_path("read", place))?.path();
        if path.extension().is_some_and(|end| end == "log") {
            let text = fs::read(&path).map_err(on_path("read", &path))?;
            let text = String::from_utf8_lossy(&text);
            let given_up = text
                .lines()
                .filter_map(|line| line.split_once("no checkpoint of step "));
            steps.extend(given_up.filter_map(|(_, why)| why.split_once(':')?.0.parse::<u64>().ok()));
        }
    }
    Ok(steps.len())
}

/// Makes the same run undisturbed and compares.
pub(super) fn judge(place: &Place, disturbed: &Steps) -> Result<(), Failure> {
    disturbed.no_gap_and_no_repeat()?;
    let count = disturbed.count();
    lockstep(
        place,
        &format!(
            "run run.toml -n 1 --set run.name=calm --set run.steps={count} --set checkpoint.every=0 --set checkpoint.store=calm"
        ),
    )?;
    let mut calm = Steps::new(&place.folder.join("runs/calm"));
    calm.look()?;
    if calm.count() != count || calm.made() != disturbed.made() {
        return Err(Failure::work(format!(
            "the calm run made {} steps and ended with step {}, the other one made {} and ended with step {count}",
            calm.made(),
            calm.count(),
            disturbed.made()
        )));
    }
    for ((branch, calm), (of, disturbed)) in calm.all().zip(disturbed.all()) {
        if branch != of
            || calm.step != disturbed.step
            || calm.parameter_hash != disturbed.parameter_hash
            || calm.samples != disturbed.samples
        {
            return Err(Failure::work(format!(
                "step {} is another one: {disturbed:?}; in a run that nothing disturbs it is {calm:?}",
                calm.step
            )));
        }
    }
    let weights = |run: &str| Weights::read(&place.folder.join(run).join("final/model.safetensors"));
    match weights("runs/calm")? == weights(RUN)? {
        true => Ok(()),
        false => Err(Failure::work("the final parameters are others")),
    }
}

/// A safetensors file: what its header says of tensors and of itself, in no order, and the tensors.
#[derive(PartialEq)]
struct Weights {
    header: serde_json::Value,
    tensors: Vec<u8>,
}

impl Weights {
    fn read(path: &Path) -> Result<Weights, Failure> {
        let bytes = fs::read(path).map_err(on_path("read", path))?;
        Weights::parse(&bytes).ok_or_else(|| Failure::work(format!("{} is no safetensors file", path.display())))
    }

    fn parse(bytes: &[u8]) -> Option<Weights> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (header, tensors) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let header = serde_json::from_slice(header).ok()?;
        let tensors = tensors.to_vec();
        (!tensors.is_empty()).then_some(Weights { header, tensors })
    }
}

/// What a run has left on the machine, as a sentence.
pub(super) fn left_behind(folder: &Path) -> Option<String> {
    let processes = living_in(folder);
    let namespaces = network::left_namespaces();
    let memory: Vec<String> = fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.contains("lockstep"))
        .collect();
    let disks = store::left_disks(folder);
    match processes.is_empty() && namespaces.is_empty() && memory.is_empty() && disks.is_empty() {
        true => None,
        false => Some(format!(
            "left behind: processes {processes:?}, namespaces {namespaces:?}, shared memory {memory:?}, disks {disks:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_whose_memory_has_changed_must_be_set_apart_by_its_process_and_its_array() {
        let text = r#"{"generations":[],"decisions":[
            {"reason":"rank 1 (pid 70, trainer-3 on h) is set apart, and the others go on without it: the master of w is not"},
            {"reason":"the checkpoint of step 50 cannot be loaded and will not be used again: it is damaged"}]}"#;
        let ledger: Ledger = serde_json::from_str(text).unwrap();
        let drilled = [(70, "the master of "), (7, "the master of "), (70, "the momentum of ")];
        assert_eq!(ledger.not_set_apart(&drilled), [&drilled[1], &drilled[2]]);
        assert_eq!(ledger.checkpoints_refused(), 1);
    }

    fn file(header: &str, tensors: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), tensors].concat()
    }

    #[test]
    fn a_checkpoint_that_was_given_up_is_counted_once_whoever_says_it() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text| fs::write(place.path().join(name), text).unwrap();
        write(
            "trainer-0.log",
            "no checkpoint of step 50: it is full\nno checkpoint of step 100: it is full\n",
        );
        write(
            "trainer-1.log",
            "no checkpoint of step 50: it is full\nthe checkpoint of step 150 is committed\n",
        );
        write("text.txt", "no checkpoint of step 200: this is no log\n");
        assert_eq!(checkpoints_given_up(place.path()).unwrap(), 2);
    }

    #[test]
    fn weights_are_the_same_whatever_the_order_of_their_header_and_others_where_a_byte_is() {
        let one = Weights::parse(&file(r#"{"a":1,"b":2}"#, &[1, 2])).unwrap();
        assert!(one == Weights::parse(&file(r#"{"b":2,"a":1}"#, &[1, 2])).unwrap());
        assert!(one != Weights::parse(&file(r#"{"b":2,"a":1}"#, &[1, 3])).unwrap());
        assert!(one != Weights::parse(&file(r#"{"b":3,"a":1}"#, &[1, 2])).unwrap());
        assert!(Weights::parse(&file("{}", &[])).is_none() && Weights::parse(&[9; 9]).is_none());
    }
}
