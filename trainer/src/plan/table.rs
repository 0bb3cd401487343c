//! How predictions are shown: a table with a column for each world, or one JSON object.

use std::fmt::Write as _;

use lockstep_config::RunConfig;
use serde_json::json;

use crate::plan::Planned;
use crate::plan::rates::{Memory, Times};

/// What is shown.
pub(super) struct Shown<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) device: &'a str,
    pub(super) micro_batches: u32,
    /// Steps of the run.
    pub(super) steps: Option<u64>,
    pub(super) planned: &'a [Planned],
}

/// Columns are so wide.
const WIDTH: usize = 11;

const MEMORY: [(&str, fn(&Memory) -> u64); 6] = [
    ("working copies", |memory| memory.working_copies),
    ("gradient buffers", |memory| memory.gradients),
    ("masters and state", |memory| memory.state),
    ("snapshots", |memory| memory.snapshots),
    ("activations", |memory| memory.activations),
    ("the process", |memory| memory.process),
];

const TIMES: [(&str, fn(&Times) -> f64); 9] = [
    ("forward", |times| times.forward),
    ("backward", |times| times.backward),
    ("noise of lanes", |times| times.norms),
    ("adding lanes", |times| times.lanes),
    ("reduction, not hidden", |times| times.reduce),
    ("polar factors", |times| times.polar),
    ("applying", |times| times.apply),
    ("slots", |times| times.slots),
    ("gather, not hidden", |times| times.gather),
];

impl Shown<'_> {
    pub(super) fn text(&self) -> String {
        let run = &self.config.run;
        let mut out = format!(
            "run {}: {} micro-batches of {} × {} tokens a step, {} lanes, {}\n",
            run.name,
            self.micro_batches,
            self.config.batch.micro_batch,
            self.config.data.sequence_length,
            run.lanes,
            match self.planned.first().map(|planned| planned.measured_on) {
                Some(0) => format!(
                    "on {}, by its data sheet: products at 40 % of its peak, memory at 80 % of its bandwidth; not measured",
                    self.device
                ),
                _ => "by a calibration on this machine".to_owned(),
            }
        );
        self.row(&mut out, "ranks", |planned| planned.prediction.ranks.to_string());
        let _ = writeln!(out, "memory of the rank that needs most, MiB");
        let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
        for (what, of) in MEMORY {
            self.row(&mut out, &format!("  {what}"), |planned| {
                mib(of(&planned.prediction.memory))
            });
        }
        self.row(&mut out, "  all", |planned| mib(planned.prediction.memory.total()));
        self.row(&mut out, "  there is room for", |planned| mib(planned.room));
        let _ = writeln!(out, "between ranks in a step, MB");
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        self.row(&mut out, "  partial sums, busiest owner", |planned| {
            megabytes(planned.prediction.received)
        });
        self.row(&mut out, "  parameters", |planned| {
            megabytes(planned.prediction.gathered)
        });
        let _ = writeln!(out, "time of a step, ms");
        for (what, of) in TIMES {
            self.row(&mut out, &format!("  {what}"), |planned| {
                format!("{:.1}", of(&planned.prediction.times))
            });
        }
        self.row(&mut out, "  all", |planned| {
            format!("{:.1}", planned.prediction.times.step)
        });
        self.row(&mut out, "tokens a second", |planned| {
            format!("{:.0}", planned.prediction.tokens_per_second)
        });
        if let Some(steps) = self.steps {
            self.row(&mut out, "hours for the whole run", |planned| {
                format!("{:.2}", planned.prediction.times.step * steps as f64 / 3.6e6)
            });
        }
        for planned in self.planned {
            let ranks = planned.prediction.ranks;
            match &planned.nearest {
                None => {}
                Some(Ok(sets)) => {
                    let _ = writeln!(out, "{ranks} ranks do not fit; the nearest that does: {sets}");
                }
                Some(Err(sentence)) => {
                    let _ = writeln!(out, "{ranks} ranks do not fit, and {sentence}");
                }
            }
        }
        if self
            .planned
            .iter()
            .any(|p| p.measured_on > 0 && p.measured_on < p.prediction.ranks)
        {
            let _ = writeln!(
                out,
                "More ranks than run at once here are taken to be on other machines of this kind; --link says how fast they are joined."
            );
        }
        out
    }

    fn row(&self, out: &mut String, what: &str, value: impl Fn(&Planned) -> String) {
        let _ = write!(out, "{what:<30}");
        for planned in self.planned {
            let _ = write!(out, "{:>WIDTH$}", value(planned));
        }
        out.push('\n');
    }

    pub(super) fn json(&self) -> String {
        let worlds: Vec<_> = self
            .planned
            .iter()
            .map(|planned| {
                let prediction = &planned.prediction;
                json!({
                    "ranks": prediction.ranks,
                    "measured_on_ranks": planned.measured_on,
                    "memory_bytes": prediction.memory.total(),
                    "memory": prediction.memory,
                    "room_bytes": planned.room,
                    "fits": planned.nearest.is_none(),
                    "nearest": planned.nearest.as_ref().and_then(|nearest| nearest.as_ref().ok()),
                    "step_ms": prediction.times.step,
                    "times_ms": prediction.times,
                    "tokens_per_second": prediction.tokens_per_second,
                    "received_bytes": prediction.received,
                    "gathered_bytes": prediction.gathered,
                    "hours": self.steps.map(|steps| prediction.times.step * steps as f64 / 3.6e6),
                })
            })
            .collect();
        json!({
            "run": self.config.run.name, "device": self.device, "micro_batches": self.micro_batches, "worlds": worlds,
        })
        .to_string()
    }
}
