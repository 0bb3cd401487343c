//! What the machine was fed, as rows of the ledger, so that its decisions can be made again.
//!
//! Way of data: the run's thread gives each event to [`Recorder::decide`], which feeds it to the machine and keeps it
//! as bytes where it had a consequence → the thread writes these bytes in the transaction of the records that the
//! events led to, before anything is sent → [`Heard::of_row`] gives them back to `replay`. A row is a version and one
//! protobuf message; what members said is kept as the very message of the protocol, so its version counts too.
//! [`FactsRow`] is what the machine of a term was made with, without its secret, which is never written.

use std::time::Duration;

use lockstep_proto::domain::{Checkpoint, FromMember, Header, MemberBody, Ready, Return, Stamp};
use lockstep_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::branches::Rewinds;
use crate::plan::Planner;
use crate::run::{Decision, Event, Keeps, Peer, Run, RunFacts, Worlds};

/// Version of every row of events. Another one is refused by name.
pub const EVENTS_VERSION: u8 = 1;

/// An event with when it was heard.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// The term that heard it.
    pub term: u64,
    /// Time since that term's coordinator began.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}

/// The protobuf message of a row.
#[derive(Clone, PartialEq, prost::Message)]
struct EventRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    at_nanoseconds: u64,
    #[prost(uint64, tag = "3")]
    peer: u64,
    #[prost(oneof = "What", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    what: Option<What>,
}

/// Exactly one of these is in a row; those without a content are `true`.
#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(message, boxed, tag = "4")]
    Said(Box<v1::MemberMessage>),
    #[prost(bool, tag = "5")]
    Lost(bool),
    #[prost(bool, tag = "6")]
    Tick(bool),
    #[prost(bool, tag = "7")]
    Pause(bool),
    #[prost(bool, tag = "8")]
    Resume(bool),
    #[prost(bool, tag = "9")]
    Stop(bool),
    #[prost(bool, tag = "10")]
    Abandon(bool),
    #[prost(bool, tag = "11")]
    Checkpoint(bool),
    #[prost(message, tag = "12")]
    Commissioned(CommissionedRow),
    /// How it shows that a rank does not go on.
    #[prost(string, tag = "13")]
    Lapsed(String),
    /// An order, as JSON.
    #[prost(string, tag = "14")]
    Ordered(String),
}

/// What became of a manifest.
#[derive(Clone, PartialEq, prost::Message)]
struct CommissionedRow {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint64, tag = "3")]
    step: u64,
    #[prost(string, optional, tag = "4")]
    failure: Option<String>,
}

