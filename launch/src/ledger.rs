//! `lockstep ledger show | audit | replay`: what a run's ledger holds and what it proves.
//!
//! The coordinator's own readers are asked; here their answers become lines, or JSON. A ledger can be read while its
//! run goes on, and after its coordinator was killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use lockstep_coordinator::ledger::{self, Audit, Contents, Reader, Replay, Size};
use lockstep_proto::domain::{Generation, Outcome};
use serde_json::json;

use crate::cli::LedgerCommand;
use crate::ending::Ending;
use crate::run::folder::RUNS;

/// Carries out a command about a ledger.
pub(crate) fn ledger(command: &LedgerCommand) -> Result<(), Ending> {
    match command {
        LedgerCommand::Show { run_dir, json, table } => show(&open(run_dir)?, *json, table.as_deref()),
        LedgerCommand::Audit { run_dir, json } => audit(&open(run_dir)?, *json),
        LedgerCommand::Replay { run_dir, json } => replay(&open(run_dir)?, *json),
    }
}

/// The folder of a run: a bare name is that of a run under ./runs, as for the commands to live runs.
pub(crate) fn folder_of(run_dir: &Path) -> PathBuf {
    let named = PathBuf::from(RUNS).join(run_dir);
    match run_dir.components().count() == 1 && !run_dir.exists() && named.exists() {
        true => named,
        false => run_dir.to_owned(),
    }
}

fn open(run_dir: &Path) -> Result<Reader, Ending> {
    let reader = Reader::open(&folder_of(run_dir)).map_err(Ending::bad_input)?;
    if reader.is_repaired_copy() {
        eprintln!(
            "note: the run's coordinator was killed; this is read from a repaired copy in memory, and {} stays as it is",
            reader.file().display()
        );
    }
    Ok(reader)
}

/// Writes a line; whoever closed the pipe has read enough.
fn say(line: &str) -> Result<(), Ending> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Ending::Failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn show(reader: &Reader, json: bool, table: Option<&str>) -> Result<(), Ending> {
    if let Some(table) = table {
        let mut said = Ok(());
        ledger::rows_of(reader, table, |key, record| {
            if said.is_ok() {
                said = say(&match json {
                    true => json!({ "table": table, "key": key, "record": record }).to_string(),
                    false => format!("{key:>8}  {record}"),
                });
            }
        })
        .map_err(Ending::bad_input)?;
        return said;
    }
    let contents = ledger::show(reader).map_err(Ending::failed)?;
    match json {
        true => say(&serde_json::to_string(&contents).map_err(Ending::failed)?),
        false => say(text(&contents).trim_end()),
    }
}

fn text(contents: &Contents) -> String {
    let mut lines = vec![format!("run          {} ({})", contents.run.name, contents.run.run_id)];
    for term in &contents.terms {
        let is_recorded = contents.recorded_terms.contains(&term.key);
        let events = if is_recorded { "" } else { ", events not recorded" };
        let (number, began) = (term.key, moment(term.record.began));
        lines.push(format!(
            "term {number:<7} began {began} (pid {}){events}",
            term.record.pid
        ));
    }
    lines.extend(contents.generations.iter().map(generation));
    lines.push(match contents.issued {
        Some((first, last)) => format!("plans        issued for steps {first} to {last}"),
        None => "plans        none issued".to_owned(),
    });
    match &contents.committed {
        Some(committed) => lines.push(format!(
            "committed    steps {} to {}: {} samples, {} counted tokens, loss {:.4}, parameters {}",
            committed.first,
            committed.last,
            committed.samples,
            committed.tokens,
            committed.loss,
            committed.parameter_hash
        )),
        None => lines.push("committed    no step".to_owned()),
    }
    for rewind in &contents.rewinds {
        lines.push(format!(
            "rewind {:<5} of term {}, from step {} to step {}, samples {} to before {} skipped, learning rates × {}: {}",
            rewind.number,
            rewind.term,
            rewind.unusable,
            rewind.to,
            rewind.skipped.start,
            rewind.skipped.end,
            rewind.rate_factor,
            rewind.reason
        ));
    }
    for (step, generation) in &contents.snapshots {
        lines.push(format!("snapshot     of step {step}, by generation {generation}"));
    }
    for validation in &contents.validations {
        let (step, loss) = (validation.key, validation.record.loss);
        lines.push(format!(
            "validation   after step {step}: loss {loss:.4} on {} tokens",
            validation.record.tokens
        ));
    }
    for decision in &contents.decisions {
        lines.push(format!(
            "{} term {}: {}",
            moment(decision.at),
            decision.term,
            decision.reason
        ));
    }
    for call in &contents.calls {
        let (who, from, what) = (&call.who, &call.from, &call.call);
        let how = if call.is_refused { "refused" } else { "answered" };
        lines.push(format!(
            "{} term {}: {who} from {from} called {what}, {how}: {}",
            moment(call.at),
            call.term,
            call.answer
        ));
    }
    for end in &contents.ends {
        let how = match end.record.outcome {
            Outcome::Completed => "completed",
            Outcome::Stopped => "stopped",
            Outcome::Failed { .. } => "failed",
        };
        let (term, step, reason) = (end.key, end.record.last_step, &end.record.reason);
        lines.push(format!(
            "end          of term {term}, {how} after step {step}: {reason}"
        ));
    }
    lines.push(size(&contents.size));
    lines.join("\n")
}

