//! The lane tree: the one order in which lanes are added, whatever the world.
//!
//! node(a, a+1) is lane a's own sum; node(a, b) = node(a, a+p) + node(a+p, b), p the largest power of two strictly below
//! b − a. A lane without work is left out: its node is the other child, no zero is added (x + 0 is not always x: −0 + 0 = 0).
//! A rank that hosts lanes [a, b) keeps one partial sum for each *maximal subtree*, the largest nodes that lie inside.
//! Because every partial is a node of the one tree, the finished sum has the same bits for every deal of lanes to ranks.
//! All of it is pure: no I/O, no state.

use std::ops::Range;

use crate::wire::{Wire, round_to_bf16};

/// The tree over a run's lanes in one step: which lanes there are, and which have work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneTree {
    working: Vec<bool>,
    /// The lanes of every rank, where sums go by rank instead.
    by_rank: Option<Vec<Range<u32>>>,
}

/// Parts that do not make up the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No lane has work, so there is no sum (zero would be an invention).
    #[error("no lane has work in this step, so there is nothing to add")]
    NoWork,
    /// A lane with work is in no part.
    #[error("lane {lane} has work, and no part holds it")]
    Missing {
        /// The lane.
        lane: u32,
    },
    /// A part that is not a node of the tree, or lies inside another part, or has no work.
    #[error("the part of lanes {start}..{end} is not a node that the sum needs")]
    NotNeeded {
        /// Its first lane.
        start: u32,
        /// One past its last lane.
        end: u32,
    },
}

/// How parts are added: a leaf is a part by its index, an inner node the float32 sum of its children, left + right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// The part with this index.
    Part(usize),
    /// left + right.
    Sum(Box<Expression>, Box<Expression>),
}

impl LaneTree {
    /// The tree over `working.len()` lanes, of which those that are true have work in this step.
    pub fn new(working: &[bool]) -> LaneTree {
        LaneTree {
            working: working.to_vec(),
            by_rank: None,
        }
    }

    /// Not the tree but what `reduction = "fast"` does: every rank adds its own lanes, one after the other, into one partial
    /// sum, and these are added in the order of the ranks. Its bits depend on the deal of lanes.
    pub fn by_rank(working: &[bool], rank_lanes: &[Range<u32>]) -> LaneTree {
        LaneTree {
            working: working.to_vec(),
            by_rank: Some(rank_lanes.to_vec()),
        }
    }

    /// The tree over `lanes` lanes that all have work: what memory is sized by.
    pub fn full(lanes: u32) -> LaneTree {
        LaneTree {
            working: vec![true; lanes as usize],
            by_rank: None,
        }
    }

    /// How many lanes there are, with work or without.
    pub fn lanes(&self) -> u32 {
        self.working.len() as u32
    }

    /// The largest number of maximal subtrees that any `lanes` neighbouring lanes can have, in a tree of any size:
    /// 2 (q − 1), and one more from 3 · 2^(q−1) − 2 lanes on, where q = ⌊log₂(lanes + 2)⌋.
    ///
    /// The worst piece is flanked by ragged ends, 1 + 2 + 4 … on its left and … 4 + 2 + 1 on its right: 14 lanes need 6.
    pub fn most_subtrees(lanes: u32) -> usize {
        if lanes == 0 {
            return 0;
        }
        let n = u64::from(lanes) + 2;
        let q = n.ilog2();
        2 * (q as usize - 1) + usize::from(n >= 3 << (q - 1))
    }

    /// The maximal nodes of the tree that lie inside `lanes` and have work, in lane order. A rank keeps partial i of a
    /// bucket in its buffer i. Lanes beyond the tree's are ignored.
    pub fn maximal_subtrees(&self, lanes: Range<u32>) -> Vec<Range<u32>> {
        let mut found = Vec::new();
        if self.by_rank.is_some() {
            let lanes = lanes.start..lanes.end.min(self.lanes());
            found.extend(Some(lanes).filter(|lanes| lanes.start < lanes.end && self.has_work(lanes)));
        } else if self.lanes() > 0 {
            self.collect(0..self.lanes(), &lanes, &mut found);
        }
        found
    }

    fn collect(&self, node: Range<u32>, lanes: &Range<u32>, found: &mut Vec<Range<u32>>) {
        if node.end <= lanes.start || lanes.end <= node.start || !self.has_work(&node) {
            return;
        }
        if lanes.start <= node.start && node.end <= lanes.end {
            found.push(node);
            return;
        }
        // A single lane is outside or inside, so this node has two children.
        let (left, right) = children(&node);
        self.collect(left, lanes, found);
        self.collect(right, lanes, found);
    }

    /// How `parts` (the maximal subtrees of every rank, in any order) add up to the whole tree.
    ///
    /// # Errors
    /// No lane has work; a lane with work that no part holds; a part that the sum does not need.
    pub fn combine(&self, parts: &[Range<u32>]) -> Result<Expression, TreeError> {
        if !self.working.contains(&true) {
            return Err(TreeError::NoWork);
        }
        let mut used = vec![false; parts.len()];
        let expression = match &self.by_rank {
            Some(ranks) => self.build_by_rank(ranks, parts, &mut used)?,
            None => self.build(0..self.lanes(), parts, &mut used)?,
        };
        match used.iter().position(|used| !used) {
            None => Ok(expression),
            Some(unused) => Err(TreeError::NotNeeded {
                start: parts[unused].start,
                end: parts[unused].end,
            }),
        }
    }