impl Heard {
    /// What kind of event it is, in one word.
    pub fn name(&self) -> &'static str {
        match &self.event {
            Event::Join { .. } => "join",
            Event::Return { .. } => "return",
            Event::Wrote { .. } => "wrote",
            Event::Commissioned { .. } => "commissioned",
            Event::Checkpoint => "checkpoint",
            Event::CommId { .. } => "communicator-id",
            Event::Ready { .. } => "ready",
            Event::Progress { .. } => "progress",
            Event::Report { .. } => "report",
            Event::Holds { .. } => "holds",
            Event::Stopped { .. } => "stopped",
            Event::Leaving { .. } => "leaving",
            Event::Finished { .. } => "finished",
            Event::MemberLost { .. } => "lost",
            Event::Lapsed { .. } => "lapsed",
            Event::Tick => "tick",
            Event::Pause => "pause",
            Event::Resume => "resume",
            Event::Stop => "stop",
            Event::Abandon => "abandon",
            Event::Ordered(_) => "ordered",
        }
    }

    /// What happened, in a few words.
    pub fn sentence(&self) -> String {
        match &self.event {
            Event::Join { peer, info } => format!("{} joined on stream {peer}", info.member),
            Event::Return { peer, returned, .. } => format!("{} came back on stream {peer}", returned.info.member),
            Event::Wrote {
                peer, step, written, ..
            } => match written {
                Ok(_) => format!("the rank on stream {peer} had written its part of the checkpoint of step {step}"),
                Err(failure) => format!("the rank on stream {peer} wrote no checkpoint of step {step}: {failure}"),
            },
            Event::Commissioned { checkpoint, result } => match result {
                Ok(()) => format!("the checkpoint of step {} was committed", checkpoint.step),
                Err(failure) => format!(
                    "the checkpoint of step {} was not committed: {failure}",
                    checkpoint.step
                ),
            },
            Event::Checkpoint => "an operator asked for a checkpoint".to_owned(),
            Event::CommId { peer, .. } => format!("a communicator id came on stream {peer}"),
            Event::Ready { peer, .. } => format!("the rank on stream {peer} was ready"),
            Event::Progress { peer, progress } => {
                format!(
                    "the rank on stream {peer} was in {} of step {}",
                    progress.phase, progress.step
                )
            }
            Event::Report { peer, report } => {
                format!("rank {} reported step {} on stream {peer}", report.rank, report.step)
            }
            Event::Holds { peer, part, .. } => {
                format!(
                    "stream {peer} said that it holds part {} of step {}",
                    part.part, part.step
                )
            }
            Event::Stopped { peer, cause, .. } => match cause {
                Some(cause) => format!("the rank on stream {peer} left the collectives: {cause}"),
                None => format!("the rank on stream {peer} left the collectives"),
            },
            Event::Leaving { peer, reason } => format!("the member on stream {peer} must leave: {reason}"),
            Event::Finished { peer, step, .. } => format!("the member on stream {peer} ended after step {step}"),
            Event::MemberLost { peer } => format!("stream {peer} closed"),
            Event::Lapsed { peer, how } => format!("the rank on stream {peer} did not go on: {how}"),
            Event::Tick => "time went by".to_owned(),
            Event::Pause => "an operator asked for a pause".to_owned(),
            Event::Resume => "an operator resumed the run".to_owned(),
            Event::Stop => "an operator stopped the run".to_owned(),
            Event::Abandon => "an operator abandoned the run".to_owned(),
            Event::Ordered(order) => format!("an operator ordered {:?}", order.wanted),
        }
    }

    /// The bytes of its row.
    pub(crate) fn to_row(&self) -> Vec<u8> {
        let (peer, what) = parts(&self.event);
        let row = EventRow {
            term: self.term,
            at_nanoseconds: u64::try_from(self.at.as_nanos()).unwrap_or(u64::MAX),
            peer,
            what: Some(what),
        };
        let mut bytes = Vec::with_capacity(1 + row.encoded_len());
        bytes.push(EVENTS_VERSION);
        // A Vec has room for everything, so this cannot fail.
        let _written = row.encode(&mut bytes);
        bytes
    }

    /// The event of a row.
    ///
    /// # Errors
    /// One sentence, when the row is of another version or is damaged.
    pub(crate) fn of_row(bytes: &[u8]) -> Result<Heard, String> {
        let Some((version, bytes)) = bytes.split_first() else {
            return Err("the row is empty".to_owned());
        };
        if *version != EVENTS_VERSION {
            return Err(format!(
                "the event has version {version}, and this build knows version {EVENTS_VERSION} only"
            ));
        }
        let row = EventRow::decode(bytes).map_err(|error| error.to_string())?;
        Ok(Heard {
            term: row.term,
            at: Duration::from_nanos(row.at_nanoseconds),
            event: event(row.peer, row.what.ok_or("the row has no event")?)?,
        })
    }
}

/// How a rank reaches the others decides nothing, and would be a list of ranks from every rank.
fn without_transports(hash: [u8; 32]) -> Ready {
    let transports = Vec::new();
    Ready { hash, transports }
}

