//! The polar factor against the singular value decomposition, and Muon's step against plain tensor code.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_optim::hidden::{HiddenMatrix, Muon, ShapeScaling};
use lockstep_optim::polar::Polar;
use lockstep_optim::products::Products;
use tch::{Device, Kind, Tensor};

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

fn singular_values(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double).svd(true, false).1
}

#[test]
fn singular_values_of_the_factor_are_near_one_for_every_shape_and_precision() {
    for (rows, columns) in [(64, 64), (48, 160), (160, 48), (1, 32), (96, 97)] {
        for products in [Products::Float32, Products::WidenedBf16, Products::NativeBf16] {
            let m = gaussian(rows, columns, rows * 1000 + columns);
            let polar = Polar { steps: 5, products };
            let factor = polar.factor(&m, frobenius(&m)).unwrap();
            assert_eq!(factor.size(), [rows, columns]);
            let values = singular_values(&factor);
            let (low, high) = (values.min().double_value(&[]), values.max().double_value(&[]));
            // Square Gaussians have singular values near zero, which five iterations cannot lift all the way.
            let floor = if rows == columns || rows + 1 == columns {
                0.0
            } else {
                0.6
            };
            assert!(
                high < 1.25 && low > floor,
                "{rows}x{columns} {products:?}: {low} .. {high}"
            );
            let nuclear = singular_values(&m).sum(Kind::Double).double_value(&[]);
            let dual = (m.to_kind(Kind::Double) * factor.to_kind(Kind::Double))
                .sum(Kind::Double)
                .double_value(&[]);
            // After five iterations singular values lie in a band of about 1 ± 0.15: a single one (1×n) lands at 0.877.
            assert!(
                (0.85..1.15).contains(&(dual / nuclear)),
                "{rows}x{columns} {products:?}: {}",
                dual / nuclear
            );
        }
    }
}

#[test]
fn many_iterations_reach_the_exact_factor() {
    let m = gaussian(40, 100, 7);
    let polar = Polar {
        steps: 12,
        products: Products::Float32,
    };
    let factor = polar.factor(&m, frobenius(&m)).unwrap().to_kind(Kind::Double);
    let (u, _, v) = m.to_kind(Kind::Double).svd(true, true);
    let error = frobenius(&(factor - u.matmul(&v.transpose(0, 1))));
    assert!(error < 1e-4 * 40f64.sqrt(), "{error}");
}

#[test]
fn a_zero_matrix_has_a_zero_factor() {
    let m = Tensor::zeros([8, 16], (Kind::Float, Device::Cpu));
    let factor = Polar {
        steps: 5,
        products: Products::WidenedBf16,
    }
    .factor(&m, 0.0)
    .unwrap();
    assert_eq!(frobenius(&factor), 0.0);
}

#[test]
fn ten_steps_equal_plain_tensor_code() {
    let muon = Muon {
        momentum: 0.95,
        nesterov: true,
        polar: Polar {
            steps: 5,
            products: Products::Float32,
        },
        hidden_scale: 20.0,
        scaling: ShapeScaling::Original,
        weight_decay: 0.1,
    };
    let (rows, columns) = (24i64, 10i64);
    let start = gaussian(rows, columns, 1) * 0.02;
    let values: Vec<f32> = Vec::try_from(start.flatten(0, -1)).unwrap();
    let mut ours = HiddenMatrix::new("w", rows, columns, &values);
    let (mut w, mut m) = (
        start.to_kind(Kind::Double),
        Tensor::zeros([rows, columns], (Kind::Double, Device::Cpu)),
    );
    let mut working = vec![0.0f32; (rows * columns) as usize];
    for step in 0..10 {
        let g = gaussian(rows, columns, 100 + step);
        let g_values: Vec<f32> = Vec::try_from(g.flatten(0, -1)).unwrap();
        ours.orthogonalise(&g_values, 0.5, &muon).unwrap();
        let applied = ours.apply(1e-3, &muon, &mut working).unwrap();
        assert_eq!(applied.hash, ours.hash());
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
        w = &w * (1.0 - 1e-3 * 20.0 * 0.1) - x.transpose(0, 1) * (1e-3 * 20.0 * 2.4f64.sqrt());
    }
    let got = Tensor::from_slice(ours.master())
        .reshape([rows, columns])
        .to_kind(Kind::Double);
    let error = frobenius(&(&got - &w)) / frobenius(&w);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_matrix_is_not_applied_twice_with_one_factor() {
    let muon = Muon {
        momentum: 0.9,
        nesterov: false,
        polar: Polar {
            steps: 5,
            products: Products::Float32,
        },
        hidden_scale: 1.0,
        scaling: ShapeScaling::MatchRms,
        weight_decay: 0.0,
    };
    let mut matrix = HiddenMatrix::new("blocks.0.up.weight", 2, 3, &[1.0; 6]);
    let mut working = [0.0f32; 6];
    let error = matrix.apply(1e-3, &muon, &mut working).unwrap_err();
    assert!(error.to_string().contains("blocks.0.up.weight"), "{error}");
    matrix
        .orthogonalise(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.5], 1.0, &muon)
        .unwrap();
    matrix.apply(1e-3, &muon, &mut working).unwrap();
    assert!(matrix.apply(1e-3, &muon, &mut working).is_err());
}
