//! The order in which a rank runs its lanes and adds their sums, so that what it ends with are exactly the maximal
//! subtrees of the lane tree, partial i in gradient buffer i.
//!
//! A subtree is evaluated depth first: its left child into buffer k, its right child into buffer k + 1, then
//! buffer k ← buffer k + buffer k + 1. Lanes without work are left out. Invariant: the additions are those of
//! `LaneTree`'s definition, node(a, b) = node(a, a+p) + node(a+p, b), so the bits are those of one process. Where the wire
//! rounds partial sums, every node but the whole is rounded as soon as it is complete. A fast program adds a rank's lanes one
//! after the other into buffer 0 instead.

use std::ops::Range;

use lockstep_collective::{LaneTree, Wire};
use lockstep_config::Reduction;

/// One step of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a lane's micro-batches; its sum goes into a buffer.
    Run {
        /// The lane.
        lane: u32,
        /// The gradient buffer.
        buffer: usize,
        /// Whether it is added to what is there; else it takes its place.
        adds: bool,
    },
    /// Add a buffer into another.
    Add {
        /// The sum, and its left operand.
        into: usize,
        /// The right operand.
        from: usize,
    },
    /// Round a buffer to bfloat16.
    Round {
        /// The buffer.
        buffer: usize,
    },
}

/// What a rank does with its lanes in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneProgram {
    /// Actions up to and with the last lane.
    pub actions: Vec<Action>,
    /// Additions and roundings after the last lane: done bucket by bucket while the last backward goes on.
    pub closing: Vec<Action>,
    /// Buffers that it needs.
    pub buffers: usize,
}

impl LaneProgram {
    /// The program of a rank that hosts `lanes`, of which those that are true in `working` (by lane) have work.
    pub fn new(working: &[bool], lanes: Range<u32>, wire: Wire) -> LaneProgram {
        let tree = LaneTree::new(working);
        let mut evaluation = Evaluation {
            working,
            tree: &tree,
            wire,
            actions: Vec::new(),
            buffers: 0,
        };
        for (partial, node) in tree.maximal_subtrees(lanes).into_iter().enumerate() {
            evaluation.evaluate(node, partial);
        }
        LaneProgram::of(evaluation.actions, evaluation.buffers)
    }

    /// The program of `reduction = "fast"`.
    pub fn fast(working: &[bool], lanes: Range<u32>, wire: Wire) -> LaneProgram {
        let mut actions: Vec<Action> = lanes
            .clone()
            .filter(|lane| working[*lane as usize])
            .enumerate()
            .map(|(index, lane)| Action::Run {
                lane,
                buffer: 0,
                adds: index > 0,
            })
            .collect();
        if wire == Wire::Bf16 && !actions.is_empty() && !LaneTree::new(working).is_whole(&lanes) {
            actions.push(Action::Round { buffer: 0 });
        }
        LaneProgram::of(actions, 1)
    }

    fn of(mut actions: Vec<Action>, buffers: usize) -> LaneProgram {
        let last = actions.iter().rposition(|a| matches!(a, Action::Run { .. }));
        LaneProgram {
            closing: actions.split_off(last.map_or(0, |at| at + 1)),
            actions,
            buffers,
        }
    }

    /// The buffers that a rank hosting `lanes` of a run of `total` lanes can ever need.
    pub fn most_buffers(total: u32, lanes: Range<u32>) -> usize {
        LaneProgram::new(&vec![true; total as usize], lanes, Wire::Float32)
            .buffers
            .max(1)
    }
}

/// Gradient buffers that each rank has, where `rank_lanes` are the lanes of every rank of a run of `lanes`: as many as the
/// one with most partial sums.
pub fn gradient_buffers(reduction: Reduction, lanes: u32, rank_lanes: &[Range<u32>]) -> usize {
    let most = |hosted: &Range<u32>| match reduction {
        Reduction::Invariant => LaneProgram::most_buffers(lanes, hosted.clone()),
        Reduction::Fast => 1,
    };
    rank_lanes.iter().map(most).max().unwrap_or(1)
}

/// A program under construction.
struct Evaluation<'a> {
    working: &'a [bool],
    tree: &'a LaneTree,
    wire: Wire,
    actions: Vec<Action>,
    buffers: usize,
}

