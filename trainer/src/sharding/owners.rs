//! The owner map: a pure function of (layout, treatments, world).
//!
//! Hidden tensors go whole to one rank by longest-processing-time bin packing of their Newton–Schulz cost
//! max(m,n)·min(m,n)², bucket by bucket in backward order, so that every rank has work in every bucket; loads carry over
//! from bucket to bucket. Other tensors are split by blocks: each tensor's blocks go, as one contiguous run a rank, to the
//! ranks with the fewest elements so far. Counts need not divide by anything.

use std::ops::Range;

use crate::sharding::layout::Layout;
use lockstep_inventory::{Treatment, Use};

/// A piece of one tensor that one rank owns: a whole hidden matrix, or neighbouring blocks of another tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor, by index in the inventory.
    pub tensor: usize,
    /// Elements of the gradient buffer.
    pub elements: Range<usize>,
    /// Blocks, as indices into the slot tables.
    pub blocks: Range<usize>,
    /// The owner.
    pub owner: u32,
}

/// Who owns what.
#[derive(Clone, Debug)]
pub struct OwnerMap {
    /// All pieces, in flat order.
    pub pieces: Vec<Piece>,
    /// Newton–Schulz cost of each rank's hidden matrices.
    pub hidden_cost: Vec<u64>,
    /// Elements of other tensors of each rank.
    pub other_elements: Vec<u64>,
}

/// Multiplications of one Newton–Schulz product pair of a hidden tensor's parts, up to a constant; 0 for other tensors.
pub fn polar_cost(treatment: &Treatment) -> u64 {
    match treatment.kind {
        Use::Hidden { parts, rows, columns } => {
            parts as u64 * rows.max(columns) as u64 * (rows.min(columns) as u64).pow(2)
        }
        Use::Other => 0,
    }
}

/// The rank with the smallest load; the lowest of several.
fn least(loads: &[u64]) -> usize {
    loads
        .iter()
        .enumerate()
        .min_by_key(|(rank, load)| (**load, *rank))
        .map_or(0, |(rank, _)| rank)
}

