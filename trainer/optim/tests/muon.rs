//! Muon's step against plain tensor code, and that no matrix steps without a polar factor of its own step.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_config::{OptimizerSection, Precision};
use lockstep_kernels::sums::block_hash;
use lockstep_optim::decision::TensorStep;
use lockstep_optim::hidden::HiddenMatrix;
use lockstep_optim::settings::Optimizer;
use tch::{Device, Kind, Tensor};

fn optimizer(text: &str) -> Optimizer {
    Optimizer::new(&OptimizerSection::parse(text.parse().unwrap(), "muon.rs", Precision::Fp32).unwrap())
}

fn gaussian(rows: i64, columns: i64, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn([rows, columns], (Kind::Float, Device::Cpu))
}

fn frobenius(t: &Tensor) -> f64 {
    t.to_kind(Kind::Double)
        .square()
        .sum(Kind::Double)
        .sqrt()
        .double_value(&[])
}

#[test]
fn ten_steps_of_muon_equal_plain_float64_code() {
    let muon = optimizer("method = \"muon\"\nweight_decay = 0.1");
    let (rows, columns) = (24i64, 10i64);
    let start = gaussian(rows, columns, 1) * 0.02;
    let values: Vec<f32> = Vec::try_from(start.flatten(0, -1)).unwrap();
    let mut ours = HiddenMatrix::new("w", [1, rows as usize, columns as usize], &values, &muon);
    let (mut w, mut m) = (
        start.to_kind(Kind::Double),
        Tensor::zeros([rows, columns], (Kind::Double, Device::Cpu)),
    );
    let mut working = values.clone();
    for step in 0..10 {
        let g = gaussian(rows, columns, 100 + step);
        let g_values: Vec<f32> = Vec::try_from(g.flatten(0, -1)).unwrap();
        ours.prepare(&g_values, 0.5, &working, &muon, None).unwrap();
        let stride = TensorStep {
            steps: vec![1e-3 * muon.hidden_scale(rows as usize, columns as usize)],
            keep: 1.0 - 1e-3 * 0.1,
        };
        let applied = ours.apply(&stride, &muon, &mut working).unwrap();
        assert_eq!(applied[0].hash, block_hash(ours.master()));
        assert_eq!(working, ours.master());
        // The reference: float64, the same published iteration written out.
        let g = g.to_kind(Kind::Double) * 0.5;
        m = &m * 0.95 + &g * 0.05;
        let u = &g * 0.05 + &m * 0.95;
        let mut x = (&u / (frobenius(&u) * 1.01)).transpose(0, 1);
        for (a, b, c) in [
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        ] {
            let (a, b, c): (f64, f64, f64) = (a / 1.01, b / 1.01f64.powi(3), c / 1.01f64.powi(5));
            let gram = x.matmul(&x.transpose(0, 1));
            x = &x * a + (&gram * b + gram.matmul(&gram) * c).matmul(&x);
        }
        w = &w * (1.0 - 1e-3 * 0.1) - x.transpose(0, 1) * (1e-3 * 20.0 * 2.4f64.sqrt());
    }
    let got = Tensor::from_slice(ours.master())
        .reshape([rows, columns])
        .to_kind(Kind::Double);
    let error = frobenius(&(&got - &w)) / frobenius(&w);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_matrix_is_not_applied_twice_with_one_factor() {
    let muon = optimizer("method = \"muon\"\nnesterov = false\nscaling = \"match-rms\"");
    let mut matrix = HiddenMatrix::new("blocks.0.up.weight", [1, 2, 3], &[1.0; 6], &muon);
    let mut working = [1.0f32; 6];
    let step = TensorStep {
        steps: vec![1e-3],
        keep: 1.0,
    };
    let error = matrix.apply(&step, &muon, &mut working).unwrap_err();
    assert!(error.to_string().contains("blocks.0.up.weight"), "{error}");
    let gradient = [1.0, 2.0, 3.0, 4.0, 5.0, 6.5];
    matrix.prepare(&gradient, 1.0, &working.clone(), &muon, None).unwrap();
    matrix.apply(&step, &muon, &mut working).unwrap();
    assert!(matrix.apply(&step, &muon, &mut working).is_err());
}
