//! A hidden tensor at its owner: one matrix, or several of equal shape one below the other, each with its polar factor.
//!
//! [`HiddenMatrix::prepare`] turns the step's gradient into momentum and polar factors, which are kept;
//! [`HiddenMatrix::apply`] steps with them. Where the step depends on all tensors, the second slot exchange lies between.

use lockstep_autograd::{elements, elements_mut};
use lockstep_config::Method;
use lockstep_kernels::real::{Real, bf16};
use lockstep_kernels::sums::{block_hash, dot, square_sum};
use lockstep_kernels::update::{Form, LookAhead, Stored, Stride, apply, momentum, rest, write};
use tch::{Device, Kind, Tensor};

use crate::OptimError;
use crate::decision::TensorStep;
use crate::polar::orthogonality_error;
use crate::results::{Applied, BlockSums, Prepared};
use crate::settings::Optimizer;
use crate::state::{Fill, MASTER, MOMENTUM, ROW_SQUARES, Take};

/// A hidden tensor of `parts` matrices `[rows, columns]` with its state: float32 master and momentum, and the factors of
/// the step that is being made.
pub struct HiddenMatrix {
    name: String,
    /// `[parts, rows, columns]`, as momentum and factors.
    shape: [usize; 3],
    master: Tensor,
    momentum: Tensor,
    /// What is orthogonalised where it is not the momentum itself; reused.
    look_ahead: Option<Tensor>,
    /// NorMuon: the running mean square of each row of the factors.
    row_squares: Vec<f32>,
    factors: Option<Tensor>,
    started: bool,
}

/// What NorMuon adds to the root of a row's mean square (arXiv 2510.05491).
pub(crate) const ROW_EPSILON: f32 = 1e-10;

