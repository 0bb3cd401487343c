//! What a run can change about a member: groups, split tensors, decay, scaling, the estimated bound.

use crate::recorded::case::{Case, Group};
use crate::recorded::{Recording, STEPS};
use crate::reference::norms::{Descent, Member, Other, Product};
use crate::reference::{Bound, Scaling};
use crate::{BOUND, FALL, SEED, sorts_of};

/// One of each descent, product and norm, twice.
const SOME: [Member; 6] = [
    Member::new(Descent::Constrained, Product::Max, Other::AdaInf),
    Member::new(Descent::Regularized, Product::Hybrid, Other::Ada2),
    Member::new(Descent::Regularized, Product::L2, Other::Ada2),
    Member::new(Descent::Constrained, Product::Hybrid, Other::Sign),
    Member::new(Descent::Constrained, Product::L2, Other::AdaInf),
    Member::new(Descent::Regularized, Product::Max, Other::Sign),
];

#[test]
fn groups_scale_their_steps_and_the_model_counts_it() {
    let recording = Recording::new(SEED);
    for member in SOME {
        for bound in [None, Some(Bound::Fixed(BOUND))] {
            let mut case = Case::of(member);
            case.groups = vec![
                Group {
                    pattern: "layers.wide",
                    lr_scale: Some(0.25),
                    weight_decay: None,
                },
                Group {
                    pattern: "layers.*",
                    lr_scale: Some(2.0),
                    weight_decay: None,
                },
                Group {
                    pattern: "long",
                    lr_scale: Some(3.0),
                    weight_decay: None,
                },
            ];
            if let Some(bound) = bound {
                case = case.bounded(bound);
            }
            let case = case.with_first_fall(&recording, FALL);
            let [_, truncated, _] = sorts_of(&case.agrees(&recording), &case);
            assert_eq!(truncated > 0, bound.is_some(), "{member:?}");
        }
    }
}

#[test]
fn parts_of_a_split_tensor_are_blocks_of_their_own() {
    let recording = Recording::new(SEED);
    for member in SOME {
        for scaling in [Scaling::None, Scaling::Original] {
            let mut case = Case::of(member).bounded(Bound::Fixed(BOUND));
            case.choices.scaling = scaling;
            case.splits = vec![("layers.tall", 3), ("layers.wide", 16), ("layers.conv", 2)];
            let case = case.with_first_fall(&recording, FALL);
            let [full, truncated, _] = sorts_of(&case.agrees(&recording), &case);
            assert!(full > 0 && truncated > 0, "{member:?}");
        }
    }
}

#[test]
fn decay_keeps_the_untruncated_rate_and_the_model_is_taken_where_the_key_says() {
    let recording = Recording::new(SEED);
    let group = |pattern, weight_decay| Group {
        pattern,
        lr_scale: Some(2.0),
        weight_decay,
    };
    for member in SOME {
        let mut case = Case::of(member)
            .bounded(Bound::Fixed(BOUND))
            .with_first_fall(&recording, FALL)
            .with_decay(0.05);
        case.groups = vec![group("layers.tall", Some(0.0)), group("bias", None)];
        let paper = case.agrees(&recording);
        let case = case.exact();
        let exact = case.agrees(&recording);
        for steps in [&paper, &exact] {
            let [full, truncated, none] = sorts_of(steps, &case);
            assert!(full > 0 && truncated > 0 && none > 0, "{member:?}");
        }
        let apart = paper.iter().zip(&exact).map(|(a, b)| (a.model - b.model).abs());
        assert!(apart.fold(0.0, f64::max) > 1e-3, "{member:?}: both models are the same");
        // Without Momo too.
        let mut case = case;
        case.choices.momo = None;
        case.agrees(&recording);
    }
}

#[test]
fn cautious_decay_acts_where_the_step_and_the_parameter_have_one_sign() {
    let recording = Recording::new(SEED);
    for member in SOME {
        let mut case = Case::of(member).with_first_fall(&recording, FALL).with_decay(0.2);
        case.choices.cautious = true;
        case.agrees(&recording);
    }
}

#[test]
fn scaling_by_shape_is_a_factor_of_the_block_in_direction_and_dual_norm() {
    let recording = Recording::new(SEED);
    for member in SOME {
        for scaling in [Scaling::Original, Scaling::MatchRms, Scaling::Fan] {
            for bound in [None, Some(Bound::Fixed(BOUND))] {
                let mut case = Case::of(member);
                case.choices.scaling = scaling;
                if let Some(bound) = bound {
                    case = case.bounded(bound);
                }
                case.with_first_fall(&recording, FALL).agrees(&recording);
            }
        }
    }
}

#[test]
fn the_estimated_bound_follows_the_published_rule() {
    let recording = Recording::new(SEED);
    for (index, member) in SOME.into_iter().enumerate() {
        let mut case = Case::of(member).bounded(Bound::Auto);
        // With groups, the fall of the model stands where G² or G does.
        if index % 2 == 1 {
            case.groups = vec![Group {
                pattern: "layers.*",
                lr_scale: Some(2.0),
                weight_decay: None,
            }];
        }
        let case = case.with_first_fall(&recording, FALL);
        let steps = case.agrees(&recording);
        let [full, truncated, _] = sorts_of(&steps, &case);
        assert!(
            full > 0 && truncated > 0,
            "{member:?}: {full} full, {truncated} truncated"
        );
        // The dip takes the model below the estimate, which is then half of h.
        let halved = steps.iter().filter(|step| step.bound == step.model / 2.0).count();
        assert!(halved > 0 && halved < STEPS, "{member:?}");
    }
}
