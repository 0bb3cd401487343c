//! Whether a disturbed run is the run that it would have been: the same steps, the same bytes, and nothing left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::chaos::network;
use crate::chaos::play::{DEADLINE, GIVES_UP};
use crate::chaos::process::living_in;
use crate::chaos::steps::{Steps, no_gap_and_no_repeat};
use crate::chaos::world::{Place, RUN};
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
"#;

/// Writes config and data into the place.
pub(super) fn prepare(place: &Place) -> Result<(), Failure> {
    let config = format!(
        "{CONFIG}patience_seconds = {:.1}\n[collective]\ndeadline_seconds = {:.1}\n",
        GIVES_UP.as_secs_f64(),
        DEADLINE.as_secs_f64()
    );
    let text: String = (0..2000)
        .map(|line| format!("{line} bottles of beer on the wall, {line} bottles of beer.\n"))
        .collect();
    for (name, content) in [("run.toml", &config), ("text.txt", &text)] {
        let path = place.folder.join(name);
        fs::write(&path, content).map_err(on_path("write", &path))?;
    }
    lockstep(place, "data prepare --tokenizer byte --out data text.txt")
}

/// Runs `lockstep` in the place to a good end.
fn lockstep(place: &Place, words: &str) -> Result<(), Failure> {
    let output = Command::new(place.programs.join("lockstep"))
        .args(words.split_whitespace())
        .current_dir(&place.folder)
        .env_remove("LOCKSTEP_TRAINER")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::work(format!("lockstep cannot be started: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::work(format!(
            "lockstep {words} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// Makes the same run undisturbed and compares; audits the ledger.
pub(super) fn judge(place: &Place, disturbed: &Steps) -> Result<(), Failure> {
    no_gap_and_no_repeat(disturbed.all())?;
    if lockstep(place, "ledger --help").is_ok() {
        lockstep(place, &format!("ledger audit {RUN}"))?;
    } else {
        println!("the ledger is not audited: this build has no `lockstep ledger audit`");
    }
    let count = disturbed.count();
    lockstep(
        place,
        &format!("run run.toml -n 1 --set run.name=calm --set run.steps={count}"),
    )?;
    let mut calm = Steps::new(&place.folder.join("runs/calm"));
    calm.look()?;
    if calm.count() != count {
        return Err(Failure::work(format!(
            "the calm run made {} of {count} steps",
            calm.count()
        )));
    }
    for (calm, disturbed) in calm.all().zip(disturbed.all()) {
        if calm.parameter_hash != disturbed.parameter_hash || calm.samples != disturbed.samples {
            return Err(Failure::work(format!(
                "step {} is another one: {disturbed:?}; in a run that nothing disturbs it is {calm:?}",
                calm.step
            )));
        }
    }
    let (calm, disturbed) = (
        files(&place.folder.join("runs/calm/final"))?,
        files(&place.folder.join(RUN).join("final"))?,
    );
    let other: Vec<&String> = calm
        .keys()
        .filter(|name| disturbed.get(*name) != calm.get(*name))
        .collect();
    match calm.len() == disturbed.len() && other.is_empty() && !calm.is_empty() {
        true => Ok(()),
        false => Err(Failure::work(format!("the final files are others: {other:?}"))),
    }
}

/// The files of a folder, whole.
fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(on_path("read", folder))? {
        let path = entry.map_err(on_path("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.insert(name, fs::read(&path).map_err(on_path("read", &path))?);
    }
    Ok(files)
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
    match processes.is_empty() && namespaces.is_empty() && memory.is_empty() {
        true => None,
        false => Some(format!(
            "left behind: processes {processes:?}, namespaces {namespaces:?}, shared memory {memory:?}"
        )),
    }
}