fn parts(event: &Event) -> (Peer, What) {
    let said = |peer: &Peer, stamp: Stamp, body: MemberBody| {
        let header = Header {
            run_id: String::new(),
            stamp,
        };
        (*peer, What::Said(Box::new((&FromMember { header, body }).into())))
    };
    let none = Stamp::default();
    match event {
        Event::Join { peer, info } => said(peer, none, MemberBody::Join(info.clone())),
        Event::CommId { peer, stamp, id } => said(peer, *stamp, MemberBody::CommId(id.clone())),
        Event::Ready { peer, stamp, ready } => said(peer, *stamp, MemberBody::Ready(without_transports(ready.hash))),
        Event::Progress { peer, progress } => said(peer, none, MemberBody::Progress(progress.clone())),
        Event::Report { peer, report } => said(peer, report.stamp, MemberBody::Report(report.clone())),
        Event::Holds { peer, stamp, part } => said(peer, *stamp, MemberBody::Holds(*part)),
        Event::Return {
            peer,
            generation,
            returned,
        } => {
            let (term, generation) = (0, *generation);
            let body = MemberBody::Return(Return {
                ready: returned.ready.as_ref().map(|ready| without_transports(ready.hash)),
                ..(**returned).clone()
            });
            said(peer, Stamp { term, generation }, body)
        }
        Event::Stopped {
            peer,
            stamp,
            cause,
            parts,
            checkpoint_is_bad,
            drifted,
            unusable,
        } => {
            let body = MemberBody::Stopped {
                step: 0,
                cause: cause.clone(),
                parts: parts.clone(),
                checkpoint_is_bad: *checkpoint_is_bad,
                drifted: *drifted,
                unusable: *unusable,
            };
            said(peer, *stamp, body)
        }
        Event::Wrote {
            peer,
            stamp,
            step,
            written,
        } => {
            let (step, written) = (*step, written.clone());
            said(peer, *stamp, MemberBody::Wrote { step, written })
        }
        Event::Commissioned { checkpoint, result } => (
            0,
            What::Commissioned(CommissionedRow {
                term: checkpoint.term,
                generation: checkpoint.generation,
                step: checkpoint.step,
                failure: result.clone().err(),
            }),
        ),
        Event::Leaving { peer, reason } => said(peer, none, MemberBody::Leaving(reason.clone())),
        Event::Finished {
            peer,
            stamp,
            outcome,
            step,
        } => {
            let (outcome, step) = (outcome.clone(), *step);
            said(peer, *stamp, MemberBody::Finished { outcome, step })
        }
        Event::MemberLost { peer } => (*peer, What::Lost(true)),
        Event::Lapsed { peer, how } => (*peer, What::Lapsed(how.clone())),
        Event::Tick => (0, What::Tick(true)),
        Event::Pause => (0, What::Pause(true)),
        Event::Resume => (0, What::Resume(true)),
        Event::Checkpoint => (0, What::Checkpoint(true)),
        Event::Stop => (0, What::Stop(true)),
        Event::Abandon => (0, What::Abandon(true)),
        // An order has text and numbers only, which JSON can say; a number that is none was refused before.
        Event::Ordered(order) => (0, What::Ordered(serde_json::to_string(order).unwrap_or_default())),
    }
}

fn event(peer: Peer, what: What) -> Result<Event, String> {
    let message = match what {
        What::Said(message) => FromMember::try_from(*message).map_err(|error| error.to_string())?,
        What::Lost(_) => return Ok(Event::MemberLost { peer }),
        What::Lapsed(how) => return Ok(Event::Lapsed { peer, how }),
        What::Tick(_) => return Ok(Event::Tick),
        What::Pause(_) => return Ok(Event::Pause),
        What::Resume(_) => return Ok(Event::Resume),
        What::Stop(_) => return Ok(Event::Stop),
        What::Abandon(_) => return Ok(Event::Abandon),
        What::Ordered(order) => {
            let order = serde_json::from_str(&order).map_err(|error| error.to_string())?;
            return Ok(Event::Ordered(order));
        }
        What::Checkpoint(_) => return Ok(Event::Checkpoint),
        What::Commissioned(row) => {
            let checkpoint = Checkpoint {
                term: row.term,
                generation: row.generation,
                step: row.step,
            };
            let result = row.failure.map_or(Ok(()), Err);
            return Ok(Event::Commissioned { checkpoint, result });
        }
    };
    Ok(event_of_member(peer, message.header.stamp, message.body))
}

/// The event that a member's message is. `stamp`: that of its header.
pub(crate) fn event_of_member(peer: Peer, stamp: Stamp, body: MemberBody) -> Event {
    match body {
        MemberBody::Join(info) => Event::Join { peer, info },
        MemberBody::CommId(id) => Event::CommId { peer, stamp, id },
        MemberBody::Ready(ready) => Event::Ready {
            peer,
            stamp,
            ready: ready.into(),
        },
        MemberBody::Progress(progress) => Event::Progress { peer, progress },
        MemberBody::Report(report) => Event::Report { peer, report },
        MemberBody::Holds(part) => Event::Holds { peer, stamp, part },
        MemberBody::Stopped {
            step: _,
            cause,
            parts,
            checkpoint_is_bad,
            drifted,
            unusable,
        } => Event::Stopped {
            peer,
            stamp,
            cause,
            parts,
            checkpoint_is_bad,
            drifted,
            unusable,
        },
        MemberBody::Wrote { step, written } => Event::Wrote {
            peer,
            stamp,
            step,
            written,
        },
        MemberBody::Return(returned) => Event::Return {
            peer,
            generation: stamp.generation,
            returned: Box::new(returned),
        },
        MemberBody::Leaving(reason) => Event::Leaving { peer, reason },
        MemberBody::Finished { outcome, step } => Event::Finished {
            peer,
            stamp,
            outcome,
            step,
        },
    }
}

