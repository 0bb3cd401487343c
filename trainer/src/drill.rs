//! Fire drills: faults that a test or an operator orders by `LOCKSTEP_DRILL`, to see the policies of `[fault]` at work.
//!
//! Orders stand behind one another with commas between them:
//!
//! - `nan@STEP.MICRO_BATCH`: the loss of that micro-batch is NaN, and a value of its gradient, on whichever rank it falls and
//!   whenever it is made, as those of a bad sample would be
//! - `spike@STEP.MICRO_BATCH*FACTOR`: its loss is FACTOR times as large
//! - `nan-sample@SAMPLE`, `spike-sample@SAMPLE*FACTOR`: the same of whichever micro-batch the sample of that number falls into
//! - `slow@STEP*MILLISECONDS`: from that step on every one takes so much longer on this rank
//! - `hang@STEP`: before that step the device thread stands still for good, and the process lives on; once in its life
//! - `flip-working@STEP:TENSOR`, `flip-master@…`, `flip-momentum@…`: before that step one bit of the tensor's working copy,
//!   or of what this rank owns of it, changes; once in the life of this process. `any` is the first tensor that there is

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::TrainerError;
use crate::step::drift::Array;

/// The variable that orders drills.
const VARIABLE: &str = "LOCKSTEP_DRILL";

/// A micro-batch whose loss is another one.
#[derive(Clone, Debug, PartialEq)]
struct Loss {
    of: Of,
    factor: f64,
}

/// Which micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// That of this number in this step.
    Step(u64, u32),
    /// The one with this sample in it.
    Sample(u64),
}

/// A bit that changes. Clones know of each other whether it has.
#[derive(Clone, Debug)]
struct Flip {
    step: u64,
    array: Array,
    tensor: String,
    is_done: Arc<AtomicBool>,
}

/// What is ordered.
#[derive(Clone, Debug, Default)]
pub struct Drill {
    losses: Vec<Loss>,
    flips: Vec<Flip>,
    /// Steps before which the device thread stands still.
    hangs: Vec<u64>,
    /// From which step on steps take how much longer.
    slow: Vec<(u64, Duration)>,
}

impl Drill {
    /// What the environment orders.
    ///
    /// # Errors
    /// As [`Drill::parse`].
    pub fn from_environment() -> Result<Drill, TrainerError> {
        match std::env::var(VARIABLE) {
            Ok(orders) => {
                tracing::warn!("a drill is ordered by {VARIABLE}: {orders}");
                Drill::parse(&orders)
            }
            Err(_) => Ok(Drill::default()),
        }
    }

    /// Reads orders.
    ///
    /// # Errors
    /// One that is not understood.
    pub fn parse(orders: &str) -> Result<Drill, TrainerError> {
        let mut drill = Drill::default();
        for order in orders.split(',').map(str::trim).filter(|order| !order.is_empty()) {
            drill.add(order).ok_or_else(|| {
                TrainerError::Refused(format!(
                    "{VARIABLE} has the order {order:?}; known are nan@STEP.MICRO_BATCH, spike@STEP.MICRO_BATCH*FACTOR, nan-sample@SAMPLE, spike-sample@SAMPLE*FACTOR, slow@STEP*MILLISECONDS, hang@STEP, and flip-working, flip-master and flip-momentum with @STEP:TENSOR"
                ))
            })?;
        }
        Ok(drill)
    }

