//! A hidden matrix at its owner, under Muon.
//!
//! [`HiddenMatrix::orthogonalise`] turns the step's gradient into momentum and its polar factor, which is kept;
//! [`HiddenMatrix::apply`] steps with it. Between the two lies the second slot exchange, which proves that every planned
//! matrix has its factor before any parameter moves.

use lockstep_autograd::{elements, elements_mut};
use lockstep_kernels::real::{Real, bf16};
use lockstep_kernels::sums::{block_hash, dot};
use lockstep_kernels::update::{Applied, apply, momentum};
use tch::{Device, Kind, Tensor};

use crate::OptimError;
use crate::polar::Polar;

/// The keys of Muon.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// β of the momentum.
    pub momentum: f64,
    /// Whether the update looks ahead: (1−β)·g + β·m.
    pub nesterov: bool,
    /// The orthogonalisation.
    pub polar: Polar,
    /// Hidden matrices step with learning rate × this × the shape factor.
    pub hidden_scale: f64,
    /// The shape factor.
    pub scaling: ShapeScaling,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// How the step of a matrix depends on its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeScaling {
    /// √max(1, rows ÷ columns), Keller Jordan's.
    Original,
    /// 0.2·√max(rows, columns), Moonlight's: the root mean square of AdamW's updates.
    MatchRms,
}

impl ShapeScaling {
    /// The factor for a matrix `[rows, columns]`.
    pub fn factor(self, rows: i64, columns: i64) -> f64 {
        match self {
            ShapeScaling::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
            ShapeScaling::MatchRms => 0.2 * (rows.max(columns) as f64).sqrt(),
        }
    }
}

/// A hidden matrix `[rows, columns]` with its state: float32 master and momentum, and the kept polar factor.
pub struct HiddenMatrix {
    name: String,
    master: Tensor,
    momentum: Tensor,
    /// The matrix that is orthogonalised; of the size of the momentum, reused.
    look_ahead: Tensor,
    polar: Option<Tensor>,
    shape: (i64, i64),
}

/// What [`HiddenMatrix::orthogonalise`] leaves for the slots.
#[derive(Clone, Copy, Debug)]
pub struct Orthogonalised {
    /// ⟨M, U⟩: the nuclear norm of what was orthogonalised, by the factor that will be applied.
    pub dual: f64,
}

impl HiddenMatrix {
    /// A matrix whose initial values are `master`, row-major, with zero momentum.
    pub fn new(name: &str, rows: i64, columns: i64, master: &[f32]) -> HiddenMatrix {
        let zeros = || Tensor::zeros([rows, columns], (Kind::Float, Device::Cpu));
        HiddenMatrix {
            name: name.to_owned(),
            master: Tensor::from_slice(master).reshape([rows, columns]),
            momentum: zeros(),
            look_ahead: zeros(),
            polar: None,
            shape: (rows, columns),
        }
    }

    /// The float32 master, row-major.
    pub fn master(&self) -> &[f32] {
        elements(&self.master)
    }

    /// The hash of the master.
    pub fn hash(&self) -> u64 {
        block_hash(self.master())
    }

    /// Momentum and polar factor from the gradient sum (row-major) and the scale that makes it the mean.
    pub fn orthogonalise(&mut self, gradient: &[f32], scale: f32, muon: &Muon) -> Result<Orthogonalised, OptimError> {
        let square_sum = momentum(
            gradient,
            scale,
            muon.momentum as f32,
            muon.nesterov,
            elements_mut(&mut self.momentum),
            elements_mut(&mut self.look_ahead),
        );
        let polar = muon.polar.factor(&self.look_ahead, square_sum.sqrt())?;
        let dual = match polar.kind() {
            Kind::BFloat16 => dot::<bf16>(elements(&self.look_ahead), elements(&polar)),
            _ => dot::<f32>(elements(&self.look_ahead), elements(&polar)),
        };
        self.polar = Some(polar);
        Ok(Orthogonalised { dual })
    }

    /// Steps with the kept factor, which is used up, and writes the working copy.
    ///
    /// # Errors
    /// If [`HiddenMatrix::orthogonalise`] was not called since the last application.
    pub fn apply<W: Real>(
        &mut self,
        learning_rate: f64,
        muon: &Muon,
        working: &mut [W],
    ) -> Result<Applied, OptimError> {
        let polar = self.polar.take().ok_or_else(|| OptimError::NoPolarFactor {
            name: self.name.clone(),
        })?;
        let (rows, columns) = self.shape;
        let step = (learning_rate * muon.hidden_scale * muon.scaling.factor(rows, columns)) as f32;
        let decay = (learning_rate * muon.hidden_scale * muon.weight_decay) as f32;
        let master = elements_mut(&mut self.master);
        Ok(match polar.kind() {
            Kind::BFloat16 => apply::<bf16, W>(master, elements(&polar), step, decay, working),
            _ => apply::<f32, W>(master, elements(&polar), step, decay, working),
        })
    }
}
