//! What the device thread and the session's thread share: arrived plans, directive, acknowledgements and abort on
//! one side, messages to send and reports that wait for their acknowledgement on the other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_proto::domain::{
    CoordinatorBody, Directive, FromCoordinator, FromMember, Generation, Header, JoinInfo, MemberBody, Part, Plan,
    Progress, Ready, Return, Stamp, Standing, StepReport,
};
use tokio::sync::Notify;

use crate::abort::AbortSignal;
use crate::activity::Activity;
use crate::error::SessionError;

/// Reports that may wait for their acknowledgement before [`Inbox::push_report`] waits.
const REPORT_QUEUE: usize = 1024;

#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    directive: AtomicU64,
    closed: AtomicBool,
    /// What the device thread does.
    pub(crate) activity: Arc<Activity>,
    /// What this member says of itself, once it has joined.
    member: Mutex<Option<Member>>,
    /// Is called once when the stream is gone for good.
    over: Mutex<Option<Over>>,
    /// Milliseconds for which a coordinator is looked for whose stream broke.
    search: AtomicU64,
    /// Wakes the session's thread: there is something to send, or the session is closed.
    pub(crate) wake: Notify,
    pub(crate) abort: AbortSignal,
}

/// What is done when the stream is gone for good.
struct Over(Box<dyn FnOnce(String) + Send>);

impl std::fmt::Debug for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Over")
    }
}

/// A member as it speaks of itself on every stream.
struct Member {
    info: JoinInfo,
    parts: Box<dyn Fn() -> Vec<Part> + Send>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The newest term heard from; lower ones are fenced.
    term: u64,
    pub(crate) generation: Option<Generation>,
    /// The generation that this member has left: what is still said of it is of no use.
    left: Option<Stamp>,
    pub(crate) comm_id: Option<Vec<u8>>,
    /// What was said when the communicator of this generation stood.
    ready: Option<Ready>,
    /// Whether plans of this generation have come.
    has_plans: bool,
    /// Why this member said that it must leave, if it did.
    leaving: Option<String>,
    /// Its last word, if it has said it.
    farewell: Option<FromMember>,
    plans: VecDeque<Plan>,
    last_step: Option<u64>,
    outbox: VecDeque<FromMember>,
    unacknowledged: VecDeque<Kept>,
    finished: bool,
    broken: Option<SessionError>,
    /// Whether the stream is gone.
    gone: bool,
    /// Parts of snapshots of earlier steps may be freed. As the present generation was told: a rewind may make it fall.
    pub(crate) free_before: u64,
}

#[derive(Debug)]
struct Kept {
    message: FromMember,
    step: u64,
    sent: Option<Instant>,
}

