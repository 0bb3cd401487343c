//! What a run has recorded so far, in the form in which a board begins with it: from the ledger that the run itself has
//! open, or from one that is read.

use std::path::{Path, PathBuf};

use lockstep_config::{Length, RunConfig};
use lockstep_proto::domain::{Generation, PastDecision, RunEnd};

use crate::ledger::{DecisionRow, Entry, Ledger, LedgerError, Past, Reader, RunRow, past};

/// A run so far.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) name: String,
    pub(crate) run_id: String,
    pub(crate) folder: PathBuf,
    pub(crate) lanes: u32,
    /// Steps of the whole run; 0 where that is not known.
    pub(crate) total_steps: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) generations: Vec<Generation>,
    pub(crate) decisions: Vec<PastDecision>,
    pub(crate) end: Option<RunEnd>,
}

impl Story {
    /// Of a run that begins or goes on: it has not ended, whatever became of earlier terms.
    pub(crate) fn of_ledger(
        ledger: &Ledger,
        entries: Vec<Entry>,
        folder: &Path,
        config: &RunConfig,
        total_steps: u64,
    ) -> Result<Story, LedgerError> {
        Ok(Story {
            total_steps,
            entries,
            generations: ledger.generations()?,
            decisions: decisions(ledger.decisions()?),
            ..Story::nothing(ledger.run(), folder, Some(config))
        })
    }

    /// Of a run that is read.
    pub(crate) fn of_reader(reader: &Reader, folder: &Path) -> Result<Story, LedgerError> {
        let Past {
            run,
            entries,
            generations,
            decisions,
            end,
            last_planned,
        } = past(reader)?;
        // A config of a newer build may not be understood; then the run is shown without its length.
        let config = RunConfig::parse(&run.config_toml, "config.toml", &[]).ok();
        let length = config.as_ref().map(|config| config.run.length);
        let total_steps = match (length, last_planned) {
            (Some(Length::Steps(steps)), _) => steps,
            (_, Some(step)) => step,
            _ => 0,
        };
        Ok(Story {
            total_steps,
            entries,
            generations,
            decisions: self::decisions(decisions),
            end,
            ..Story::nothing(&run, folder, config.as_ref())
        })
    }

    fn nothing(run: &RunRow, folder: &Path, config: Option<&RunConfig>) -> Story {
        Story {
            name: run.name.clone(),
            run_id: run.run_id.clone(),
            folder: folder.to_owned(),
            lanes: config.map_or(0, |config| config.run.lanes),
            total_steps: 0,
            entries: Vec::new(),
            generations: Vec::new(),
            decisions: Vec::new(),
            end: None,
        }
    }
}

fn decisions(rows: Vec<DecisionRow>) -> Vec<PastDecision> {
    let decision = |row: DecisionRow| PastDecision {
        at: row.at,
        reason: row.reason,
    };
    rows.into_iter().map(decision).collect()
}
