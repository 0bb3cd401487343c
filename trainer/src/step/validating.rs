//! The loss over the validation set, dealt to the lanes as a step is.

use lockstep_data::{ValidationSet, lane_micro_batches};
use lockstep_proto::domain::Validation;

use crate::error::TrainerError;
use crate::model::OpenGate;
use crate::model::lane_losses::LaneLosses;
use crate::step::{Engine, view};

impl Engine {
    /// Mean loss over the whole validation set, by fixed micro-batches dealt to lanes and added in their order.
    pub fn validate(&mut self, set: &ValidationSet) -> Result<Validation, TrainerError> {
        self.gates.with(&mut self.communication).open_all()?;
        let (count, lanes) = (set.count(), self.slots.lanes());
        let mut table = vec![0u64; 2 * count as usize];
        let mut owners = vec![0u32; 2 * count as usize];
        for (rank, hosted) in self.rank_lanes.iter().enumerate() {
            for index in hosted.clone().flat_map(|lane| lane_micro_batches(lane, lanes, count)) {
                let at = 2 * index as usize;
                owners[at..at + 2].fill(rank as u32);
            }
        }
        let hosted = self.rank_lanes[self.rank as usize].clone();
        let mine: Vec<u32> = hosted.flat_map(|lane| lane_micro_batches(lane, lanes, count)).collect();
        // Nothing that outlives a micro-batch may be made between two of them: a small piece of memory takes its place in what the
        // logits leave, the next logits do not fit there any more, and the heap would grow by them each time.
        let mut losses = LaneLosses::new((mine.len() as u32).max(1), self.losses.device())?;
        for (place, index) in (0..).zip(&mine) {
            let batch = set.micro_batch(*index)?;
            let loss = self
                .weights
                .without_recording(|| self.model.loss(&self.weights, view(&batch), &mut OpenGate))?;
            losses.add(place, &loss)?;
            // A whole validation may take minutes, and others that are through with theirs wait for it: it does not stand still.
            self.activity.moves();
            table[2 * *index as usize + 1] = batch.counted;
        }
        let sums = self.reader.read(losses.sums()?)?;
        for (index, sum) in mine.into_iter().zip(sums) {
            table[2 * index as usize] = sum.to_bits();
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
