//! What an owner holds of one tensor: a hidden tensor whole, or neighbouring blocks of another one.

use lockstep_config::{Method, OptimizerSection};
use lockstep_inventory::state::has_second_moment;
use lockstep_inventory::{Treatment, Use};
use lockstep_kernels::real::Real;

use crate::OptimError;
use crate::decision::TensorStep;
use crate::hidden::HiddenMatrix;
use crate::other::OtherRun;
use crate::results::{Applied, Prepared};
use crate::settings::Optimizer;
use crate::state::{Fill, Take};

/// Elements of a block of an other tensor: the unit of scalar sums and of splits between owners, in every world.
pub const BLOCK: usize = 65_536;

/// A piece of one tensor at its owner, with its optimiser state.
pub enum Piece {
    /// All of a hidden tensor: one block.
    Hidden(Box<HiddenMatrix>),
    /// Neighbouring blocks of an other tensor.
    Other(OtherRun),
}

/// Bytes of master and state of `elements` elements of a tensor at their owner, without making them: what
/// [`Piece::state_bytes`] will say.
pub fn planned_bytes(treatment: &Treatment, elements: usize, keys: &OptimizerSection) -> usize {
    let (copies, rows) = match treatment.kind {
        // Master and momentum, what is orthogonalised where it is not the momentum, and NorMuon's rows.
        Use::Hidden { parts, rows, .. } => (
            2 + usize::from(keys.nesterov),
            if keys.method == Method::NorMuon {
                parts * rows
            } else {
                0
            },
        ),
        Use::Other => (2 + usize::from(has_second_moment(keys.method)), 0),
    };
    4 * (copies * elements + rows)
}

impl Piece {
    /// A piece with initial values `master` of the tensor `name`.
    pub fn new(name: &str, treatment: &Treatment, master: &[f32], optimizer: &Optimizer) -> Piece {
        match treatment.kind {
            Use::Hidden { parts, rows, columns } => Piece::Hidden(Box::new(HiddenMatrix::new(
                name,
                [parts, rows, columns],
                master,
                optimizer,
            ))),
            Use::Other => Piece::Other(OtherRun::new(master, BLOCK, optimizer)),
        }
    }

    /// The float32 master.
    pub fn master(&self) -> &[f32] {
        match self {
            Piece::Hidden(matrix) => matrix.master(),
            Piece::Other(run) => run.master(),
        }
    }

    /// Shows every array that outlives a step, by its name.
    pub fn show(&self, take: &mut Take<'_>) {
        match self {
            Piece::Hidden(matrix) => matrix.show(take),
            Piece::Other(run) => run.show(take),
        }
    }

    /// Fills every array that outlives a step, by its name, as after `steps` steps.
    pub fn fill(&mut self, steps: u64, values: &mut Fill<'_>) {
        match self {
            Piece::Hidden(matrix) => matrix.fill(steps, values),
            Piece::Other(run) => run.fill(steps, values),
        }
    }

    /// The hash of each block.
    pub fn hashes(&self) -> Vec<u64> {
        match self {
            Piece::Hidden(matrix) => vec![matrix.hash()],
            Piece::Other(run) => run.hashes(),
        }
    }

    /// Bytes of master and state.
    pub fn state_bytes(&self) -> usize {
        match self {
            Piece::Hidden(matrix) => matrix.state_bytes(),
            Piece::Other(run) => run.state_bytes(),
        }
    }

    /// Momentum, polar factors and sums, from the gradient sum and the scale that makes it the mean.
    pub fn prepare<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        working: &[W],
        optimizer: &Optimizer,
        probe: Option<usize>,
    ) -> Result<Prepared, OptimError> {
        match self {
            Piece::Hidden(matrix) => matrix.prepare(gradient, scale, working, optimizer, probe),
            Piece::Other(run) => Ok(Prepared {
                duals: Vec::new(),
                blocks: run.prepare(gradient, scale, working, optimizer),
                orthogonality: None,
            }),
        }
    }

    /// Steps along what was prepared and writes the working copy.
    pub fn apply<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
    ) -> Result<Vec<Applied>, OptimError> {
        match self {
            Piece::Hidden(matrix) => matrix.apply(step, optimizer, working),
            Piece::Other(run) => Ok(run.apply(gradient, scale, step, optimizer, working)),
        }
    }

    /// Prepares and applies in one go, for steps that depend on nothing else. Of the [`Prepared`] only `duals` and
    /// `orthogonality` are filled in.
    pub fn step<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
        probe: Option<usize>,
    ) -> Result<(Prepared, Vec<Applied>), OptimError> {
        match self {
            Piece::Hidden(matrix) => {
                let prepared = matrix.prepare(gradient, scale, working, optimizer, probe)?;
                Ok((prepared, matrix.apply(step, optimizer, working)?))
            }
            Piece::Other(run) => {
                let applied = run.step(gradient, scale, step, optimizer, working);
                let prepared = Prepared {
                    duals: Vec::new(),
                    blocks: Vec::new(),
                    orthogonality: None,
                };
                Ok((prepared, applied))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lockstep_config::Precision;

    use super::*;

    #[test]
    fn planned_bytes_are_those_of_a_piece_for_every_method() {
        for method in [
            "muon",
            "normuon",
            "muonadam",
            "scion",
            "muonmax",
            "adamw",
            "sgd",
            "momo",
            "momo-adam",
        ] {
            let table = format!("method = \"{method}\"").parse().unwrap();
            let keys = OptimizerSection::parse(table, "piece.rs", Precision::Fp32).unwrap();
            let optimizer = Optimizer::new(&keys);
            for kind in [
                Use::Other,
                Use::Hidden {
                    parts: 2,
                    rows: 3,
                    columns: 4,
                },
            ] {
                let treatment = Treatment {
                    kind,
                    lr_scale: 1.0,
                    weight_decay: 0.0,
                    follows_plan: false,
                    reason: String::new(),
                };
                let piece = Piece::new("w", &treatment, &[0.5; 24], &optimizer);
                assert_eq!(
                    piece.state_bytes(),
                    planned_bytes(&treatment, 24, &keys),
                    "{method}, {kind:?}"
                );
            }
        }
    }
}
