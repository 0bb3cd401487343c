//! From facts to spans; pure: moments are given, in nanoseconds of Unix time.
//!
//! The trace of a run has the run's id in its own, so that every term adds to it. In it:
//!
//! ```text
//! run                      one a term: from its beginning to the run's end
//! ├─ waiting               while there is no generation: for members, or for ranks to leave the last one
//! ├─ generation            from its formation to its end
//! │  ├─ forming            until every rank is ready
//! │  ├─ steps              one step, or as many as make up GROUP
//! │  └─ checkpoint         from when its parts are there until it is committed
//! └─ call                  an order, or a call that was refused: until it is answered
//! ```
//!
//! Decisions are events of the generation in which they are made, or of the run. A span is given away when it is over.
//! Invariants: 1. a span's end is not before its start, whatever the clock does; 2. the steps of a generation follow each other
//! without overlap; 3. there is at most one span of steps a GROUP, and at most MOST_EVENTS events a span.

use std::collections::BTreeMap;

use lockstep_proto::domain::{Outcome, RunEnd};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use crate::ledger::{CallRow, RunRow};
use crate::telemetry::fact::{Fact, Step};

/// Steps that together are shorter share a span.
pub(super) const GROUP: u64 = 100_000_000;
/// Decisions that one span shows. More are counted.
pub(super) const MOST_EVENTS: usize = 512;

/// A run's trace as one term of its coordinator adds to it.
#[derive(Debug)]
pub(super) struct Timeline {
    run_id: String,
    term: u64,
    /// Spans so far.
    spans: u64,
    run: Span,
    waiting: Option<Span>,
    generation: Option<Generation>,
    /// When each checkpoint began to be committed, by step.
    checkpoints: BTreeMap<u64, u64>,
    is_over: bool,
    done: Vec<Span>,
}

/// The present generation.
#[derive(Debug)]
struct Generation {
    number: u64,
    span: Span,
    forming: Option<Span>,
    group: Option<Group>,
    /// The next step starts no earlier.
    free_from: u64,
    last_decision: String,
    /// Why it ends at the end of a step.
    regroups: Option<String>,
}

/// Steps of one span.
#[derive(Debug)]
struct Group {
    start: u64,
    end: u64,
    first: u64,
    samples: u64,
    tokens: u64,
    last: Step,
}

impl Timeline {
    pub(super) fn new(run: &RunRow, term: u64, now: u64) -> Timeline {
        let mut timeline = Timeline {
            run_id: run.run_id.clone(),
            term,
            spans: 0,
            run: Span::default(),
            waiting: None,
            generation: None,
            checkpoints: BTreeMap::new(),
            is_over: false,
            done: Vec::new(),
        };
        timeline.run = timeline.open("run", &[], now);
        timeline.run.attributes = vec![
            text("lockstep.run", &run.name),
            text("lockstep.run_id", &run.run_id),
            text("lockstep.config_hash", &run.config_hash),
            whole("lockstep.term", term),
        ];
        timeline.waiting = Some(timeline.child_of_run("waiting", now));
        timeline
    }

