//! Results of a pass, and what they will say once they are on the host.

use lockstep_optim::tensors::table::{Table, read};
use tch::Tensor;

use crate::error::TrainerError;

type Say<T> = Box<dyn FnOnce(&[u64]) -> T>;

/// A `T` that is known, or words of 64 bits on a device that will say one. Nothing has waited for them yet.
pub enum Pending<T> {
    /// It is known.
    Known(T),
    /// It is on a device.
    OnDevice {
        /// The words, int64, for those who copy them to the host without waiting.
        words: Tensor,
        /// What a copy of them says.
        say: Say<T>,
    },
}

impl<T: 'static> Pending<T> {
    /// What `say` makes of a table's words.
    pub fn new(table: &Table, say: impl FnOnce(&[u64]) -> T + 'static) -> Result<Pending<T>, TrainerError> {
        Ok(Pending::OnDevice {
            words: table.words()?,
            say: Box::new(say),
        })
    }

    /// Waits for the device, copies the words once, and says what they say.
    pub fn read(self) -> Result<T, TrainerError> {
        match self {
            Pending::Known(value) => Ok(value),
            Pending::OnDevice { words, say } => Ok(say(&read(&words)?)),
        }
    }

    /// Its words on the device, if it is there, and what they will say.
    fn parts(self) -> (Option<Tensor>, Say<T>) {
        match self {
            Pending::Known(value) => (None, Box::new(|_| value)),
            Pending::OnDevice { words, say } => (Some(words), say),
        }
    }

    /// What `change` makes of what it will say.
    pub fn map<U: 'static>(self, change: impl FnOnce(T) -> U + 'static) -> Pending<U> {
        match self {
            Pending::Known(value) => Pending::Known(change(value)),
            Pending::OnDevice { words, say } => Pending::OnDevice {
                words,
                say: Box::new(move |words| change(say(words))),
            },
        }
    }

    /// Both as one, so that one exchange reads once.
    pub fn and<U: 'static>(self, other: Pending<U>) -> Result<Pending<(T, U)>, TrainerError> {
        let ((words, say), (others, say_other)) = (self.parts(), other.parts());
        let first = words.as_ref().map_or(0, Tensor::numel);
        let say = move |words: &[u64]| (say(&words[..first]), say_other(&words[first..]));
        let tensors: Vec<Tensor> = words.into_iter().chain(others).collect();
        Ok(match tensors.is_empty() {
            true => Pending::Known(say(&[])),
            false => Pending::OnDevice {
                words: Tensor::f_cat(&tensors, 0)?,
                say: Box::new(say),
            },
        })
    }

    /// All of them as one, so that one exchange reads once.
    pub fn joined(all: Vec<Pending<T>>) -> Result<Pending<Vec<T>>, TrainerError> {
        let mut tensors = Vec::new();
        let mut parts: Vec<(usize, Say<T>)> = Vec::new();
        for pending in all {
            let (words, say) = pending.parts();
            parts.push((words.as_ref().map_or(0, Tensor::numel), say));
            tensors.extend(words);
        }
        let say = move |words: &[u64]| {
            let mut rest = words;
            let say_one = |(length, say): (usize, Say<T>)| {
                let (first, after) = rest.split_at(length);
                rest = after;
                say(first)
            };
            parts.into_iter().map(say_one).collect()
        };
        Ok(match tensors.is_empty() {
            true => Pending::Known(say(&[])),
            false => Pending::OnDevice {
                words: Tensor::f_cat(&tensors, 0)?,
                say: Box::new(say),
            },
        })
    }
}
