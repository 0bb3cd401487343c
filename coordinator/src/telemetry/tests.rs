//! What a timeline makes of facts, what an answer of a collector means, and what waits for one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::domain::{Checkpoint, CoordinatorBody, Directive as Urgent, DirectiveKind, Outcome, RunEnd, Stamp};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use prost::Message;
use reqwest::StatusCode;

use super::export::{Answer, wait_after};
use super::fact::{Fact, Step};
use super::queue::{MOST, Queue};
use super::timeline::{GROUP, MOST_EVENTS, Timeline};
use crate::ledger::{CallRow, RunRow};
use crate::run::{Directive, Record};

/// A moment: so many milliseconds after some beginning.
fn ms(milliseconds: u64) -> u64 {
    1_700_000_000_000_000_000 + milliseconds * 1_000_000
}

fn row() -> RunRow {
    RunRow {
        run_id: "first-0001".to_owned(),
        name: "first".to_owned(),
        config_toml: "hush".to_owned(),
        config_hash: "hash".to_owned(),
        data_hash: String::new(),
        training_samples: 1,
    }
}

fn timeline() -> Timeline {
    Timeline::new(&row(), 3, ms(0))
}

fn formed(number: u64) -> Fact {
    Fact::Formed {
        term: 3,
        number,
        ranks: 2,
        from: 0,
    }
}

fn step(generation: u64, number: u64, milliseconds: u64) -> Fact {
    Fact::Step(Step {
        term: 3,
        generation,
        ranks: 2,
        number,
        samples: 8,
        tokens: 100,
        loss: 2.5,
        learning_rate: 0.5,
        nanoseconds: milliseconds * 1_000_000,
    })
}

fn end(outcome: Outcome) -> RunEnd {
    RunEnd {
        outcome,
        reason: "every step is made".to_owned(),
        last_step: 3,
    }
}

fn value(span: &Span, key: &str) -> Option<Value> {
    let of = |attribute: &KeyValue| attribute.value.as_ref()?.value.clone();
    span.attributes.iter().find(|it| it.key == key).and_then(of)
}

fn whole(span: &Span, key: &str) -> i64 {
    match value(span, key) {
        Some(Value::IntValue(value)) => value,
        other => panic!("{key} of {} is {other:?}", span.name),
    }
}

fn text(span: &Span, key: &str) -> String {
    match value(span, key) {
        Some(Value::StringValue(value)) => value,
        other => panic!("{key} of {} is {other:?}", span.name),
    }
}

/// Name, start and end in milliseconds, and the name of the parent.
fn outline(spans: &[Span]) -> Vec<(&str, u64, u64, &str)> {
    let names: BTreeMap<_, _> = spans.iter().map(|span| (&span.span_id, span.name.as_str())).collect();
    let since = |at: u64| (at - ms(0)) / 1_000_000;
    let of = |span: &'_ Span| names.get(&span.parent_span_id).copied().unwrap_or_default();
    spans
        .iter()
        .map(|span| {
            let (start, end) = (since(span.start_time_unix_nano), since(span.end_time_unix_nano));
            (span.name.as_str(), start, end, of(span))
        })
        .collect()
}

#[test]
fn a_run_with_a_lost_rank_is_a_time_line() {
    let mut timeline = timeline();
    for (at, fact) in [
        (5, formed(1)),
        (20, Fact::Begun),
        (220, step(1, 1, 190)),
        (260, step(1, 2, 40)),
        (300, step(1, 3, 40)),
        (310, Fact::Commissioned { step: 2 }),
        (320, step(1, 4, 20)),
        (340, Fact::Checkpointed { step: 2, failure: None }),
        (350, Fact::Decided("rank 1 was lost".to_owned())),
        (
            350,
            Fact::Aborted {
                number: 1,
                reason: "rank 1 was lost".to_owned(),
            },
        ),
        // Every rank is told.
        (
            350,
            Fact::Aborted {
                number: 1,
                reason: "rank 1 was lost".to_owned(),
            },
        ),
        (360, Fact::Decided("somebody joined".to_owned())),
        (400, formed(2)),
    ] {
        timeline.happened(ms(at), fact);
    }
    timeline.ended(ms(500), &end(Outcome::Completed));
    let spans = timeline.take();
    assert_eq!(
        outline(&spans),
        [
            ("waiting", 0, 5, "run"),
            ("forming", 5, 20, "generation"),
            // It took 190 ms, and the one after it had no more than was left.
            ("steps", 30, 220, "generation"),
            ("steps", 220, 320, "generation"),
            ("checkpoint", 310, 340, "generation"),
            ("generation", 5, 350, "run"),
            ("waiting", 350, 400, "run"),
            ("forming", 400, 500, "generation"),
            ("generation", 400, 500, "run"),
            ("run", 0, 500, ""),
        ]
    );
    let find = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (generations, runs) = (find("generation"), find("run"));
    let first = generations[0];
    assert_eq!(
        ["lockstep.term", "lockstep.generation", "lockstep.ranks"].map(|key| whole(first, key)),
        [3, 1, 2]
    );
    assert_eq!(text(first, "lockstep.ended"), "rank 1 was lost");
    assert_eq!(first.status.as_ref().unwrap().message, "rank 1 was lost");
    assert_eq!(first.events[0].time_unix_nano, ms(350));
    assert_eq!(generations[1].status, None);
    assert_eq!(text(generations[1], "lockstep.ended"), "every step is made");
    assert_eq!(runs[0].events.len(), 1, "what was decided between generations");
    let steps: Vec<_> = find("steps")
        .iter()
        .map(|span| ["lockstep.first_step", "lockstep.last_step", "lockstep.samples"].map(|key| whole(span, key)))
        .collect();
    assert_eq!(steps, [[1, 1, 8], [2, 4, 24]]);
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id == spans[0].trace_id && span.trace_id.len() == 16)
    );
    let ids: BTreeSet<_> = spans.iter().map(|span| span.span_id.clone()).collect();
    assert_eq!(ids.len(), spans.len());
    assert!(ids.iter().all(|id| id.len() == 8));
    assert!(!format!("{spans:?}").contains("hush"), "the config is no attribute");
    timeline.happened(ms(600), formed(3));
    timeline.ended(ms(600), &end(Outcome::Stopped));
    assert_eq!(timeline.take(), [], "nothing comes after the end");
}

