//! The order in which a rank runs its lanes and adds their sums, so that what it ends with are exactly the maximal
//! subtrees of the lane tree, partial i in gradient buffer i.
//!
//! A subtree is evaluated depth first: its left child into buffer k, its right child into buffer k + 1, then
//! buffer k ← buffer k + buffer k + 1. Lanes without work are left out. Invariant: the additions are those of
//! `LaneTree`'s definition, node(a, b) = node(a, a+p) + node(a+p, b), so the bits are those of one process.

use std::ops::Range;

use lockstep_collective::LaneTree;

/// One step of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run a lane's micro-batches; its sum goes into a buffer, whatever was there.
    Run {
        /// The lane.
        lane: u32,
        /// The gradient buffer.
        buffer: usize,
    },
    /// Add a buffer into another.
    Add {
        /// The sum, and its left operand.
        into: usize,
        /// The right operand.
        from: usize,
    },
}

/// What a rank does with its lanes in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneProgram {
    /// Actions up to and with the last lane.
    pub actions: Vec<Action>,
    /// Additions after the last lane: done bucket by bucket while the last backward goes on.
    pub closing: Vec<(usize, usize)>,
    /// Buffers that it needs.
    pub buffers: usize,
}

impl LaneProgram {
    /// The program of a rank that hosts `lanes`, of which those that are true in `working` (by lane) have work.
    pub fn new(working: &[bool], lanes: Range<u32>) -> LaneProgram {
        let tree = LaneTree::new(working);
        let mut program = LaneProgram {
            actions: Vec::new(),
            closing: Vec::new(),
            buffers: 0,
        };
        for (partial, node) in tree.maximal_subtrees(lanes).into_iter().enumerate() {
            program.evaluate(working, node, partial);
        }
        let last = program.actions.iter().rposition(|a| matches!(a, Action::Run { .. }));
        let closing = program.actions.split_off(last.map_or(0, |at| at + 1));
        program.closing = closing
            .into_iter()
            .filter_map(|action| match action {
                Action::Add { into, from } => Some((into, from)),
                Action::Run { .. } => None,
            })
            .collect();
        program
    }

    /// The buffers that a rank hosting `lanes` of a run of `total` lanes can ever need.
    pub fn most_buffers(total: u32, lanes: Range<u32>) -> usize {
        LaneProgram::new(&vec![true; total as usize], lanes).buffers.max(1)
    }

    fn evaluate(&mut self, working: &[bool], node: Range<u32>, buffer: usize) {
        let has_work = |range: Range<u32>| working[range.start as usize..range.end as usize].contains(&true);
        if node.len() == 1 {
            self.buffers = self.buffers.max(buffer + 1);
            self.actions.push(Action::Run {
                lane: node.start,
                buffer,
            });
            return;
        }
        let middle = node.start + (1 << (node.len() as u32 - 1).ilog2());
        let (left, right) = (node.start..middle, middle..node.end);
        match (has_work(left.clone()), has_work(right.clone())) {
            (true, true) => {
                self.evaluate(working, left, buffer);
                self.evaluate(working, right, buffer + 1);
                self.actions.push(Action::Add {
                    into: buffer,
                    from: buffer + 1,
                });
            }
            (true, false) => self.evaluate(working, left, buffer),
            (false, true) => self.evaluate(working, right, buffer),
            (false, false) => {}
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
        let add = |buffers: &mut Vec<String>, into: usize, from: usize| {
            buffers[into] = format!("({}+{})", buffers[into], buffers[from]);
        };
        for action in &program.actions {
            match *action {
                Action::Run { lane, buffer } => buffers[buffer] = lane.to_string(),
                Action::Add { into, from } => add(&mut buffers, into, from),
            }
        }
        for &(into, from) in &program.closing {
            add(&mut buffers, into, from);
        }
        buffers
    }

    fn definition(working: &[bool], a: usize, b: usize) -> Option<String> {
        if b - a == 1 {
            return working[a].then(|| a.to_string());
        }
        let mut p = 1;
        while p * 2 < b - a {
            p *= 2;
        }
        match (definition(working, a, a + p), definition(working, a + p, b)) {
            (Some(l), Some(r)) => Some(format!("({l}+{r})")),
            (l, r) => l.or(r),
        }
    }

    proptest! {
        #[test]
        fn a_rank_ends_with_its_maximal_subtrees_added_as_the_definition_says(
            working in prop::collection::vec(any::<bool>(), 1..20), cut in 0.0f64..1.0, end in 0.0f64..1.0,
        ) {
            let lanes = working.len() as u32;
            let from = (cut * f64::from(lanes)) as u32;
            let to = from + ((f64::from(lanes - from) * end) as u32 + 1).min(lanes - from);
            let program = LaneProgram::new(&working, from..to);
            let partials = LaneTree::new(&working).maximal_subtrees(from..to);
            let sums = run(&program);
            for (i, node) in partials.iter().enumerate() {
                let expected = definition(&working, node.start as usize, node.end as usize);
                prop_assert_eq!(Some(&sums[i]), expected.as_ref());
            }
            prop_assert!(program.buffers <= LaneProgram::most_buffers(lanes, from..to));
            let ran = program.actions.iter().filter(|a| matches!(a, Action::Run { .. })).count();
            prop_assert_eq!(ran, working[from as usize..to as usize].iter().filter(|w| **w).count());
        }
    }
}