    /// ((rank 0 + rank 1) + rank 2) …, of the ranks that have work.
    fn build_by_rank(
        &self,
        ranks: &[Range<u32>],
        parts: &[Range<u32>],
        used: &mut [bool],
    ) -> Result<Expression, TreeError> {
        let mut sum: Option<Expression> = None;
        for lanes in ranks.iter().flat_map(|lanes| self.maximal_subtrees(lanes.clone())) {
            let part = parts
                .iter()
                .position(|part| *part == lanes)
                .ok_or(TreeError::Missing { lane: lanes.start })?;
            used[part] = true;
            sum = Some(match sum {
                Some(left) => Expression::Sum(Box::new(left), Box::new(Expression::Part(part))),
                None => Expression::Part(part),
            });
        }
        sum.ok_or(TreeError::NoWork)
    }

    /// The expression of a node that has work.
    fn build(&self, node: Range<u32>, parts: &[Range<u32>], used: &mut [bool]) -> Result<Expression, TreeError> {
        if let Some(part) = parts.iter().position(|part| *part == node) {
            used[part] = true;
            return Ok(Expression::Part(part));
        }
        if node.len() == 1 {
            return Err(TreeError::Missing { lane: node.start });
        }
        let (left, right) = children(&node);
        match (self.has_work(&left), self.has_work(&right)) {
            (true, true) => {
                let left = self.build(left, parts, used)?;
                Ok(Expression::Sum(
                    Box::new(left),
                    Box::new(self.build(right, parts, used)?),
                ))
            }
            (true, false) => self.build(left, parts, used),
            (_, _) => self.build(right, parts, used),
        }
    }

    /// Whether `lanes` hold all the work: their sum is the whole one.
    pub fn is_whole(&self, lanes: &Range<u32>) -> bool {
        (0u32..)
            .zip(&self.working)
            .all(|(lane, works)| !works || lanes.contains(&lane))
    }

    fn has_work(&self, node: &Range<u32>) -> bool {
        self.working[node.start as usize..node.end as usize].contains(&true)
    }
}

/// The children of a node of at least two lanes.
fn children(node: &Range<u32>) -> (Range<u32>, Range<u32>) {
    let p = 1 << (node.end - node.start - 1).ilog2();
    (node.start..node.start + p, node.start + p..node.end)
}

impl Expression {
    /// How many scratch pieces [`Expression::evaluate`] needs beside its output.
    pub(crate) fn scratch_pieces(&self) -> usize {
        match self {
            Expression::Part(_) => 0,
            Expression::Sum(left, right) => match (&**left, &**right) {
                (inner, Expression::Part(_)) | (Expression::Part(_), inner) => inner.scratch_pieces(),
                (_, _) => left.scratch_pieces().max(1 + right.scratch_pieces()),
            },
        }
    }

    /// Writes the sum to `output`: `part(i)` gives the elements of part i that belong there, as many as `output` has.
    /// `scratch` holds at least [`Expression::scratch_pieces`] times as many elements. Sums inside are rounded as `wire` says,
    /// the whole is not.
    pub(crate) fn evaluate<'a>(
        &self,
        part: &impl Fn(usize) -> &'a [f32],
        output: &mut [f32],
        scratch: &mut [f32],
        wire: Wire,
    ) {
        match self {
            Expression::Part(index) => output.copy_from_slice(part(*index)),
            Expression::Sum(left, right) => match (&**left, &**right) {
                (Expression::Part(left), Expression::Part(right)) => add_into(part(*left), part(*right), output),
                // Either way round: a + b and b + a have the same bits (but for what a NaN carries).
                (inner, Expression::Part(index)) | (Expression::Part(index), inner) => {
                    inner.evaluate_inside(part, output, scratch, wire);
                    add(output, part(*index));
                }
                (left, right) => {
                    left.evaluate_inside(part, output, scratch, wire);
                    let (piece, rest) = scratch.split_at_mut(output.len());
                    right.evaluate_inside(part, piece, rest, wire);
                    add(output, piece);
                }
            },
        }
    }

    /// As [`Expression::evaluate`], for a sum inside another one.
    fn evaluate_inside<'a>(
        &self,
        part: &impl Fn(usize) -> &'a [f32],
        output: &mut [f32],
        scratch: &mut [f32],
        wire: Wire,
    ) {
        self.evaluate(part, output, scratch, wire);
        if wire == Wire::Bf16 {
            round_to_bf16(output);
        }
    }
}

/// sum = left + right, element by element.
fn add_into(left: &[f32], right: &[f32], sum: &mut [f32]) {
    for ((sum, left), right) in sum.iter_mut().zip(left).zip(right) {
        *sum = left + right;
    }
}

/// sum = sum + more.
fn add(sum: &mut [f32], more: &[f32]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}
