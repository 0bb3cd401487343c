//! The additions of one reduction as a list of steps: pure, so that it can be held against the definition.
//!
//! Partial 0 of the owner lies where the result goes, so each inner sum must go where nothing else is needed any more: to the
//! result's place if one of its own operands lies there, else over an operand that is ours to spoil (received float32, or an
//! inner sum), else into a place of its own.

use crate::tree::Expression;
use crate::wire::Wire;

/// Where an operand or a sum lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The owned elements of buffer 0.
    Result,
    /// The part with this index, somewhere else.
    Part(usize),
    /// Memory for inner sums, with this number.
    Inner(usize),
}

/// sum = left + right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) sum: Place,
    pub(super) left: Place,
    pub(super) right: Place,
    /// Whether the sum is rounded to bfloat16.
    pub(super) round: bool,
}

/// The steps of an expression, in their order, and how many places for inner sums they need.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) list: Vec<Step>,
    pub(super) inner: usize,
    free: Vec<usize>,
}

impl Steps {
    /// `place` tells where a part lies; `may_spoil` whether an inner sum may be written over it. An expression that is one
    /// part has no steps.
    pub(super) fn of(
        expression: &Expression,
        wire: Wire,
        place: &impl Fn(usize) -> Place,
        may_spoil: &impl Fn(usize) -> bool,
    ) -> Steps {
        let mut steps = Steps::default();
        if let Expression::Sum(left, right) = expression {
            let left = steps.inside(left, wire, place, may_spoil);
            let right = steps.inside(right, wire, place, may_spoil);
            steps.list.push(Step {
                sum: Place::Result,
                left,
                right,
                round: false,
            });
        }
        steps
    }

    fn inside(
        &mut self,
        expression: &Expression,
        wire: Wire,
        place: &impl Fn(usize) -> Place,
        may_spoil: &impl Fn(usize) -> bool,
    ) -> Place {
        let (left, right) = match expression {
            Expression::Part(part) => return place(*part),
            Expression::Sum(left, right) => (left, right),
        };
        let left = self.inside(left, wire, place, may_spoil);
        let right = self.inside(right, wire, place, may_spoil);
        let is_ours = |operand: &Place| match operand {
            Place::Result | Place::Inner(_) => true,
            Place::Part(part) => may_spoil(*part),
        };
        let sum = match [left, right].into_iter().find(|operand| *operand == Place::Result) {
            Some(result) => result,
            None => [left, right]
                .into_iter()
                .find(is_ours)
                .unwrap_or_else(|| self.new_inner()),
        };
        for operand in [left, right] {
            match operand {
                Place::Inner(number) if operand != sum => self.free.push(number),
                _ => {}
            }
        }
        self.list.push(Step {
            sum,
            left,
            right,
            round: wire == Wire::Bf16,
        });
        sum
    }

    fn new_inner(&mut self) -> Place {
        Place::Inner(self.free.pop().unwrap_or_else(|| {
            self.inner += 1;
            self.inner - 1
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::LaneTree;
    use crate::wire::round_to_bf16;

    proptest! {
        #[test]
        fn the_steps_give_the_bits_of_the_tree_and_write_over_nothing_that_is_not_theirs(
            working in prop::collection::vec(any::<bool>(), 1..17),
            cuts in prop::collection::vec(0.0f64..1.0, 0..7),
            owner in 0.0f64..1.0,
            values in prop::collection::vec(-1e6f32..1e6, 64),
            bf16 in any::<bool>(),
        ) {
            let mut working = working;
            working[0] = true;
            let lanes = working.len() as u32;
            let mut borders: Vec<u32> = cuts.iter().map(|cut| (cut * f64::from(lanes)) as u32).collect();
            borders.extend([0, lanes]);
            borders.sort_unstable();
            let tree = LaneTree::new(&working);
            let wire = if bf16 { Wire::Bf16 } else { Wire::Float32 };
            // (rank, partial) of every part.
            let mut parts = Vec::new();
            let mut places = Vec::new();
            for (rank, border) in borders.windows(2).enumerate() {
                for (partial, part) in tree.maximal_subtrees(border[0]..border[1]).into_iter().enumerate() {
                    parts.push(part);
                    places.push((rank, partial));
                }
            }
            let owner = (owner * (borders.len() - 1) as f64) as usize;
            let expression = tree.combine(&parts).unwrap();
            let inputs: Vec<[f32; 1]> = (0..parts.len())
                .map(|part| {
                    let mut value = [values[part]];
                    if bf16 && !tree.is_whole(&parts[part]) {
                        round_to_bf16(&mut value);
                    }
                    value
                })
                .collect();
            let mut expected = [0.0];
            let mut scratch = [0.0; 16];
            expression.evaluate(&|part| &inputs[part][..], &mut expected, &mut scratch, wire);

            let place = |part: usize| match places[part] {
                (rank, 0) if rank == owner => Place::Result,
                _ => Place::Part(part),
            };
            let may_spoil = |part: usize| places[part].0 != owner && !bf16;
            let steps = Steps::of(&expression, wire, &place, &may_spoil);
            let mut memory: HashMap<String, f32> = HashMap::new();
            for (part, input) in inputs.iter().enumerate() {
                memory.insert(format!("{:?}", place(part)), input[0]);
            }
            for step in &steps.list {
                let mut sum = [memory[&format!("{:?}", step.left)] + memory[&format!("{:?}", step.right)]];
                if step.round {
                    round_to_bf16(&mut sum);
                }
                if let Place::Part(part) = step.sum {
                    prop_assert!(may_spoil(part));
                }
                memory.insert(format!("{:?}", step.sum), sum[0]);
            }
            match &expression {
                Expression::Part(_) => prop_assert!(steps.list.is_empty()),
                Expression::Sum(..) => {
                    prop_assert_eq!(memory["Result"].to_bits(), expected[0].to_bits());
                    prop_assert_eq!(steps.list.last().unwrap().sum, Place::Result);
                }
            }
            prop_assert!(steps.inner <= parts.len());
        }
    }
}
