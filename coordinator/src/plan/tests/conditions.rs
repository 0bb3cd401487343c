//! The four families, and what is said about schedules that miss the condition of a theorem.

use super::*;

fn family(keys: &str) -> RunConfig {
    let text = format!(
        "[run]\nname = \"f\"\nepochs = 300\n[data]\npath = \"data\"\nsequence_length = 16\n[model]\nlayers = 1\nheads = 1\nwidth = 8\n\
         [batch]\nmicro_batch = 8\n[schedule]\n{keys}\n[optimizer]\nmethod = \"sgd\"\nmomentum = 0.9\n"
    );
    RunConfig::parse(&text, "test", &[]).unwrap()
}

/// Samples of an epoch: those of CIFAR-100.
const EPOCH: u64 = 50_000;

/// Rate and batch at the beginning of an epoch.
fn at(config: &RunConfig, epoch: u64) -> (f64, u64) {
    let planner = planner(config, EPOCH);
    let plan = planner.plan(2, epoch * EPOCH);
    (plan.learning_rate, plan.samples)
}

#[test]
fn the_four_families_are_those_of_the_paper() {
    let constant = family("family = \"constant-batch\"\nbatch = 128\nrate = 0.1\ndecay = \"cosine\"");
    assert_eq!(at(&constant, 0), (0.1, 128));
    assert!((at(&constant, 150).0 - 0.05).abs() < 1e-4);
    let growing = "batch = 8\nbatch_max = 4096\nevery = 30\nrate = 0.1\n";
    let batch = family(&format!("family = \"growing-batch\"\n{growing}decay = \"linear\""));
    assert_eq!([0, 29, 30, 299].map(|epoch| at(&batch, epoch).1), [8, 8, 16, 4096]);
    let rate = family(&format!(
        "family = \"growing-rate\"\n{growing}rate_factor = 1.2\nrate_max = 0.5"
    ));
    let (first, last) = (at(&rate, 0), at(&rate, 299));
    assert!(first == (0.1, 8) && last == (0.5, 4096), "{last:?}");
    assert!((at(&rate, 100).0 - 0.1 * 1.2f64.powi(3)).abs() < 1e-12);
    let warm_up =
        format!("family = \"warm-up\"\n{growing}rate_max = 0.2\nwarmup = 30\nwarmup_every = 3\ndecay = \"cosine\"");
    let warm_up = family(&warm_up);
    // Nine increases of the tenth root's kind: all of it in the last interval of the warm-up.
    assert!((at(&warm_up, 3).0 - 0.1 * 2f64.powf(1.0 / 9.0)).abs() < 1e-12);
    assert!((at(&warm_up, 28).0 - 0.2).abs() < 1e-12);
    assert!(at(&warm_up, 200).0 < 0.1);
    for config in [&constant, &batch, &rate, &warm_up] {
        assert_eq!(warnings(config), Vec::<String>::new());
        assert_eq!(&RunConfig::parse(&config.to_toml(), "resolved", &[]).unwrap(), config);
    }
}

#[test]
fn a_rate_that_outgrows_the_batch_is_warned_about_with_the_reason() {
    let growing = "batch = 8\nbatch_max = 4096\nevery = 30\nrate = 0.01\n";
    let fast = family(&format!("family = \"growing-rate\"\n{growing}rate_factor = 1.5"));
    let said = warnings(&fast);
    assert!(
        said.len() == 2 && said[0].contains("γ² = 2.2500 is not below δ") && said[1].contains("γ·β²"),
        "{said:?}"
    );
    // The same growth in half the interval is another one.
    let mut half = family(&format!("family = \"growing-rate\"\n{growing}rate_factor = 1.2"));
    assert_eq!(warnings(&half), Vec::<String>::new());
    if let Shape::Growth { every, .. } = &mut half.learning_rate.schedule.curve.shape {
        *every = 15.0;
    }
    assert!(warnings(&half)[0].contains("γ = 1.4400"), "{:?}", warnings(&half));
    half.batch.schedule = BatchSchedule::Constant { size: 64 };
    assert!(
        warnings(&half)[0].contains("the batch does not"),
        "{:?}",
        warnings(&half)
    );
}

#[test]
fn step_sizes_outside_the_range_of_the_theorem_are_warned_about() {
    let power = |exponent: f64, class: &str| {
        let keys = format!("kind = \"power\", peak = 0.1, exponent = {exponent}, {class}");
        let mut config = config();
        let set = [format!("learning_rate.schedule={{ {keys} }}")];
        config.learning_rate = RunConfig::parse(&config.to_toml(), "test", &set).unwrap().learning_rate;
        warnings(&config).len()
    };
    let counts = [0.5, 0.51, 2.0 / 3.0, 0.99, 1.0].map(|p| power(p, "problem = \"smooth-convex\""));
    assert_eq!(counts, [1, 0, 0, 0, 1]);
    let counts = [0.6, 0.7].map(|p| power(p, "problem = \"holder\", gamma = 0.5"));
    assert_eq!(counts, [1, 0], "the range begins at 1/(1 + γ) = 2/3");
    assert_eq!(power(0.3, "problem = \"non-convex\""), 1);
    let mut config = config();
    let set = ["learning_rate.schedule={ kind = \"cosine\", peak = 0.1, over = 4 }".to_owned()];
    config.learning_rate = RunConfig::parse(&config.to_toml(), "test", &set).unwrap().learning_rate;
    assert!(
        warnings(&config)[0].contains("is 0 after 4 steps"),
        "{:?}",
        warnings(&config)
    );
}

#[test]
fn the_terms_of_the_bound_are_sums_over_the_run() {
    let mut config = config();
    config.run.length = Length::Steps(4);
    let terms = Terms::of(&planner(&config, 0)).unwrap();
    assert_eq!((terms.rates, terms.squares_by_batch), (2.0, 4.0 * 0.25 / 8.0));
    assert_eq!((terms.start(), terms.noise()), (0.5, 0.0625));
    config.run.length = Length::Steps(u64::MAX);
    assert_eq!(Terms::of(&planner(&config, 0)), None);
}
