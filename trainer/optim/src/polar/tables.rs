//! Coefficients of the iterations: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X = M / normaliser(‖M‖_F).

use tch::{TchError, Tensor};

use crate::polar::{Method, Table};

/// (a, b, c) of one iteration.
pub(super) type Coefficients = (f64, f64, f64);

/// Polar Express (Amsel, Persson, Musco, Gower, arXiv 2505.16932): the table of optimal quintics; the last one repeats.
const POLAR_EXPRESS: [Coefficients; 8] = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
];

/// Room that Polar Express leaves for rounding: q of (a/q, b/q³, c/q⁵), all but the last.
const SAFETY: f64 = 1.01;

/// The same for the Gram iteration, whose errors grow between restarts. With 1.01, bf16 and a restart after every two steps,
/// a spectrum of 1/k on 16×512 left the interval of the table (singular values above 11 were seen).
const GRAM_SAFETY: f64 = 1.05;

/// The room that a method leaves.
fn safety(method: Method) -> f64 {
    match method {
        Method::Gram { .. } => GRAM_SAFETY,
        _ => SAFETY,
    }
}

/// Keller Jordan's quintic, also `torch.optim.Muon`'s.
const JORDAN: [Coefficients; 1] = [(3.4445, -4.7750, 2.0315)];

/// You Jiacheng's quintics, five steps.
const YOU: [Coefficients; 5] = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
];

/// CANS (arXiv 2506.10935): cubics, twelve steps.
const CANS: [Coefficients; 10] = [
    (5.182503604966906, -5.178098480082684, 0.0),
    (2.586120737395915, -0.6479542005271643, 0.0),
    (2.567364126726186, -0.6454968804392178, 0.0),
    (2.520560084348265, -0.6393528082067044, 0.0),
    (2.410759275435182, -0.6248683598710716, 0.0),
    (2.1883348130094173, -0.5952022073798908, 0.0),
    (1.8595760874873613, -0.5504490972723968, 0.0),
    (1.589020160467417, -0.5126569802066718, 0.0),
    (1.5051653981684994, -0.5007377068751799, 0.0),
    (1.5, -0.5, 0.0),
];

/// The coefficients of iteration `index` from 0; the last entry of a table repeats.
pub(super) fn coefficients(method: Method, index: u32) -> Coefficients {
    let of = |table: &[Coefficients]| table[(index as usize).min(table.len() - 1)];
    match method {
        Method::NewtonSchulz(Table::Jordan) => of(&JORDAN),
        Method::NewtonSchulz(Table::You) => of(&YOU),
        Method::NewtonSchulz(Table::Cans) => of(&CANS),
        Method::PolarExpress | Method::Gram { .. } | Method::Svd => {
            let (a, b, c) = of(&POLAR_EXPRESS);
            let last = index as usize >= POLAR_EXPRESS.len() - 1;
            let q = if last { 1.0 } else { safety(method) };
            (a / q, b / q.powi(3), c / q.powi(5))
        }
    }
}

/// What matrices of Frobenius norms `norms` (float64) are divided by before the first iteration; infinite for a zero
/// matrix, which stays zero.
pub(super) fn divisors(method: Method, norms: &Tensor) -> Result<Tensor, TchError> {
    let divisors = match method {
        Method::NewtonSchulz(_) => norms.f_add_scalar(1e-7)?,
        Method::PolarExpress | Method::Gram { .. } | Method::Svd => norms.f_mul_scalar(SAFETY)?,
    };
    divisors.f_masked_fill(&norms.f_eq(0.0)?, f64::INFINITY)
}
