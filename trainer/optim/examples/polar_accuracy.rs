//! `polar_accuracy`: the accuracy of every way to the polar factor on the inputs of the accuracy test, as a Markdown table;
//! `polar_accuracy time`: milliseconds of each way on shapes of real models, one thread, medians of 15.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use lockstep_optim::polar::{Method, Polar, Table};
use lockstep_optim::products::Products;
use tch::{Device, Kind, Tensor};

#[path = "../tests/inputs/mod.rs"]
mod inputs;

/// The ways with their usual steps.
fn ways() -> Vec<(&'static str, Method, u32)> {
    vec![
        ("polar-express", Method::PolarExpress, 5),
        ("polar-express, 8 steps", Method::PolarExpress, 8),
        ("newton-schulz jordan", Method::NewtonSchulz(Table::Jordan), 5),
        ("newton-schulz you", Method::NewtonSchulz(Table::You), 5),
        ("newton-schulz cans", Method::NewtonSchulz(Table::Cans), 12),
        ("gram, restart 1", Method::Gram { restart: 1 }, 5),
        ("gram, restart 2", Method::Gram { restart: 2 }, 5),
        ("gram, restart 3", Method::Gram { restart: 3 }, 5),
        ("gram, restart 4", Method::Gram { restart: 4 }, 5),
        ("gram, no restart", Method::Gram { restart: 5 }, 5),
        ("svd", Method::Svd, 5),
    ]
}

fn main() {
    tch::set_num_threads(1);
    match std::env::args().nth(1).as_deref() {
        Some("time") => time(),
        _ => table(),
    }
}

fn table() {
    println!("| input | method | precision | largest | smallest | ⟨m,U⟩ ÷ nuclear norm |");
    println!("| --- | --- | --- | ---: | ---: | ---: |");
    for input in inputs::all() {
        for (name, method, steps) in ways() {
            for products in [Products::Float32, Products::for_precision(true)] {
                if method == Method::Svd && products != Products::Float32 {
                    continue;
                }
                let polar = Polar {
                    method,
                    steps,
                    products,
                };
                let factor = polar.factors(&input.matrix.unsqueeze(0)).unwrap().squeeze_dim(0);
                if input.matrix.abs().max().double_value(&[]) == 0.0 {
                    let largest = factor.abs().max().double_value(&[]);
                    println!("| {} | {name} | {} | {largest} | | |", input.name, products.name());
                    continue;
                }
                let accuracy = inputs::measure(&input.matrix, &factor, 1e-2);
                println!(
                    "| {} | {name} | {} | {:.3} | {:.3} | {:.3} |",
                    input.name,
                    products.name(),
                    accuracy.largest,
                    accuracy.smallest,
                    accuracy.dual
                );
            }
        }
    }
}

fn time() {
    println!("| shape | precision | method | ms |");
    println!("| --- | --- | --- | ---: |");
    for shape in [
        [1i64, 384, 1536],
        [1, 384, 384],
        [1, 1152, 384],
        [1, 512, 2048],
        [12, 64, 384],
    ] {
        let m = Tensor::randn(shape, (Kind::Float, Device::Cpu));
        for products in [Products::Float32, Products::for_precision(true)] {
            for (name, method, steps) in [ways()[0], ways()[2], ways()[6], ways()[7]] {
                let polar = Polar {
                    method,
                    steps,
                    products,
                };
                let mut times: Vec<f64> = (0..15)
                    .map(|_| {
                        let began = Instant::now();
                        drop(polar.factors(&m).unwrap());
                        began.elapsed().as_secs_f64() * 1e3
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                println!("| {shape:?} | {} | {name} | {:.2} |", products.name(), times[7]);
            }
        }
    }
}
