//! One rank's part of a snapshot as bytes: float32 values, and what they are.
//!
//! `LSPART02`, the values of every entry in its order, little endian, the entries and the state of the run as JSON (the
//! *index*), and the index's length (64 bits, little endian): values are copied once, since nothing before them depends on
//! them. Tensors are named and elements are counted from the tensor's first, so that a part says nothing of
//! the world that made it: ranks of another one read from it what they own.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lockstep_optim::decision::ModelState;
use serde::{Deserialize, Serialize};

use crate::error::TrainerError;
use crate::snapshot::{RunState, Saved};
use crate::step::skipping::LossRecord;

/// Room for an index that is not large.
const INDEX_ROOM: usize = 64 << 10;

const MAGIC: &[u8; 8] = b"LSPART02";

/// What a part holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The step after which it was frozen.
    pub step: u64,
    /// Steps that the optimiser has made.
    pub optimizer_steps: u64,
    /// The model of the loss: steps, and the bits of its three float64 values.
    pub loss_model: (u32, [u64; 3]),
    /// The words of what is known of the losses.
    pub losses: [u64; 4],
    /// The arrays, in the order of their values.
    pub entries: Vec<Entry>,
}

impl Header {
    /// The state of the run, which all parts must say alike.
    fn state_words(&self) -> (u64, (u32, [u64; 3]), [u64; 4]) {
        (self.optimizer_steps, self.loss_model, self.losses)
    }
}

/// One array of neighbouring elements of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The tensor's name.
    pub tensor: String,
    /// The array's name.
    pub array: String,
    /// Its elements, counted from the tensor's (or the array's) first.
    pub elements: Range<usize>,
}

/// The bits of a model of the loss.
pub fn bits_of(model: &ModelState) -> (u32, [u64; 3]) {
    let values = [model.loss, model.gradient_dot, model.lower_bound];
    (model.steps, values.map(f64::to_bits))
}

/// The model of the loss of these bits.
pub fn model_of((steps, bits): (u32, [u64; 3])) -> ModelState {
    let [loss, gradient_dot, lower_bound] = bits.map(f64::from_bits);
    ModelState {
        steps,
        loss,
        gradient_dot,
        lower_bound,
    }
}

/// Builds a part.
pub struct Builder {
    header: Header,
    bytes: Vec<u8>,
}

impl Builder {
    /// A part without arrays, with room for `room` bytes of values.
    pub fn new(step: u64, state: &RunState, room: usize) -> Builder {
        let mut bytes = Vec::with_capacity(MAGIC.len() + room + INDEX_ROOM);
        bytes.extend_from_slice(MAGIC);
        Builder {
            header: Header {
                step,
                optimizer_steps: state.optimizer_steps,
                loss_model: bits_of(&state.loss_model),
                losses: state.losses.to_words(),
                entries: Vec::new(),
            },
            bytes,
        }
    }

    /// Adds an array that begins at element `start` of its tensor.
    pub fn add(&mut self, tensor: &str, array: &str, start: usize, values: &[f32]) {
        self.header.entries.push(Entry {
            tensor: tensor.to_owned(),
            array: array.to_owned(),
            elements: start..start + values.len(),
        });
        let at = self.bytes.len();
        self.bytes.resize(at + 4 * values.len(), 0);
        for (bytes, value) in self.bytes[at..].as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
    }

    /// The part's bytes.
    pub fn finish(mut self) -> Result<Vec<u8>, TrainerError> {
        let header = serde_json::to_vec(&self.header)
            .map_err(|error| TrainerError::Broken(format!("a part of a snapshot cannot be written: {error}")))?;
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
        Ok(self.bytes)
    }
}

/// A part that was read.
#[derive(Debug)]
struct Part {
    header: Header,
    bytes: Arc<Vec<u8>>,
    /// Where the values of each entry begin.
    offsets: Vec<usize>,
}

impl Part {
    fn read(bytes: Arc<Vec<u8>>) -> Result<Part, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it is no part of a snapshot")?;
        let (rest, length) = rest.split_last_chunk::<8>().ok_or("it is cut off")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| "its index is too long")?;
        let start = rest.len().checked_sub(length).ok_or("its index is cut off")?;
        let header: Header = serde_json::from_slice(&rest[start..]).map_err(|error| format!("its index: {error}"))?;
        let (mut at, ends) = (MAGIC.len(), MAGIC.len() + start);
        let mut offsets = Vec::with_capacity(header.entries.len());
        for entry in &header.entries {
            offsets.push(at);
            let count = entry.elements.end.checked_sub(entry.elements.start);
            let end = count.and_then(|count| count.checked_mul(4)?.checked_add(at));
            at = end.ok_or("a range in its index is impossible")?;
        }
        if at != ends {
            return Err(format!("its values end at byte {ends}, and its index speaks of {at}"));
        }
        Ok(Part { header, bytes, offsets })
    }
}

/// All parts of a snapshot.
#[derive(Debug)]
pub struct Whole {
    parts: Vec<Part>,
    /// By tensor and array: part and entry, sorted by elements.
    index: HashMap<(String, String), Vec<(usize, usize)>>,
}

