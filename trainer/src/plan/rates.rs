//! How fast, and in how much memory, a machine does the parts of a step; and what a run will take there. Pure.
//!
//! Way of data: what [`Probe`]s of few layers took, or a known device's data sheet → [`Rates`]: fixed parts, parts a layer,
//! and rates → with the [`Work`] of a run a [`Prediction`]: memory and milliseconds, part by part.

use lockstep_config::RunConfig;
use serde::{Deserialize, Serialize};

use crate::plan::work::{RankWork, Work};

/// What one rank measured of a few steps of a run that is shortened to `layers`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Layers of the model.
    pub(super) layers: u32,
    /// Resident memory before anything of the run was there, bytes.
    pub(super) resident_before: u64,
    /// The largest resident memory, bytes.
    pub(super) peak: u64,
    /// The most bytes that libtorch's tensors took of it at once, in the steps.
    pub(super) tensors: u64,
    /// Milliseconds a step, by part; medians of the steps.
    pub(super) times: Times,
}

/// Milliseconds of a step's parts on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    /// Forward passes, without waits.
    pub(super) forward: f64,
    /// Backward passes, with the reductions that they do not hide.
    pub(super) backward: f64,
    /// How large gradients are, lane by lane.
    pub(super) norms: f64,
    /// Adding lanes.
    pub(super) lanes: f64,
    /// Waiting for partial sums of others, and adding the last of them.
    pub(super) reduce: f64,
    /// Moments and polar factors.
    pub(super) polar: f64,
    /// Applying the update, hashes among it.
    pub(super) apply: f64,
    /// Exchanges of slots; on a rank with less to do, waiting for those that have more.
    pub(super) slots: f64,
    /// Waiting at gates for parameters of others.
    pub(super) gather: f64,
    /// All of it.
    pub(super) step: f64,
}

/// A probe: a shortened run, what its steps were for each rank, and what each rank measured.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) work: Work,
    pub(super) measured: Vec<Measured>,
}

/// A quantity that grows by the same with every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// Without layers.
    pub(super) fixed: f64,
    /// A layer.
    pub(super) layer: f64,
}

impl Line {
    /// Through the values of probes of so many layers; through one point it is all a layer's.
    fn through(points: &[(u32, f64)]) -> Line {
        match points {
            [(layers, value), .., (more, larger)] if more > layers => {
                // What noise makes negative is nothing.
                let layer = ((larger - value) / f64::from(more - layers)).max(0.0);
                Line {
                    fixed: (value - layer * f64::from(*layers)).max(0.0),
                    layer,
                }
            }
            [(layers, value), ..] => Line {
                fixed: 0.0,
                layer: value / f64::from((*layers).max(1)),
            },
            [] => Line::default(),
        }
    }

    fn at(self, layers: u32) -> f64 {
        self.fixed + self.layer * f64::from(layers)
    }
}

/// What a machine is known to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Milliseconds of a micro-batch, forward.
    pub(super) forward: Line,
    /// Milliseconds of a micro-batch, backward.
    pub(super) backward: Line,
    /// Milliseconds for a lane and 10⁶ elements of the gradient.
    pub(super) norms: f64,
    /// Milliseconds for an addition of 10⁶ elements.
    pub(super) addition: f64,
    /// Milliseconds for 10⁹ units of polar cost.
    pub(super) polar: f64,
    /// Milliseconds for 10⁶ owned elements, beside polar factors.
    pub(super) apply: f64,
    /// Milliseconds that a step waits for 10⁶ bytes of partial sums.
    pub(super) reduce: f64,
    /// Milliseconds that a step waits for 10⁶ bytes of parameters.
    pub(super) gather: f64,
    /// Milliseconds of a step's exchanges of slots.
    pub(super) slots: f64,
    /// Bytes of a process without a run.
    pub(super) process: f64,
    /// Bytes beside the account and the process, for a micro-batch of the run's size.
    pub(super) activations: Line,
}

