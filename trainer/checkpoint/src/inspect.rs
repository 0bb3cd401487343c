//! What a checkpoint holds, for people (`Display`) and for programs (`Serialize`).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::read::Reader;
use crate::tensors::{TensorEntry, TensorKind};

/// What a checkpoint holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The store it is in.
    pub store: String,
    /// Its name in the store.
    pub checkpoint: String,
    /// The run.
    pub run_id: String,
    /// Hash of the run's config.
    pub config_hash: String,
    /// Steps done.
    pub step: u64,
    /// Samples consumed.
    pub cursor: u64,
    /// The term that committed it.
    pub term: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// Version of the schedules.
    pub schedule_version: u64,
    /// The run's parameter hash.
    pub parameter_hash: String,
    /// Named words, as sixteen hexadecimal digits.
    pub words: BTreeMap<String, String>,
    /// Elements of all parameters.
    pub parameters: u64,
    /// Bytes of all parts.
    pub bytes: u64,
    /// Parts: file, bytes, blocks.
    pub parts: Vec<InspectedPart>,
    /// Tensors.
    pub tensors: Vec<TensorEntry>,
}

/// One part.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedPart {
    /// Its file in the store.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// How many blocks it holds.
    pub blocks: usize,
}

/// Looks into a checkpoint, at its manifest alone.
pub fn inspect(reader: &Reader) -> Inspection {
    let manifest = reader.manifest();
    let run = manifest.run();
    let parts: Vec<InspectedPart> = manifest
        .parts()
        .iter()
        .map(|part| InspectedPart {
            file: part.file(),
            bytes: part.bytes,
            blocks: part.blocks.len(),
        })
        .collect();
    let parameters = |tensor: &TensorEntry| tensor.shape.iter().map(|side| *side as u64).product::<u64>();
    Inspection {
        store: reader.store().name().to_owned(),
        checkpoint: reader.name().to_string(),
        run_id: run.run_id.clone(),
        config_hash: run.config_hash.clone(),
        step: run.step,
        cursor: run.cursor,
        term: run.term,
        generation: run.generation,
        schedule_version: run.schedule_version,
        parameter_hash: run.parameter_hash.clone(),
        words: run
            .words
            .iter()
            .map(|(name, word)| (name.clone(), format!("{word:016x}")))
            .collect(),
        parameters: manifest.tensors().iter().map(parameters).sum(),
        bytes: parts.iter().map(|part| part.bytes).sum(),
        parts,
        tensors: manifest.tensors().to_vec(),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "checkpoint      {} in {}", self.checkpoint, self.store)?;
        writeln!(f, "run             {}", self.run_id)?;
        writeln!(f, "config          {}", self.config_hash)?;
        writeln!(f, "step            {} ({} samples)", self.step, self.cursor)?;
        writeln!(f, "term            {}, generation {}", self.term, self.generation)?;
        writeln!(f, "schedules       version {}", self.schedule_version)?;
        writeln!(f, "parameter hash  {}", self.parameter_hash)?;
        for (name, word) in &self.words {
            let bits = u64::from_str_radix(word, 16).unwrap_or_default();
            writeln!(
                f,
                "word            {name} = {word} (as a float64 {})",
                f64::from_bits(bits)
            )?;
        }
        let tensors = self.tensors.len();
        writeln!(f, "parameters      {} in {tensors} tensors", self.parameters)?;
        writeln!(f, "bytes           {} in {} parts", self.bytes, self.parts.len())?;
        for part in &self.parts {
            writeln!(
                f,
                "part            {} {} bytes, {} blocks",
                part.file, part.bytes, part.blocks
            )?;
        }
        for tensor in &self.tensors {
            let kind = match tensor.kind {
                TensorKind::Hidden => "hidden",
                TensorKind::Other => "other",
            };
            let arrays: Vec<String> = tensor
                .arrays
                .iter()
                .map(|array| format!("{} {:?}", array.name, array.shape))
                .collect();
            writeln!(
                f,
                "tensor          {} {:?} {kind}: {}",
                tensor.name,
                tensor.shape,
                arrays.join(", ")
            )?;
        }
        Ok(())
    }
}
