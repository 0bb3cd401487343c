//! The numeric fingerprint of a member: everything that could give it other bits than its peers.
//!
//! Names (libraries, instruction set, threads, kind of products) say what differs; hashes of small computations with the run's
//! own products and kernels catch what names do not: one product; the polar factor of each shape of hidden matrix in the run's
//! model; and, on a CPU, loss and gradients of one fixed micro-batch of a model with one layer of the run's, since all layers
//! have the same shapes, and a part of its vocabulary. They also warm up what the first step needs, before a generation waits
//! for this member.

use std::collections::BTreeSet;

use lockstep_autograd::{FlatBuffer, elements, library_versions, run_backward};
use lockstep_config::{Precision, RunConfig};
use lockstep_inventory::{Initial, Role, TensorSpec, Treatment, Use, treatments};
use lockstep_kernels::real::{bf16, convert};
use lockstep_optim::polar::Polar;
use lockstep_optim::products::Products;
use lockstep_optim::settings::Optimizer;
use tch::{Device, Kind, Tensor};

use crate::device::opening::Opened;
use crate::error::TrainerError;
use crate::model::choice::from_config;
use crate::model::initial::values;
use crate::model::weights::Weights;
use crate::model::{Batch, OpenGate};
use crate::sharding::layout::Layout;

/// Of the vocabulary the gradients are taken of so much, and of a sequence so much.
const PROBED_VOCABULARY: u32 = 1024;
const PROBED_COLUMNS: u32 = 512;

/// The fingerprint under a config where a rank computes, as one line. `vocabulary`: of the data.
pub fn fingerprint(config: &RunConfig, vocabulary: u32, opened: &Opened) -> Result<String, TrainerError> {
    let device = opened.compute.device();
    let products = opened.compute.products(config.run.precision == Precision::Bf16);
    let optimizer = Optimizer::for_device(&config.optimizer, device);
    let polar = optimizer.polar();
    let place = match &opened.facts {
        Some(facts) => facts.clone(),
        None => format!(
            "cpu {}; subnormals {}; threads {}",
            instruction_set(),
            if are_subnormals_zero() { "zero" } else { "kept" },
            config.run.intra_op_threads
        ),
    };
    let gradients = match device {
        Device::Cpu => format!("; gradients {}", gradients(config, vocabulary, products)?),
        // Memory of a device belongs to the communicator of a generation.
        _ => String::new(),
    };
    Ok(format!(
        "{}; {place}; products {}; polar {}; probe {}{gradients}",
        library_versions(),
        products.name(),
        polar.products.name(),
        probe(config, vocabulary, products, (polar, device))?
    ))
}

/// Whether what is too small for a normal float32 is zero on this thread.
fn are_subnormals_zero() -> bool {
    std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5) == 0.0
}

/// The instructions that kernels use here.
pub(crate) fn instruction_set() -> &'static str {
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

/// The hash of one product of fixed matrices of the model's width, and of one polar factor of each shape of hidden matrix.
fn probe(
    config: &RunConfig,
    vocabulary: u32,
    products: Products,
    (polar, device): (&Polar, Device),
) -> Result<String, TrainerError> {
    let width = i64::from(config.model.width);
    let matrix = |name: &str, rows: i64, columns: i64| -> Result<Tensor, TrainerError> {
        let spec = TensorSpec {
            name: name.to_owned(),
            shape: vec![rows, columns],
            layer: 0,
            role: Role::Hidden,
            initial: Initial::Normal(1.0),
        };
        Ok(Tensor::from_slice(&values(&spec, 0))
            .f_reshape([rows, columns])?
            .f_to_device(device)?)
    };
    let (a, b) = (matrix("probe a", 64, width)?, matrix("probe b", 4 * width, width)?);
    let product = products.multiply(
        &a.f_to_kind(products.kind())?,
        &b.f_to_kind(products.kind())?.f_transpose(0, 1)?,
    )?;
    let mut results = vec![product];
    for (rows, columns) in hidden_shapes(config, vocabulary)? {
        let matrix = matrix("probe c", rows, columns)?;
        results.push(polar.factors(&matrix.f_unsqueeze(0)?)?);
    }
    let mut hasher = blake3::Hasher::new();
    for tensor in results {
        let values = tensor
            .f_to_kind(Kind::Float)?
            .f_to_device(Device::Cpu)?
            .f_contiguous()?;
        update(&mut hasher, elements::<f32>(&values));
    }
    Ok(short(&hasher))
}

/// The shapes of the run's hidden matrices, each once.
fn hidden_shapes(config: &RunConfig, vocabulary: u32) -> Result<BTreeSet<(i64, i64)>, TrainerError> {
    let model = from_config(config, vocabulary);
    let head_width = i64::from(config.model.width / config.model.heads);
    let treatments = treatments(&config.optimizer, model.inventory(), Some(head_width))
        .map_err(|error| TrainerError::Refused(error.to_string()))?;
    let shape = |treatment: &Treatment| match treatment.kind {
        Use::Hidden { rows, columns, .. } => Some((rows as i64, columns as i64)),
        Use::Other => None,
    };
    Ok(treatments.iter().filter_map(shape).collect())
}

