//! Every member, with and without Momo.

use tch::Tensor;

use crate::recorded::case::Case;
use crate::recorded::{Recording, Replayed, STEPS};
use crate::reference::norms::{Member, dot, singular_values};
use crate::reference::{Bound, average};
use crate::{BOUND, FALL, SEED, sorts, sorts_of};

#[test]
fn float32_momenta_determine_the_polar_factors_far_below_a_thousandth() {
    let recording = Recording::new(SEED);
    let mut reference = Case::of(Member::all()[0]).reference(&recording);
    for step in 0..STEPS {
        reference.step(&recording.gradients(step), f64::from(recording.losses[step]));
        for (weight, m) in reference.weights.iter().zip(&reference.first) {
            if weight.parts.is_none() {
                continue;
            }
            // A change δ of m changes its polar factor by at most ‖δ‖ ÷ σ_min; the factor's own norm is √(count of σ).
            let sigma = singular_values(&weight.matrices(m)[0]);
            let norm = dot(&sigma, &sigma).sqrt();
            let factor = norm / sigma.min().double_value(&[]) / (sigma.numel() as f64).sqrt();
            let change = f64::from(f32::EPSILON) * factor;
            assert!(change < 1e-4, "{} in step {step}: {change:e}", weight.name);
        }
    }
}

#[test]
fn all_18_members_without_momo_step_like_the_reference() {
    let recording = Recording::new(SEED);
    let members = Member::all();
    assert_eq!(members.len(), 18);
    for member in members {
        let case = Case::of(member).with_first_fall(&recording, FALL);
        assert_eq!(sorts_of(&case.agrees(&recording), &case), [STEPS, 0, 0]);
    }
}

#[test]
fn all_18_members_with_lower_bound_zero_step_like_the_reference() {
    let recording = Recording::new(SEED);
    for member in Member::all() {
        // A rate so large that the bound is felt.
        let case = Case::of(member)
            .bounded(Bound::Fixed(0.0))
            .with_first_fall(&recording, 0.3);
        let [full, truncated, _] = sorts_of(&case.agrees(&recording), &case);
        assert!(
            full > 0 && truncated > 0,
            "{member:?}: {full} full, {truncated} truncated"
        );
    }
}

#[test]
fn all_18_members_with_a_bound_that_truncates_step_like_the_reference() {
    let recording = Recording::new(SEED);
    for member in Member::all() {
        let case = Case::of(member)
            .bounded(Bound::Fixed(BOUND))
            .with_first_fall(&recording, FALL);
        let [full, truncated, none] = sorts_of(&case.agrees(&recording), &case);
        // All three sorts: a full step, a truncated one, and the clip at 0 where the model is already below the bound.
        assert!(
            full > 0 && truncated > 0 && none > 0,
            "{member:?}: {full} full, {truncated} truncated, {none} of size 0"
        );
    }
}

/// h and what the model says after the step, from gradients, losses and the parameters that came out alone.
fn model_of(recording: &Recording, replayed: &Replayed, momentum: f64) -> Vec<[f64; 2]> {
    let mut m: Vec<Tensor> = Vec::new();
    let mut mean = None;
    let mut models = Vec::new();
    for step in 0..STEPS {
        let gradients = recording.gradients(step);
        let along = |vectors: &[Tensor], at: usize| -> f64 {
            let parameters = &replayed.parameters[at];
            vectors.iter().zip(parameters).map(|(vector, w)| dot(vector, w)).sum()
        };
        m = gradients
            .iter()
            .enumerate()
            .map(|(i, g)| average(m.get(i), momentum, g))
            .collect();
        let intercept = f64::from(recording.losses[step]) - along(&gradients, step);
        let next = mean.map_or(intercept, |old| momentum * old + (1.0 - momentum) * intercept);
        mean = Some(next);
        models.push([next + along(&m, step), next + along(&m, step + 1)]);
    }
    models
}

#[test]
fn a_truncated_step_lands_on_the_lower_bound_of_the_model() {
    let recording = Recording::new(SEED);
    // Factors of five steps are not orthogonal; the dual norm is that of the factor that is applied.
    for polar in [
        "{ method = \"svd\" }",
        "{ method = \"polar-express\", precision = \"fp32\" }",
    ] {
        for member in Member::all() {
            let mut case = Case::of(member)
                .bounded(Bound::Fixed(BOUND))
                .with_first_fall(&recording, FALL);
            case.polar = polar;
            let rate = case.choices.learning_rate;
            let replayed = recording.replay(rate, &case.keys());
            let [_, truncated, none] = sorts(replayed.effective.iter().copied(), rate);
            assert!(truncated > 0 && none > 0, "{member:?}: {truncated}, {none}");
            let models = model_of(&recording, &replayed, case.choices.momentum);
            for (step, ([h, after], effective)) in models.iter().zip(&replayed.effective).enumerate() {
                let place = format!("{member:?}, {polar}, step {step}: h {h}, after it {after}, rate {effective:e}");
                let slack = 1e-4 * (h - BOUND).abs();
                match sorts([*effective].into_iter(), rate) {
                    [1, _, _] => assert!(*after < *h && *after >= BOUND - slack, "{place}"),
                    [_, 1, _] => assert!((after - BOUND).abs() <= slack, "{place}"),
                    _ => assert!(*h <= BOUND && after == h, "{place}"),
                }
            }
        }
    }
}