/// Feeds the machine, and keeps what it was fed until the run's thread makes it durable.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// The term, where events are recorded at all.
    term: Option<u64>,
    waiting: Vec<Vec<u8>>,
}

impl Recorder {
    /// A recorder for a term; `None`: nothing is kept.
    pub(crate) fn new(term: Option<u64>) -> Recorder {
        Recorder {
            term,
            waiting: Vec::new(),
        }
    }

    /// Has the machine decide about an event, and keeps the event where it had a consequence.
    ///
    /// Two kinds of events can be without one. Progress is what people are shown, and nothing is ever decided by it. A
    /// tick that neither led to a directive nor changed what the run waits for, or why, left the machine as it was but
    /// for its clock, which every event sets anew.
    pub(crate) fn decide(&mut self, run: &mut Run, event: Event, now: Duration) -> Decision {
        let Some(term) = self.term.filter(|_| !matches!(event, Event::Progress { .. })) else {
            return run.step(event, now);
        };
        let before = matches!(event, Event::Tick).then(|| (run.phase(), run.reason()));
        let heard = Heard { term, at: now, event };
        let row = heard.to_row();
        let decision = run.step(heard.event, now);
        let is_idle =
            before.is_some_and(|before| decision.directives.is_empty() && before == (run.phase(), run.reason()));
        if !is_idle {
            self.waiting.push(row);
        }
        decision
    }

    /// Events that are not durable yet.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The rows of the events that are not durable yet, in order; the caller makes them so.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.waiting)
    }
}

/// What the machine of a term was made with: [`RunFacts`] without the secret. The planner is a function of the run's
/// config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactsRow {
    /// Hash of the config that every member must have.
    pub config_hash: String,
    /// Hash of the data manifest that every member must have.
    pub data_hash: String,
    /// Lanes of the run.
    pub lanes: u32,
    /// How many ranks it may have.
    pub worlds: Worlds,
    /// The last generation of earlier terms; 0 for none.
    pub last_generation: u64,
    /// Time that a plan window reaches ahead.
    pub window: Duration,
    /// How long the ranks of an earlier term are waited for.
    pub return_patience: Duration,
    /// Whether nobody of an earlier term trains any more.
    pub is_resumed: bool,
    /// How far the run goes back before a step that cannot be used; none: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewinds: Option<Rewinds>,
    /// Which checkpoints stay in the store; none where an older build made the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Keeps>,
    /// Whether a planned stop that was made is done with; not where an older build made the row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stops_once: bool,
}

impl FactsRow {
    /// The row of these facts.
    pub(crate) fn of(facts: &RunFacts) -> FactsRow {
        // Every field by name, so that a new one cannot be forgotten.
        let RunFacts {
            config_hash,
            data_hash,
            lanes,
            worlds,
            term: _,
            last_generation,
            return_patience,
            is_resumed,
            window,
            secret: _,
            planner: _,
            rewinds,
            keeps,
            stops_once,
        } = facts;
        FactsRow {
            config_hash: config_hash.clone(),
            data_hash: data_hash.clone(),
            lanes: *lanes,
            worlds: *worlds,
            last_generation: *last_generation,
            window: *window,
            return_patience: *return_patience,
            is_resumed: *is_resumed,
            rewinds: *rewinds,
            keeps: *keeps,
            stops_once: *stops_once,
        }
    }

    /// The facts of the row. Their secret is not that of the run: no decision depends on it.
    pub(crate) fn facts(self, term: u64, planner: Planner) -> RunFacts {
        RunFacts {
            config_hash: self.config_hash,
            data_hash: self.data_hash,
            lanes: self.lanes,
            worlds: self.worlds,
            term,
            last_generation: self.last_generation,
            window: self.window,
            return_patience: self.return_patience,
            is_resumed: self.is_resumed,
            secret: [0; 32],
            planner,
            rewinds: self.rewinds,
            keeps: self.keeps,
            stops_once: self.stops_once,
        }
    }
}