/// The hash of loss and gradients of one fixed micro-batch of one sequence, on the host.
fn gradients(config: &RunConfig, vocabulary: u32, products: Products) -> Result<String, TrainerError> {
    let mut small = config.clone();
    small.model.layers = 1;
    let vocabulary = vocabulary.min(PROBED_VOCABULARY);
    let model = from_config(&small, vocabulary);
    // How the optimiser treats a tensor is no matter of its gradient, and rules for other layers would match nothing here.
    let others = vec![
        Treatment {
            kind: Use::Other,
            lr_scale: 1.0,
            weight_decay: 0.0,
            follows_plan: false,
            reason: String::new(),
        };
        model.inventory().len()
    ];
    let layout = Layout::new(model.inventory(), &others, config.run.precision == Precision::Bf16);
    let mut working = FlatBuffer::heap(layout.working_bytes)?;
    let gradients = FlatBuffer::heap(layout.gradient_elements * 4)?;
    for (spec, place) in model.inventory().iter().zip(&layout.places) {
        let values = values(spec, 0);
        match place.bf16 {
            true => convert::<f32, bf16>(&values, working.slice_mut::<bf16>(place.working.start, values.len())?),
            false => working
                .slice_mut::<f32>(place.working.start, values.len())?
                .copy_from_slice(&values),
        }
    }
    let buffers = std::slice::from_ref(&gradients);
    let weights = Weights::new(model.inventory(), &layout, products, &working, buffers)?;
    let columns = config.data.sequence_length.min(PROBED_COLUMNS) as usize;
    let tokens: Vec<i64> = (0..=columns as i64)
        .map(|at| (at * at * 31 + at * 17 + 5) % i64::from(vocabulary.max(1)))
        .collect();
    let batch = Batch {
        rows: 1,
        columns,
        inputs: &tokens[..columns],
        targets: &tokens[1..],
    };
    weights.begin_lane(0, false)?;
    let loss = model.loss(&weights, batch, &mut OpenGate)?;
    run_backward(&loss)?;
    weights.end_lane()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&loss.f_double_value(&[])?.to_bits().to_le_bytes());
    for (spec, place) in model.inventory().iter().zip(&layout.places) {
        update(
            &mut hasher,
            gradients.slice::<f32>(place.gradient.start * 4, spec.elements())?,
        );
    }
    Ok(short(&hasher))
}

fn update(hasher: &mut blake3::Hasher, values: &[f32]) {
    for value in values {
        hasher.update(&value.to_bits().to_le_bytes());
    }
}

fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use lockstep_autograd::take_subnormals_for_zero;

    use super::*;

    fn config(sets: &[&str]) -> RunConfig {
        let text = r#"
            [run]
            name = "probe"
            steps = 1
            [data]
            path = "data"
            sequence_length = 16
            [model]
            layers = 2
            heads = 2
            width = 32
            [batch]
            micro_batch = 2
            schedule = 2
            [learning_rate]
            schedule = 0.1
            [optimizer]
            method = "muon"
        "#;
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "test", &sets).unwrap()
    }

    #[test]
    fn gradients_of_the_same_run_are_the_same_and_of_another_model_or_way_to_multiply_others() {
        let of = |sets: &[&str], products| gradients(&config(sets), 300, products).unwrap();
        let first = of(&["run.precision=fp32"], Products::Float32);
        let deeper = ["run.precision=fp32", "model.layers=7", "run.seed=5"];
        assert_eq!(of(&deeper, Products::Float32), first, "one layer says it all");
        assert_ne!(of(&["run.precision=fp32", "model.width=64"], Products::Float32), first);
        assert_ne!(of(&["run.precision=bf16"], Products::WidenedBf16), first);
    }

    #[test]
    fn subnormals_are_zero_on_threads_that_say_so_and_on_those_that_they_start() {
        let both = || {
            let tensor = Tensor::from_slice(&[f32::MIN_POSITIVE]) * 0.5;
            (are_subnormals_zero(), tensor.double_value(&[0]) == 0.0)
        };
        assert_eq!(both(), (false, false), "as every process begins");
        let told = std::thread::spawn(move || {
            assert!(take_subnormals_for_zero(true));
            let zero = (both(), std::thread::spawn(both).join().unwrap());
            assert!(take_subnormals_for_zero(false));
            (zero, both())
        });
        let (zero, kept) = told.join().unwrap();
        assert_eq!((zero, kept), (((true, true), (true, true)), (false, false)));
        assert_eq!(both(), (false, false), "no matter of other threads");
    }

    #[test]
    fn each_shape_of_hidden_matrix_is_probed_once() {
        let shapes = hidden_shapes(&config(&[]), 300).unwrap();
        assert_eq!(
            shapes.into_iter().collect::<Vec<_>>(),
            [(32, 32), (32, 128), (96, 32), (128, 32)]
        );
        assert!(
            hidden_shapes(&config(&["optimizer.method=adamw"]), 300)
                .unwrap()
                .is_empty()
        );
    }
}
