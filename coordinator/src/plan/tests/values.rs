//! Every kind of schedule against values that are computed here, in float64, from the formulas of docs/schedules.md.

use proptest::prelude::*;

use super::*;

/// A config of 40 steps of 8 samples (2 micro-batches of 4), 16 tokens each; `sets` change it.
fn with(sets: &[String]) -> RunConfig {
    let text = r#"
        [run]
        name = "plan"
        steps = 40
        [data]
        path = "data"
        sequence_length = 16
        [model]
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 4
        schedule = 8
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
    "#;
    RunConfig::parse(text, "test", sets).unwrap()
}

fn rate(table: &str) -> RunConfig {
    with(&[format!("learning_rate.schedule={table}")])
}

fn rates(config: &RunConfig) -> Vec<f64> {
    planner(config, 64).rows().map(|row| row.plan.learning_rate).collect()
}

fn batches(config: &RunConfig) -> Vec<u64> {
    planner(config, 64).rows().map(|row| row.plan.samples).collect()
}

/// Compares the rates of 40 steps with a formula of k, the steps that are done.
fn is(table: &str, formula: impl Fn(f64) -> f64) {
    let rates = rates(&rate(table));
    assert_eq!(rates.len(), 40);
    for (k, rate) in rates.iter().enumerate() {
        let expected = formula(k as f64);
        assert!(
            (rate - expected).abs() <= 1e-14 * expected.abs().max(1e-3),
            "{table}: step {} has {rate}, not {expected}",
            k + 1
        );
    }
}

#[test]
fn every_kind_has_the_values_of_its_formula() {
    use std::f64::consts::PI;
    is("{ kind = \"constant\", peak = 3.0 }", |_| 3.0);
    is("{ kind = \"cosine\", peak = 3.0 }", |k| {
        1.5 * (1.0 + (PI * k / 40.0).cos())
    });
    is("{ kind = \"cosine\", peak = 3.0, floor = 0.1, over = 20 }", |k| {
        0.3 + 2.7 * (1.0 + (PI * (k / 20.0).min(1.0)).cos()) / 2.0
    });
    is("{ kind = \"linear\", peak = 2.0, floor = 0.25 }", |k| {
        2.0 - 1.5 * k / 40.0
    });
    is("{ kind = \"linear\", start = 1.0, end = 5.0, over = 8 }", |k| {
        1.0 + 4.0 * (k / 8.0).min(1.0)
    });
    is("{ kind = \"polynomial\", peak = 2.0 }", |k| {
        2.0 * (1.0 - k / 40.0) * (1.0 - k / 40.0)
    });
    is("{ kind = \"polynomial\", peak = 2.0, power = 3.0, floor = 0.5 }", |k| {
        1.0 + (1.0 - k / 40.0).powi(3)
    });
    is("{ kind = \"exponential\", peak = 2.0, floor = 0.01 }", |k| {
        2.0 * (-k / 40.0 * 100f64.ln()).exp()
    });
    is("{ kind = \"inverse-sqrt\", peak = 2.0 }", |k| 2.0 / (k + 1.0).sqrt());
    is(
        "{ kind = \"inverse-sqrt\", peak = 2.0, warmup = 10, scale = 10 }",
        |k| {
            // The schedule of "Attention is all you need", with its peak at the end of the warm-up.
            let t = k + 1.0;
            2.0 * (t / 10.0).min((10.0 / (k.max(10.0))).sqrt())
        },
    );
    is("{ kind = \"power\", peak = 2.0, exponent = 0.6666666666666666 }", |k| {
        2.0 / (k + 1.0).powf(2.0 / 3.0)
    });
    is(
        "{ kind = \"warmup-stable-decay\", peak = 2.0, warmup = 4, decay = 0.25 }",
        |k| match k {
            k if k < 4.0 => 2.0 * (k + 1.0) / 4.0,
            k if k < 30.0 => 2.0,
            k => 2.0 * (40.0 - k) / 10.0,
        },
    );
    is(
        "{ kind = \"warmup-stable-decay\", peak = 2.0, decay = 0.5, decay_kind = \"cosine\", floor = 0.5 }",
        |k| match k {
            k if k < 20.0 => 2.0,
            k => 1.0 + (1.0 + (PI * (k - 20.0) / 20.0).cos()) / 2.0,
        },
    );
    is(
        "{ kind = \"growth\", start = 0.5, factor = 1.5, every = 10, max = 1.6 }",
        |k| [0.5, 0.75, 1.125, 1.6][k as usize / 10],
    );
    is(
        "{ kind = \"growth\", start = 0.5, factor = 0.1, every = 10, min = 0.001 }",
        |k| [0.5, 0.05, 0.005, 0.001][k as usize / 10],
    );
    is(
        "{ kind = \"piecewise\", points = [[0, 1.0], [7, 3.0], [20, 0.5]] }",
        |k| match k {
            k if k < 7.0 => 1.0,
            k if k < 20.0 => 3.0,
            _ => 0.5,
        },
    );
    is(
        "{ kind = \"piecewise\", points = [[0, 1.0], [10, 3.0], [20, 0.5]], between = \"linear\" }",
        |k| match k {
            k if k < 10.0 => 1.0 + 0.2 * k,
            k if k < 20.0 => 3.0 - 0.25 * (k - 10.0),
            _ => 0.5,
        },
    );
}