    /// Spans that are over since the last time.
    pub(super) fn take(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.done)
    }

    pub(super) fn happened(&mut self, at: u64, fact: Fact) {
        // Nothing is decided about a run that is over.
        if self.is_over {
            return;
        }
        match fact {
            Fact::Formed {
                term,
                number,
                ranks,
                from,
            } => {
                self.end_generation(at, &format!("generation {number} takes its place"), false);
                self.begin_generation(at, (term, number), ranks, Some(from));
            }
            Fact::Begun => {
                if let Some(generation) = &mut self.generation {
                    generation.free_from = generation.free_from.max(at);
                    let forming = generation.forming.take();
                    self.done.extend(forming.map(|forming| closed(forming, at)));
                }
            }
            Fact::Step(step) => self.stepped(at, step),
            Fact::Decided(reason) => {
                let span = match &mut self.generation {
                    Some(generation) => {
                        generation.last_decision.clone_from(&reason);
                        &mut generation.span
                    }
                    None => &mut self.run,
                };
                decided(span, at, &reason);
            }
            Fact::Aborted { number, reason } => {
                if self.generation.as_ref().is_some_and(|present| present.number == number) {
                    self.end_generation(at, &reason, true);
                    self.waiting = Some(self.child_of_run("waiting", at));
                }
            }
            Fact::Regroups => {
                if let Some(generation) = &mut self.generation {
                    generation.regroups = Some(generation.last_decision.clone());
                }
            }
            Fact::Commissioned { step } => {
                self.checkpoints.insert(step, at);
            }
            Fact::Checkpointed { step, failure } => self.checkpointed(at, step, failure),
        }
    }

    /// A call was answered.
    pub(super) fn called(&mut self, now: u64, call: &CallRow) {
        // Seconds as the ledger has them; a moment before 1970 becomes 0.
        let start = (call.at * 1e9) as u64;
        let mut span = self.child_of_run("call", start);
        span.kind = SpanKind::Server.into();
        span.attributes = vec![
            text("rpc.method", &call.call),
            text("lockstep.who", &call.who),
            attribute("lockstep.refused", Value::BoolValue(call.is_refused)),
            text("lockstep.answer", &call.answer),
            whole("lockstep.calls", call.calls),
        ];
        if call.is_refused {
            span.status = failed(&call.answer);
        }
        self.done.push(closed(span, now));
    }

    /// The run is over, and with it everything that is still open.
    pub(super) fn ended(&mut self, at: u64, end: &RunEnd) {
        if self.is_over {
            return;
        }
        let is_failed = matches!(end.outcome, Outcome::Failed { .. });
        self.end_generation(at, &end.reason, is_failed);
        self.end_waiting(at);
        let mut run = self.run.clone();
        run.attributes.extend([
            text("lockstep.ended", &end.reason),
            whole("lockstep.last_step", end.last_step),
        ]);
        if is_failed {
            run.status = failed(&end.reason);
        }
        self.done.push(closed(run, at));
        self.is_over = true;
    }

    fn begin_generation(&mut self, at: u64, (term, number): (u64, u64), ranks: u32, from: Option<u64>) {
        self.end_waiting(at);
        let mut span = self.child_of_run("generation", at);
        span.attributes = vec![
            whole("lockstep.term", term),
            whole("lockstep.generation", number),
            whole("lockstep.ranks", u64::from(ranks)),
        ];
        span.attributes
            .extend(from.map(|from| whole("lockstep.from_step", from)));
        let parent = span.span_id.clone();
        // One that an earlier term formed has begun long since.
        let forming = from.map(|_| self.open("forming", &parent, at));
        self.generation = Some(Generation {
            number,
            span,
            forming,
            group: None,
            free_from: at,
            last_decision: String::new(),
            regroups: None,
        });
    }

    fn end_generation(&mut self, at: u64, how: &str, is_error: bool) {
        let Some(mut generation) = self.generation.take() else {
            return;
        };
        if let Some(group) = generation.group.take() {
            self.close_group(&generation.span.span_id, group);
        }
        let how = generation.regroups.as_deref().filter(|_| !is_error).unwrap_or(how);
        if let Some(mut forming) = generation.forming.take() {
            forming.status = failed(how);
            self.done.push(closed(forming, at));
        }
        let mut span = generation.span;
        span.attributes.push(text("lockstep.ended", how));
        if is_error {
            span.status = failed(how);
        }
        self.done.push(closed(span, at));
    }

    fn end_waiting(&mut self, at: u64) {
        let waiting = self.waiting.take();
        self.done.extend(waiting.map(|waiting| closed(waiting, at)));
    }

    fn stepped(&mut self, at: u64, step: Step) {
        if self.generation.as_ref().is_none_or(|it| it.number != step.generation) {
            // Formed by an earlier term, and taken over by this one in the middle of its steps.
            let start = at.saturating_sub(step.nanoseconds).max(self.run.start_time_unix_nano);
            self.end_generation(start, "another one goes on", false);
            self.begin_generation(start, (step.term, step.generation), step.ranks, None);
        }
        let Some(generation) = &mut self.generation else { return };
        let start = at.saturating_sub(step.nanoseconds).max(generation.free_from);
        let end = at.max(start);
        generation.free_from = end;
        let group = match generation.group.take() {
            None => Group {
                start,
                end,
                first: step.number,
                samples: step.samples,
                tokens: step.tokens,
                last: step,
            },
            Some(group) => Group {
                end,
                samples: group.samples + step.samples,
                tokens: group.tokens + step.tokens,
                last: step,
                ..group
            },
        };
        if group.end - group.start >= GROUP {
            let parent = generation.span.span_id.clone();
            self.close_group(&parent, group);
        } else {
            generation.group = Some(group);
        }
    }

    fn close_group(&mut self, parent: &[u8], group: Group) {
        let mut span = self.open("steps", parent, group.start);
        span.attributes = vec![
            whole("lockstep.first_step", group.first),
            whole("lockstep.last_step", group.last.number),
            whole("lockstep.samples", group.samples),
            whole("lockstep.tokens", group.tokens),
            number("lockstep.loss", group.last.loss),
            number("lockstep.learning_rate", group.last.learning_rate),
        ];
        self.done.push(closed(span, group.end));
    }

    fn checkpointed(&mut self, at: u64, step: u64, failure: Option<String>) {
        let start = self.checkpoints.remove(&step).unwrap_or(at);
        // Earlier ones whose fate nobody told are given up.
        self.checkpoints.retain(|other, _| *other > step);
        let present = self.generation.as_ref();
        // One that was begun before this generation is none of it.
        let parent = present.filter(|generation| generation.span.start_time_unix_nano <= start);
        let parent = parent.map_or(&self.run, |generation| &generation.span).span_id.clone();
        let mut span = self.open("checkpoint", &parent, start);
        span.attributes = vec![whole("lockstep.step", step)];
        if let Some(failure) = failure {
            span.status = failed(&failure);
        }
        self.done.push(closed(span, at));
    }

    fn child_of_run(&mut self, name: &str, start: u64) -> Span {
        let parent = self.run.span_id.clone();
        self.open(name, &parent, start)
    }

    fn open(&mut self, name: &str, parent: &[u8], start: u64) -> Span {
        self.spans += 1;
        let id = blake3::hash(format!("{}\n{}\n{}", self.run_id, self.term, self.spans).as_bytes());
        Span {
            trace_id: blake3::hash(self.run_id.as_bytes()).as_bytes()[..16].to_vec(),
            span_id: id.as_bytes()[..8].to_vec(),
            parent_span_id: parent.to_vec(),
            name: name.to_owned(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: start,
            ..Span::default()
        }
    }
}

/// Ends it, though not before it began.
fn closed(span: Span, at: u64) -> Span {
    Span {
        end_time_unix_nano: at.max(span.start_time_unix_nano),
        ..span
    }
}

fn decided(span: &mut Span, at: u64, reason: &str) {
    if span.events.len() >= MOST_EVENTS {
        span.dropped_events_count += 1;
        return;
    }
    span.events.push(Event {
        time_unix_nano: at,
        name: "decided".to_owned(),
        attributes: vec![text("lockstep.reason", reason)],
        ..Event::default()
    });
}

fn failed(reason: &str) -> Option<Status> {
    Some(Status {
        message: reason.to_owned(),
        code: StatusCode::Error.into(),
    })
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn whole(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn number(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
