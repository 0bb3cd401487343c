//! Who gives an order: told by the guard to whatever serves the call, and written into the ledger with what was decided.
//!
//! It goes along with the task that serves the call and not with each message, so that a new order cannot be built without
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ledger::{CallRow, unix_seconds};

/// Characters of what a caller says that are kept.
const KEPT: usize = 160;

tokio::task_local! {
    static PRESENT: Caller;
}

/// Somebody who calls, and what.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    who: String,
    from: String,
    call: String,
    may_order: bool,
    is_noted: Arc<AtomicBool>,
}

impl Caller {
    pub(crate) fn new(who: &str, from: &str, call: &str) -> Caller {
        Caller {
            who: shortened(who),
            from: shortened(from),
            call: shortened(call),
            may_order: false,
            is_noted: Arc::default(),
        }
    }

    /// The same caller, who may give orders or not.
    pub(crate) fn with_orders(self, may_order: bool) -> Caller {
        Caller { may_order, ..self }
    }

    /// Whether the guard would let an order of this caller pass.
    pub(crate) fn may_order(&self) -> bool {
        self.may_order
    }

    /// The process that the coordinator runs in: Ctrl-C at `lockstep run`, a signal at the binary.
    pub(crate) fn own_process(call: &str) -> Caller {
        Caller::new("this process", "itself", call)
    }

    /// The caller whose call the present task serves.
    pub(crate) fn present() -> Caller {
        PRESENT
            .try_with(Caller::clone)
            .unwrap_or_else(|_| Caller::new("nobody known", "nowhere known", "an order"))
    }

    /// Serves a call of this caller.
    pub(crate) async fn serve<T>(self, serving: impl Future<Output = T>) -> T {
        PRESENT.scope(self, serving).await
    }

    /// The row of this call, with what was answered: what was decided, or why not.
    pub(crate) fn row(&self, term: u64, answer: Result<&str, &str>) -> CallRow {
        self.is_noted.store(true, Ordering::Relaxed);
        let (Ok(text) | Err(text)) = answer;
        CallRow {
            term,
            at: unix_seconds(),
            who: self.who.clone(),
            from: self.from.clone(),
            call: self.call.clone(),
            is_refused: answer.is_err(),
            answer: text.to_owned(),
            calls: 1,
        }
    }

    /// Whether its row was made.
    pub(super) fn is_noted(&self) -> bool {
        self.is_noted.load(Ordering::Relaxed)
    }
}

/// On one line, and not too long: it may be anything that somebody sends.
fn shortened(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut kept: String = clean.take(KEPT + 1).collect();
    if let Some((end, _)) = kept.char_indices().nth(KEPT) {
        kept.replace_range(end.., "…");
    }
    kept
}
