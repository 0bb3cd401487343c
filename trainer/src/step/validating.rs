//! The loss over the validation set, dealt to the lanes as a step is.

use lockstep_data::{ValidationSet, lane_micro_batches};
use lockstep_proto::domain::Validation;

use crate::error::TrainerError;
use crate::model::OpenGate;
use crate::model::lane_losses::numbers;
use crate::step::{Engine, view};

impl Engine {
    /// Mean loss over the whole validation set, by fixed micro-batches dealt to lanes and added in their order.
    pub fn validate(&mut self, set: &ValidationSet) -> Result<Validation, TrainerError> {
        self.gates.with(&mut self.communication).open_all()?;
        let (count, lanes) = (set.count(), self.slots.lanes());
        let mut table = vec![0u64; 2 * count as usize];
        let mut owners = vec![0u32; 2 * count as usize];
        let (mut places, mut losses) = (Vec::new(), Vec::new());
        for (rank, hosted) in self.rank_lanes.clone().into_iter().enumerate() {
            for index in hosted.flat_map(|lane| lane_micro_batches(lane, lanes, count)) {
                let at = 2 * index as usize;
                owners[at..at + 2].fill(rank as u32);
                if rank == self.rank as usize {
                    let batch = set.micro_batch(index)?;
                    losses.push(
                        self.weights
                            .without_recording(|| self.model.loss(&self.weights, view(&batch), &mut OpenGate))?,
                    );
                    table[at + 1] = batch.counted;
                    places.push(at);
                }
            }
        }
        let losses = self.reader.read(numbers(&losses, self.losses.device())?)?;
        for (at, loss) in places.into_iter().zip(losses) {
            table[at] = loss.to_bits();
        }
        self.communication.exchange_slots(&mut table, &owners)?;
        let (mut loss, mut tokens) = (0.0, 0);
        for pair in table.chunks_exact(2) {
            loss += f64::from_bits(pair[0]);
            tokens += pair[1];
        }
        Ok(Validation {
            loss: loss / tokens as f64,
            tokens,
        })
    }
}