#[test]
fn a_generation_says_how_it_ended() {
    let how = |facts: Vec<Fact>, last: RunEnd| {
        let mut timeline = timeline();
        for (at, fact) in (1..).zip(facts) {
            timeline.happened(ms(at), fact);
        }
        timeline.ended(ms(100), &last);
        let spans = timeline.take();
        let first = spans.iter().find(|span| span.name == "generation").unwrap();
        (text(first, "lockstep.ended"), first.status.is_some())
    };
    let said = |reason: &str| Fact::Decided(reason.to_owned());
    let grows = vec![
        formed(1),
        said("the world grows"),
        Fact::Regroups,
        said("and more"),
        formed(2),
    ];
    assert_eq!(
        how(grows, end(Outcome::Completed)),
        ("the world grows".to_owned(), false)
    );
    let replaced = how(vec![formed(1), formed(2)], end(Outcome::Completed));
    assert_eq!(replaced, ("generation 2 takes its place".to_owned(), false));
    let reason = "x".to_owned();
    let failed = how(vec![formed(1)], end(Outcome::Failed { reason }));
    assert_eq!(failed, ("every step is made".to_owned(), true));
}

#[test]
fn a_generation_of_an_earlier_term_goes_on_in_this_one() {
    let mut timeline = timeline();
    timeline.happened(ms(500), step(7, 41, 200));
    timeline.ended(ms(600), &end(Outcome::Completed));
    let spans = timeline.take();
    assert_eq!(
        outline(&spans),
        [
            ("waiting", 0, 300, "run"),
            ("steps", 300, 500, "generation"),
            ("generation", 300, 600, "run"),
            ("run", 0, 600, ""),
        ]
    );
    assert_eq!(value(&spans[2], "lockstep.from_step"), None, "it was told another term");
}

#[test]
fn calls_and_failures_are_shown() {
    let mut timeline = timeline();
    let call = |is_refused| CallRow {
        term: 3,
        at: ms(10) as f64 / 1e9,
        who: "operator ann".to_owned(),
        from: "192.0.2.7".to_owned(),
        call: "/lockstep.v1.Control/Pause".to_owned(),
        is_refused,
        answer: "the run is over".to_owned(),
        calls: 1,
    };
    timeline.called(ms(20), &call(false));
    timeline.called(ms(20), &call(true));
    timeline.happened(ms(30), Fact::Commissioned { step: 2 });
    let failure = Some("the disk is full".to_owned());
    timeline.happened(ms(40), Fact::Checkpointed { step: 2, failure });
    let spans = timeline.take();
    assert_eq!(outline(&spans)[0].0, "call");
    assert_eq!(text(&spans[0], "lockstep.who"), "operator ann");
    assert_eq!(text(&spans[0], "rpc.method"), "/lockstep.v1.Control/Pause");
    assert_eq!(value(&spans[0], "lockstep.refused"), Some(Value::BoolValue(false)));
    assert_eq!(value(&spans[1], "lockstep.refused"), Some(Value::BoolValue(true)));
    let failed = |span: &Span| span.status.as_ref().map(|status| status.message.clone());
    assert_eq!(
        [0, 1, 2].map(|index| failed(&spans[index])),
        [
            None,
            Some("the run is over".to_owned()),
            Some("the disk is full".to_owned())
        ]
    );
}

