//! What a person, or a program, sees of a run: a progress bar on a terminal, plain lines elsewhere, JSON where asked.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_coordinator::files::StepLine;
use lockstep_coordinator::run::Phase;
use lockstep_proto::domain::{CommittedStep, Outcome, RunEvent};
use serde_json::{Value, json};

/// Plain lines for steps come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where a run's events are shown.
pub(crate) enum Screen {
    /// On a terminal.
    Bar(Bar),
    /// A line now and then.
    Lines {
        /// When the last step was shown.
        last: Option<Instant>,
    },
    /// A JSON object for everything.
    Json,
}

/// A progress bar and what stands beside it.
pub(crate) struct Bar {
    bar: ProgressBar,
    loss: Option<f64>,
    validation: Option<f64>,
    /// Where it is another than the planned one.
    effective_learning_rate: Option<String>,
    tokens_per_second: f64,
}

impl Screen {
    /// The screen for this process's output.
    pub(crate) fn new(json: bool, total_steps: u64) -> Screen {
        if json {
            return Screen::Json;
        }
        if !std::io::stderr().is_terminal() || !std::io::stdout().is_terminal() {
            return Screen::Lines { last: None };
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
        // The template is fixed; were it broken, the default one would do.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}") {
            bar.set_style(style);
        }
        Screen::Bar(Bar {
            bar,
            loss: None,
            validation: None,
            effective_learning_rate: None,
            tokens_per_second: 0.0,
        })
    }

    /// Shows an event of the run.
    pub(crate) fn event(&mut self, event: &RunEvent) {
        if !matches!(self, Screen::Json) && says_nothing_new(event) {
            return;
        }
        match self {
            Screen::Json => print_json(&to_json(event)),
            Screen::Lines { last } => {
                if let RunEvent::Step(step) = event {
                    let due = step.skipped.is_some() || last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
                    if !due && step.step != step.total_steps {
                        return;
                    }
                    *last = Some(Instant::now());
                }
                println!("{}", line(event));
            }
            Screen::Bar(bar) => bar.event(event),
        }
    }

    /// Tells the operator something.
    pub(crate) fn say(&mut self, sentence: &str) {
        match self {
            Screen::Json => print_json(&json!({ "event": "note", "sentence": sentence })),
            Screen::Lines { .. } => println!("{sentence}"),
            Screen::Bar(bar) => bar.bar.println(sentence),
        }
    }

    /// Prints a line that only people want.
    pub(crate) fn tell(&mut self, line: &str) {
        if !matches!(self, Screen::Json) {
            println!("{line}");
        }
    }

    /// Shows a fact that only programs want.
    pub(crate) fn fact(&mut self, value: &Value) {
        if let Screen::Json = self {
            print_json(value);
        }
    }

    /// Leaves the terminal tidy; nothing follows but last lines.
    pub(crate) fn close(&mut self) {
        if let Screen::Bar(bar) = self {
            bar.bar.abandon();
            // What follows begins below the bar.
            eprintln!();
        }
    }
}

impl Bar {
    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Step(step) => {
                match &step.skipped {
                    Some(_) => self.bar.println(line(event)),
                    None => self.loss = Some(step.loss),
                }
                self.effective_learning_rate = effective_learning_rate(step);
                self.tokens_per_second = step.tokens_per_second;
                self.bar.set_position(step.step);
            }
            RunEvent::Validation { step, validation } => {
                self.validation = Some(validation.loss);
                self.bar
                    .println(format!("step {step}: validation loss {:.4}", validation.loss));
            }
            RunEvent::State { .. } | RunEvent::Decided { .. } | RunEvent::Ended(_) => self.bar.println(line(event)),
        }
        let mut message = String::new();
        let numbers = [("loss", self.loss), ("validation", self.validation)];
        for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
            // Writing to a String cannot fail.
            let _ = write!(message, "{name} {number:.4}  ");
        }
        if let Some(effective) = &self.effective_learning_rate {
            let _ = write!(message, "effective lr {effective}  ");
        }
        if self.loss.is_some() {
            let left = HumanDuration(self.bar.eta());
            let _ = write!(message, "{:.0} tok/s  ETA {left:#}", self.tokens_per_second);
        }
        self.bar.set_message(message);
    }
}

