//! A second machine that hears only what the ledger keeps of the events, and must want the same records.

use std::time::Duration;

use crate::ledger::{Heard, Recorder};
use crate::run::{Decision, Directive, Event, Record, Run};

/// The second machine. The simulator lets it follow the first one through its random schedules.
pub(crate) struct Shadow {
    run: Run,
    recorder: Recorder,
}

impl Shadow {
    /// A machine in the same state.
    pub(crate) fn of(run: &Run) -> Shadow {
        Shadow {
            run: run.clone(),
            recorder: Recorder::new(Some(run.stamp().term)),
        }
    }

    /// Has the first machine decide, and the second one by what was kept. Where they differ, that is said.
    pub(crate) fn decide(&mut self, run: &mut Run, event: Event, now: Duration) -> Result<Decision, String> {
        let told = format!("{event:?}");
        let decision = self.recorder.decide(run, event, now);
        let mut again = Vec::new();
        for row in self.recorder.take() {
            let heard = Heard::of_row(&row)?;
            if heard.at != now {
                return Err(format!(
                    "{told} was heard at {now:?}, and the ledger has {:?}",
                    heard.at
                ));
            }
            again.extend(self.run.step(heard.event, heard.at).directives);
        }
        let (wanted, again) = (records(&decision.directives), records(&again));
        match wanted == again && (run.phase(), run.reason()) == (self.run.phase(), self.run.reason()) {
            true => Ok(decision),
            false => Err(format!(
                "after {told} the records were {wanted:?}, and again they are {again:?}"
            )),
        }
    }
}

fn records(directives: &[Directive]) -> Vec<&Record> {
    directives
        .iter()
        .filter_map(|directive| match directive {
            Directive::Persist(record) => Some(record),
            _ => None,
        })
        .collect()
}
