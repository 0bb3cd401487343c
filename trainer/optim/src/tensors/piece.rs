//! What an owner holds of one tensor on a device: a hidden tensor whole, or neighbouring blocks of another one.

use lockstep_inventory::{Treatment, Use};
use tch::Tensor;

use crate::OptimError;
use crate::decision::TensorStep;
use crate::piece::BLOCK;
use crate::settings::Optimizer;
use crate::state::{Fill, Take, show};
use crate::tensors::hidden::HiddenTensor;
use crate::tensors::other::OtherTensor;
use crate::tensors::results::{Applied, Prepared};
use crate::tensors::sums::BlockArithmetic;

/// A piece's gradient in a step: the sum over counted tokens (float32, flat) and the scale that makes it the mean.
#[derive(Clone, Copy, Debug)]
pub struct GradientSum<'a> {
    /// The sum.
    pub sum: &'a Tensor,
    /// Clip factor ÷ token count.
    pub scale: f32,
}

/// A piece of one tensor at its owner, with its optimiser state, on one device. Gradients and working copies come in as
/// flat contiguous tensors of that device, working copies float32 or bf16.
pub enum TensorPiece {
    /// All of a hidden tensor: one block.
    Hidden(Box<HiddenTensor>),
    /// Neighbouring blocks of an other tensor.
    Other(OtherTensor),
}

impl TensorPiece {
    /// A piece with initial values `master` (float32, copied, on the device of the piece) of the tensor `name`.
    pub fn new(
        name: &str,
        treatment: &Treatment,
        master: &Tensor,
        optimizer: &Optimizer,
    ) -> Result<TensorPiece, OptimError> {
        Ok(match treatment.kind {
            Use::Hidden { parts, rows, columns } => TensorPiece::Hidden(Box::new(HiddenTensor::new(
                name,
                [parts, rows, columns],
                master,
                optimizer,
            )?)),
            Use::Other => TensorPiece::Other(OtherTensor::new(master, BLOCK, optimizer)?),
        })
    }

    /// The float32 master.
    pub fn master(&self) -> &Tensor {
        match self {
            TensorPiece::Hidden(matrix) => matrix.master(),
            TensorPiece::Other(run) => run.master(),
        }
    }

    /// Every array that outlives a step, by its name, where it lies.
    pub fn arrays(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            TensorPiece::Hidden(matrix) => matrix.arrays(),
            TensorPiece::Other(run) => run.arrays(),
        }
    }

    /// Shows every array that outlives a step, by its name; waits for the device.
    pub fn show(&self, take: &mut Take<'_>) -> Result<(), OptimError> {
        self.arrays()
            .into_iter()
            .try_for_each(|(name, array)| show(name, array, take))
    }

    /// Fills every array that outlives a step, by its name, as after `steps` steps.
    pub fn fill(&mut self, steps: u64, values: &mut Fill<'_>) -> Result<(), OptimError> {
        match self {
            TensorPiece::Hidden(matrix) => matrix.fill(steps, values),
            TensorPiece::Other(run) => run.fill(steps, values),
        }
    }

    /// Elements of a block: all of a hidden tensor's.
    fn block(&self) -> usize {
        match self {
            TensorPiece::Hidden(matrix) => matrix.elements(),
            TensorPiece::Other(run) => run.block(),
        }
    }

    /// The hash of each block: int64 with its bits.
    pub fn hashes(&self, arithmetic: &dyn BlockArithmetic) -> Result<Tensor, OptimError> {
        arithmetic.hashes(self.master(), self.block())
    }

    /// Bytes of master and state.
    pub fn state_bytes(&self) -> usize {
        match self {
            TensorPiece::Hidden(matrix) => matrix.state_bytes(),
            TensorPiece::Other(run) => run.state_bytes(),
        }
    }

    /// Σ g² (float64) and the count of values that are not finite (int64), of each block of a gradient.
    pub fn square_sums(
        &self,
        gradient: &Tensor,
        arithmetic: &dyn BlockArithmetic,
    ) -> Result<(Tensor, Tensor), OptimError> {
        let squares = arithmetic.dots(gradient, gradient, self.block())?;
        Ok((squares, arithmetic.not_finite(gradient, self.block())?))
    }

    /// Momentum, polar factors and sums, from the gradient. `working` are the
    /// parameters at which the gradient was taken. `probe`: the part whose orthogonality error is wanted.
    pub fn prepare(
        &mut self,
        gradient: GradientSum<'_>,
        working: &Tensor,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        probe: Option<usize>,
    ) -> Result<Prepared, OptimError> {
        match self {
            TensorPiece::Hidden(matrix) => matrix.prepare(gradient, working, optimizer, arithmetic, probe),
            TensorPiece::Other(run) => run.prepare(gradient, working, optimizer, arithmetic),
        }
    }

    /// Steps along what was prepared and writes the working copy.
    ///
    /// # Errors
    /// A hidden tensor that [`TensorPiece::prepare`] was not called for since the last application.
    pub fn apply(
        &mut self,
        gradient: GradientSum<'_>,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
    ) -> Result<Applied, OptimError> {
        match self {
            TensorPiece::Hidden(matrix) => matrix.apply(step, optimizer, arithmetic, working),
            TensorPiece::Other(run) => run.apply(gradient, step, optimizer, arithmetic, working),
        }
    }

    /// Prepares and applies in one go, for steps that depend on nothing else. Of the [`Prepared`] only `duals` and
    /// `orthogonality` are filled in.
    pub fn step(
        &mut self,
        gradient: GradientSum<'_>,
        step: &TensorStep,
        optimizer: &Optimizer,
        arithmetic: &dyn BlockArithmetic,
        working: &mut Tensor,
        probe: Option<usize>,
    ) -> Result<(Prepared, Applied), OptimError> {
        match self {
            TensorPiece::Hidden(matrix) => {
                let prepared = matrix.prepare(gradient, working, optimizer, arithmetic, probe)?;
                Ok((prepared, matrix.apply(step, optimizer, arithmetic, working)?))
            }
            TensorPiece::Other(run) => {
                let applied = run.step(gradient, step, optimizer, arithmetic, working)?;
                Ok((Prepared::default(), applied))
            }
        }
    }
}