#[test]
fn warm_ups_end_at_the_first_value_of_what_follows() {
    is("{ kind = \"constant\", peak = 2.0, warmup = 8 }", |k| {
        2.0 * ((k + 1.0) / 8.0).min(1.0)
    });
    is(
        "{ kind = \"constant\", peak = 2.0, warmup = 8, warmup_from = 0.5 }",
        |k| 1.0 + ((k + 1.0) / 8.0).min(1.0),
    );
    is(
        "{ kind = \"constant\", peak = 2.0, warmup = 8, warmup_kind = \"exponential\", warmup_from = 0.01 }",
        |k| 2.0 * 10f64.powf(-2.0 * (1.0 - ((k + 1.0) / 8.0).min(1.0))),
    );
    is("{ kind = \"linear\", peak = 2.0, warmup = 10 }", |k| match k {
        k if k < 10.0 => 2.0 * (k + 1.0) / 10.0,
        k => 2.0 * (1.0 - (k - 10.0) / 30.0),
    });
    is("{ kind = \"cosine\", peak = 2.0, warmup = 100 }", |k| {
        2.0 * (k + 1.0) / 100.0
    });
}

#[test]
fn curves_follow_each_other_and_multiply() {
    is(
        "{ kind = \"sequence\", parts = [{ kind = \"growth\", start = 1.0, factor = 2.0, every = 5, for = 15 }, { kind = \"linear\", peak = 4.0 }] }",
        |k| match k {
            k if k < 15.0 => [1.0, 2.0, 4.0][k as usize / 5],
            k => 4.0 * (1.0 - (k - 15.0) / 25.0),
        },
    );
    is(
        "{ kind = \"sequence\", parts = [{ kind = \"cosine\", peak = 2.0, for = 10 }, { kind = \"cosine\", peak = 1.0, warmup = 2, for = 10 }, { kind = \"constant\", peak = 0.1 }] }",
        |k| match k {
            k if k < 10.0 => 1.0 + (std::f64::consts::PI * k / 10.0).cos(),
            k if k < 12.0 => (k - 9.0) / 2.0,
            k if k < 20.0 => 0.5 + 0.5 * (std::f64::consts::PI * (k - 12.0) / 8.0).cos(),
            _ => 0.1,
        },
    );
    is(
        "{ kind = \"product\", factors = [{ kind = \"growth\", start = 1.0, factor = 2.0, every = 10 }, { kind = \"linear\", peak = 1.0 }] }",
        |k| 2f64.powi(k as i32 / 10) * (1.0 - k / 40.0),
    );
}

#[test]
fn a_table_is_read_from_a_file_and_becomes_part_of_the_config() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rates.csv");
    std::fs::write(&file, "step,rate\n0, 1.0 # begins\n10 0.5\n\n30,0.25\n").unwrap();
    let config = rate(&format!(
        "{{ kind = \"table\", file = \"{}\", between = \"linear\" }}",
        file.display()
    ));
    let of_file = rates(&config);
    assert_eq!(
        [of_file[0], of_file[5], of_file[10], of_file[39]],
        [1.0, 0.75, 0.5, 0.25]
    );
    std::fs::remove_file(&file).unwrap();
    let again = RunConfig::parse(&config.to_toml(), "resolved", &[]).unwrap();
    assert_eq!((rates(&again), again.hash()), (of_file, config.hash()));
}

#[test]
fn batches_grow_in_whole_micro_batches() {
    let growing =
        with(&["batch.schedule={ kind = \"growth\", start = 8, factor = 1.5, every = 10, max = 25 }".to_owned()]);
    let expected: Vec<u64> = (0..40)
        .map(|k: u64| {
            let asked = (8.0 * 1.5f64.powi(k as i32 / 10)).min(25.0);
            (asked / 4.0).ceil() as u64 * 4
        })
        .collect();
    assert_eq!(batches(&growing), expected);
    let ramp = with(&["batch.schedule={ kind = \"linear\", start = 8, end = 88, over = 20 }".to_owned()]);
    let expected: Vec<u64> = (0..40).map(|k: u64| (8 + 4 * k.min(20)).div_ceil(4) * 4).collect();
    assert_eq!(batches(&ramp), expected);
    let falling = with(&["batch.schedule={ kind = \"piecewise\", points = [[0, 30], [3, 4]] }".to_owned()]);
    assert_eq!(batches(&falling)[..5], [32, 32, 32, 4, 4]);
}

