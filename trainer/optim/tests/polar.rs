//! The polar factor against the singular value decomposition, and Muon's step against plain tensor code.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_optim::polar::{Method, Polar};
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
            let polar = Polar {
                method: Method::PolarExpress,
                steps: 5,
                products,
            };
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
        method: Method::PolarExpress,
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
        method: Method::PolarExpress,
        steps: 5,
        products: Products::WidenedBf16,
    }
    .factor(&m, 0.0)
    .unwrap();
    assert_eq!(frobenius(&factor), 0.0);
}
