//! The 18 members of the family, Momo and the methods beside them against an independent float64 reference, through the
//! replay of recorded gradients: everything that happens between a gradient and the next parameter.
#![allow(clippy::unwrap_used, missing_docs)]

mod recorded;
mod reference;

use recorded::case::{Case, Group};
use recorded::{Recording, STEPS, TENSORS};
use reference::{Bound, Member, Step, singular_values};
use tch::Kind;

const SEED: u64 = 1;

/// Part of the first loss that a first step takes, by the model.
const FALL: f64 = 0.05;

/// Below the losses, near enough to truncate.
const BOUND: f64 = 3.3;

fn truncated(steps: &[Step], rate: f64) -> usize {
    steps
        .iter()
        .filter(|step| step.effective > 0.0 && step.effective < rate)
        .count()
}

#[test]
fn all_members_without_momo_step_like_the_reference() {
    let recording = Recording::new(SEED);
    for member in Member::all() {
        Case::of(member).with_first_fall(&recording, FALL).agrees(&recording);
    }
}

#[test]
fn all_members_with_lower_bound_zero_step_like_the_reference() {
    let recording = Recording::new(SEED);
    for member in Member::all() {
        let case = Case::of(member)
            .bounded(Bound::Fixed(0.0))
            .with_first_fall(&recording, 0.3);
        let steps = case.agrees(&recording);
        println!(
            "{member:?}: {} truncated",
            truncated(&steps, case.choices.learning_rate)
        );
    }
}

#[test]
fn all_members_with_a_bound_that_truncates_step_like_the_reference() {
    let recording = Recording::new(SEED);
    for member in Member::all() {
        let case = Case::of(member)
            .bounded(Bound::Fixed(BOUND))
            .with_first_fall(&recording, FALL);
        let steps = case.agrees(&recording);
        let rate = case.choices.learning_rate;
        let text: Vec<String> = steps
            .iter()
            .map(|s| format!("{:.3}/{:.3}", s.model, s.effective / rate))
            .collect();
        println!("{member:?}: {text:?}");
    }
}

#[test]
fn float32_momenta_determine_the_polar_factors_to_a_thousandth() {
    let recording = Recording::new(SEED);
    let mut reference = Case::of(Member::all()[0]).reference(&recording);
    for step in 0..STEPS {
        reference.step(&recording.gradients(step), 0.0);
        for (weight, m) in reference.weights.iter().zip(&reference.first) {
            if weight.parts.is_none() {
                continue;
            }
            let sigma = singular_values(&weight.matrices(m)[0]);
            let condition = (sigma.square().sum(Kind::Double).sqrt() / sigma.min()).double_value(&[]);
            println!("{}: {condition}", weight.name);
            assert!(condition < 1e9, "{}: {condition}", weight.name);
        }
    }
    let _ = (
        TENSORS.len(),
        Group {
            pattern: "",
            lr_scale: None,
            weight_decay: None,
        },
    );
}