#[test]
fn the_rate_follows_the_batch_where_it_is_asked_to() {
    let growth = "batch.schedule={ kind = \"growth\", start = 8, factor = 4, every = 20, max = 32 }";
    let couple = |word: &str| {
        let sets = [
            growth,
            &format!("learning_rate.couple={word}"),
            "learning_rate.base_batch=8",
        ]
        .map(str::to_owned);
        let rates = rates(&with(&sets));
        (rates[0], rates[39])
    };
    assert_eq!(couple("linear"), (0.5, 2.0));
    assert_eq!(couple("sqrt"), (0.5, 1.0));
}

#[test]
fn momentum_and_weight_decay_have_schedules_too() {
    let config = with(&[
        "momentum.schedule={ kind = \"linear\", start = 0.85, end = 0.95, over = 10 }".to_owned(),
        "weight_decay.schedule={ kind = \"cosine\", peak = 0.1 }".to_owned(),
    ]);
    let planner = planner(&config, 0);
    let plan = planner.plan(6, 40);
    assert!((plan.momentum.unwrap() - 0.90).abs() < 1e-15, "{plan:?}");
    assert!((plan.weight_decay.unwrap() - 0.05 * (1.0 + (std::f64::consts::PI / 8.0).cos())).abs() < 1e-15);
    let plain = super::planner(&with(&[]), 0).plan(6, 40);
    assert_eq!((plain.momentum, plain.weight_decay), (None, None));
}

#[test]
fn what_is_counted_in_epochs_needs_their_length() {
    let config = with(&["run.epochs=2.5".to_owned()]);
    // 160 samples of 64 an epoch.
    assert_eq!(planner(&config, 64).total_steps(), 20);
    let error = Planner::new(&config, 0).unwrap_err().to_string();
    assert!(error.contains("run.epochs"), "{error}");
    let config = rate("{ kind = \"linear\", peak = 1.0, unit = \"epochs\", over = 0.5 }");
    assert_eq!(rates(&config)[..5], [1.0, 0.75, 0.5, 0.25, 0.0]);
    let error = Planner::new(&config, 0).unwrap_err().to_string();
    assert!(error.contains("learning_rate.schedule"), "{error}");
}

#[test]
fn a_batch_that_depends_on_itself_is_refused() {
    let sets = ["batch.schedule={ kind = \"linear\", start = 8, end = 64, unit = \"samples\" }".to_owned()];
    let error = Planner::new(&with(&sets), 0).unwrap_err().to_string();
    assert!(error.contains("`over`"), "{error}");
    let sets = [
        "run.samples=1000".to_owned(),
        "batch.schedule={ kind = \"linear\", start = 8, end = 64, unit = \"tokens\" }".to_owned(),
    ];
    let batches = batches(&with(&sets));
    assert!(
        batches[0] == 8 && batches.is_sorted() && *batches.last().unwrap() == 64,
        "{batches:?}"
    );
}

/// A kind of schedule of some length, for any unit: lengths are given in steps and multiplied.
fn shapes(unit: &str, per_step: u64) -> Vec<String> {
    let n = |steps: u64| steps * per_step;
    let kinds = [
        "kind = \"constant\", peak = 0.7".to_owned(),
        format!("kind = \"cosine\", peak = 0.7, warmup = {}, floor = 0.1", n(7)),
        format!("kind = \"linear\", peak = 0.7, over = {}", n(13)),
        "kind = \"polynomial\", peak = 0.7, power = 1.5".to_owned(),
        "kind = \"exponential\", peak = 0.7, floor = 0.01".to_owned(),
        format!("kind = \"inverse-sqrt\", peak = 0.7, scale = {}", n(1)),
        format!("kind = \"power\", peak = 0.7, exponent = 0.75, scale = {}", n(3)),
        format!(
            "kind = \"warmup-stable-decay\", peak = 0.7, warmup = {}, decay = 0.5",
            n(3)
        ),
        format!(
            "kind = \"growth\", start = 0.7, factor = 1.3, every = {}, max = 3.0",
            n(6)
        ),
        format!(
            "kind = \"piecewise\", points = [[0, 1.0], [{}, 0.2], [{}, 0.5]], between = \"linear\"",
            n(9),
            n(21)
        ),
        format!(
            "kind = \"sequence\", parts = [{{ kind = \"linear\", start = 0.1, end = 0.7, for = {} }}, {{ kind = \"cosine\", peak = 0.7 }}]",
            n(11)
        ),
    ];
    kinds.map(|kind| format!("{{ unit = \"{unit}\", {kind} }}")).to_vec()
}

