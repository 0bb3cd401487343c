//! Matrices on which polar factors are measured: by the accuracy test, and by the example that prints the table.

use std::sync::Mutex;

use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

/// A named matrix, float32.
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) matrix: Tensor,
}

/// libtorch's generator is one for all threads: who seeds it holds this until the numbers are drawn.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Normal numbers that depend on the seed alone, float64.
pub(crate) fn gaussian(rows: i64, columns: i64, seed: i64) -> Tensor {
    let _held = GENERATOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    tch::manual_seed(seed);
    Tensor::randn([rows, columns], DOUBLE)
}

/// Random singular vectors with the given singular values (of the short side).
fn with_spectrum(rows: i64, columns: i64, sigma: &Tensor, seed: i64) -> Tensor {
    let (u, _, v) = gaussian(rows, columns, seed).svd(true, true);
    (u * sigma).matmul(&v.transpose(0, 1))
}

/// σ_k = k^-power, scaled so that the last one is 1 ÷ condition.
fn power_law(count: i64, condition: f64) -> Tensor {
    let power = condition.ln() / (count as f64).ln();
    Tensor::arange(count, DOUBLE)
        .f_add_scalar(1.0)
        .unwrap()
        .pow_tensor_scalar(-power)
}

/// Spectra σ_k = k^-power, from flat to steep, on shapes from slightly to very wide: what brings an iteration to the edge of
/// the interval that its coefficients are made for.
#[allow(dead_code)] // The example has its own list.
pub(crate) fn steep() -> Vec<(String, Tensor)> {
    let mut out = Vec::new();
    for (rows, columns) in [(16, 512), (64, 384), (128, 512), (48, 64)] {
        for power in [0.25, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0] {
            for seed in 0..8 {
                let sigma = Tensor::arange(rows, DOUBLE)
                    .f_add_scalar(1.0)
                    .unwrap()
                    .pow_tensor_scalar(-power);
                let matrix = with_spectrum(rows, columns, &sigma, 1000 + seed).to_kind(Kind::Float);
                out.push((format!("{rows}×{columns}, k^-{power}, seed {seed}"), matrix));
            }
        }
    }
    out
}

/// The momenta of a real run, beside this file.
fn recorded() -> Vec<Input> {
    let bytes = include_bytes!("../data/momenta.safetensors");
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let matrix = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        Tensor::from_slice(&values).reshape([view.shape()[0] as i64, view.shape()[1] as i64])
    };
    vec![
        Input {
            name: "recorded qkv 384×128",
            matrix: matrix("blocks.1.qkv.weight"),
        },
        Input {
            name: "recorded down 128×512",
            matrix: matrix("blocks.2.down.weight"),
        },
    ]
}

/// All of them.
pub(crate) fn all() -> Vec<Input> {
    let low_rank = gaussian(128, 8, 21).matmul(&gaussian(8, 320, 22)) + gaussian(128, 320, 23) * 0.01;
    let huge = gaussian(64, 160, 31);
    let _ = huge.get(3).get(5).fill_(1e18);
    let mut inputs: Vec<Input> = [
        ("Gaussian square 128×128", gaussian(128, 128, 1)),
        ("Gaussian wide 96×384", gaussian(96, 384, 2)),
        ("Gaussian tall 384×96", gaussian(384, 96, 3)),
        (
            "power law 1e3, 128×512",
            with_spectrum(128, 512, &power_law(128, 1e3), 4),
        ),
        (
            "power law 1e6, 128×512",
            with_spectrum(128, 512, &power_law(128, 1e6), 5),
        ),
        (
            "power law 1e6, 512×128",
            with_spectrum(512, 128, &power_law(128, 1e6), 6),
        ),
        ("low rank + noise 128×320", low_rank),
        ("one entry of 1e18, 64×160", huge),
        ("tiny 1e-18, 64×160", gaussian(64, 160, 32) * 1e-18),
        ("1×64", gaussian(1, 64, 41)),
        ("64×1", gaussian(64, 1, 42)),
        ("symmetric blocks 300×700", gaussian(300, 700, 43)),
        ("zero 16×48", Tensor::zeros([16, 48], DOUBLE)),
    ]
    .map(|(name, matrix)| Input {
        name,
        matrix: matrix.to_kind(Kind::Float),
    })
    .into();
    inputs.extend(recorded());
    inputs
}

/// What a factor does to its matrix.
pub(crate) struct Accuracy {
    /// Largest singular value of the factor.
    pub(crate) largest: f64,
    /// Smallest of uᵢᵀ·F·vᵢ over the singular pairs of the matrix with σᵢ ≥ `relevant`·‖m‖_F.
    pub(crate) smallest: f64,
    /// ⟨m, F⟩ ÷ the nuclear norm of m.
    pub(crate) dual: f64,
}

/// Measures a factor in float64. `relevant`: see [`Accuracy::smallest`].
pub(crate) fn measure(matrix: &Tensor, factor: &Tensor, relevant: f64) -> Accuracy {
    // In units of the norm: squares of 1e30 are no float32 numbers, and the measure is homogeneous.
    let scale = matrix.to_kind(Kind::Double).abs().max().double_value(&[]);
    let m = matrix.to_kind(Kind::Double) / scale;
    let f = factor.to_kind(Kind::Double);
    let (u, sigma, v) = m.svd(true, true);
    let reached =
        (u.transpose(0, 1).matmul(&f) * v.transpose(0, 1)).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let norm = sigma.square().sum(Kind::Double).sqrt();
    let kept = reached.masked_select(&sigma.ge_tensor(&(norm * relevant)));
    Accuracy {
        largest: f.svd(true, false).1.max().double_value(&[]),
        smallest: kept.min().double_value(&[]),
        dual: ((&m * &f).sum(Kind::Double) / sigma.sum(Kind::Double)).double_value(&[]),
    }
}