impl OwnerMap {
    /// The map of `world` ranks.
    pub fn new(treatments: &[Treatment], layout: &Layout, world: u32) -> OwnerMap {
        let mut hidden_cost = vec![0u64; world as usize];
        let mut other_elements = vec![0u64; world as usize];
        let mut pieces = Vec::new();
        for bucket in &layout.buckets {
            let mut hidden: Vec<usize> = bucket
                .tensors
                .iter()
                .copied()
                .filter(|t| layout.places[*t].hidden)
                .collect();
            hidden.sort_by_key(|t| (std::cmp::Reverse(polar_cost(&treatments[*t])), *t));
            for tensor in hidden {
                let owner = least(&hidden_cost);
                hidden_cost[owner] += polar_cost(&treatments[tensor]);
                let place = &layout.places[tensor];
                pieces.push(Piece {
                    tensor,
                    elements: place.gradient.clone(),
                    blocks: place.blocks.clone(),
                    owner: owner as u32,
                });
            }
            for &tensor in bucket.tensors.iter().filter(|t| !layout.places[**t].hidden) {
                let place = &layout.places[tensor];
                let mut share = vec![0usize; world as usize];
                for block in place.blocks.clone() {
                    let owner = least(&other_elements);
                    share[owner] += 1;
                    other_elements[owner] += Layout::block_elements(place, block).len() as u64;
                }
                let mut block = place.blocks.start;
                for (owner, count) in share.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                    let blocks = block..block + count;
                    let start = Layout::block_elements(place, blocks.start).start;
                    let end = Layout::block_elements(place, blocks.end - 1).end;
                    block = blocks.end;
                    pieces.push(Piece {
                        tensor,
                        elements: start..end,
                        blocks,
                        owner: owner as u32,
                    });
                }
            }
        }
        pieces.sort_by_key(|piece| piece.elements.start);
        OwnerMap {
            pieces,
            hidden_cost,
            other_elements,
        }
    }

    /// Elements of a bucket with their owners.
    pub fn owners_in(&self, bucket: &Range<usize>) -> Vec<(Range<usize>, u32)> {
        self.pieces
            .iter()
            .filter(|piece| bucket.start <= piece.elements.start && piece.elements.end <= bucket.end)
            .map(|piece| (piece.elements.clone(), piece.owner))
            .collect()
    }

    /// By bucket: its elements with their owners.
    pub fn by_bucket(&self, layout: &Layout) -> Vec<Vec<(Range<usize>, u32)>> {
        let buckets = layout.buckets.iter();
        buckets.map(|bucket| self.owners_in(&bucket.elements)).collect()
    }

    /// The owner of every polar factor.
    pub fn owner_of_factor(&self, layout: &Layout) -> Vec<u32> {
        let mut owners = vec![0; layout.factors];
        for piece in &self.pieces {
            owners[layout.places[piece.tensor].factors.clone()].fill(piece.owner);
        }
        owners
    }

    /// The owner of every block.
    pub fn owner_of_block(&self, blocks: usize) -> Vec<u32> {
        let mut owners = vec![0; blocks];
        for piece in &self.pieces {
            owners[piece.blocks.clone()].fill(piece.owner);
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_config::{OptimizerSection, Precision};
    use lockstep_inventory::{Initial, Role, TensorSpec, treatments};

    /// As muon treats the inventory, or adamw.
    fn treated(inventory: &[TensorSpec], muon: bool) -> Vec<Treatment> {
        let text = if muon {
            "method = \"muon\""
        } else {
            "method = \"adamw\""
        };
        let section = OptimizerSection::parse(text.parse().unwrap(), "test", Precision::Fp32).unwrap();
        treatments(&section, inventory, None).unwrap()
    }

    fn spec(name: &str, shape: &[i64], role: Role) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            layer: 0,
            role,
            initial: Initial::Zeros,
        }
    }

    fn inventory() -> Vec<TensorSpec> {
        let mut all = vec![
            spec("wte", &[3001, 70], Role::Embedding),
            spec("wpe", &[64, 70], Role::Embedding),
        ];
        for layer in 0..5 {
            all.push(spec(&format!("{layer}.norm"), &[70], Role::Norm));
            all.push(spec(&format!("{layer}.qkv"), &[210, 70], Role::Hidden));
            all.push(spec(&format!("{layer}.up"), &[280, 70], Role::Hidden));
        }
        all
    }

    #[test]
    fn every_element_has_exactly_one_owner_in_every_world() {
        for muon in [true, false] {
            let inventory = inventory();
            let treatments = treated(&inventory, muon);
            let layout = Layout::new(&inventory, &treatments, true);
            for world in 1..=9 {
                let map = OwnerMap::new(&treatments, &layout, world);
                let mut owned = vec![0u32; layout.gradient_elements];
                for piece in &map.pieces {
                    assert!(piece.owner < world);
                    owned[piece.elements.clone()].iter_mut().for_each(|n| *n += 1);
                }
                for place in &layout.places {
                    assert!(owned[place.gradient.clone()].iter().all(|n| *n == 1));
                    assert_eq!(place.working.start % 256, 0);
                    assert_eq!(place.gradient.start % 64, 0);
                }
                let total: usize = inventory.iter().map(TensorSpec::elements).sum();
                assert_eq!(owned.iter().sum::<u32>() as usize, total);
            }
        }
    }

    #[test]
    fn hidden_loads_differ_by_at_most_the_largest_matrix() {
        let inventory = inventory();
        let treatments = treated(&inventory, true);
        let layout = Layout::new(&inventory, &treatments, false);
        let largest = treatments.iter().map(polar_cost).max();
        for world in 1..=6 {
            let map = OwnerMap::new(&treatments, &layout, world);
            let (low, high) = (map.hidden_cost.iter().min(), map.hidden_cost.iter().max());
            assert!(high.zip(low).map(|(h, l)| h - l) <= largest, "{:?}", map.hidden_cost);
        }
    }

    #[test]
    fn blocks_and_buckets_cover_the_layout_and_do_not_depend_on_the_world() {
        let inventory = inventory();
        let layout = Layout::new(&inventory, &treated(&inventory, true), true);
        let mut next = 0;
        for bucket in &layout.buckets {
            assert_eq!(bucket.elements.start, next);
            next = bucket.elements.end;
        }
        assert_eq!(next, layout.gradient_elements);
        for place in &layout.places {
            let mut at = place.gradient.start;
            for block in place.blocks.clone() {
                let elements = Layout::block_elements(place, block);
                assert_eq!(elements.start, at);
                at = elements.end;
            }
            assert_eq!(at, place.gradient.end);
        }
    }
}
