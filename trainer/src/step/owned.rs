//! What a rank owns, and the passes over it: norms, momentum and polar factors, application, hashes, masters.

use std::ops::Range;

use lockstep_autograd::FlatBuffer;
use lockstep_config::{Precision, RunConfig, Scaling};
use lockstep_kernels::real::bf16;
use lockstep_kernels::sums::square_sum;
use lockstep_kernels::update::Applied;
use lockstep_optim::hidden::{HiddenMatrix, Muon, ShapeScaling};
use lockstep_optim::other::{AdamW, OtherRun};
use lockstep_optim::polar::Polar;
use lockstep_optim::products::Products;

use crate::error::TrainerError;
use crate::inventory::TensorSpec;
use crate::sharding::layout::{BLOCK, Layout, Place};
use crate::sharding::owners::{OwnerMap, Piece};

enum State {
    Hidden(Box<HiddenMatrix>),
    Other { run: OtherRun, decayed: bool },
}

struct Item {
    piece: Piece,
    state: State,
}

/// The pieces of one rank with their optimiser state, in flat order.
pub struct Owned {
    map: OwnerMap,
    rank: u32,
    items: Vec<Item>,
    muon: Muon,
    adam: AdamW,
    clip_norm: Option<f64>,
}

/// A value for one block.
pub type OfBlock<T> = (usize, T);

impl Owned {
    /// The (still empty) pieces of `rank`, with the config's optimiser.
    pub fn new(config: &RunConfig, map: OwnerMap, rank: u32) -> Owned {
        let keys = &config.optimizer;
        let polar = Polar {
            steps: keys.polar.steps,
            products: Products::for_precision(keys.polar.precision == Precision::Bf16),
        };
        let scaling = match keys.scaling {
            Scaling::Original => ShapeScaling::Original,
            Scaling::MatchRms => ShapeScaling::MatchRms,
        };
        Owned {
            map,
            rank,
            items: Vec::new(),
            muon: Muon {
                momentum: keys.momentum,
                nesterov: keys.nesterov,
                polar,
                hidden_scale: keys.hidden_scale,
                scaling,
                weight_decay: keys.weight_decay,
            },
            adam: AdamW {
                betas: keys.betas,
                epsilon: keys.epsilon,
                weight_decay: keys.weight_decay,
            },
            clip_norm: keys.clip_norm,
        }
    }

    /// Takes the initial values of a tensor (all of it, row-major) for the pieces that this rank owns.
    pub fn start(&mut self, tensor: usize, spec: &TensorSpec, place: &Place, initial: &[f32]) {
        for piece in self
            .map
            .pieces
            .iter()
            .filter(|p| p.tensor == tensor && p.owner == self.rank)
        {
            let at = piece.elements.start - place.gradient.start..piece.elements.end - place.gradient.start;
            let state = if place.hidden {
                let columns: i64 = spec.shape[1..].iter().product();
                State::Hidden(Box::new(HiddenMatrix::new(
                    &spec.name,
                    spec.shape[0],
                    columns,
                    &initial[at],
                )))
            } else {
                State::Other {
                    run: OtherRun::new(&initial[at], BLOCK),
                    decayed: spec.role.is_decayed(),
                }
            };
            self.items.push(Item {
                piece: piece.clone(),
                state,
            });
        }
        self.items.sort_by_key(|item| item.piece.elements.start);
    }

    /// Who owns what.
    pub fn map(&self) -> &OwnerMap {
        &self.map
    }

    /// The norm to which gradients are clipped.
    pub fn clip_norm(&self) -> Option<f64> {
        self.clip_norm
    }

    /// The owned ranges inside a bucket, neighbouring ones joined over the gaps between tensors.
    pub fn ranges_in(&self, bucket: &Range<usize>) -> Vec<Range<usize>> {
        let inside = |item: &&Item| bucket.start <= item.piece.elements.start && item.piece.elements.end <= bucket.end;
        self.items
            .iter()
            .filter(inside)
            .map(|item| item.piece.elements.clone())
            .collect()
    }

