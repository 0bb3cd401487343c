//! Pieces over tensors of any device against those over slices.

mod both_ways;

use lockstep_optim::decision::TensorStep;
use lockstep_optim::piece::BLOCK;
use lockstep_optim::tensors::piece::{GradientSum, TensorPiece};
use lockstep_optim::tensors::sums::Halving;
use lockstep_optim::tensors::table::{Table, read};
use tch::{Device, Kind, Tensor};

use crate::recorded::case::Case;
use crate::recorded::{Recording, TENSORS};
use crate::reference::Bound;
use crate::reference::norms::Member;
use crate::tensors::both_ways::{Rules, SCALE, WHOLE, most_apart, on_tensors};
use crate::{BOUND, FALL, SEED};

/// Every method, and what changes a step beside it.
fn all_rules(recording: &Recording) -> Vec<Rules> {
    let mut all = Vec::new();
    for member in Member::all() {
        let plain = Case::of(member).with_first_fall(recording, FALL).with_decay(0.02);
        let mut cautious = Case::of(member).with_first_fall(recording, FALL).with_decay(0.02);
        cautious.choices.cautious = true;
        let bounded = Case::of(member)
            .bounded(Bound::Fixed(BOUND))
            .with_first_fall(recording, FALL);
        for case in [plain, cautious, bounded] {
            all.push(Rules::new(case.choices.learning_rate, &case.keys()));
        }
    }
    for method in [
        "method = \"muon\"",
        "method = \"muon\"\nnesterov = false\npolar = { method = \"newton-schulz\" }\nscaling = \"match-rms\"",
        "method = \"muon\"\npolar = { method = \"gram\" }\nhidden = [{ match = \"layers.tall\", split = 3 }, \"layers.*\"]",
        "method = \"muon\"\npolar = { precision = \"bf16\" }",
        "method = \"muon\"\npolar = { method = \"newton-schulz\", precision = \"bf16\" }",
        "method = \"normuon\"",
        "method = \"normuon\"\nhidden = [{ match = \"layers.wide\", split = 4 }, \"layers.*\"]",
        "method = \"muonmax\"\npolar = { method = \"svd\" }",
    ] {
        all.push(Rules::new(
            1e-3,
            &format!("{method}\nbetas = [0.9, 0.8]\nweight_decay = 20.0"),
        ));
    }
    for method in [
        "method = \"adamw\"\nbetas = [0.85, 0.8]",
        "method = \"adamw\"\nbetas = [0.85, 0.8]\ncautious = true",
        "method = \"sgd\"\nmomentum = 0.8",
        "method = \"sgd\"\nmomentum = 0.8\nnesterov = true",
        "method = \"sgd\"\nmomentum = 0.8\nnesterov = true\nnormalized = true",
        "method = \"momo\"\nmomentum = 0.8",
        "method = \"momo-adam\"\nbetas = [0.85, 0.8]",
    ] {
        all.push(Rules::new(1e-3, &format!("{method}\nweight_decay = 20.0")));
    }
    all
}

#[test]
fn every_method_moves_tensors_as_it_moves_slices_within_1e_minus_5() {
    let recording = Recording::new(SEED);
    let mut worst = (0.0, String::new());
    for rules in all_rules(&recording) {
        let apart = most_apart(&recording, &rules);
        assert!(apart <= 1e-5, "{apart:.1e} under\n{}", rules.keys);
        if apart >= worst.0 {
            worst = (apart, rules.keys);
        }
    }
    println!("at most {:.1e} apart, under\n{}", worst.0, worst.1);
}

#[test]
fn results_do_not_depend_on_how_tensors_are_split_between_owners() {
    let recording = Recording::new(SEED);
    for rules in all_rules(&recording) {
        let whole = on_tensors(&recording, &rules, WHOLE, 4);
        for first_blocks in [1, 2] {
            let cut = on_tensors(&recording, &rules, first_blocks, 4);
            for (whole, cut) in whole.iter().zip(&cut) {
                assert_eq!(
                    whole.applied, cut.applied,
                    "cut after {first_blocks} blocks under\n{}",
                    rules.keys
                );
                assert_eq!(whole.masters, cut.masters);
                assert_eq!(whole.effective.to_bits(), cut.effective.to_bits());
            }
        }
    }
}

