//! `lockstep plan`: what a run will take. The schedule says what a step is; the trainer, which knows the model, does the rest.
//!
//! Way of data: config → planner → micro-batches of the step that is looked at, steps of the run → `lockstep-trainer plan`,
//! which this process becomes.

use std::ffi::OsString;

use lockstep_config::RunConfig;
use lockstep_coordinator::plan::Planner;
use lockstep_data::Dataset;

use crate::cli::PlanArguments;
use crate::ending::Ending;
use crate::sibling;

/// Becomes the trainer; returns only where that fails, or where the config cannot be used.
pub(crate) fn plan(arguments: &PlanArguments) -> Ending {
    match words(arguments) {
        Ok(words) => sibling::become_trainer("plan", &words),
        Err(ending) => ending,
    }
}

/// What the trainer is asked.
fn words(arguments: &PlanArguments) -> Result<Vec<OsString>, Ending> {
    let config = RunConfig::read(&arguments.config, &arguments.sets).map_err(Ending::bad_input)?;
    // Only lengths in epochs need the data; the planner says so where it is missing.
    let data = Dataset::open(&config.data.path).ok();
    let samples = data.map_or(0, |data| data.train().training_samples(config.data.sequence_length));
    let planner = Planner::new(&config, samples).map_err(Ending::bad_input)?;
    let (step, total) = (arguments.step, planner.total_steps());
    if step == 0 || step > total {
        return Err(Ending::BadInput(format!(
            "--step {step} is not a step of the run, which has {total}"
        )));
    }
    let plan = planner.plan(step, planner.cursor_after(step - 1));
    let mut words: Vec<OsString> = vec![arguments.config.clone().into()];
    let mut say = |flag: &str, value: String| words.push(format!("{flag}={value}").into());
    say("--ranks", arguments.ranks.clone());
    say("--micro-batches", plan.micro_batches.to_string());
    say("--steps", total.to_string());
    if let Some(device) = &arguments.device {
        say("--device", device.clone());
    }
    if let Some(link) = arguments.link {
        say("--link", link.to_string());
    }
    for set in &arguments.sets {
        say("--set", set.clone());
    }
    if arguments.json {
        words.push("--json".into());
    }
    Ok(words)
}