/// A value a unit; 0 where there is nothing to measure it by.
fn rate(value: f64, units: f64) -> f64 {
    if units > 0.0 { value / units } else { 0.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

impl Rates {
    /// From probes, in rising order of layers.
    pub(super) fn of(probes: &[Probe]) -> Rates {
        let line = |of: &dyn Fn(&Probe) -> f64| {
            let points: Vec<(u32, f64)> = probes.iter().map(|probe| (layers(probe), of(probe))).collect();
            Line::through(&points)
        };
        let Some(last) = probes.last() else {
            return Rates::default();
        };
        // Ranks have different numbers of micro-batches: each says its own, and the median of them counts.
        let micro_batch = |probe: &Probe, of: fn(&Times) -> f64| {
            let ranks = probe.work.ranks.iter().zip(&probe.measured);
            let each = ranks.filter(|(work, _)| work.micro_batches > 0);
            median(
                each.map(|(work, measured)| of(&measured.times) / f64::from(work.micro_batches))
                    .collect(),
            )
        };
        // What is a rate is taken of all ranks together, in the probe with most layers.
        let sum = |of: &dyn Fn(&Measured) -> f64| last.measured.iter().map(of).sum::<f64>();
        let units = |of: &dyn Fn(&RankWork) -> f64| last.work.ranks.iter().map(of).sum::<f64>();
        let least = |of: fn(&Times) -> f64| {
            let ranks = last.measured.iter().map(|measured| of(&measured.times));
            ranks.fold(f64::INFINITY, f64::min)
        };
        let millions = last.work.gradient_elements as f64 / 1e6;
        Rates {
            forward: line(&|probe| micro_batch(probe, |times| times.forward)),
            backward: line(&|probe| micro_batch(probe, |times| times.backward)),
            norms: rate(sum(&|m| m.times.norms), units(&|w| f64::from(w.lanes)) * millions),
            addition: rate(sum(&|m| m.times.lanes), units(&|w| f64::from(w.additions)) * millions),
            polar: rate(sum(&|m| m.times.polar), units(&|w| w.polar_cost as f64) / 1e9),
            apply: rate(sum(&|m| m.times.apply), units(&|w| w.owned as f64) / 1e6),
            // The rank that is waited for waits least itself: its share is the exchange.
            reduce: rate(least(|times| times.reduce), last.work.most(|w| w.received) as f64 / 1e6),
            gather: rate(least(|times| times.gather), last.work.most(|w| w.gathered) as f64 / 1e6),
            slots: least(|times| times.slots),
            process: last
                .measured
                .iter()
                .map(|m| m.resident_before as f64)
                .fold(0.0, f64::max),
            activations: activations(probes),
        }
    }
}

/// How much more than its tensors a layer may take, at most: gaps between them, and what products need beside.
const MOST_BESIDE_TENSORS: f64 = 1.75;

/// Memory beside the account and the process. Where pieces come to lie in the heap is chance, and a gap as large as all logits would
/// count for many layers; what tensors take is the same in every run. So that bounds what a layer adds.
fn activations(probes: &[Probe]) -> Line {
    let most = |probe: &Probe, of: &dyn Fn(&RankWork, &Measured) -> f64| {
        let ranks = probe.work.ranks.iter().zip(&probe.measured);
        ranks.map(|(work, measured)| of(work, measured)).fold(0.0, f64::max)
    };
    let beside = |probe: &Probe| {
        most(probe, &|work, measured| {
            measured.peak as f64 - work.account.bytes() as f64 - measured.resident_before as f64
        })
    };
    let tensors = |probe: &Probe| most(probe, &|_, measured| measured.tensors as f64);
    let through = |of: &dyn Fn(&Probe) -> f64| {
        let points: Vec<(u32, f64)> = probes.iter().map(|probe| (layers(probe), of(probe))).collect();
        Line::through(&points)
    };
    let least = through(&tensors).layer;
    let layer = through(&beside).layer.clamp(least, least * MOST_BESIDE_TENSORS);
    let fixed = probes
        .iter()
        .map(|probe| beside(probe) - layer * f64::from(layers(probe)));
    Line {
        fixed: median(fixed.collect()).max(0.0),
        layer,
    }
}

fn layers(probe: &Probe) -> u32 {
    probe.measured.first().map_or(0, |measured| measured.layers)
}

/// What a run will take on each rank, at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Prediction {
    /// Ranks.
    pub(super) ranks: u32,
    /// Bytes.
    pub(super) memory: Memory,
    /// Milliseconds of a step, by part.
    pub(super) times: Times,
    /// Tokens a second.
    pub(super) tokens_per_second: f64,
    /// Bytes of partial sums that the busiest owner receives in a step.
    pub(super) received: u64,
    /// Bytes of parameters that a rank gathers in a step.
    pub(super) gathered: u64,
}

/// Bytes of the rank that needs most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Memory {
    /// Working copies of the parameters.
    pub(super) working_copies: u64,
    /// Gradient buffers.
    pub(super) gradients: u64,
    /// Masters and optimiser state.
    pub(super) state: u64,
    /// Snapshots of itself and its neighbour.
    pub(super) snapshots: u64,
    /// Activations and what libraries take for products.
    pub(super) activations: u64,
    /// The process, with libraries and NCCL's scratch.
    pub(super) process: u64,
}