fn generation(generation: &Generation) -> String {
    let places: Vec<String> = generation
        .members
        .iter()
        .map(|place| {
            let (lanes, member) = (&place.lanes, &place.member);
            format!(
                "rank {} = {member} (pid {} on {}, lanes {}..{})",
                place.rank, place.pid, place.host, lanes.start, lanes.end
            )
        })
        .collect();
    let from = match &generation.resume {
        Some(resume) => format!("resumes from step {} of generation {}", resume.step, resume.generation),
        None => "begins with the initial values".to_owned(),
    };
    let again = match generation.replay_through {
        0 => String::new(),
        through => format!(", step {through} was committed"),
    };
    let stamp = generation.stamp;
    format!(
        "generation {:<2} of term {}: {from}{again}; {}",
        stamp.generation,
        stamp.term,
        places.join(", ")
    )
}

fn size(size: &Size) -> String {
    let mut text = format!(
        "size         {} bytes of file, {} bytes of rows",
        size.file_bytes, size.row_bytes
    );
    if let (Some(rows), Some(events)) = (size.row_bytes_per_step, size.event_bytes_per_step) {
        text += &format!(": {rows:.0} bytes a committed step, {events:.0} of them events");
    }
    for table in &size.tables {
        text += &format!(
            "\n             {:<12} {:>9} rows {:>12} bytes",
            table.name, table.rows, table.bytes
        );
    }
    text
}

fn audit(reader: &Reader, json: bool) -> Result<(), Ending> {
    let Audit { proofs } = &ledger::audit(reader).map_err(Ending::failed)?;
    let mut broken = 0;
    for proof in proofs {
        let violations = proof.violations.len() + proof.unnamed;
        broken += violations;
        if json {
            let line = json!({
                "claim": proof.claim, "figures": proof.figures, "holds": violations == 0, "violations": proof.violations,
                "unnamed_violations": proof.unnamed,
            });
            say(&line.to_string())?;
            continue;
        }
        match violations {
            0 => say(&format!("proved  {}: {}", proof.claim, proof.figures))?,
            _ => say(&format!("BROKEN  {}: {violations} violations", proof.claim))?,
        }
        for violation in &proof.violations {
            say(&format!("        {violation}"))?;
        }
        if proof.unnamed > 0 {
            say(&format!("        and {} more", proof.unnamed))?;
        }
    }
    match broken {
        0 => Ok(()),
        _ => Err(Ending::Failed(format!(
            "the ledger {} does not prove what it should: {broken} violations, named above",
            reader.file().display()
        ))),
    }
}

fn replay(reader: &Reader, json: bool) -> Result<(), Ending> {
    let Replay {
        terms,
        events,
        rows,
        unreplayed,
        difference,
    } = &ledger::replay(reader).map_err(Ending::failed)?;
    if json {
        let unreplayed = unreplayed
            .as_ref()
            .map(|term| json!({ "term": term.term, "reason": term.reason }));
        let difference = difference
            .as_ref()
            .map(|it| json!({ "event": it.event, "reason": it.reason }));
        let line = json!({
            "terms": terms, "events": events, "equal_rows": rows, "unreplayed": unreplayed, "difference": difference,
        });
        say(&line.to_string())?;
    } else if !terms.is_empty() {
        let terms: Vec<String> = terms.iter().map(u64::to_string).collect();
        let same = if difference.is_some() {
            "before the first difference"
        } else {
            "every one as in the ledger"
        };
        let terms = terms.join(", ");
        say(&format!(
            "replayed term {terms}: {events} events, {rows} rows decided again, {same}"
        ))?;
    }
    if let Some(difference) = difference {
        let event = difference
            .event
            .map_or("no event".to_owned(), |number| format!("event {number}"));
        return Err(Ending::Failed(format!(
            "the replay and the ledger differ at {event}: {}",
            difference.reason
        )));
    }
    match unreplayed {
        None => Ok(()),
        Some(term) => Err(Ending::Failed(format!(
            "term {} cannot be replayed: {}",
            term.term, term.reason
        ))),
    }
}

/// A moment of Unix time, in UTC.
fn moment(seconds: f64) -> String {
    let moment = Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|since| UNIX_EPOCH.checked_add(since));
    match moment {
        Some(moment) => humantime::format_rfc3339_millis(moment).to_string(),
        None => format!("{seconds} s"),
    }
}