    fn add(&mut self, order: &str) -> Option<()> {
        let (kind, rest) = order.split_once('@')?;
        let array = match kind {
            "flip-working" => Some(Array::WorkingCopy),
            "flip-master" => Some(Array::Master),
            "flip-momentum" => Some(Array::Momentum),
            _ => None,
        };
        if let Some(array) = array {
            let (step, tensor) = rest.split_once(':').filter(|(_, tensor)| !tensor.is_empty())?;
            self.flips.push(Flip {
                step: step.parse().ok()?,
                array,
                tensor: tensor.to_owned(),
                is_done: Arc::default(),
            });
            return Some(());
        }
        if kind == "slow" {
            let (step, milliseconds) = rest.split_once('*')?;
            let longer = Duration::from_millis(milliseconds.parse().ok()?);
            self.slow.push((step.parse().ok()?, longer));
            return Some(());
        }
        if kind == "hang" {
            self.hangs.push(rest.parse().ok()?);
            return Some(());
        }
        let (place, factor) = match kind {
            "nan" | "nan-sample" => (rest, f64::NAN),
            "spike" | "spike-sample" => {
                let (place, factor) = rest.split_once('*')?;
                (place, factor.parse().ok()?)
            }
            _ => return None,
        };
        let of = match kind.ends_with("-sample") {
            true => Of::Sample(place.parse().ok()?),
            false => {
                let (step, micro_batch) = place.split_once('.')?;
                Of::Step(step.parse().ok()?, micro_batch.parse().ok()?)
            }
        };
        self.losses.push(Loss { of, factor });
        Some(())
    }

    /// The array of a tensor of which a bit changes before a step, the first time that it is made.
    pub fn flip(&self, step: u64) -> Option<(Array, String)> {
        let due = |flip: &&Flip| flip.step == step && !flip.is_done.swap(true, Ordering::Relaxed);
        self.flips
            .iter()
            .find(due)
            .map(|flip| (flip.array, flip.tensor.clone()))
    }

    /// Whether the device thread stands still before a step.
    pub fn hangs(&self, step: u64) -> bool {
        self.hangs.contains(&step)
    }

    /// How much longer a step takes.
    pub fn delay(&self, step: u64) -> Duration {
        let begun = self.slow.iter().filter(|(from, _)| *from <= step);
        begun.map(|(_, longer)| *longer).sum()
    }

    /// What the loss of a micro-batch, given by its step and its number there, is multiplied by; `samples` are its own.
    pub fn factor(&self, (step, micro_batch): (u64, u32), samples: &Range<u64>) -> Option<f64> {
        let here = |loss: &&Loss| match loss.of {
            Of::Step(of, number) => (of, number) == (step, micro_batch),
            Of::Sample(sample) => samples.contains(&sample),
        };
        self.losses.iter().find(here).map(|loss| loss.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_what_is_none_is_refused_by_its_words() {
        let drill = Drill::parse("nan@5.3, spike@7.0*1e3").unwrap();
        assert!(drill.factor((5, 3), &(0..2)).unwrap().is_nan());
        assert_eq!(drill.factor((7, 0), &(0..2)), Some(1e3));
        assert_eq!(drill.factor((7, 1), &(0..2)), None);
        let drill = Drill::parse("nan-sample@9,spike-sample@12*5").unwrap();
        assert!(drill.factor((1, 0), &(8..10)).unwrap().is_nan());
        assert_eq!(drill.factor((3, 1), &(12..14)), Some(5.0));
        assert_eq!(drill.factor((3, 0), &(10..12)), None);
        let drill = Drill::parse("flip-working@3:wte.weight,flip-momentum@4:any").unwrap();
        assert_eq!(drill.flip(2), None);
        assert_eq!(drill.flip(3), Some((Array::WorkingCopy, "wte.weight".to_owned())));
        assert_eq!(drill.clone().flip(3), None, "once in the life of the process");
        assert_eq!(drill.flip(4), Some((Array::Momentum, "any".to_owned())));
        let drill = Drill::parse("hang@9").unwrap();
        assert!(drill.hangs(9) && !drill.hangs(8));
        let drill = Drill::parse("slow@3*20,slow@5*7").unwrap();
        assert_eq!([2, 3, 6].map(|step| drill.delay(step).as_millis()), [0, 20, 27]);
        for order in [
            "hang@soon",
            "slow@3",
            "nan",
            "nan@5",
            "nan@five.3",
            "spike@7.0",
            "spike@7.0*much",
            "nan-sample@4.1",
            "spike-sample@4",
            "fire@1.1",
            "flip-master@2",
            "flip-master@2:",
        ] {
            let sentence = Drill::parse(order).unwrap_err().to_string();
            assert!(sentence.contains(&format!("{order:?}")), "{sentence}");
        }
    }
}