impl State {
    /// The plan of `step` (outer `None`: not there yet; inner: the run ends before it).
    pub(crate) fn take_plan(&mut self, step: u64) -> Option<Option<Plan>> {
        while self.plans.front().is_some_and(|plan| plan.step < step) {
            self.plans.pop_front();
        }
        match self.plans.front() {
            Some(plan) if plan.step == step => Some(self.plans.pop_front()),
            _ if self.last_step.is_some_and(|last| step > last) => Some(None),
            _ => None,
        }
    }
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            state: Mutex::default(),
            changed: Condvar::new(),
            directive: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            activity: Arc::default(),
            member: Mutex::default(),
            over: Mutex::default(),
            search: AtomicU64::new(0),
            wake: Notify::new(),
            abort: AbortSignal::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` gives something. `limit`: the instant of the deadline and how long it was.
    pub(crate) fn wait<T>(
        &self,
        limit: Option<(Instant, Duration)>,
        what: &'static str,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, SessionError> {
        let mut state = self.lock();
        loop {
            // What has arrived counts even where the stream has ended since, but an abort overrules it.
            if let Some(reason) = self.abort.reason() {
                return Err(state.broken.clone().unwrap_or(SessionError::Aborted { reason }));
            }
            if let Some(value) = found(&mut state) {
                return Ok(value);
            }
            state = match limit {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some((deadline, patience)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(SessionError::Deadline { what, patience });
                    }
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Waits for a generation newer than `before`. One that was aborted meanwhile counts: this member is in it, and has to say
    /// that it left.
    pub(crate) fn wait_for_generation(&self, before: Stamp) -> Result<Generation, SessionError> {
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            let newer = |generation: &&Generation| generation.stamp > before;
            if let Some(generation) = state.generation.as_ref().filter(newer) {
                return Ok(generation.clone());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the answer to `Finished`. Where the member has trained to the end, an abort says that its last steps do not
    /// stand, and that it is still needed.
    pub(crate) fn wait_finished(
        &self,
        is_trained: bool,
        (deadline, patience): (Instant, Duration),
    ) -> Result<(), SessionError> {
        let mut state = self.lock();
        loop {
            if state.finished {
                return Ok(());
            }
            // A member that was released has a stream still, and says farewell on it.
            if let Some(error) = &state.broken
                && (state.gone || !matches!(error, SessionError::Released { .. }))
            {
                return Err(error.clone());
            }
            if let (true, None, Some(reason)) = (is_trained, &state.broken, self.abort.reason()) {
                return Err(SessionError::Aborted { reason });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SessionError::Deadline {
                    what: "the acknowledgement of the end",
                    patience,
                });
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// An error if the run is already over.
    pub(crate) fn check(&self) -> Result<(), SessionError> {
        match self.abort.reason() {
            None => Ok(()),
            Some(reason) => Err(self.lock().broken.clone().unwrap_or(SessionError::Aborted { reason })),
        }
    }

    pub(crate) fn free_before(&self) -> u64 {
        self.lock().free_before
    }

    pub(crate) fn directive(&self) -> Directive {
        // Only words of `Directive::to_word` are ever stored.
        Directive::from_word(self.directive.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Leaves the collectives of a generation: its reports are of no use any more, and what is said of it is ignored.
    pub(crate) fn leave(&self, stamp: Stamp, farewell: FromMember) {
        let mut state = self.lock();
        state.left = Some(stamp);
        state.farewell = None;
        state.unacknowledged.clear();
        state.outbox.push_back(farewell);
        if state.broken.is_none() {
            self.abort.clear();
        }
        drop(state);
        self.wake.notify_one();
    }

    /// What the device thread does, and the header to send it under, once there is a generation.
    pub(crate) fn progress(&self) -> Option<(Progress, Stamp)> {
        let stamp = self.lock().generation.as_ref()?.stamp;
        Some((self.activity.progress(), stamp))
    }

    pub(crate) fn say(&self, message: FromMember) {
        let mut state = self.lock();
        match &message.body {
            MemberBody::Leaving(reason) => state.leaving = Some(reason.clone()),
            MemberBody::Finished { .. } => state.farewell = Some(message.clone()),
            _ => {}
        }
        state.outbox.push_back(message);
        drop(state);
        self.wake.notify_one();
    }

    /// Keeps what this member says of itself.
    pub(crate) fn know(&self, info: JoinInfo, parts: Box<dyn Fn() -> Vec<Part> + Send>) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = Some(Member { info, parts });
    }

    pub(crate) fn note_ready(&self, ready: Ready) {
        self.lock().ready = Some(ready);
    }

    pub(crate) fn set_search(&self, patience: Duration) {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.search.store(milliseconds, Ordering::Relaxed);
    }

    pub(crate) fn search(&self) -> Duration {
        Duration::from_millis(self.search.load(Ordering::Relaxed))
    }

    /// A coordinator of this term has spoken.
    pub(crate) fn heard_of(&self, term: u64) {
        let mut state = self.lock();
        state.term = state.term.max(term);
    }

    /// The newest term heard from.
    pub(crate) fn term(&self) -> u64 {
        self.lock().term
    }

    /// Whether a stream that broke is of no use any more: this member's part is over.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        state.finished || state.broken.is_some()
    }

    /// Speaks on a new stream, to the coordinator of `term`: how this member stands, then what was not acknowledged.
    pub(crate) fn begin_anew(&self, run_id: &str, term: u64) {
        // The parts are asked for without the lock of the state: whoever keeps them has locks of its own.
        let member = self.member.lock().unwrap_or_else(PoisonError::into_inner);
        let about = member.as_ref().map(|member| (member.info.clone(), (member.parts)()));
        drop(member);
        let mut state = self.lock();
        state.term = state.term.max(term);
        let stamp = state.generation.as_ref().map(|generation| generation.stamp);
        let header = Header {
            run_id: run_id.to_owned(),
            stamp: stamp.unwrap_or(Stamp { term, generation: 0 }),
        };
        let is_inside = stamp.is_some() && state.left != stamp;
        let standing = match (is_inside, state.has_plans) {
            (false, _) => Standing::Outside,
            (true, false) => Standing::Meeting,
            (true, true) => Standing::Training,
        };
        state.outbox.clear();
        let Some((info, parts)) = about else { return };
        let ready = state.ready.clone().filter(|_| is_inside);
        let say = |body| FromMember {
            header: header.clone(),
            body,
        };
        state.outbox.push_back(say(MemberBody::Return(Return {
            info,
            standing,
            ready,
            parts,
        })));
        if let Some(reason) = state.leaving.clone() {
            state.outbox.push_back(say(MemberBody::Leaving(reason)));
        }
        let State {
            outbox, unacknowledged, ..
        } = &mut *state;
        for kept in unacknowledged {
            kept.sent = None;
            outbox.push_back(kept.message.clone());
        }
        let farewell = state.farewell.clone();
        state.outbox.extend(farewell);
        drop(state);
        self.wake.notify_one();
    }

    pub(crate) fn push_report(&self, run_id: &str, report: StepReport) -> Result<(), SessionError> {
        let header = Header {
            run_id: run_id.to_owned(),
            stamp: report.stamp,
        };
        let step = report.step;
        let mut message = Some(FromMember {
            header,
            body: MemberBody::Report(report),
        });
        self.wait(None, "room for a report", |state| {
            if state.unacknowledged.len() >= REPORT_QUEUE {
                return None;
            }
            let message = message.take()?;
            state.unacknowledged.push_back(Kept {
                message: message.clone(),
                step,
                sent: None,
            });
            state.outbox.push_back(message);
            Some(())
        })?;
        self.wake.notify_one();
        Ok(())
    }

    /// The next message to send, in the order in which they were said.
    pub(crate) fn next_outgoing(&self) -> Option<FromMember> {
        let mut state = self.lock();
        let mut message = state.outbox.pop_front()?;
        // What was said under an earlier term is said to the coordinator of this one.
        message.header.stamp.term = state.term.max(message.header.stamp.term);
        if let MemberBody::Report(report) = &message.body {
            let now = Instant::now();
            let unsent = state
                .unacknowledged
                .iter_mut()
                .find(|kept| kept.sent.is_none() && kept.step == report.step);
            if let Some(kept) = unsent {
                kept.sent = Some(now);
            }
        }
        Some(message)
    }

    /// Puts every report back into the outbox whose acknowledgement is overdue.
    pub(crate) fn resend_overdue(&self, after: Duration) {
        let mut state = self.lock();
        let now = Instant::now();
        let State {
            outbox, unacknowledged, ..
        } = &mut *state;
        for kept in unacknowledged {
            if kept.sent.is_some_and(|sent| now.duration_since(sent) >= after) {
                kept.sent = None;
                outbox.push_back(kept.message.clone());
            }
        }
    }

    /// Takes a message of the coordinator in.
    pub(crate) fn accept(&self, message: FromCoordinator) {
        let mut state = self.lock();
        if message.header.stamp.term < state.term {
            return;
        }
        state.term = message.header.stamp.term;
        let current = state.generation.as_ref().map(|generation| generation.stamp);
        let of_older_generation = current.is_some_and(|stamp| message.header.stamp < stamp);
        // A generation that goes on in another term keeps its number, and may have been left under the term before.
        let was_left = state
            .left
            .is_some_and(|left| message.header.stamp.generation <= left.generation);
        match message.body {
            CoordinatorBody::Welcome { .. } => {}
            CoordinatorBody::Generation(generation) if !of_older_generation => {
                if current != Some(generation.stamp) {
                    state.comm_id = None;
                    state.ready = None;
                    state.has_plans = false;
                    state.plans.clear();
                    state.last_step = None;
                    // Until it is told otherwise, all that it holds may be what somebody resumes from.
                    state.free_before = 0;
                    state.generation = Some(generation);
                }
            }
            CoordinatorBody::CommId(id) if !of_older_generation => state.comm_id = Some(id),
            CoordinatorBody::PlanWindow(plans) if !of_older_generation => {
                state.has_plans = true;
                for plan in plans {
                    if plan.last || plan.stop {
                        state.last_step = Some(plan.step);
                    }
                    if state.plans.back().is_none_or(|newest| newest.step < plan.step) {
                        state.plans.push_back(plan);
                    }
                }
            }
            CoordinatorBody::Directive(directive) => {
                self.directive.fetch_max(directive.to_word(), Ordering::AcqRel);
            }
            CoordinatorBody::Abort { reason } if !of_older_generation && !was_left => {
                drop(state);
                self.set_abort(&reason);
                return;
            }
            CoordinatorBody::Release { outcome, reason } => {
                let released = SessionError::Released {
                    outcome,
                    reason: reason.clone(),
                };
                state.broken.get_or_insert(released);
                drop(state);
                self.set_abort(&reason);
                return;
            }
            // After it has said what it holds, a member frees nothing: somebody may be told to fetch it.
            CoordinatorBody::SnapshotStands { free_before, .. } if !of_older_generation && !was_left => {
                state.free_before = state.free_before.max(free_before);
            }
            CoordinatorBody::Acknowledged { step, finished } => {
                state
                    .unacknowledged
                    .retain(|kept| kept.step > step || kept.sent.is_none());
                state.finished |= finished;
            }
            CoordinatorBody::Generation(_)
            | CoordinatorBody::CommId(_)
            | CoordinatorBody::PlanWindow(_)
            | CoordinatorBody::SnapshotStands { .. }
            | CoordinatorBody::Abort { .. } => {}
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the coordinator has acknowledged this member's end: the stream may close now.
    pub(crate) fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// The stream is gone for good.
    pub(crate) fn break_with(&self, error: SessionError) {
        let reason = match &error {
            SessionError::Refused { reason } => reason.clone(),
            other => other.to_string(),
        };
        let mut state = self.lock();
        state.gone = true;
        state.broken.get_or_insert(error);
        drop(state);
        self.set_abort(&reason);
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Over(callback)) = over {
            callback(reason);
        }
    }

    /// Calls `callback`, on the session's thread, when the stream is gone for good, with the reason.
    pub(crate) fn when_over(&self, callback: Box<dyn FnOnce(String) + Send>) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = Some(Over(callback));
    }

    fn set_abort(&self, reason: &str) {
        // Callbacks run without the lock; taking it afterwards means that no waiter stands between its check of the
        // signal and its wait, so none misses the wake-up.
        self.abort.set(reason);
        drop(self.lock());
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