#[test]
fn a_trace_shows_directives_and_records() {
    let checkpoint = Checkpoint {
        term: 1,
        generation: 2,
        step: 3,
    };
    let stamp = Stamp { term: 1, generation: 2 };
    let reason = "lost".to_owned();
    let body = Arc::new(CoordinatorBody::Abort { reason: reason.clone() });
    let to = 1;
    let urgent = |kind| Directive::Persist(Record::Urgent(Urgent { sequence: 1, kind }));
    for (directive, fact) in [
        (
            Directive::Send { to, stamp, body },
            Some(Fact::Aborted {
                number: 2,
                reason: reason.clone(),
            }),
        ),
        (
            Directive::Persist(Record::Checkpoint(checkpoint)),
            Some(Fact::Checkpointed { step: 3, failure: None }),
        ),
        (
            Directive::Persist(Record::Decision { reason: reason.clone() }),
            Some(Fact::Decided(reason)),
        ),
        (urgent(DirectiveKind::Regroup), Some(Fact::Regroups)),
        (urgent(DirectiveKind::Pause), None),
        (Directive::End(end(Outcome::Completed)), None),
    ] {
        assert_eq!(Fact::of(&directive), fact);
    }
}

#[test]
fn an_answer_means_what_the_specification_says() {
    let partly = |rejected_spans| {
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans,
            error_message: "too many".to_owned(),
        });
        ExportTraceServiceResponse { partial_success }.encode_to_vec()
    };
    let of = |code: u16, body: &[u8]| Answer::of(StatusCode::from_u16(code).unwrap(), body, 9);
    assert_eq!(of(200, b""), Answer::Taken);
    assert_eq!(of(200, &partly(0)), Answer::Taken);
    assert_eq!(of(200, &partly(2)), Answer::Refused(2, "too many".to_owned()));
    for code in [429, 502, 503, 504] {
        assert!(matches!(of(code, b""), Answer::Away(_)), "{code}");
    }
    for code in [301, 400, 401, 404, 500] {
        assert!(matches!(of(code, b""), Answer::Refused(9, _)), "{code}");
    }
    let waits = [1, 2, 3, 5, 6, 4_000_000_000].map(wait_after);
    assert_eq!(waits, [1, 2, 4, 16, 30, 30].map(Duration::from_secs));
}

#[test]
fn what_waits_is_bounded_and_the_oldest_give_way() {
    let queue = Queue::default();
    let span = |index: usize| Span {
        name: index.to_string(),
        ..Span::default()
    };
    queue.push((0..MOST + 7).map(span).collect());
    assert_eq!((queue.waiting(), queue.lost()), (MOST as u64, 7));
    assert_eq!(queue.take(2), [span(7), span(8)]);
    queue.push(vec![span(0)]);
    assert_eq!((queue.waiting(), queue.lost()), (MOST as u64 - 1, 7));
    assert!(!queue.is_closed());
    queue.close();
    assert!(queue.is_closed());
}

/// Facts in any order, as no machine would decide them.
fn any_fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        1 => (1..4u64).prop_map(formed),
        1 => Just(Fact::Begun),
        4 => (1..4u64, 1..99u64, 0..200u64).prop_map(|(generation, number, took)| step(generation, number, took)),
        1 => Just(Fact::Decided("so".to_owned())),
        1 => (1..4u64).prop_map(|number| Fact::Aborted { number, reason: "why".to_owned() }),
        1 => Just(Fact::Regroups),
        1 => (1..9u64).prop_map(|step| Fact::Commissioned { step }),
        1 => (1..9u64).prop_map(|step| Fact::Checkpointed { step, failure: None }),
    ]
}

proptest! {
    /// Invariants 1 to 3, and that every span has a parent in the trace.
    #[test]
    fn the_invariants_hold_whatever_happens(facts in proptest::collection::vec((any_fact(), -5..60i64), 0..200)) {
        let mut timeline = timeline();
        let mut at = 1_000;
        for (fact, passes) in facts {
            // Some clocks are set back.
            at += passes;
            timeline.happened(ms(at.max(0) as u64), fact);
        }
        timeline.ended(ms(at.max(0) as u64), &end(Outcome::Completed));
        let spans = timeline.take();
        let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
        prop_assert_eq!(ids.len(), spans.len());
        let mut last: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for span in &spans {
            prop_assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{:?}", span);
            prop_assert!(span.events.len() <= MOST_EVENTS);
            prop_assert!(span.name == "run" || ids.contains(&span.parent_span_id), "{:?}", span);
            if span.name == "steps" {
                let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
                if let Some((before, length)) = last.insert(&span.parent_span_id, (end, end - start)) {
                    prop_assert!(start >= before, "{:?}", span);
                    prop_assert!(length >= GROUP, "only the last one of a generation is shorter");
                }
            }
        }
    }
}

#[test]
fn more_decisions_than_a_span_shows_are_counted() {
    let mut timeline = timeline();
    timeline.happened(ms(1), formed(1));
    (0..MOST_EVENTS + 3).for_each(|_| timeline.happened(ms(2), Fact::Decided("so".to_owned())));
    timeline.ended(ms(3), &end(Outcome::Completed));
    let spans = timeline.take();
    let generation = spans.iter().find(|span| span.name == "generation").unwrap();
    assert_eq!(
        (generation.events.len(), generation.dropped_events_count),
        (MOST_EVENTS, 3)
    );
}
