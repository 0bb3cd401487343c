//! A trainer's end of the stream to the coordinator.
//!
//! The device thread calls [`Session`], which blocks where it must wait and never runs async code. A thread of the
//! session's own carries the stream (`link`): what the coordinator sends lands in `inbox` (plans, directive,
//! acknowledgements, abort), what the device thread says leaves through the outbox there. Plans come in windows, so
//! [`Session::next_plan`] normally finds its plan without waiting; [`Session::report`] waits only on a full queue.
//! A pushed abort sets the [`AbortSignal`] and wakes every wait.
//!
//! A stream that breaks is opened again, for as long as [`Session::look_for_coordinator`] allows: to the same coordinator, or
//! to the one of the next term. Meanwhile the device thread goes on with the plans that it has. The first word on the new
//! stream says how the member stands (`MemberBody::Return`); what was not acknowledged is said again. Without a coordinator
//! for too long, or after a refusal, the signal is set for good.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod abort;
mod activity;
mod error;
mod inbox;
mod link;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep_proto::domain::{
    Directive, FromMember, Generation, Header, JoinInfo, MemberBody, Outcome, Part, Plan, Progress, Ready, Stamp,
    StepReport, Written,
};
use lockstep_security::Credentials;

pub use crate::abort::AbortSignal;
pub use crate::activity::Activity;
pub use crate::error::SessionError;
use crate::inbox::Inbox;

/// How to reach the coordinator.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// `http://ADDRESS:PORT`, or `https://` where it talks TLS.
    pub coordinator: String,
    /// What this trainer shows to it, read again for each connection.
    pub credentials: Credentials,
    /// This trainer's name, unique in the run.
    pub member: String,
    /// How long to try to connect, and to wait for a communicator id and for the last acknowledgement.
    pub patience: Duration,
}

/// What the coordinator says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The run.
    pub run_id: String,
    /// The coordinator's term.
    pub term: u64,
    /// The run's config as resolved.
    pub config_toml: String,
}

/// Why a rank leaves the collectives of its generation by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// One sentence.
    pub cause: String,
    /// Whether the checkpoint that it was to load is damaged or not there.
    pub checkpoint_is_bad: bool,
    /// The rank in whose memory a bit has changed by itself, where that is why.
    pub drifted: Option<u32>,
    /// The step whose loss or gradient cannot be used, where the run is to go back before it.
    pub unusable: Option<u64>,
}

/// The device thread's connection to the coordinator. Dropping it closes the stream; without [`Session::finish`]
/// the coordinator then counts this trainer as lost.
#[derive(Debug)]
pub struct Session {
    inbox: Arc<Inbox>,
    header: Header,
    patience: Duration,
    link: Option<JoinHandle<()>>,
}

impl Session {
    /// Opens the stream, trying again for as long as the patience lasts, and waits for the coordinator's welcome.
    ///
    /// # Errors
    /// When nobody answers in time, or when the coordinator speaks another protocol version.
    pub fn connect(options: SessionOptions) -> Result<(Session, Welcome), SessionError> {
        let inbox = Arc::new(Inbox::new());
        let (link, welcome) = link::open(&options, inbox.clone())?;
        let stamp = Stamp {
            term: welcome.term,
            generation: 0,
        };
        let header = Header {
            run_id: welcome.run_id.clone(),
            stamp,
        };
        Ok((
            Session {
                inbox,
                header,
                patience: options.patience,
                link: Some(link),
            },
            welcome,
        ))
    }

    /// Joins the run. `parts`: every part of a snapshot that this member holds, asked for whenever it must be said again.
    pub fn join(&mut self, info: JoinInfo, parts: impl Fn() -> Vec<Part> + Send + 'static) {
        self.inbox.know(info.clone(), Box::new(parts));
        self.say(MemberBody::Join(info));
    }

    /// How long a coordinator is looked for whose stream broke; zero, as at first: not at all.
    pub fn look_for_coordinator(&self, patience: Duration) {
        self.inbox.set_search(patience);
    }

    /// Calls `callback` once, with the reason, when the coordinator has refused or fenced this member, or is not found any more.
    /// It runs on the session's thread and must not block.
    pub fn when_over(&self, callback: impl FnOnce(String) + Send + 'static) {
        self.inbox.when_over(Box::new(callback));
    }

    /// Waits for the next generation that this member is part of. It may be aborted already; then the first wait in it says so.
    ///
    /// # Errors
    /// When the coordinator refuses this member (its sentence is the error), or the run ends meanwhile.
    pub fn next_generation(&mut self) -> Result<Generation, SessionError> {
        let generation = self.inbox.wait_for_generation(self.header.stamp)?;
        self.header.stamp = generation.stamp;
        Ok(generation)
    }

    /// Says that this rank has left the collectives of its generation, holds the parameters of `step` and the parts of
    /// snapshots `parts`, and waits for the next generation. `why`: where it was not told to.
    pub fn stopped(&self, step: u64, parts: Vec<Part>, why: Option<Why>) {
        let told = why.is_none();
        let Why {
            cause,
            checkpoint_is_bad,
            drifted,
            unusable,
        } = why.unwrap_or_default();
        let farewell = FromMember {
            header: self.header.clone(),
            body: MemberBody::Stopped {
                step,
                cause: (!told).then_some(cause),
                parts,
                checkpoint_is_bad,
                drifted,
                unusable,
            },
        };
        self.inbox.leave(self.header.stamp, farewell);
    }

