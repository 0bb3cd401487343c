//! `generate`: text from final weights.
//!
//! Prompt → tokens → logits of the last position → a token drawn by temperature from a seeded stream → text.

use std::path::PathBuf;

use lockstep_autograd::FlatBuffer;
use lockstep_config::Precision;
use lockstep_data::Tokenizer;
use lockstep_inventory::treatments_of;
use lockstep_kernels::real::{bf16, convert};
use lockstep_optim::products::Products;

use crate::error::TrainerError;
use crate::model::choice::from_config;
use crate::model::weights::Weights;
use crate::sharding::layout::Layout;
use crate::weights_file;

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The folder of final weights.
    pub weights: PathBuf,
    /// What comes before.
    pub prompt: String,
    /// Tokens to draw.
    pub tokens: u32,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// Prompt and continuation.
pub fn generate(options: &GenerateOptions) -> Result<String, TrainerError> {
    if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
        return Err(TrainerError::Refused(format!(
            "--temperature {} is not a finite number of at least 0",
            options.temperature
        )));
    }
    let file = weights_file::read(&options.weights)?;
    let tokenizer = Tokenizer::load(&options.weights)?;
    let context = file.config.context() as usize;
    let mut tokens: Vec<i64> = tokenizer.encode(&options.prompt)?.into_iter().map(i64::from).collect();
    if tokens.is_empty() {
        return Err(TrainerError::Refused(
            "the prompt is empty; give --prompt at least one character".to_owned(),
        ));
    }
    if tokens.len() > context {
        return Err(TrainerError::Refused(format!(
            "the prompt has {} tokens and the model's context is {context}; shorten --prompt",
            tokens.len()
        )));
    }
    lockstep_autograd::take_subnormals_for_zero(true); // as where it was trained; where it cannot, only time is lost
    let model = from_config(&file.config, tokenizer.vocab());
    let narrow = file.config.run.precision == Precision::Bf16;
    let treatments =
        treatments_of(&file.config, tokenizer.vocab()).map_err(|error| TrainerError::Refused(error.to_string()))?;
    let layout = Layout::new(model.inventory(), &treatments, narrow);
    let mut working = FlatBuffer::heap(layout.working_bytes)?;
    for (spec, place) in model.inventory().iter().zip(&layout.places) {
        let (shape, values) = file.tensors.get(&spec.name).ok_or_else(|| {
            TrainerError::Refused(format!("{} has no tensor {}", options.weights.display(), spec.name))
        })?;
        if *shape != spec.shape {
            return Err(TrainerError::Refused(format!(
                "{} in {} has shape {shape:?}; its config asks for {:?}",
                spec.name,
                options.weights.display(),
                spec.shape
            )));
        }
        match place.bf16 {
            true => convert::<f32, bf16>(values, working.slice_mut(place.working.start, values.len())?),
            false => working
                .slice_mut::<f32>(place.working.start, values.len())?
                .copy_from_slice(values),
        }
    }
    let weights = Weights::new(
        model.inventory(),
        &layout,
        Products::for_precision(narrow),
        &working,
        &[],
    )?;
    let known = i64::from(tokenizer.vocab()).min(model.inventory()[0].shape[0]) as usize;
    let mut draws = Draws::new(options.seed);
    for _ in 0..options.tokens {
        let window = &tokens[tokens.len().saturating_sub(context)..];
        let logits = model.next_token_logits(&weights, window)?;
        // A vocabulary padded beyond the tokenizer's has logits that mean nothing.
        tokens.push(draw(&logits[..known], options.temperature, draws.next()) as i64);
    }
    let tokens: Vec<u32> = tokens.into_iter().map(|t| t as u32).collect();
    Ok(tokenizer.decode(&tokens))
}

/// Numbers in [0, 1) from a seed.
struct Draws {
    stream: blake3::OutputReader,
}

impl Draws {
    fn new(seed: u64) -> Draws {
        let mut hasher = blake3::Hasher::new_derive_key("lockstep generation draws 1");
        hasher.update(&seed.to_le_bytes());
        Draws {
            stream: hasher.finalize_xof(),
        }
    }

    fn next(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.stream.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The token at quantile `u` of softmax(logits ÷ temperature).
fn draw(logits: &[f32], temperature: f64, u: f64) -> usize {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if temperature == 0.0 {
        return logits.iter().position(|l| *l == top).unwrap_or(0);
    }
    let weight = |l: f32| (f64::from(l - top) / temperature).exp();
    let mut left = u * logits.iter().map(|l| weight(*l)).sum::<f64>();
    for (token, logit) in logits.iter().enumerate() {
        left -= weight(*logit);
        if left < 0.0 {
            return token;
        }
    }
    logits.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_softmax_and_temperature_zero_takes_the_best() {
        let logits = [0.0f32, 2.0, 1.0];
        assert_eq!(draw(&logits, 0.0, 0.99), 1);
        let mut counts = [0u32; 3];
        let mut draws = Draws::new(3);
        for _ in 0..20_000 {
            counts[draw(&logits, 1.0, draws.next())] += 1;
        }
        for (count, expected) in counts.iter().zip([0.0900, 0.6652, 0.2447]) {
            assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }
}