impl Whole {
    /// Reads the parts of the snapshot of `step`.
    ///
    /// # Errors
    /// A part is damaged, or they do not belong together.
    pub fn read(step: u64, parts: Vec<Arc<Vec<u8>>>) -> Result<Whole, TrainerError> {
        let broken = |part: usize, why: String| {
            TrainerError::Broken(format!(
                "part {part} of the snapshot of step {step} cannot be used: {why}"
            ))
        };
        let mut read: Vec<Part> = Vec::with_capacity(parts.len());
        for (index, bytes) in parts.into_iter().enumerate() {
            let part = Part::read(bytes).map_err(|why| broken(index, why))?;
            if part.header.step != step {
                return Err(broken(index, format!("it is of step {}", part.header.step)));
            }
            if let Some(first) = read.first()
                && first.header.state_words() != part.header.state_words()
            {
                return Err(broken(
                    index,
                    "its state of the run differs from that of part 0".to_owned(),
                ));
            }
            read.push(part);
        }
        if read.is_empty() {
            return Err(TrainerError::Broken(format!(
                "the snapshot of step {step} has no parts"
            )));
        }
        let mut index: HashMap<(String, String), Vec<(usize, usize)>> = HashMap::new();
        for (at, part) in read.iter().enumerate() {
            for (number, entry) in part.header.entries.iter().enumerate() {
                let key = (entry.tensor.clone(), entry.array.clone());
                index.entry(key).or_default().push((at, number));
            }
        }
        for places in index.values_mut() {
            places.sort_by_key(|(part, entry)| read[*part].header.entries[*entry].elements.start);
        }
        Ok(Whole { parts: read, index })
    }
}

impl Saved for Whole {
    fn state(&self) -> Result<RunState, TrainerError> {
        let header = &self.parts[0].header;
        Ok(RunState {
            optimizer_steps: header.optimizer_steps,
            loss_model: model_of(header.loss_model),
            losses: LossRecord::of_words(header.losses),
        })
    }

    fn fill(&self, tensor: &str, array: &str, start: usize, values: &mut [f32]) -> Result<(), TrainerError> {
        let key = (tensor.to_owned(), array.to_owned());
        let (mut at, end) = (start, start + values.len());
        for (part, number) in self.index.get(&key).into_iter().flatten() {
            let part = &self.parts[*part];
            let entry = &part.header.entries[*number].elements;
            if at == end || entry.start > at {
                break;
            }
            if entry.end <= at {
                continue;
            }
            let until = entry.end.min(end);
            let offset = part.offsets[*number] + 4 * (at - entry.start);
            let bytes = &part.bytes[offset..offset + 4 * (until - at)];
            for (value, bytes) in values[at - start..until - start].iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            at = until;
        }
        if at == end {
            return Ok(());
        }
        Err(TrainerError::Broken(format!(
            "no part of the snapshot holds element {at} of {array} of {tensor}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelState {
        ModelState {
            steps: 3,
            loss: 1.5,
            gradient_dot: -0.0,
            lower_bound: f64::MIN_POSITIVE,
        }
    }

    fn state(optimizer_steps: u64) -> RunState {
        RunState {
            optimizer_steps,
            loss_model: model(),
            losses: LossRecord::of_words([9, 1.25f64.to_bits(), 0.5f64.to_bits(), 2]),
        }
    }

    fn part(step: u64, arrays: &[(&str, &str, usize, &[f32])]) -> Arc<Vec<u8>> {
        let mut builder = Builder::new(step, &state(7), 0);
        for (tensor, array, start, values) in arrays {
            builder.add(tensor, array, *start, values);
        }
        Arc::new(builder.finish().unwrap())
    }

    #[test]
    fn what_another_world_owns_is_put_together_from_the_parts_that_hold_it() {
        let first = part(8, &[("w", "master", 4, &[5.0, 6.0]), ("b", "master", 0, &[9.0])]);
        let second = part(8, &[("w", "master", 0, &[1.0, 2.0, f32::MIN_POSITIVE / 2.0, -0.0])]);
        let whole = Whole::read(8, vec![first, second]).unwrap();
        assert_eq!(whole.state().unwrap(), state(7));
        let mut values = [0.0; 4];
        whole.fill("w", "master", 2, &mut values).unwrap();
        let expected = [f32::MIN_POSITIVE / 2.0, -0.0, 5.0, 6.0];
        assert_eq!(values.map(f32::to_bits), expected.map(f32::to_bits));
        whole.fill("w", "master", 6, &mut []).unwrap();
        for (tensor, array, start) in [("w", "master", 3), ("w", "momentum", 0), ("v", "master", 0)] {
            let sentence = whole.fill(tensor, array, start, &mut values).unwrap_err().to_string();
            assert!(sentence.contains(&format!("{array} of {tensor}")), "{sentence}");
        }
    }

    #[test]
    fn a_damaged_part_is_refused_by_its_number() {
        let good = part(8, &[("w", "master", 0, &[1.0, 2.0])]);
        let cut = Arc::new(good[..good.len() - 1].to_vec());
        let mut longer = good.to_vec();
        longer.splice(MAGIC.len()..MAGIC.len(), [0; 4]);
        let no_part = Arc::new(b"something else".to_vec());
        let of_another_step = part(9, &[]);
        let mut other = Builder::new(8, &state(6), 4);
        other.add("w", "master", 0, &[1.0]);
        let of_another_run = Arc::new(other.finish().unwrap());
        for (bad, why) in [
            (cut, "index"),
            (no_part, "no part of a snapshot"),
            (of_another_step, "of step 9"),
            (of_another_run, "differs from that of part 0"),
            (Arc::new(longer), "its values end at byte"),
            (Arc::new(MAGIC.to_vec()), "cut off"),
        ] {
            let sentence = Whole::read(8, vec![Arc::clone(&good), bad]).unwrap_err().to_string();
            assert!(
                sentence.contains("part 1 of the snapshot of step 8") && sentence.contains(why),
                "{sentence}"
            );
        }
    }
}