    /// A voice for other threads of this process, in the present generation.
    pub fn voice(&self) -> Voice {
        Voice {
            inbox: self.inbox.clone(),
            header: self.header.clone(),
        }
    }

    /// Parts of snapshots of earlier steps than this one are of no use any more. 0: none may be freed.
    pub fn parts_may_be_freed_before(&self) -> u64 {
        self.inbox.free_before()
    }

    /// The communicator id of this generation: made here on the lowest rank, received on the others.
    ///
    /// # Errors
    /// When the run ends meanwhile or the id does not come within the session's patience.
    pub fn exchange_comm_id(
        &self,
        is_lowest_rank: bool,
        make: impl FnOnce() -> Vec<u8>,
    ) -> Result<Vec<u8>, SessionError> {
        if is_lowest_rank {
            let id = make();
            self.say(MemberBody::CommId(id.clone()));
            return Ok(id);
        }
        let deadline = Instant::now() + self.patience;
        self.inbox.wait(
            Some((deadline, self.patience)),
            "the communicator id of rank 0",
            |state| state.comm_id.clone(),
        )
    }

    /// Says that the communicator stands and that the parameters are initialised.
    ///
    /// # Errors
    /// When the run is already over.
    pub fn ready(&self, ready: Ready) -> Result<(), SessionError> {
        self.inbox.check()?;
        self.inbox.note_ready(ready.clone());
        self.say(MemberBody::Ready(ready));
        Ok(())
    }

    /// The plan of `step`, waiting for its window if it has not come yet. `None`: the run ends before that step.
    /// Plans must be asked for in order; those of earlier steps are forgotten.
    ///
    /// # Errors
    /// When the run is aborted or the stream breaks.
    pub fn next_plan(&self, step: u64) -> Result<Option<Plan>, SessionError> {
        self.inbox.wait(None, "the next plan", |state| state.take_plan(step))
    }

    /// The newest directive. Never waits.
    pub fn directive(&self) -> Directive {
        self.inbox.directive()
    }

    /// Waits for a directive newer than `sequence`: what a paused trainer does.
    ///
    /// # Errors
    /// When the run is aborted or the stream breaks.
    pub fn wait_directive_after(&self, sequence: u64) -> Result<Directive, SessionError> {
        self.inbox.wait(None, "the next directive", |_| {
            Some(self.inbox.directive()).filter(|d| d.sequence > sequence)
        })
    }

    /// Where the device thread writes down what it does; it is sent from time to time.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.inbox.activity)
    }

    /// Hands a report over; it is kept, and sent again, until the coordinator has acknowledged it. Waits only while
    /// the queue of unacknowledged reports is full.
    ///
    /// # Errors
    /// When the run is aborted or the stream breaks.
    pub fn report(&self, report: StepReport) -> Result<(), SessionError> {
        self.inbox.push_report(&self.header.run_id, report)
    }

    /// Ends this member's part: every report goes out first, then the outcome; waits for the acknowledgement, which comes when
    /// every step of this member is committed. Works after an abort too, so that a survivor ends in order.
    ///
    /// # Errors
    /// [`SessionError::Aborted`] where the member had trained to the end, and its last steps do not stand: it is needed still.
    /// When the stream is gone for good before the acknowledgement, or it does not come within the session's patience.
    pub fn finish(&self, outcome: Outcome, step: u64) -> Result<(), SessionError> {
        let is_trained = !matches!(outcome, Outcome::Failed { .. });
        self.say(MemberBody::Finished { outcome, step });
        let limit = (Instant::now() + self.patience, self.patience);
        self.inbox.wait_finished(is_trained, limit)
    }

    /// The signal that is set when the coordinator pushes an abort or the stream breaks for good.
    pub fn abort_signal(&self) -> AbortSignal {
        self.inbox.abort.clone()
    }

    fn say(&self, body: MemberBody) {
        self.inbox.say(FromMember {
            header: self.header.clone(),
            body,
        });
    }
}

/// Says things of one generation to the coordinator, from any thread.
#[derive(Clone, Debug)]
pub struct Voice {
    inbox: Arc<Inbox>,
    header: Header,
}

impl Voice {
    /// Says that this member holds another part of a snapshot, whole.
    pub fn holds(&self, part: Part) {
        self.inbox.say(FromMember {
            header: self.header.clone(),
            body: MemberBody::Holds(part),
        });
    }

    /// Says what became of this rank's part of the checkpoint of a step.
    pub fn wrote(&self, step: u64, written: Result<Box<Written>, String>) {
        self.inbox.say(FromMember {
            header: self.header.clone(),
            body: MemberBody::Wrote { step, written },
        });
    }

    /// Says that this member is about to go away, before it does.
    pub fn leaving(&self, reason: &str) {
        self.inbox.say(FromMember {
            header: self.header.clone(),
            body: MemberBody::Leaving(reason.to_owned()),
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inbox.close();
        if let Some(link) = self.link.take() {
            // The thread ends at once when the inbox is closed; a panic in it has nobody left to tell.
            let _ended = link.join();
        }
    }
}

/// Progress as it is sent: what the device thread does, with a counter that rises with every change.
fn progress_message(run_id: &str, stamp: Stamp, progress: Progress) -> FromMember {
    FromMember {
        header: Header {
            run_id: run_id.to_owned(),
            stamp,
        },
        body: MemberBody::Progress(progress),
    }
}
