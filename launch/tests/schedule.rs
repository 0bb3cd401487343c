//! `lockstep schedule` through the real binary.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs;

use stage::{Stage, said};

#[test]
fn every_step_is_written_as_csv() {
    let stage = Stage::new();
    let output = stage.lockstep(
        "schedule run.toml --set run.steps=6 --set batch.schedule={kind=\"steps\",sizes=[[0,4],[2,7]]} --set learning_rate.schedule={kind=\"linear\",peak=0.5,warmup=2} --csv out.csv",
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("7 samples"),
        "rounding to whole micro-batches is said: {}",
        said(&output)
    );
    let csv = stage.read("out.csv");
    let mut lines = csv.lines();
    assert_eq!(
        lines.next(),
        Some("step,samples,tokens,learning_rate,batch,momentum,weight_decay,epochs")
    );
    let rows: Vec<Vec<f64>> = lines
        .map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect())
        .collect();
    let column = |index: usize| rows.iter().map(|row| row[index]).collect::<Vec<_>>();
    assert_eq!(column(0), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(column(4), [4.0, 4.0, 8.0, 8.0, 8.0, 8.0]);
    assert_eq!(column(1), [0.0, 4.0, 8.0, 16.0, 24.0, 32.0], "as the step starts");
    assert_eq!(
        column(2),
        column(1).iter().map(|samples| samples * 32.0).collect::<Vec<_>>()
    );
    let rates = column(3);
    assert_eq!(rates.iter().copied().fold(0.0, f64::max), 0.5);
    assert!(
        rates[0] < rates[1] && rates[2..].windows(2).all(|two| two[0] > two[1]),
        "{rates:?}"
    );
}

#[test]
fn it_is_drawn_as_svg_and_needs_no_data() {
    let stage = Stage::new();
    fs::remove_dir_all(stage.path("data")).unwrap();
    let output = stage.lockstep("schedule run.toml --set run.steps=100000 --svg out.svg");
    assert!(output.status.success(), "{}", said(&output));
    let svg = stage.read("out.svg");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert!(svg.contains("learning rate") && svg.contains("batch"));
    assert!(svg.len() < 300_000, "{} bytes", svg.len());
}

#[test]
fn a_long_run_is_previewed_at_once_and_epochs_are_counted() {
    let stage = Stage::new();
    let output = stage.lockstep("schedule run.toml --set run.tokens=1000000000000000");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("epochs"), "{}", said(&output));
    let output = stage.lockstep("schedule run.toml --set run.tokens=1000000000000000000 --csv out.csv");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(!stage.path("out.csv").exists());
}

#[test]
fn two_schedules_are_compared_and_what_theory_says_is_printed() {
    let stage = Stage::new();
    let text = stage.read("run.toml").replace("[optimizer]", "");
    let family = "[schedule]\nfamily = \"growing-rate\"\nunit = \"steps\"\nbatch = 8\nbatch_max = 64\nevery = 10\nrate = 0.1\nrate_factor = 2.0\n[optimizer]\nmethod = \"sgd\"\n";
    let other = text
        .replace("[learning_rate]\nschedule = 0.002\n", family)
        .replace("schedule = 8\n", "");
    fs::write(stage.path("other.toml"), other).unwrap();
    let output = stage.lockstep("schedule run.toml --set run.steps=40 --compare other.toml --svg both.svg");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("other.toml, to compare"), "{said}");
    assert_eq!(said.matches("sum of rates").count(), 2, "{said}");
    assert!(
        said.contains("warning: in 10 steps the batch grows by δ = 2") && said.contains("γ² = 4.0000"),
        "{said}"
    );
    assert!(stage.read("both.svg").matches("<polyline").count() >= 4);
}

#[test]
fn bad_input_is_refused() {
    let stage = Stage::new();
    for words in [
        "absent.toml",
        "run.toml --set run.lanes=0",
        "run.toml --csv absent/out.csv",
        "run.toml --set x",
    ] {
        let output = stage.lockstep(&format!("schedule {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
    }
}
