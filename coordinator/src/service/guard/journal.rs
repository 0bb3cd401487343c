//! Refused calls, on their way into the log and the ledger. However many there are, few are kept: the first ones each, then
//! one a minute with the number of those between.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use lockstep_security::Bucket;

use crate::service::caller::Caller;
use crate::service::mailbox::{Letter, Mailbox};

/// Refused calls that are kept each before some are only counted.
const BURST: f64 = 20.0;
/// And so many by second after that.
const RATE: f64 = 1.0 / 60.0;

/// Writes down what must be asked about later.
pub(crate) struct Journal {
    mailbox: Mailbox,
    term: u64,
    kept: Mutex<Kept>,
}

struct Kept {
    budget: Bucket,
    /// Refused calls since the last row, and the newest of them.
    left_out: Option<(u64, Caller, String)>,
}

impl Journal {
    pub(crate) fn new(mailbox: Mailbox, term: u64) -> Journal {
        let kept = Kept {
            budget: Bucket::new(RATE, BURST, Instant::now()),
            left_out: None,
        };
        Journal {
            mailbox,
            term,
            kept: Mutex::new(kept),
        }
    }

    /// A call was refused before anything served it.
    pub(crate) fn refused(&self, caller: Caller, answer: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.budget.take(Instant::now()) {
            self.write_left_out(&mut kept);
            self.write(&caller, Err(&answer), 1);
        } else {
            let before = kept.left_out.take().map_or(0, |(calls, ..)| calls);
            kept.left_out = Some((before + 1, caller, answer));
        }
    }

    /// Something that the coordinator did by itself about whom it lets in, or an order that came to nothing.
    pub(crate) fn note(&self, caller: &Caller, answer: Result<&str, &str>) {
        self.write(caller, answer, 1);
    }

    /// Time went by: what was only counted may be said now.
    pub(crate) fn tick(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.left_out.is_some() && kept.budget.take(Instant::now()) {
            self.write_left_out(&mut kept);
        }
    }

    fn write_left_out(&self, kept: &mut Kept) {
        if let Some((calls, caller, answer)) = kept.left_out.take() {
            let answer = match calls {
                1 => answer,
                _ => format!(
                    "and {} more refused calls before this one; the last one: {answer}",
                    calls - 1
                ),
            };
            self.write(&caller, Err(&answer), calls);
        }
    }

    fn write(&self, caller: &Caller, answer: Result<&str, &str>, calls: u64) {
        let mut row = caller.row(self.term, answer);
        row.calls = calls;
        match answer {
            Ok(answer) => tracing::info!("{} from {}, {}: {answer}", row.who, row.from, row.call),
            Err(answer) => tracing::warn!("refused {} from {}, {}: {answer}", row.who, row.from, row.call),
        }
        // Refused only where the run's thread has ended, and with it the run.
        let _told = self.mailbox.operators.send(Letter::Called(row));
    }
}
