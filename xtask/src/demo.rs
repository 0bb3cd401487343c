//! `demo`: setup, build, prepare a text, train on two ranks, sample, draw. Each step says what it is, and one that
//! fails ends the demo with its sentence.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::failure::{Failure, on_path};
use crate::metrics::{Metrics, Summary};
use crate::plot::draw_loss;
use crate::process::{self, Interrupts};
use crate::setup::{mpi, setup};
use crate::workspace::Workspace;

/// So many steps keep the demo under three minutes on two cores once everything is built.
const STEPS: u32 = 700;
const CONFIG: &str = "examples/shakespeare.toml";
const TEXT: &str = "examples/data/tinyshakespeare.txt";
const DATA: &str = "demo/data";
const SAMPLE: &str = "demo/sample.txt";
const PROMPT: &str = "ROMEO:";

/// Runs the whole demo in the repository.
pub(crate) fn demo(workspace: &Workspace) -> Result<(), Failure> {
    let interrupts = Interrupts::watch()?;
    heading("setup");
    setup(workspace, None)?;

    heading("build");
    build(workspace)?;
    let started = Instant::now();
    let lockstep = || {
        let mut command = Command::new(workspace.program("lockstep"));
        command.current_dir(&workspace.root);
        command
    };

    heading("prepare the text");
    let prepare = ["data", "prepare", "--tokenizer", "byte", "--out", DATA, TEXT];
    process::run("preparing the text", lockstep().args(prepare))?;

    let runs = workspace.root.join("runs");
    let name = fresh_name("shakespeare", |name| runs.join(name).exists());
    heading(&format!("train {STEPS} steps on 2 ranks as the run {name}"));
    let mut train = lockstep();
    train.args(["run", CONFIG, "-n", "2"]);
    for set in [
        format!("data.path={DATA}"),
        format!("run.name={name}"),
        format!("run.steps={STEPS}"),
    ] {
        train.args(["--set", &set]);
    }
    interrupts.left_to_child(|| process::run("training", &mut train))?;
    let run = runs.join(&name);
    let metrics = Metrics::read(&run)?;
    println!("{}", falling(&metrics)?);

    heading("draw the loss");
    let svg = run.join("loss.svg");
    draw_loss(&metrics, &format!("{name}: a byte GPT on Shakespeare, 2 ranks"), &svg)?;
    println!("runs/{name}/loss.svg");

    heading("write a sample");
    let checkpoint = format!("runs/{name}/final");
    let mut generate = lockstep();
    generate.args(["generate", &checkpoint, "--prompt", PROMPT]);
    let sample = process::text_of("generating a sample", &mut generate)?;
    write_sample(&workspace.root, &sample)?;
    println!("{}\n\n({SAMPLE})", sample.trim_end());

    let summary = Summary::read(&run)?;
    heading("done");
    println!(
        "{:.0} s of training at {:.0} tokens a second, {:.0} s for everything after the build.",
        summary.training_seconds,
        summary.tokens_per_second,
        started.elapsed().as_secs_f64()
    );
    println!(
        "{}",
        next_commands(&workspace.program("lockstep"), &workspace.root, &checkpoint)
    );
    Ok(())
}

/// Builds every program of the workspace. The whole workspace and not three packages of it, so that `cargo xtask test`
/// and the demo share one build of libtorch's bindings.
pub(crate) fn build(workspace: &Workspace) -> Result<(), Failure> {
    process::run(
        "building",
        workspace
            .cargo()
            .args(["build", "--release", "--bins"])
            .args(mpi::members()),
    )
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// `shakespeare-1`, or the first number that is free.
fn fresh_name(stem: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut number = 1;
    loop {
        let name = format!("{stem}-{number}");
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

/// The validation losses as a line for people; a run that has learnt nothing is a failure.
fn falling(metrics: &Metrics) -> Result<String, Failure> {
    let losses = &metrics.validations;
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else {
        return Err(Failure::work("the run left no validation loss in its metrics.jsonl"));
    };
    let start = metrics
        .steps
        .first()
        .map_or(first.validation_loss, |step| step.loss.max(first.validation_loss));
    if last.validation_loss >= start {
        return Err(Failure::work(format!(
            "the validation loss went from {start:.3} to {:.3}, so the model has learnt nothing; that is a fault of Lockstep, please report it",
            last.validation_loss
        )));
    }
    let steps: Vec<String> = losses
        .iter()
        .map(|row| format!("{:.3} (step {})", row.validation_loss, row.step))
        .collect();
    Ok(format!("validation loss, nats a byte: {}", steps.join(" → ")))
}

fn write_sample(root: &Path, sample: &str) -> Result<(), Failure> {
    let path = root.join(SAMPLE);
    let folder = root.join("demo");
    fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
    fs::write(&path, sample).map_err(on_path("write", &path))
}

fn next_commands(lockstep: &Path, root: &Path, checkpoint: &str) -> String {
    let program = lockstep.strip_prefix(root).unwrap_or(lockstep).display();
    format!(
        "Next:\n\
         \x20 {program} schedule {CONFIG} --set data.path={DATA}    see the schedule of a run before paying for it\n\
         \x20 {program} run {CONFIG} -n 2 --set data.path={DATA} --set run.name=mine\n\
         \x20 {program} status        (from another terminal, while it runs; also: watch, pause, resume, stop, members)\n\
         \x20 {program} generate {checkpoint} --prompt 'JULIET:'\n\
         \x20 {program} inspect {checkpoint}    its parameters, their owners and the memory\n\
         README.md says what Lockstep promises; docs/config.md has every key of a config."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Validation;

    #[test]
    fn each_demo_gets_a_name_of_its_own() {
        assert_eq!(fresh_name("a", |_| false), "a-1");
        assert_eq!(fresh_name("a", |name| name == "a-1" || name == "a-2"), "a-3");
    }

    #[test]
    fn falling_losses_are_shown_and_others_are_a_failure() {
        let validations = |losses: &[f64]| Metrics {
            steps: Vec::new(),
            validations: losses
                .iter()
                .zip(1..)
                .map(|(loss, step)| Validation {
                    step: step * 100,
                    validation_loss: *loss,
                })
                .collect(),
        };
        let line = falling(&validations(&[2.5, 1.75])).unwrap();
        assert!(line.contains("2.500 (step 100) → 1.750 (step 200)"), "{line}");
        for losses in [&[][..], &[2.5, 2.5], &[2.5, f64::INFINITY]] {
            assert!(falling(&validations(losses)).is_err(), "{losses:?}");
        }
    }
}