impl Evaluation<'_> {
    fn evaluate(&mut self, node: Range<u32>, buffer: usize) {
        let has_work = |range: &Range<u32>| self.working[range.start as usize..range.end as usize].contains(&true);
        if node.len() == 1 {
            self.buffers = self.buffers.max(buffer + 1);
            self.actions.push(Action::Run {
                lane: node.start,
                buffer,
                adds: false,
            });
            return self.complete(&node, buffer);
        }
        let middle = node.start + (1 << (node.len() as u32 - 1).ilog2());
        let (left, right) = (node.start..middle, middle..node.end);
        match (has_work(&left), has_work(&right)) {
            (true, true) => {
                self.evaluate(left, buffer);
                self.evaluate(right, buffer + 1);
                self.actions.push(Action::Add {
                    into: buffer,
                    from: buffer + 1,
                });
                self.complete(&node, buffer);
            }
            (true, false) => self.evaluate(left, buffer),
            (false, true) => self.evaluate(right, buffer),
            (false, false) => {}
        }
    }

    fn complete(&mut self, node: &Range<u32>, buffer: usize) {
        if self.wire == Wire::Bf16 && !self.tree.is_whole(node) {
            self.actions.push(Action::Round { buffer });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program on sums that record how they were added.
    fn run(program: &LaneProgram) -> Vec<String> {
        let mut buffers = vec![String::new(); program.buffers];
        for action in program.actions.iter().chain(&program.closing) {
            match *action {
                Action::Run {
                    lane,
                    buffer,
                    adds: false,
                } => buffers[buffer] = lane.to_string(),
                Action::Run {
                    lane,
                    buffer,
                    adds: true,
                } => buffers[buffer] += &format!(",{lane}"),
                Action::Add { into, from } => buffers[into] = format!("({}+{})", buffers[into], buffers[from]),
                Action::Round { buffer } => buffers[buffer] = format!("r{}", buffers[buffer]),
            }
        }
        buffers
    }

    fn definition(working: &[bool], a: usize, b: usize, wire: Wire) -> Option<String> {
        let is_whole = (0..working.len()).all(|lane| !working[lane] || (a..b).contains(&lane));
        let rounded = |sum: String| {
            if wire == Wire::Bf16 && !is_whole {
                format!("r{sum}")
            } else {
                sum
            }
        };
        if b - a == 1 {
            return working[a].then(|| rounded(a.to_string()));
        }
        let mut p = 1;
        while p * 2 < b - a {
            p *= 2;
        }
        match (definition(working, a, a + p, wire), definition(working, a + p, b, wire)) {
            (Some(l), Some(r)) => Some(rounded(format!("({l}+{r})"))),
            (l, r) => l.or(r),
        }
    }

    proptest! {
        #[test]
        fn a_rank_ends_with_its_maximal_subtrees_added_as_the_definition_says(
            working in prop::collection::vec(any::<bool>(), 1..20), cut in 0.0f64..1.0, end in 0.0f64..1.0, rounds: bool,
        ) {
            let lanes = working.len() as u32;
            let from = (cut * f64::from(lanes)) as u32;
            let to = from + ((f64::from(lanes - from) * end) as u32 + 1).min(lanes - from);
            let wire = if rounds { Wire::Bf16 } else { Wire::Float32 };
            let program = LaneProgram::new(&working, from..to, wire);
            let partials = LaneTree::new(&working).maximal_subtrees(from..to);
            let sums = run(&program);
            for (i, node) in partials.iter().enumerate() {
                let expected = definition(&working, node.start as usize, node.end as usize, wire);
                prop_assert_eq!(Some(&sums[i]), expected.as_ref());
            }
            prop_assert!(program.buffers <= LaneProgram::most_buffers(lanes, from..to));
            let ran = program.actions.iter().filter(|a| matches!(a, Action::Run { .. })).count();
            prop_assert_eq!(ran, working[from as usize..to as usize].iter().filter(|w| **w).count());
        }

        #[test]
        fn a_fast_program_runs_every_lane_into_one_buffer(
            working in prop::collection::vec(any::<bool>(), 1..20), from in 0usize..20, to in 0usize..20,
        ) {
            let (from, to) = (from.min(working.len()), to.min(working.len()));
            let lanes = from.min(to)..from.max(to);
            let program = LaneProgram::fast(&working, lanes.start as u32..lanes.end as u32, Wire::Float32);
            let ran: Vec<String> = lanes.filter(|lane| working[*lane]).map(|lane| lane.to_string()).collect();
            prop_assert_eq!(run(&program), [ran.join(",")]);
        }
    }
}
