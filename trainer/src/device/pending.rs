//! Results that a pass has left on the device, and what they will say once they are on the host.

use lockstep_optim::tensors::table::{Table, read};
use tch::Tensor;

use crate::error::TrainerError;

type Take<T> = Box<dyn FnOnce(&[u64]) -> T>;

/// Words of 64 bits on a device that will say a `T`. Nothing has waited for them yet.
pub struct Pending<T> {
    words: Tensor,
    take: Take<T>,
}

impl<T: 'static> Pending<T> {
    /// What `take` makes of a table's words.
    pub fn new(table: &Table, take: impl FnOnce(&[u64]) -> T + 'static) -> Result<Pending<T>, TrainerError> {
        Ok(Pending {
            words: table.words()?,
            take: Box::new(take),
        })
    }

    /// The words, for those who copy them to the host without waiting.
    pub fn words(&self) -> &Tensor {
        &self.words
    }

    /// What the words say, from a copy of them on the host.
    pub fn say(self, words: &[u64]) -> T {
        (self.take)(words)
    }

    /// Waits for the device, copies the words once, and says what they say.
    pub fn read(self) -> Result<T, TrainerError> {
        let words = read(&self.words)?;
        Ok(self.say(&words))
    }

    /// All of them as one, so that one exchange reads once. At least one.
    pub fn joined(all: Vec<Pending<T>>) -> Result<Pending<Vec<T>>, TrainerError> {
        let words: Vec<&Tensor> = all.iter().map(|pending| &pending.words).collect();
        let words = Tensor::f_cat(&words, 0)?;
        Ok(Pending {
            words,
            take: Box::new(|words| {
                let mut rest = words;
                all.into_iter()
                    .map(|pending| {
                        let (first, after) = rest.split_at(pending.words.numel());
                        rest = after;
                        pending.say(first)
                    })
                    .collect()
            }),
        })
    }
}
