//! The manifest: what makes a set of parts a checkpoint. A [`Manifest`] can only be had complete: every block of every array
//! exactly once.
//!
//! The file is one line of JSON, `{"format":…,"version":…,"hash":…,"body":{…}}`; the hash is BLAKE3 of the bytes of the body
//! as they stand in the file, and the whole line is compared with what this build would have written around that body, so
//! that no byte of it can change unseen.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::coverage::Coverage;
use crate::error::CheckpointError;
use crate::hash::ContentHash;
use crate::part::PartEntry;
use crate::tensors::TensorEntry;

/// The version of manifests and parts that this build writes and reads.
pub const VERSION: u64 = 1;
const FORMAT: &str = "lockstep-checkpoint";

/// Which checkpoint: ordered from old to new in the life of the run. A rewind makes a new generation, so what came after it
/// is newer than the steps of the branch that it closed, though their numbers are higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointName {
    /// The term of the coordinator that committed it.
    pub term: u64,
    /// The generation of the world that wrote it.
    pub generation: u64,
    /// Steps done.
    pub step: u64,
}

impl CheckpointName {
    /// Its manifest inside a store.
    pub fn file(&self) -> String {
        format!("{self}.json")
    }

    /// From the path of a manifest inside a store; other paths are none.
    pub(crate) fn from_file(file: &str) -> Option<CheckpointName> {
        let (step, rest) = file.strip_prefix("step-")?.split_once("/term-")?;
        let (term, generation) = rest.strip_suffix(".json")?.split_once("-generation-")?;
        let name = CheckpointName {
            term: term.parse().ok()?,
            generation: generation.parse().ok()?,
            step: step.parse().ok()?,
        };
        (name.file() == file).then_some(name)
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CheckpointName { term, generation, step } = self;
        write!(f, "step-{step}/term-{term}-generation-{generation}")
    }
}

/// What a checkpoint says of the run, beside its tensors. Random numbers need nothing: they are a function of seed and step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunValues {
    /// The run.
    pub run_id: String,
    /// Hash of its config.
    pub config_hash: String,
    /// Its config as resolved.
    pub config_toml: String,
    /// Steps done.
    pub step: u64,
    /// The term that commits.
    pub term: u64,
    /// The generation that wrote the parts.
    pub generation: u64,
    /// Samples consumed.
    pub cursor: u64,
    /// Version of the schedules and overrides that the next step is planned by.
    pub schedule_version: u64,
    /// Named words of 64 bits: Momo's scalars, as the bits of a float64.
    #[serde(with = "words")]
    pub words: BTreeMap<String, u64>,
    /// The run's parameter hash after the step.
    pub parameter_hash: String,
}

/// Words as sixteen hexadecimal digits: JSON numbers lose bits in many readers.
mod words {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(words: &BTreeMap<String, u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(words.iter().map(|(name, word)| (name, format!("{word:016x}"))))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        let word = |(name, text): (String, String)| match u64::from_str_radix(&text, 16) {
            Ok(word) if text.len() == 16 => Ok((name, word)),
            _ => Err(de::Error::custom(format!(
                "{name} is {text:?}, not sixteen hexadecimal digits"
            ))),
        };
        texts.into_iter().map(word).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    run: RunValues,
    tensors: Vec<TensorEntry>,
    parts: Vec<PartEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    format: &'a str,
    version: u64,
    hash: ContentHash,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// A complete checkpoint: the run's values, the tensors, and where each block lies.
#[derive(Clone, Debug)]
pub struct Manifest {
    body: Body,
    coverage: Coverage,
}

impl Manifest {
    /// Of all owners' parts. Parts without blocks are left out.
    ///
    /// # Errors
    /// A block is missing, there twice or unknown, a part's layout has a hole, or two tensors share a name.
    pub fn new(run: RunValues, tensors: Vec<TensorEntry>, parts: Vec<PartEntry>) -> Result<Manifest, CheckpointError> {
        let parts: Vec<PartEntry> = parts.into_iter().filter(|part| !part.blocks.is_empty()).collect();
        let coverage =
            Coverage::new(&tensors, &parts).map_err(|what| CheckpointError::Incomplete { step: run.step, what })?;
        let body = Body { run, tensors, parts };
        Ok(Manifest { body, coverage })
    }

    /// Which checkpoint it is.
    pub fn name(&self) -> CheckpointName {
        CheckpointName {
            term: self.body.run.term,
            generation: self.body.run.generation,
            step: self.body.run.step,
        }
    }

    /// The run's values.
    pub fn run(&self) -> &RunValues {
        &self.body.run
    }

    /// The tensors.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.body.tensors
    }

    /// The parts.
    pub fn parts(&self) -> &[PartEntry] {
        &self.body.parts
    }

    pub(crate) fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        let broken = |e: serde_json::Error| {
            CheckpointError::Request(format!(
                "the manifest of {} cannot be written as JSON: {e}",
                self.name()
            ))
        };
        let body = serde_json::value::to_raw_value(&self.body).map_err(broken)?;
        enclose(VERSION, &body).map_err(broken)
    }

    /// From a file; `store` is for errors.
    pub(crate) fn decode(store: &str, name: CheckpointName, bytes: &[u8]) -> Result<Manifest, CheckpointError> {
        let damaged = |what: String| CheckpointError::Damaged {
            store: store.to_owned(),
            checkpoint: name,
            file: name.file(),
            block: String::new(),
            what,
        };
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            format: String,
            version: u64,
        }
        let any: Versioned = serde_json::from_slice(bytes).map_err(|e| damaged(format!("is no manifest: {e}")))?;
        if any.format != FORMAT {
            return Err(damaged(format!("has format {:?}, not {FORMAT:?}", any.format)));
        }
        if any.version != VERSION {
            return Err(CheckpointError::UnknownVersion {
                store: store.to_owned(),
                checkpoint: name,
                found: any.version,
            });
        }
        let file: File<'_> = serde_json::from_slice(bytes).map_err(|e| damaged(format!("is no manifest: {e}")))?;
        let hash = ContentHash::of(file.body.get().as_bytes());
        if hash != file.hash {
            return Err(damaged(format!(
                "has a body of hash {hash}, and says that it is {}",
                file.hash
            )));
        }
        if enclose(VERSION, file.body).ok().as_deref() != Some(bytes) {
            return Err(damaged("was written anew around its body".to_owned()));
        }
        let body: Body =
            serde_json::from_str(file.body.get()).map_err(|e| damaged(format!("has a body that is none: {e}")))?;
        let coverage = Coverage::new(&body.tensors, &body.parts)
            .map_err(|what| damaged(format!("names parts that make no checkpoint: {what}")))?;
        let manifest = Manifest { body, coverage };
        if manifest.name() != name {
            return Err(damaged(format!(
                "is the manifest of {}, in the place of this one",
                manifest.name()
            )));
        }
        Ok(manifest)
    }
}

fn enclose(version: u64, body: &RawValue) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec(&File {
        format: FORMAT,
        version,
        hash: ContentHash::of(body.get().as_bytes()),
        body,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}