#[test]
fn one_go_does_what_preparing_and_applying_do_and_bf16_copies_are_the_rounded_masters() {
    let recording = Recording::new(SEED);
    for rules in all_rules(&recording) {
        if rules.optimizer.is_global() {
            continue;
        }
        for (tensor, recorded) in TENSORS.iter().enumerate() {
            let start = Tensor::from_slice(&recording.start[tensor]);
            let new = || {
                let treatment = &rules.treatments[tensor];
                let piece = TensorPiece::new(recorded.name, treatment, &start, &rules.optimizer).unwrap();
                (piece, start.to_kind(Kind::BFloat16))
            };
            let ((mut apart, mut apart_copy), (mut joined, mut joined_copy)) = (new(), new());
            for step in 0..3 {
                let decided = &rules.local_steps().steps[tensor];
                let sum = Tensor::from_slice(&recording.gradients[step][tensor]);
                let gradient = GradientSum {
                    sum: &sum,
                    scale: SCALE,
                };
                let optimizer = &rules.optimizer;
                let prepared = apart
                    .prepare(gradient, &apart_copy, optimizer, &Halving, Some(0))
                    .unwrap();
                let applied = apart
                    .apply(gradient, decided, optimizer, &Halving, &mut apart_copy)
                    .unwrap();
                let (in_one, left) = joined
                    .step(gradient, decided, optimizer, &Halving, &mut joined_copy, Some(0))
                    .unwrap();
                assert!(applied.hashes.equal(&left.hashes) && applied.square_sums.equal(&left.square_sums));
                for (a, b) in [
                    (&prepared.duals, &in_one.duals),
                    (&prepared.orthogonality, &in_one.orthogonality),
                ] {
                    assert_eq!(a.is_some(), b.is_some());
                    assert!(a.iter().zip(b).all(|(a, b)| a.equal(b)));
                }
                let rounded = apart.master().to_kind(Kind::BFloat16).flatten(0, -1);
                assert!(apart_copy.equal(&joined_copy) && apart_copy.equal(&rounded));
            }
        }
    }
}

#[test]
fn gradients_are_squared_and_checked_block_by_block_into_one_table() {
    let rules = Rules::new(1e-3, "method = \"muon\"");
    let recording = Recording::new(SEED);
    let mut table = Table::new(Device::Cpu);
    let (mut places, mut expected) = (Vec::new(), Vec::new());
    for (tensor, gradient) in recording.gradients[0].iter().enumerate() {
        let mut gradient = gradient.clone();
        gradient[0] = if tensor == 7 { f32::NAN } else { gradient[0] };
        let start = Tensor::from_slice(&recording.start[tensor]);
        let (name, treatment) = (TENSORS[tensor].name, &rules.treatments[tensor]);
        let piece = TensorPiece::new(name, treatment, &start, &rules.optimizer).unwrap();
        let (squares, bad) = piece.square_sums(&Tensor::from_slice(&gradient), &Halving).unwrap();
        let (squares, bad) = (table.put(&squares).unwrap(), table.put(&bad).unwrap());
        places.extend(squares.zip(bad));
        let block = if treatment.is_hidden() { usize::MAX } else { BLOCK };
        expected.extend(gradient.chunks(block).map(lockstep_kernels::sums::square_sum));
    }
    let words = read(&table.words().unwrap()).unwrap();
    assert_eq!(places.len(), expected.len());
    for ((square, bad), (expected, expected_bad)) in places.into_iter().zip(expected) {
        assert_eq!(words[bad], expected_bad);
        let got = f64::from_bits(words[square]);
        assert_eq!(got.is_nan(), expected_bad > 0);
        assert!(got.is_nan() || (got - expected).abs() <= 1e-13 * expected);
    }
}

#[test]
fn a_matrix_is_not_applied_twice_with_one_factor_on_tensors() {
    let rules = Rules::new(1e-3, "method = \"muon\"");
    let start = Tensor::from_slice(&Recording::new(SEED).start[0]);
    let mut piece = TensorPiece::new("layers.tall", &rules.treatments[0], &start, &rules.optimizer).unwrap();
    let gradient = GradientSum {
        sum: &start,
        scale: 1.0,
    };
    let step = TensorStep {
        steps: vec![1e-3],
        keep: 1.0,
    };
    let mut working = start.copy();
    let mut apply = |piece: &mut TensorPiece| piece.apply(gradient, &step, &rules.optimizer, &Halving, &mut working);
    assert!(apply(&mut piece).unwrap_err().to_string().contains("layers.tall"));
    piece
        .prepare(gradient, &start, &rules.optimizer, &Halving, None)
        .unwrap();
    apply(&mut piece).unwrap();
    assert!(apply(&mut piece).is_err());
}