impl Memory {
    /// All of it.
    pub(super) fn total(&self) -> u64 {
        self.working_copies + self.gradients + self.state + self.snapshots + self.activations + self.process
    }
}

/// What a run takes by `rates`, where `work` is a step of it.
pub(super) fn predict(config: &RunConfig, work: &Work, rates: &Rates) -> Prediction {
    let layers = config.model.layers;
    let millions = work.gradient_elements as f64 / 1e6;
    let slowest = |of: &dyn Fn(&RankWork) -> f64| work.ranks.iter().map(of).fold(0.0, f64::max);
    let mut times = Times {
        forward: rates.forward.at(layers) * slowest(&|w| f64::from(w.micro_batches)),
        backward: rates.backward.at(layers) * slowest(&|w| f64::from(w.micro_batches)),
        norms: rates.norms * millions * slowest(&|w| f64::from(w.lanes)),
        lanes: rates.addition * millions * slowest(&|w| f64::from(w.additions)),
        reduce: rates.reduce * slowest(&|w| w.received as f64) / 1e6,
        polar: rates.polar * slowest(&|w| w.polar_cost as f64) / 1e9,
        apply: rates.apply * slowest(&|w| w.owned as f64) / 1e6,
        slots: rates.slots,
        gather: rates.gather * slowest(&|w| w.gathered as f64) / 1e6,
        step: 0.0,
    };
    times.step = times.forward
        + times.backward
        + times.norms
        + times.lanes
        + times.reduce
        + times.polar
        + times.apply
        + times.slots
        + times.gather;
    let memory = work.ranks.iter().map(|rank| Memory {
        working_copies: rank.account.working_copies as u64,
        gradients: (rank.account.gradient_buffers * rank.account.gradients) as u64,
        state: rank.account.state as u64,
        snapshots: rank.snapshots,
        activations: rates.activations.at(layers) as u64,
        process: rates.process as u64 + rank.account.nccl_scratch as u64,
    });
    Prediction {
        ranks: work.ranks.len() as u32,
        memory: memory.max_by_key(Memory::total).unwrap_or_default(),
        tokens_per_second: rate(work.tokens as f64 * 1e3, times.step),
        times,
        received: work.most(|rank| rank.received),
        gathered: work.most(|rank| rank.gathered),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_account::MemoryAccount;
    use crate::plan::work::tests::config;

    #[test]
    fn a_line_goes_through_its_points_and_never_falls() {
        let line = Line::through(&[(1, 5.0), (3, 9.0)]);
        assert_eq!((line.at(1), line.at(3), line.at(12)), (5.0, 9.0, 27.0));
        assert_eq!(Line::through(&[(1, 9.0), (3, 5.0)]).at(12), 9.0, "noise is no speed");
        assert_eq!(Line::through(&[(2, 8.0)]).at(4), 16.0);
        assert_eq!(Line::through(&[]).at(4), 0.0);
    }

    /// A probe of one rank whose account is empty.
    fn probe(layers: u32, (peak, tensors): (u64, u64)) -> Probe {
        let mut work = Work::of(&config(&[]), 61, (1, 6)).unwrap();
        work.ranks[0].account = MemoryAccount::default();
        let measured = vec![Measured {
            layers,
            resident_before: 100,
            peak,
            tensors,
            ..Measured::default()
        }];
        Probe { work, measured }
    }

    #[test]
    fn a_gap_in_the_heap_does_not_count_for_every_layer() {
        let at = |probes: &[Probe], layers| activations(probes).at(layers);
        let calm = [probe(1, (310, 100)), probe(3, (360, 140))];
        assert_eq!((at(&calm, 1), at(&calm, 3), at(&calm, 9)), (210.0, 260.0, 410.0));
        // A gap of 200 in the larger one, of 200 in the smaller one.
        let larger = [probe(1, (310, 100)), probe(3, (560, 140))];
        assert_eq!(at(&larger, 9), (210.0 + 8.0 * 35.0 + 460.0 + 6.0 * 35.0) / 2.0);
        let smaller = [probe(1, (510, 100)), probe(3, (360, 140))];
        assert_eq!(at(&smaller, 9), (410.0 + 8.0 * 20.0 + 260.0 + 6.0 * 20.0) / 2.0);
        assert_eq!(
            at(&[probe(1, (310, 100))], 1),
            210.0,
            "a run of one layer is its own probe"
        );
    }

    #[test]
    fn a_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 3.0]), 3.0);
    }
}