    /// Σ g² (of the gradient sums) and the count of values that are not finite, by block.
    pub fn square_sums(&self, gradients: &FlatBuffer) -> Result<Vec<OfBlock<(f64, u64)>>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state } in &self.items {
            let gradient = gradients.slice::<f32>(piece.elements.start * 4, piece.elements.len())?;
            match state {
                State::Hidden(_) => out.push((piece.blocks.start, square_sum(gradient))),
                State::Other { .. } => {
                    out.extend(piece.blocks.clone().zip(gradient.chunks(BLOCK).map(square_sum)));
                }
            }
        }
        Ok(out)
    }

    /// Momentum and polar factor of every owned hidden matrix; returns ⟨M, U⟩ by tensor.
    pub fn orthogonalise(&mut self, gradients: &FlatBuffer, scale: f32) -> Result<Vec<OfBlock<f64>>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state } in &mut self.items {
            if let State::Hidden(matrix) = state {
                let gradient = gradients.slice::<f32>(piece.elements.start * 4, piece.elements.len())?;
                out.push((piece.tensor, matrix.orthogonalise(gradient, scale, &self.muon)?.dual));
            }
        }
        Ok(out)
    }

    /// Steps everything owned and writes the working copies; returns what each block leaves.
    pub fn apply(
        &mut self,
        layout: &Layout,
        gradients: &FlatBuffer,
        working: &mut FlatBuffer,
        learning_rate: f64,
        scale: f32,
    ) -> Result<Vec<OfBlock<Applied>>, TrainerError> {
        let mut out = Vec::new();
        for Item { piece, state } in &mut self.items {
            let place = &layout.places[piece.tensor];
            let bytes = Layout::working_bytes_of(place, &piece.elements);
            let count = piece.elements.len();
            match state {
                State::Hidden(matrix) => out.push((
                    piece.blocks.start,
                    match place.bf16 {
                        true => matrix.apply(
                            learning_rate,
                            &self.muon,
                            working.slice_mut::<bf16>(bytes.start, count)?,
                        )?,
                        false => {
                            matrix.apply(learning_rate, &self.muon, working.slice_mut::<f32>(bytes.start, count)?)?
                        }
                    },
                )),
                State::Other { run, decayed } => {
                    let gradient = gradients.slice::<f32>(piece.elements.start * 4, count)?;
                    let blocks = match place.bf16 {
                        true => {
                            let copies = working.slice_mut::<bf16>(bytes.start, count)?;
                            run.step(gradient, scale, learning_rate, &self.adam, *decayed, copies)
                        }
                        false => {
                            let copies = working.slice_mut::<f32>(bytes.start, count)?;
                            run.step(gradient, scale, learning_rate, &self.adam, *decayed, copies)
                        }
                    };
                    out.extend(piece.blocks.clone().zip(blocks));
                }
            }
        }
        Ok(out)
    }

    /// The hash of every owned block.
    pub fn hashes(&self) -> Vec<OfBlock<u64>> {
        let mut out = Vec::new();
        for Item { piece, state } in &self.items {
            match state {
                State::Hidden(matrix) => out.push((piece.blocks.start, matrix.hash())),
                State::Other { run, .. } => out.extend(piece.blocks.clone().zip(run.hashes())),
            }
        }
        out
    }

    /// Writes the masters into a float32 flat buffer, each at its place.
    pub fn write_masters(&self, buffer: &mut FlatBuffer) -> Result<(), TrainerError> {
        for Item { piece, state } in &self.items {
            let master = match state {
                State::Hidden(matrix) => matrix.master(),
                State::Other { run, .. } => run.master(),
            };
            buffer
                .slice_mut::<f32>(piece.elements.start * 4, master.len())?
                .copy_from_slice(master);
        }
        Ok(())
    }
}
