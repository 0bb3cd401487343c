//! Methods beside the family, and the names of its members.

use tch::Tensor;

use crate::SEED;
use crate::recorded::case::close_update;
use crate::recorded::{Recorded, Recording, STEPS, TENSORS};
use crate::reference::methods::{AdamW, NorMuon, Sgd};
use crate::reference::{Scaling, shape_factor};

/// A method that treats tensors one by one, against the replay: p ← (1 − lr·c·λ)·p − lr·c·direction.
fn alone_agrees(
    recording: &Recording,
    keys: &str,
    [rate, decay]: [f64; 2],
    direction: impl Fn(&Recorded, &Tensor) -> Box<dyn FnMut(&Tensor) -> Tensor>,
) {
    let keys = format!("{keys}\nweight_decay = {decay:?}");
    let replayed = recording.replay(rate, &keys);
    for (tensor, recorded) in TENSORS.iter().enumerate() {
        let mut p = recording.start(tensor);
        let mut direction = direction(recorded, &p);
        for step in 0..STEPS {
            let next = &p * (1.0 - rate * decay) - direction(&recording.gradients(step)[tensor]) * rate;
            close_update(
                &replayed,
                step,
                tensor,
                &(&next - &p),
                &format!("step {step} of\n{keys}"),
            );
            p = next;
        }
    }
    assert!(
        replayed
            .effective
            .iter()
            .all(|effective| (effective / rate - 1.0).abs() < 1e-6)
    );
}

/// A direction of one tensor, from its gradients in order.
type Direction = Box<dyn FnMut(&Tensor) -> Tensor>;

#[test]
fn normuon_normalises_rows_and_puts_the_norm_back_and_its_other_tensors_are_those_of_adamw() {
    let recording = Recording::new(SEED);
    for (word, scaling) in [("original", Scaling::Original), ("fan", Scaling::Fan)] {
        let keys = format!(
            "method = \"normuon\"\nmomentum = 0.9\nbetas = [0.85, 0.8]\nepsilon = 1e-3\nhidden_scale = 2.0\n\
             scaling = {word:?}\npolar = {{ method = \"svd\" }}"
        );
        alone_agrees(&recording, &keys, [0.01, 2.0], |tensor, start| -> Direction {
            if !tensor.hidden {
                let mut adamw = AdamW::new(start);
                return Box::new(move |g| adamw.direction(g, [0.85, 0.8], 1e-3));
            }
            let (rows, shape) = (tensor.shape[0], tensor.shape);
            let matrix = start.reshape([rows, -1]);
            let mut state = NorMuon::new(&matrix);
            let scale = 2.0 * shape_factor(scaling, rows, matrix.size()[1]);
            Box::new(move |g| state.direction(&g.reshape([rows, -1]), 0.9, 0.8).reshape(shape) * scale)
        });
    }
}

#[test]
fn adamw_corrects_its_moments_and_decays_apart_from_them() {
    let keys = "method = \"adamw\"\nbetas = [0.85, 0.8]\nepsilon = 1e-3";
    alone_agrees(&Recording::new(SEED), keys, [0.01, 2.0], |_, start| -> Direction {
        let mut adamw = AdamW::new(start);
        Box::new(move |g| adamw.direction(g, [0.85, 0.8], 1e-3))
    });
}

#[test]
fn sgd_sums_or_averages_its_momentum_and_looks_ahead_where_asked() {
    let recording = Recording::new(SEED);
    for normalized in [false, true] {
        for nesterov in [false, true] {
            let keys = format!("method = \"sgd\"\nmomentum = 0.8\nnormalized = {normalized}\nnesterov = {nesterov}");
            alone_agrees(&recording, &keys, [0.01, 2.0], |_, start| -> Direction {
                let mut sgd = Sgd::new(start, normalized, nesterov);
                Box::new(move |g| sgd.direction(g, 0.8))
            });
        }
    }
}

#[test]
fn named_members_equal_their_spelt_out_triples_bit_for_bit() {
    let recording = Recording::new(SEED);
    let momo = "momo = { lower_bound = 3.3 }\nweight_decay = 0.1";
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for (name, descent, product, other, scale) in [
        ("muonadam", "constrained", "max", "ada-inf", 16),
        ("scion", "constrained", "max", "sign", 4),
        ("muonmax", "regularized", "hybrid", "ada-2", 4),
        ("polargrad", "regularized", "l2", "ada-2", 64),
    ] {
        let triple = format!("descent = {descent:?}\nproduct = {product:?}\nother = {other:?}\nhidden_scale = {scale}");
        for more in ["", momo] {
            let named = recording.replay(1e-4, &format!("method = {name:?}\n{more}")).bytes;
            assert!(
                named == recording.replay(1e-4, &format!("{triple}\n{more}")).bytes,
                "{name} is not\n{triple}\nwith\n{more}"
            );
            assert!(!seen.contains(&named), "{name} with {more} is what another name is");
            seen.push(named);
        }
    }
}
