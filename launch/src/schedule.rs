//! `lockstep schedule`: what a run will do, before it is paid for.
//!
//! The coordinator's own [`Planner`] is asked, so the preview cannot differ from the run. The data is looked at only to count
//! epochs, and need not be there where nothing counts in them.
//!
//! Way of data: config → [`Preview`] → a table, what theory says of it, CSV, and `drawing`.

mod drawing;

use std::fmt::Write;
use std::path::Path;

use lockstep_config::RunConfig;
use lockstep_coordinator::plan::{PlanRow, Planner, Terms, warnings};
use lockstep_data::Manifest;
use lockstep_proto::domain::Plan;

use crate::cli::ScheduleArguments;
use crate::ending::Ending;

/// The header of the CSV file. The values are those as the step starts.
const CSV_HEADER: &str = "step,samples,tokens,learning_rate,batch,momentum,weight_decay,epochs";
/// Lines of the printed table.
const TABLE_ROWS: u64 = 12;
/// More steps than this are drawn and tabled, but not written out one by one.
const CSV_STEPS: u64 = 50_000_000;

/// A config with its planner.
struct Preview {
    config: RunConfig,
    planner: Planner,
    training_samples: u64,
}

/// Prints a schedule, and writes it as CSV and SVG where asked for.
pub(crate) fn schedule(arguments: &ScheduleArguments) -> Result<(), Ending> {
    let preview = Preview::read(&arguments.config, &arguments.sets)?;
    let other = arguments.compare.as_deref();
    let other = other.map(|path| Preview::read(path, &[])).transpose()?;
    if arguments.csv.is_some() && preview.planner.total_steps() > CSV_STEPS {
        return Err(Ending::BadInput(format!(
            "the run has {} steps, too many to write one by one; leave --csv out",
            preview.planner.total_steps()
        )));
    }
    print!("{}", preview.text());
    if let (Some(path), Some(other)) = (&arguments.compare, &other) {
        print!("\n{}, to compare:\n{}", path.display(), other.text());
    }
    if let Some(path) = &arguments.csv {
        write(path, &preview.csv())?;
    }
    if let Some(path) = &arguments.svg {
        let planners: Vec<&Planner> = [Some(&preview), other.as_ref()]
            .into_iter()
            .flatten()
            .map(|preview| &preview.planner)
            .collect();
        let drawing = drawing::svg(&planners)
            .map_err(|error| Ending::Failed(format!("the schedule cannot be drawn: {error}")))?;
        write(path, &drawing)?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<(), Ending> {
    std::fs::write(path, content)
        .map_err(|error| Ending::BadInput(format!("cannot write {}: {error}; choose another file", path.display())))?;
    println!("written: {}", path.display());
    Ok(())
}

/// The plan of a step, without going through those before it.
fn plan_of(planner: &Planner, step: u64) -> Plan {
    planner.plan(step, planner.cursor_after(step - 1))
}

/// At most `count` steps from the first to the last, evenly spread.
fn spread(total: u64, count: u64) -> Vec<u64> {
    if total <= count {
        return (1..=total).collect();
    }
    let last = u128::from(count - 1);
    (0..count)
        .map(|index| 1 + u64::try_from(u128::from(index) * u128::from(total - 1) / last).unwrap_or(total))
        .collect()
}

impl Preview {
    fn read(path: &Path, sets: &[String]) -> Result<Preview, Ending> {
        let config = RunConfig::read(path, sets).map_err(Ending::bad_input)?;
        let training_samples = Manifest::read(&config.data.path).map_or(0, |(manifest, _)| {
            manifest.train.tokens.saturating_sub(1) / u64::from(config.data.sequence_length)
        });
        Ok(Preview {
            planner: Planner::new(&config, training_samples).map_err(Ending::bad_input)?,
            config,
            training_samples,
        })
    }

    /// The table, and what is to be said about it.
    fn text(&self) -> String {
        let planner = &self.planner;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let mut line = |content: String| {
            let _ = writeln!(text, "{content}");
        };
        let first = plan_of(planner, 1);
        let optional = |title: &str, value: Option<f64>| {
            value.map_or_else(String::new, |value| match title.is_empty() {
                true => format!(" {value:>12.6}"),
                false => format!(" {title:>12}"),
            })
        };
        line(format!(
            "{:>12} {:>14} {:>14} {:>8}{}{}",
            "step",
            "samples",
            "learning rate",
            "batch",
            optional("momentum", first.momentum),
            optional("decay", first.weight_decay)
        ));
        for step in spread(planner.total_steps(), TABLE_ROWS) {
            let plan = plan_of(planner, step);
            line(format!(
                "{step:>12} {:>14} {:>14.6e} {:>8}{}{}",
                plan.first_sample,
                plan.learning_rate,
                plan.samples,
                optional("", plan.momentum),
                optional("", plan.weight_decay)
            ));
        }
        planner.roundings().into_iter().for_each(&mut line);
        if let Some(adaptive) = &self.config.batch.adaptive {
            line(format!(
                "the batch is decided on every {} steps while the run trains, up to {} samples: shown is the one to begin with",
                adaptive.every, adaptive.most
            ));
        }
        let epochs = match self.training_samples {
            0 => String::new(),
            epoch => format!(", {:.2} epochs", planner.total_samples() as f64 / epoch as f64),
        };
        line(format!(
            "{} steps, {} samples{epochs}",
            planner.total_steps(),
            planner.total_samples()
        ));
        if let Some(terms) = Terms::of(planner) {
            line(format!(
                "sum of rates Ση = {:.6e}, noise Ση²/b = {:.6e}; the bound of SGD with momentum goes with 1/Ση = {:.6e} and \
                 (Ση²/b)/Ση = {:.6e}",
                terms.rates,
                terms.squares_by_batch,
                terms.start(),
                terms.noise()
            ));
        }
        for warning in warnings(&self.config) {
            line(format!("warning: {warning}"));
        }
        text
    }

    fn csv(&self) -> String {
        let mut text = format!("{CSV_HEADER}\n");
        let optimizer = &self.config.optimizer;
        let per_sample = u64::from(self.config.data.sequence_length);
        for PlanRow { plan, .. } in self.planner.rows() {
            let samples = plan.first_sample;
            let epochs = match self.training_samples {
                0 => String::new(),
                epoch => (samples as f64 / epoch as f64).to_string(),
            };
            let _ = writeln!(
                text,
                "{},{samples},{},{},{},{},{},{epochs}",
                plan.step,
                samples.saturating_mul(per_sample),
                plan.learning_rate,
                plan.samples,
                plan.momentum.unwrap_or(optimizer.momentum),
                plan.weight_decay.unwrap_or(optimizer.weight_decay)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_from_the_first_to_the_last() {
        assert_eq!(spread(3, 12), [1, 2, 3]);
        let many = spread(u64::MAX, 12);
        assert_eq!((many.len(), many[0], many[11]), (12, 1, u64::MAX));
        assert!(many.windows(2).all(|two| two[0] < two[1]));
    }
}
