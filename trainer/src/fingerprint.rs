//! The numeric fingerprint of a member: everything that could give it other bits than its peers.
//!
//! Names (libraries, instruction set, threads, kind of products) say what differs; the hash of a small computation with
//! the run's own products and kernels catches what names do not.

use lockstep_autograd::{elements, library_versions};
use lockstep_config::{Precision, RunConfig};
use lockstep_inventory::{Initial, Role, TensorSpec};
use lockstep_optim::polar::Polar;
use lockstep_optim::products::Products;
use lockstep_optim::settings::Optimizer;
use tch::{Device, Kind, Tensor};

use crate::device::opening::Opened;
use crate::error::TrainerError;
use crate::model::initial::values;

/// The fingerprint under a config where a rank computes, as one line.
pub fn fingerprint(config: &RunConfig, opened: &Opened) -> Result<String, TrainerError> {
    let device = opened.compute.device();
    let products = opened.compute.products(config.run.precision == Precision::Bf16);
    let optimizer = Optimizer::for_device(&config.optimizer, device);
    let polar = optimizer.polar();
    let place = match &opened.facts {
        Some(facts) => facts.clone(),
        None => format!("cpu {}; threads {}", instruction_set(), config.run.intra_op_threads),
    };
    Ok(format!(
        "{}; {place}; products {}; polar {}; probe {}",
        library_versions(),
        products.name(),
        polar.products.name(),
        probe(config, products, polar, device)?
    ))
}

fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            return "avx512";
        }
        if has!("avx2") && has!("fma") {
            return "avx2";
        }
    }
    std::env::consts::ARCH
}

/// The hash of one product and one polar factor of fixed matrices of the model's width.
fn probe(config: &RunConfig, products: Products, polar: &Polar, device: Device) -> Result<String, TrainerError> {
    let width = i64::from(config.model.width);
    let matrix = |name: &str, rows: i64| -> Result<Tensor, TrainerError> {
        let spec = TensorSpec {
            name: name.to_owned(),
            shape: vec![rows, width],
            layer: 0,
            role: Role::Hidden,
            initial: Initial::Normal(1.0),
        };
        Ok(Tensor::from_slice(&values(&spec, 0))
            .f_reshape([rows, width])?
            .f_to_device(device)?)
    };
    let (a, b) = (matrix("probe a", 64)?, matrix("probe b", 4 * width)?);
    let product = products.multiply(
        &a.f_to_kind(products.kind())?,
        &b.f_to_kind(products.kind())?.f_transpose(0, 1)?,
    )?;
    let factor = polar.factors(&b.f_unsqueeze(0)?)?;
    let mut hasher = blake3::Hasher::new();
    for tensor in [product, factor] {
        let values = tensor
            .f_to_kind(Kind::Float)?
            .f_to_device(Device::Cpu)?
            .f_contiguous()?;
        for value in elements::<f32>(&values) {
            hasher.update(&value.to_bits().to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}