#[test]
fn steps_samples_and_tokens_say_the_same_where_the_batch_is_constant() {
    let of = |unit, per_step| {
        shapes(unit, per_step)
            .iter()
            .map(|table| rates(&rate(table)))
            .collect::<Vec<_>>()
    };
    let in_steps = of("steps", 1);
    assert_eq!(in_steps, of("samples", 8));
    assert_eq!(in_steps, of("tokens", 8 * 16));
    // An epoch of 8 samples is a step.
    let in_epochs = shapes("epochs", 1).into_iter().map(|table| {
        let rows = planner(&rate(&table), 8);
        rows.rows().map(|row| row.plan.learning_rate).collect::<Vec<_>>()
    });
    assert_eq!(in_steps, in_epochs.collect::<Vec<_>>());
}

proptest! {
    /// Totals and cursors come from segments, plans from the schedule itself: they must agree, at any point of the run.
    #[test]
    fn segments_say_what_the_steps_do(
        kind in 0usize..7, start in 1u32..200, end in 1u32..200, over in 1u32..90, micro_batch in 1u32..9, steps in 1u64..120,
        unit in 0usize..3, warmup in 0u32..30,
    ) {
        let (low, high) = (start.min(end), start.max(end));
        let per_step = [1, 8, 128][unit];
        let (over, warmup) = (over * per_step, warmup * per_step);
        let kind = [
            format!("kind = \"linear\", start = {start}, end = {end}, over = {over}"),
            format!("kind = \"cosine\", start = {start}, end = {end}, over = {over}"),
            format!("kind = \"exponential\", start = {start}, end = {end}, over = {over}"),
            format!("kind = \"growth\", start = {low}, factor = 1.37, every = {over}, max = {high}"),
            format!("kind = \"piecewise\", points = [[0, {start}], [{over}, {end}], [{}, {high}]], between = \"linear\"", 2 * over),
            format!("kind = \"piecewise\", points = [[0, {start}], [{over}, {end}], [{}, {low}]]", 3 * over),
            format!("kind = \"sequence\", parts = [{{ kind = \"linear\", start = {start}, end = {end}, over = {over}, for = {} }}, \
                {{ kind = \"growth\", start = {low}, factor = 2, every = {over}, max = {high} }}]", over / 2 + 1),
        ][kind].clone();
        let unit = ["steps", "samples", "tokens"][unit];
        let config = with(&[
            format!("run.steps={steps}"),
            format!("batch.micro_batch={micro_batch}"),
            format!("batch.schedule={{ unit = \"{unit}\", {kind}, warmup = {warmup} }}"),
        ]);
        let planner = planner(&config, 0);
        let mut cursor = 0;
        for step in 1..=steps {
            prop_assert_eq!(planner.cursor_after(step - 1), cursor, "step {}", step);
            let plan = planner.plan(step, cursor);
            prop_assert!(plan.micro_batches >= 1);
            prop_assert!(plan.samples < u64::from(high + micro_batch));
            cursor += plan.samples;
        }
        prop_assert_eq!(planner.total_samples(), cursor);
        // A run that is as long in samples has as many steps.
        let mut of_samples = config.clone();
        of_samples.run.length = Length::Samples(cursor);
        prop_assert_eq!(super::planner(&of_samples, 0).total_steps(), steps);
    }

    #[test]
    fn decays_fall_growth_rises_and_both_stay_in_their_range(
        kind in 0usize..6, peak in 1e-6f64..10.0, floor in 0.001f64..1.0, warmup in 0u32..60, steps in 1u64..200,
    ) {
        let kind = ["cosine", "linear", "polynomial", "exponential", "warmup-stable-decay", "growth"][kind];
        let keys = match kind {
            "growth" => format!("start = {}, factor = 1.1, every = 3, max = {peak}", peak * floor),
            _ => format!("peak = {peak}, floor = {floor}, warmup = {warmup}"),
        };
        let config = with(&[
            format!("run.steps={steps}"),
            format!("learning_rate.schedule={{ kind = \"{kind}\", {keys} }}"),
        ]);
        let rates = rates(&config);
        let after = &rates[(warmup as usize).min(rates.len())..];
        prop_assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= peak * (1.0 + 1e-12)), "{:?}", rates);
        if kind == "growth" {
            prop_assert!(rates.is_sorted(), "{:?}", rates);
        } else {
            prop_assert!(rates[..rates.len() - after.len()].is_sorted(), "{:?}", rates);
            prop_assert!(after.is_sorted_by(|one, next| *next <= one * (1.0 + 1e-12)), "{:?}", rates);
            prop_assert!(after.iter().all(|rate| *rate >= peak * floor * (1.0 - 1e-12)), "{:?}", rates);
        }
    }
}
