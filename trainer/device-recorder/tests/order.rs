//! The checker proves what is ordered, and finds what is not: by hand-written logs, and against plain reachability on
//! random ones.
#![allow(clippy::unwrap_used, missing_docs)]

use lockstep_device_recorder::{Access, Action, Log, Place, Range, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

fn touch(place: Place, access: Access, bytes: std::ops::Range<usize>, by: &str) -> Action {
    Action::Touch {
        place,
        access,
        range: Range::new("gradients", bytes),
        by: by.to_owned(),
    }
}

fn write_then_read_over_an_event() -> Log {
    let mut log = Log::default();
    log.push("D", touch(Place::Stream(0), Access::Write, 0..256, "backward"));
    log.push("D", Action::Record { event: 1, stream: 0 });
    log.push("C", Action::Wait { event: 1, stream: 1 });
    log.push("C", touch(Place::Stream(1), Access::Read, 128..512, "send"));
    log.names.insert(1, "ready[0]".to_owned());
    log
}

#[test]
fn an_event_orders_two_streams_and_without_the_wait_the_report_names_everything() {
    let log = write_then_read_over_an_event();
    let proof = check(&log).unwrap();
    assert_eq!((proof.accesses, proof.pairs, proof.pairs_between_places), (2, 1, 1));
    let report = check(&log.without(3)).unwrap_err();
    assert_eq!((report.first, report.second), (1, 3));
    assert_eq!(report.range, Range::new("gradients", 128..256));
    let text = report.to_string();
    for part in [
        "thread D: s0 write gradients[0..256] (backward)",
        "thread C: s1 read gradients[128..512] (send)",
        "s1 does not wait for e1 (ready[0]), recorded on s0 at line 2",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn waiting_for_an_event_that_was_not_recorded_orders_nothing() {
    let report = check(&write_then_read_over_an_event().without(2)).unwrap_err();
    assert!(
        report.missing.contains("no event is recorded on s0"),
        "{}",
        report.missing
    );
    // Recorded, but after the wait: the wait meant nothing.
    let mut log = write_then_read_over_an_event();
    log.entries.swap(1, 2);
    assert!(check(&log).is_err());
}

#[test]
fn a_wait_means_the_record_before_it_and_not_what_the_stream_did_later() {
    let mut log = Log::default();
    log.push("D", Action::Record { event: 1, stream: 0 });
    log.push("D", touch(Place::Stream(0), Access::Write, 0..4, "late"));
    log.push("C", Action::Wait { event: 1, stream: 1 });
    log.push("C", touch(Place::Stream(1), Access::Read, 0..4, "send"));
    assert!(check(&log).is_err());
    let mut again = log.clone();
    again.entries.insert(2, log.entries[0].clone());
    assert!(check(&again).is_ok(), "recorded again behind the write");
}

#[test]
fn giving_work_to_a_stream_does_not_order_it_with_other_streams() {
    // One thread gives both: it knows of both, and neither has run.
    let mut log = Log::default();
    log.push("D", touch(Place::Stream(0), Access::Write, 0..4, "backward"));
    log.push("D", touch(Place::Stream(2), Access::Read, 0..4, "copy"));
    assert!(check(&log).is_err());
    // What the host itself did before is ordered, and what it does after is not.
    let mut log = Log::default();
    log.push("D", touch(Place::Host, Access::Write, 0..4, "fill"));
    log.push("D", touch(Place::Stream(0), Access::Read, 0..4, "copy"));
    assert!(check(&log).is_ok());
    log.push("D", touch(Place::Host, Access::Write, 0..4, "refill"));
    let report = check(&log).unwrap_err();
    assert!(
        report
            .missing
            .contains("no event is recorded on s0 between the two that thread D"),
        "{}",
        report.missing
    );
}

#[test]
fn only_an_answer_of_done_orders_the_host() {
    for done in [false, true] {
        let mut log = write_then_read_over_an_event();
        log.push("H", Action::Query { event: 1, done });
        log.push("H", touch(Place::Host, Access::Read, 0..128, "log"));
        assert_eq!(check(&log).is_ok(), done);
    }
}

#[test]
fn reads_need_no_order_and_neither_do_ranges_that_only_meet() {
    let mut log = Log::default();
    for (stream, access, bytes) in [
        (0, Access::Read, 0..8),
        (1, Access::Read, 0..8),
        (2, Access::Write, 8..16),
    ] {
        log.push("D", touch(Place::Stream(stream), access, bytes, "x"));
    }
    assert_eq!(check(&log).unwrap().pairs, 0);
}

/// Whether a pair of lines is ordered, by plain reachability: each entry is given (node 2i) and runs (node 2i + 1).
fn first_unordered_by_reachability(log: &Log) -> Option<(usize, usize)> {
    let n = log.entries.len();
    let mut reaches = vec![vec![false; 2 * n]; 2 * n];
    let last_record = |event: u64, before: usize| {
        (0..before)
            .rev()
            .find(|i| matches!(log.entries[*i].action, Action::Record { event: e, .. } if e == event))
    };
    let stream_of = |i: usize| match log.entries[i].action {
        Action::Touch {
            place: Place::Stream(s),
            ..
        }
        | Action::Record { stream: s, .. } => Some(s),
        // Where nothing was recorded the call does nothing at all, and so it stands on no stream.
        Action::Wait { event, stream: s } => last_record(event, i).map(|_| s),
        _ => None,
    };
    for j in 0..n {
        let mut from = vec![];
        for i in 0..j {
            if log.entries[i].thread == log.entries[j].thread {
                from.push((2 * i, 2 * j));
            }
            if stream_of(i).is_some() && stream_of(i) == stream_of(j) {
                from.push((2 * i + 1, 2 * j + 1));
            }
        }
        match &log.entries[j].action {
            Action::Wait { event, .. } => {
                if let Some(i) = last_record(*event, j) {
                    from.extend([(2 * i, 2 * j), (2 * i + 1, 2 * j + 1)]);
                }
            }
            Action::Query { event, done } => {
                if let Some(i) = last_record(*event, j) {
                    from.push((2 * i, 2 * j));
                    if *done {
                        from.push((2 * i + 1, 2 * j));
                    }
                }
            }
            Action::Synchronise { event } => {
                if let Some(i) = last_record(*event, j) {
                    from.extend([(2 * i, 2 * j), (2 * i + 1, 2 * j)]);
                }
            }
            Action::SynchroniseStream { stream } => {
                from.extend(
                    (0..j)
                        .filter(|i| stream_of(*i) == Some(*stream))
                        .map(|i| (2 * i + 1, 2 * j)),
                );
            }
            Action::Receive { message } => {
                from.extend(
                    (0..j)
                        .filter(|i| matches!(log.entries[*i].action, Action::Send { message: m } if m == *message))
                        .map(|i| (2 * i, 2 * j)),
                );
            }
            _ => {}
        }
        // What is given comes before what runs; on the host both are one.
        let mut all = from;
        all.push((2 * j, 2 * j + 1));
        // All edges end at j, so reachability closes in order: the given node first, then the running one.
        all.sort_by_key(|(_, to)| *to);
        for (a, b) in all {
            for (from, row) in reaches.iter_mut().enumerate() {
                row[b] |= from == a || row[a];
            }
        }
    }
    let node = |i: usize| 2 * i + usize::from(stream_of(i).is_some());
    for j in 0..n {
        for i in 0..j {
            let (
                Action::Touch {
                    access: a, range: r, ..
                },
                Action::Touch {
                    access: b, range: s, ..
                },
            ) = (&log.entries[i].action, &log.entries[j].action)
            else {
                continue;
            };
            let conflict = (*a == Access::Write || *b == Access::Write) && r.overlap(s).is_some();
            if conflict && !reaches[node(i)][node(j)] {
                return Some((i + 1, j + 1));
            }
        }
    }
    None
}

/// A random log in which every conflict is ordered: before each access, an edge from each conflicting one.
fn ordered_log(random: &mut StdRng) -> Log {
    let threads = ["A", "C", "D"];
    let mut log = Log::default();
    let (mut events, mut messages) = (10, 0);
    for _ in 0..random.random_range(3..14) {
        let thread = threads[random.random_range(0..threads.len())];
        let place = match random.random_range(0..4) {
            3 => Place::Host,
            stream => Place::Stream(stream),
        };
        let access = if random.random_bool(0.5) {
            Access::Read
        } else {
            Access::Write
        };
        let start = random.random_range(0..8);
        let range = Range::new(
            ["x", "y"][random.random_range(0..2)],
            start..start + random.random_range(1..6),
        );
        for entry in log.entries.clone() {
            let Action::Touch {
                place: before,
                access: first,
                range: touched,
                ..
            } = &entry.action
            else {
                continue;
            };
            if (*first == Access::Read && access == Access::Read) || touched.overlap(&range).is_none() {
                continue;
            }
            match (before, place) {
                (Place::Stream(s), Place::Stream(t)) if *s == t => {}
                (Place::Stream(s), place) => {
                    events += 1;
                    log.push(
                        &entry.thread,
                        Action::Record {
                            event: events,
                            stream: *s,
                        },
                    );
                    match place {
                        Place::Stream(t) => log.push(
                            thread,
                            Action::Wait {
                                event: events,
                                stream: t,
                            },
                        ),
                        Place::Host => log.push(thread, Action::Synchronise { event: events }),
                    }
                }
                (Place::Host, _) => {
                    messages += 1;
                    log.push(&entry.thread, Action::Send { message: messages });
                    log.push(thread, Action::Receive { message: messages });
                }
            }
        }
        // Noise: things that order little or nothing.
        match random.random_range(0..4) {
            0 => log.push(
                thread,
                Action::Wait {
                    event: 1,
                    stream: random.random_range(0..3),
                },
            ),
            1 => log.push(
                thread,
                Action::Query {
                    event: random.random_range(9..=events),
                    done: random.random_bool(0.5),
                },
            ),
            _ => {}
        }
        log.push(
            thread,
            Action::Touch {
                place,
                access,
                range,
                by: "random".to_owned(),
            },
        );
    }
    log
}

#[test]
fn on_random_logs_the_checker_agrees_with_reachability_with_and_without_each_edge() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut proven, mut found) = (0, 0);
    for _ in 0..150 {
        let log = ordered_log(&mut random);
        let proof = check(&log).unwrap_or_else(|report| panic!("{report}\n{log}"));
        assert_eq!(first_unordered_by_reachability(&log), None, "{log}");
        proven += proof.pairs_between_places;
        for line in 1..=log.entries.len() {
            if matches!(log.entries[line - 1].action, Action::Touch { .. }) {
                continue;
            }
            let cut = log.without(line);
            let report = check(&cut).err().map(|report| (report.first, report.second));
            assert_eq!(
                report,
                first_unordered_by_reachability(&cut),
                "without line {line}:\n{log}"
            );
            found += usize::from(report.is_some());
        }
    }
    println!("{proven} pairs proven, {found} missing edges found");
    assert!(
        proven > 100 && found > 100,
        "{proven} pairs, {found} edges: too few to mean anything"
    );
}
