//! The polar factor U·Vᵀ of a matrix by Polar Express (Amsel, Persson, Musco, Gower, arXiv 2505.16932).
//!
//! Iteration on X, transposed if tall: A = X·Xᵀ, X ← a·X + (b·A + c·A²)·X, with the paper's table of optimal quintics,
//! each made safe by q = 1.01 (a/q, b/q³, c/q⁵; all but the last), from X = M / (1.01·‖M‖_F).

use tch::{Kind, Tensor};

use crate::OptimError;
use crate::products::Products;

/// Polar Express: coefficients (a, b, c) of each iteration; the last entry repeats.
const POLAR_EXPRESS: [(f64, f64, f64); 8] = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
];

const SAFETY: f64 = 1.01;

/// The coefficients of iteration `index`.
fn coefficients(index: u32) -> (f64, f64, f64) {
    let last = POLAR_EXPRESS.len() - 1;
    let index = (index as usize).min(last);
    let (a, b, c) = POLAR_EXPRESS[index];
    if index == last {
        (a, b, c)
    } else {
        (a / SAFETY, b / SAFETY.powi(3), c / SAFETY.powi(5))
    }
}

/// A way to the polar factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    PolarExpress,
    NewtonSchulz(Table),
    Gram { restart: u32 },
    Svd,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Jordan,
    You,
    Cans,
}

/// ‖U·Uᵀ − I‖_F / √n
pub fn orthogonality_error(factor: &Tensor) -> Result<f64, OptimError> {
    let f = factor.f_to_kind(Kind::Double)?;
    let (r, c) = f.size2()?;
    let g = if r > c { f.tr().matmul(&f) } else { f.matmul(&f.tr()) };
    let n = r.min(c);
    Ok((g - Tensor::eye(n, (Kind::Double, tch::Device::Cpu)))
        .square()
        .sum(Kind::Double)
        .double_value(&[])
        .sqrt()
        / (n as f64).sqrt())
}

/// Settings of the iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polar {
    pub method: Method,
    /// Iterations.
    pub steps: u32,
    /// How its products are made.
    pub products: Products,
}

impl Polar {
    pub fn factors(&self, m: &Tensor) -> Result<Tensor, OptimError> {
        let mut out = Vec::new();
        for part in 0..m.size()[0] {
            let one = m.f_select(0, part)?.f_contiguous()?;
            if self.method == Method::Svd {
                let (u, _, v) = one.f_to_kind(Kind::Double)?.f_svd(true, true)?;
                out.push(u.matmul(&v.tr()).to_kind(Kind::Float));
            } else {
                let norm = lockstep_kernels::sums::square_sum(lockstep_autograd::elements(&one))
                    .0
                    .sqrt();
                out.push(self.factor(&one, norm)?);
            }
        }
        Ok(Tensor::f_stack(&out, 0)?.f_contiguous()?)
    }

    /// The approximate polar factor of `m` `[rows, columns]` (float32), whose Frobenius norm is `norm`, in the products'
    /// kind. A zero matrix gives zeros.
    pub fn factor(&self, m: &Tensor, norm: f64) -> Result<Tensor, OptimError> {
        let (rows, columns) = m.size2()?;
        let scale = if norm > 0.0 { 1.0 / (SAFETY * norm) } else { 0.0 };
        let scaled = m.f_mul_scalar(scale)?.f_to_kind(self.products.kind())?;
        let tall = rows > columns;
        let mut x = if tall {
            scaled.f_transpose(0, 1)?.f_contiguous()?
        } else {
            scaled
        };
        for index in 0..self.steps {
            let (a, b, c) = coefficients(index);
            x = self.iterate(&x, a, b, c)?;
        }
        if tall {
            Ok(x.f_transpose(0, 1)?.f_contiguous()?)
        } else {
            Ok(x)
        }
    }

    /// a·X + (b·A + c·A²)·X with A = X·Xᵀ, each product and sum rounded to the products' kind.
    fn iterate(&self, x: &Tensor, a: f64, b: f64, c: f64) -> Result<Tensor, OptimError> {
        let gram = self.products.multiply(x, &x.f_transpose(0, 1)?)?; // [n, n]
        match self.products {
            Products::NativeBf16 => {
                // addmm fuses the scaled sum into the product: β·self + α·(m1·m2), rounded once.
                let mix = addmm(&gram, b, &gram, &gram, c)?;
                addmm(x, a, &mix, x, 1.0)
            }
            Products::Float32 => {
                let mix = addmm(&gram, b, &gram, &gram, c)?;
                addmm(x, a, &mix, x, 1.0)
            }
            Products::WidenedBf16 => {
                let gram = gram.f_to_kind(Kind::Float)?;
                let mix = addmm(&gram, b, &gram, &gram, c)?
                    .f_to_kind(Kind::BFloat16)?
                    .f_to_kind(Kind::Float)?;
                let x = x.f_to_kind(Kind::Float)?;
                Ok(addmm(&x, a, &mix, &x, 1.0)?.f_to_kind(Kind::BFloat16)?)
            }
        }
    }
}

/// β·c + α·(a·b).
fn addmm(c: &Tensor, beta: f64, a: &Tensor, b: &Tensor, alpha: f64) -> Result<Tensor, OptimError> {
    // tch's addmm has no β and α; baddbmm of one matrix has, and is the same library call.
    let out = c
        .f_unsqueeze(0)?
        .f_baddbmm(&a.f_unsqueeze(0)?, &b.f_unsqueeze(0)?, beta, alpha)?;
    Ok(out.f_squeeze_dim(0)?)
}