fn print_json(value: &Value) {
    // One write a line, flushed: a program that reads along sees whole lines at once. A reader that has gone is no
    // reason to stop a run.
    let _ = writeln!(std::io::stdout().lock(), "{value}");
}

/// The last change of state says what the end, which follows at once, says too.
pub(crate) fn says_nothing_new(event: &RunEvent) -> bool {
    matches!(event, RunEvent::State { phase, .. } if phase == Phase::Ended.name())
}

/// An event as a line for people.
pub(crate) fn line(event: &RunEvent) -> String {
    match event {
        RunEvent::State { phase, reason } => format!("{phase}: {reason}"),
        RunEvent::Decided { reason } => format!("decided: {reason}"),
        RunEvent::Step(step) => step_line(step),
        RunEvent::Validation { step, validation } => {
            format!(
                "step {step}: validation loss {:.4} over {} tokens",
                validation.loss, validation.tokens
            )
        }
        RunEvent::Ended(end) => format!("ended after step {}: {}", end.last_step, end.reason),
    }
}

fn step_line(step: &CommittedStep) -> String {
    if let Some(reason) = &step.skipped {
        return format!("step {}/{}  skipped: {reason}", step.step, step.total_steps);
    }
    format!(
        "step {}/{}  loss {:.4}  lr {}  batch {}  {:.0} tok/s  {:.0} ms",
        step.step,
        step.total_steps,
        step.loss,
        learning_rate(step),
        step.batch,
        step.tokens_per_second,
        step.step_ms
    )
}

/// The planned learning rate, and the one that was applied if it is another.
fn learning_rate(step: &CommittedStep) -> String {
    let planned = scientific(step.learning_rate);
    match effective_learning_rate(step) {
        Some(effective) => format!("{planned} (effective {effective})"),
        None => planned,
    }
}

/// The learning rate that was applied, where it reads differently from the planned one.
fn effective_learning_rate(step: &CommittedStep) -> Option<String> {
    let effective = scientific(step.effective_learning_rate);
    (effective != scientific(step.learning_rate)).then_some(effective)
}

fn scientific(number: f64) -> String {
    format!("{number:.3e}")
}

/// An event as JSON; the keys of a step are those of `metrics.jsonl`.
pub(crate) fn to_json(event: &RunEvent) -> Value {
    match event {
        RunEvent::State { phase, reason } => json!({ "event": "state", "phase": phase, "reason": reason }),
        RunEvent::Decided { reason } => json!({ "event": "decision", "reason": reason }),
        RunEvent::Step(step) => step_json(step),
        RunEvent::Validation { step, validation } => json!({
            "event": "validation", "step": step, "validation_loss": validation.loss, "tokens": validation.tokens,
        }),
        RunEvent::Ended(end) => json!({
            "event": "ended", "outcome": outcome_word(&end.outcome), "reason": end.reason, "last_step": end.last_step,
        }),
    }
}

fn step_json(step: &CommittedStep) -> Value {
    let mut value = json!(StepLine::of(step));
    value["event"] = json!("step");
    value["total_steps"] = json!(step.total_steps);
    value
}

fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Stopped => "stopped",
        Outcome::Failed { .. } => "failed",
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::domain::{Orthogonality, Validation};

    use super::*;

    fn step() -> CommittedStep {
        CommittedStep {
            step: 7,
            total_steps: 10,
            samples: 56,
            tokens: 448,
            loss: 2.5,
            learning_rate: 1e-3,
            effective_learning_rate: 1e-3,
            batch: 8,
            grad_norm: 1.0,
            update_norm: 0.5,
            tokens_per_second: 640.0,
            step_ms: 100.0,
            phases: vec![("forward".to_owned(), 40.0)],
            generation: 1,
            ranks: 2,
            parameter_hash: [0xab; 32],
            polar_factors: 12,
            model_value: Some(2.25),
            dual_norm: Some(3.5),
            lower_bound: Some(1.75),
            gradient_variance: Some(96.0),
            gradient_square: Some(0.5),
            noise_scale: Some(192.0),
            orthogonality: Some(Orthogonality {
                tensor: "h.1.attn.c_attn.weight[2]".to_owned(),
                error: 0.125,
            }),
            skipped: None,
        }
    }

    /// The step of an optimiser without polar factors, model and dual norm.
    fn plain() -> CommittedStep {
        CommittedStep {
            polar_factors: 0,
            model_value: None,
            dual_norm: None,
            lower_bound: None,
            gradient_variance: None,
            gradient_square: None,
            noise_scale: None,
            orthogonality: None,
            ..step()
        }
    }

    #[test]
    fn a_step_as_json_is_its_line_of_the_metrics_file_and_says_that_it_is_a_step() {
        let mut expected = json!({
            "event": "step", "step": 7, "total_steps": 10, "samples": 56, "tokens": 448, "loss": 2.5, "lr": 1e-3,
            "effective_lr": 1e-3, "batch": 8, "grad_norm": 1.0, "update_norm": 0.5, "tokens_per_second": 640.0,
            "step_ms": 100.0, "phases": { "forward_ms": 40.0 }, "generation": 1, "ranks": 2,
            "parameter_hash": "ab".repeat(32), "model_value": 2.25, "dual_norm": 3.5, "lower_bound": 1.75, "gradient_variance": 96.0, "gradient_square": 0.5, "noise_scale": 192.0,
            "polar_factors": 12, "orthogonality_error": 0.125, "orthogonality_tensor": "h.1.attn.c_attn.weight[2]",
        });
        assert_eq!(to_json(&RunEvent::Step(Box::new(step()))), expected);

        // An optimiser that has none of these says nothing about them.
        let optional = "model_value dual_norm lower_bound gradient_variance gradient_square noise_scale polar_factors orthogonality_error orthogonality_tensor";
        for key in optional.split(' ') {
            let removed = expected.as_object_mut().and_then(|keys| keys.remove(key));
            assert!(removed.is_some(), "{key}");
        }
        assert_eq!(to_json(&RunEvent::Step(Box::new(plain()))), expected);
    }

    #[test]
    fn the_effective_learning_rate_is_shown_where_it_is_another_than_the_planned_one() {
        let planned = line(&RunEvent::Step(Box::new(step())));
        assert!(planned.contains("  lr 1.000e-3  batch"), "{planned}");
        let truncated = CommittedStep {
            effective_learning_rate: 2.5e-4,
            ..step()
        };
        let line = line(&RunEvent::Step(Box::new(truncated.clone())));
        assert!(line.contains("  lr 1.000e-3 (effective 2.500e-4)  batch"), "{line}");

        let mut bar = Bar {
            bar: ProgressBar::hidden(),
            loss: None,
            validation: None,
            effective_learning_rate: None,
            tokens_per_second: 0.0,
        };
        bar.event(&RunEvent::Step(Box::new(truncated)));
        assert!(
            bar.bar.message().contains("effective lr 2.500e-4"),
            "{}",
            bar.bar.message()
        );
        bar.event(&RunEvent::Step(Box::new(step())));
        assert!(!bar.bar.message().contains("effective"), "{}", bar.bar.message());
    }

    #[test]
    fn people_read_one_line_an_event() {
        let validation = Validation {
            loss: 1.625,
            tokens: 99,
        };
        for (event, parts) in [
            (
                RunEvent::Step(Box::new(step())),
                ["step 7/10", "loss 2.5000", "640 tok/s"],
            ),
            (
                RunEvent::Validation { step: 7, validation },
                ["step 7", "validation loss 1.6250", "99 tokens"],
            ),
            (
                RunEvent::State {
                    phase: "paused".into(),
                    reason: "an operator".into(),
                },
                ["paused", "an", "operator"],
            ),
            (
                RunEvent::Decided {
                    reason: "rank 1 was lost".into(),
                },
                ["decided", "rank 1", "lost"],
            ),
        ] {
            let line = line(&event);
            assert!(
                parts.iter().all(|part| line.contains(part)) && !line.contains('\n'),
                "{line}"
            );
        }
    }
}