impl HiddenMatrix {
    /// A tensor whose initial values are `master`, row-major, of `shape` `[parts, rows, columns]`, with zero momentum.
    pub fn new(name: &str, shape: [usize; 3], master: &[f32], optimizer: &Optimizer) -> HiddenMatrix {
        let sizes = shape.map(|n| n as i64);
        let zeros = || Tensor::zeros(sizes, (Kind::Float, Device::Cpu));
        let row_squares = match optimizer.keys().method {
            Method::NorMuon => vec![0.0; shape[0] * shape[1]],
            _ => Vec::new(),
        };
        HiddenMatrix {
            name: name.to_owned(),
            shape,
            master: Tensor::from_slice(master).reshape(sizes),
            momentum: zeros(),
            look_ahead: optimizer.keys().nesterov.then(zeros),
            row_squares,
            factors: None,
            started: false,
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

    /// Shows every array that outlives a step.
    pub(crate) fn show(&self, take: &mut Take<'_>) {
        take(MASTER, self.master());
        take(MOMENTUM, elements(&self.momentum));
        if !self.row_squares.is_empty() {
            take(ROW_SQUARES, &self.row_squares);
        }
    }

    /// Fills every array that outlives a step, as after `steps` steps.
    pub(crate) fn fill(&mut self, steps: u64, values: &mut Fill<'_>) {
        values(MASTER, elements_mut(&mut self.master));
        values(MOMENTUM, elements_mut(&mut self.momentum));
        if !self.row_squares.is_empty() {
            values(ROW_SQUARES, &mut self.row_squares);
        }
        self.started = steps > 0;
        self.factors = None;
    }

    /// Bytes of master and state.
    pub fn state_bytes(&self) -> usize {
        let copies = 2 + usize::from(self.look_ahead.is_some());
        4 * (copies * self.master().len() + self.row_squares.len())
    }

    /// Momentum and polar factors from the gradient sum (row-major) and the scale that makes it the mean. `working` are the
    /// parameters at which the gradient was taken. `probe`: the part whose orthogonality error is wanted.
    pub fn prepare<W: Real>(
        &mut self,
        gradient: &[f32],
        scale: f32,
        working: &[W],
        optimizer: &Optimizer,
        probe: Option<usize>,
    ) -> Result<Prepared, OptimError> {
        let beta = match optimizer.starts_at_first_gradient() && !self.started {
            true => 0.0,
            false => optimizer.keys().momentum,
        };
        let new = rest(beta);
        self.started = true;
        momentum(gradient, scale, new, elements_mut(&mut self.momentum));
        let source = match &mut self.look_ahead {
            None => &self.momentum,
            Some(out) => {
                let ahead = LookAhead {
                    gradient,
                    scale,
                    m: elements(&self.momentum),
                    form: Form::Average(new),
                };
                write(ahead, elements_mut(out));
                &*out
            }
        };
        let mut factors = optimizer.polar().factors(source)?;
        let orthogonality = match probe {
            None => None,
            Some(part) => Some(orthogonality_error(&factors.f_select(0, part as i64)?)?),
        };
        if optimizer.keys().method == Method::NorMuon {
            factors = factors.f_to_kind(Kind::Float)?;
            normalise_rows(
                elements_mut(&mut factors),
                &mut self.row_squares,
                self.shape,
                rest(optimizer.keys().betas[1]),
            );
        }
        let size = self.shape[1] * self.shape[2];
        let source = elements::<f32>(source).chunks(size);
        let duals = match factors.kind() {
            Kind::BFloat16 => source
                .zip(elements::<bf16>(&factors).chunks(size))
                .map(|(m, u)| dot(m, u))
                .collect(),
            _ => source
                .zip(elements::<f32>(&factors).chunks(size))
                .map(|(m, u)| dot(m, u))
                .collect(),
        };
        self.factors = Some(factors);
        let mut sums = BlockSums::default();
        if optimizer.momo().is_some() {
            sums.gradient_dot = f64::from(scale) * dot(gradient, working);
            sums.momentum_dot = dot(elements(&self.momentum), self.master());
        }
        Ok(Prepared {
            duals,
            blocks: vec![sums],
            orthogonality,
        })
    }

    /// Steps with the kept factors, which are used up, and writes the working copy.
    ///
    /// # Errors
    /// If [`HiddenMatrix::prepare`] was not called since the last application.
    pub fn apply<W: Real>(
        &mut self,
        step: &TensorStep,
        optimizer: &Optimizer,
        working: &mut [W],
    ) -> Result<Vec<Applied>, OptimError> {
        let factors = self.factors.take().ok_or_else(|| OptimError::NoPolarFactor {
            name: self.name.clone(),
        })?;
        let size = self.shape[1] * self.shape[2];
        let mut square_sum = 0.0;
        let parts = elements_mut::<f32>(&mut self.master)
            .chunks_mut(size)
            .zip(working.chunks_mut(size))
            .enumerate();
        for (part, (master, working)) in parts {
            let stride = Stride {
                step: step.steps[part] as f32,
                keep: step.keep as f32,
                cautious: optimizer.keys().cautious,
            };
            let range = part * size..(part + 1) * size;
            square_sum += match factors.kind() {
                Kind::BFloat16 => apply(master, Stored(&elements::<bf16>(&factors)[range]), stride, working),
                _ => apply(master, Stored(&elements::<f32>(&factors)[range]), stride, working),
            };
        }
        Ok(vec![Applied {
            hash: self.hash(),
            square_sum,
        }])
    }
}

/// NorMuon (arXiv 2510.05491): V ← β₂·V + (1−β₂)·mean(O² over columns), O ← O/(√V + 1e-10), and O back to its Frobenius
/// norm. `factors` is `[parts, rows, columns]`, `squares` V of `[parts, rows]`.
fn normalise_rows(factors: &mut [f32], squares: &mut [f32], shape: [usize; 3], rest: f32) {
    let [_, rows, columns] = shape;
    for (factor, squares) in factors.chunks_mut(rows * columns).zip(squares.chunks_mut(rows)) {
        let before = square_sum(factor).0;
        for (row, square) in factor.chunks_mut(columns).zip(squares) {
            let mean = (square_sum(row).0 / columns as f64) as f32;
            *square = rest.mul_add(mean - *square, *square);
            let inverse = 1.0 / (square.sqrt() + ROW_EPSILON);
            row.iter_mut().for_each(|value| *value *= inverse);
        }
        let after = square_sum(factor).0;
        let back = if after > 0.0 {
            (before / after).sqrt() as f32
        } else {
            0.0
        };
        factor.iter_mut().for_each(|value| *value *= back);
    }
}
