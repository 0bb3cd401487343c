//! What goes over the wire comes back equal, and what cannot be understood is refused with a sentence.
#![allow(clippy::unwrap_used)]

use lockstep_proto::domain::*;
use lockstep_proto::{ConvertError, PROTOCOL_VERSION, v1};
use proptest::prelude::*;
use prost::Message;

fn header() -> Header {
    Header {
        run_id: "shakespeare-1".into(),
        stamp: Stamp { term: 3, generation: 2 },
    }
}

/// Every field has a value of its own, so that one that is dropped or goes into another's place shows.
fn metrics() -> StepMetrics {
    StepMetrics {
        loss: 1.25,
        tokens: 99,
        grad_norm: 2.5,
        update_norm: 3.5,
        learning_rate: 0.5,
        effective_learning_rate: 0.25,
        step_ms: 12.0,
        phases: vec![("forward".into(), 1.5)],
        polar_factors: 4,
        model_value: Some(1.125),
        dual_norm: Some(7.5),
        lower_bound: Some(0.0), // a bound of zero is a bound
        orthogonality: Some(orthogonality()),
        skipped: Some("step 9: the loss is NaN".into()),
        gradient_variance: Some(48.0),
        gradient_square: Some(-0.5),
    }
}

fn orthogonality() -> Orthogonality {
    Orthogonality {
        tensor: "h.3.attn.c_attn.weight[1]".into(),
        error: 0.0625,
    }
}

fn committed() -> CommittedStep {
    CommittedStep {
        step: 4,
        total_steps: 9,
        samples: 64,
        tokens: 640,
        loss: 1.0,
        learning_rate: 0.1,
        effective_learning_rate: 0.05,
        batch: 16,
        grad_norm: 2.0,
        update_norm: 3.0,
        tokens_per_second: 1e4,
        step_ms: 12.0,
        phases: vec![("forward".into(), 7.0)],
        generation: 2,
        ranks: 3,
        parameter_hash: [1; 32],
        polar_factors: 24,
        model_value: Some(0.75),
        dual_norm: Some(5.5),
        lower_bound: Some(0.0),
        orthogonality: Some(orthogonality()),
        skipped: Some("step 4: the loss is NaN".into()),
        gradient_variance: Some(24.0),
        gradient_square: Some(-0.25),
        noise_scale: Some(96.0),
    }
}

/// A report of rank 0 with these metrics, after its way over the wire.
fn over_the_wire(metrics: StepMetrics) -> StepMetrics {
    let report = StepReport {
        stamp: header().stamp,
        rank: 0,
        step: 9,
        parameter_hash: [7; 32],
        metrics: Some(metrics),
        validation: None,
        peak_memory_mib: 300,
    };
    let sent = FromMember {
        header: header(),
        body: MemberBody::Report(report),
    };
    let bytes = v1::MemberMessage::from(&sent).encode_to_vec();
    match FromMember::try_from(v1::MemberMessage::decode(&bytes[..]).unwrap())
        .unwrap()
        .body
    {
        MemberBody::Report(report) => report.metrics.unwrap(),
        other => panic!("a report became {other:?}"),
    }
}

/// A committed step after its way over the wire.
fn watched(step: CommittedStep) -> CommittedStep {
    let bytes = v1::WatchEvent::from((&header(), &RunEvent::Step(Box::new(step)))).encode_to_vec();
    match RunEvent::try_from(v1::WatchEvent::decode(&bytes[..]).unwrap()).unwrap() {
        RunEvent::Step(step) => *step,
        other => panic!("a step became {other:?}"),
    }
}

fn info() -> JoinInfo {
    JoinInfo {
        member: "a".into(),
        pid: 4,
        devices: vec!["cpu".into()],
        parts_address: "h:4".into(),
        ..JoinInfo::default()
    }
}

fn members() -> Vec<MemberBody> {
    let report = StepReport {
        stamp: header().stamp,
        rank: 1,
        step: 9,
        parameter_hash: [7; 32],
        metrics: Some(metrics()),
        validation: Some(Validation { loss: 2.5, tokens: 11 }),
        peak_memory_mib: 300,
    };
    vec![
        MemberBody::Join(info()),
        MemberBody::CommId(vec![1, 2, 3]),
        MemberBody::Ready(Ready {
            hash: [9; 32],
            transports: vec![String::new(), "tcp".to_owned()],
        }),
        MemberBody::Progress(Progress {
            step: 3,
            phase: "backward".into(),
            counter: 12,
            waits: true,
            longest_ms: Some(1500),
        }),
        MemberBody::Report(report),
        MemberBody::Leaving("SIGTERM".into()),
        MemberBody::Finished {
            outcome: Outcome::Failed {
                reason: "no memory".into(),
            },
            step: 4,
        },
        MemberBody::Finished {
            outcome: Outcome::Stopped,
            step: 5,
        },
        MemberBody::Holds(part()),
        MemberBody::Stopped {
            step: 12,
            cause: Some("rank 1 is gone".into()),
            parts: vec![part(), Part { part: 2, ..part() }],
            checkpoint_is_bad: true,
            drifted: Some(0),
            unusable: Some(0),
        },
        MemberBody::Stopped {
            step: 0,
            cause: None,
            parts: Vec::new(),
            checkpoint_is_bad: false,
            drifted: None,
            unusable: None,
        },
        MemberBody::Wrote {
            step: 12,
            written: Err("the disk is full".into()),
        },
        MemberBody::Wrote {
            step: 12,
            written: Ok(Box::new(Written {
                words: vec![("momo.loss".into(), 1.5f64.to_bits())],
                hash: [3; 32],
                bytes: 4096,
                runs: vec![BlockRun {
                    tensor: "h.0".into(),
                    array: "master".into(),
                    elements: 65_536..70_000,
                    offset: 512,
                    hashes: vec![[1; 32], [2; 32]],
                }],
            })),
        },
        MemberBody::Return(Return {
            info: info(),
            standing: Standing::Training,
            ready: Some(Ready {
                hash: [4; 32],
                transports: vec!["".into(), "tcp".into()],
            }),
            parts: vec![part()],
        }),
        MemberBody::Return(Return {
            info: info(),
            standing: Standing::Outside,
            ready: None,
            parts: Vec::new(),
        }),
        MemberBody::Return(Return {
            info: info(),
            standing: Standing::Meeting,
            ready: None,
            parts: Vec::new(),
        }),
    ]
}

fn part() -> Part {
    Part {
        step: 12,
        generation: 3,
        part: 1,
        hash: [8; 32],
    }
}

fn coordinator() -> Vec<CoordinatorBody> {
    let place = MemberPlace {
        member: "a".into(),
        rank: 0,
        lanes: 0..4,
        pid: 77,
        host: "h".into(),
        parts_address: "h:4".into(),
    };
    let plan = Plan {
        step: 1,
        learning_rate: 0.5,
        micro_batches: 3,
        first_sample: 6,
        samples: 12,
        validate: true,
        last: false,
        version: 1,
        checkpoint: false,
        momentum: Some(0.9),
        weight_decay: None,
        stop: true,
    };
    vec![
        CoordinatorBody::Welcome {
            config_toml: "[run]".into(),
        },
        CoordinatorBody::Generation(Generation {
            stamp: header().stamp,
            members: vec![place],
            lanes: 4,
            resume: Some(Resume {
                step: 12,
                generation: 3,
                parts: vec![PartPlace {
                    hash: [6; 32],
                    addresses: vec!["h:4".into(), "i:5".into()],
                }],
                checkpoint: Some(Checkpoint {
                    term: 2,
                    generation: 3,
                    step: 12,
                }),
                secret: [4; 32],
            }),
            replay_through: 14,
            secret: [5; 32],
        }),
        CoordinatorBody::CommId(vec![4]),
        CoordinatorBody::PlanWindow(vec![plan]),
        CoordinatorBody::Directive(Directive {
            sequence: 2,
            kind: DirectiveKind::Pause,
        }),
        CoordinatorBody::Directive(Directive {
            sequence: 3,
            kind: DirectiveKind::Regroup,
        }),
        CoordinatorBody::SnapshotStands {
            step: 12,
            free_before: 8,
        },
        CoordinatorBody::Release {
            outcome: Outcome::Stopped,
            reason: "it was asked to leave".into(),
        },
        CoordinatorBody::Abort {
            reason: "rank 1 is gone".into(),
        },
        CoordinatorBody::Acknowledged {
            step: 8,
            finished: true,
        },
    ]
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    for body in members() {
        let sent = FromMember { header: header(), body };
        let bytes = v1::MemberMessage::from(&sent).encode_to_vec();
        assert_eq!(
            FromMember::try_from(v1::MemberMessage::decode(&bytes[..]).unwrap()).unwrap(),
            sent
        );
    }
    for body in coordinator() {
        let sent = FromCoordinator { header: header(), body };
        let bytes = v1::CoordinatorMessage::from(&sent).encode_to_vec();
        assert_eq!(
            FromCoordinator::try_from(v1::CoordinatorMessage::decode(&bytes[..]).unwrap()).unwrap(),
            sent
        );
    }
    let end = RunEnd {
        outcome: Outcome::Completed,
        reason: "all 9 steps were made".into(),
        last_step: 9,
    };
    for event in [
        RunEvent::State {
            phase: "training".into(),
            reason: "why".into(),
        },
        RunEvent::Decided {
            reason: "rank 1 was lost".into(),
        },
        RunEvent::Step(Box::new(committed())),
        RunEvent::Validation {
            step: 4,
            validation: Validation { loss: 1.5, tokens: 10 },
        },
        RunEvent::Ended(end),
    ] {
        assert_eq!(
            RunEvent::try_from(v1::WatchEvent::from((&header(), &event))).unwrap(),
            event
        );
    }
}

#[test]
fn what_an_optimiser_does_not_have_stays_absent() {
    let plain = StepMetrics {
        model_value: None,
        dual_norm: None,
        lower_bound: None,
        orthogonality: None,
        skipped: None,
        gradient_variance: None,
        gradient_square: None,
        ..metrics()
    };
    assert_eq!(over_the_wire(plain.clone()), plain);
    let plain = CommittedStep {
        model_value: None,
        dual_norm: None,
        lower_bound: None,
        orthogonality: None,
        skipped: None,
        gradient_variance: None,
        gradient_square: None,
        noise_scale: None,
        ..committed()
    };
    assert_eq!(watched(plain.clone()), plain);
}

#[test]
fn numbers_that_are_not_finite_are_neither_refused_nor_changed() {
    let error = Orthogonality {
        error: f64::NAN,
        ..orthogonality()
    };
    let came = over_the_wire(StepMetrics {
        model_value: Some(f64::NAN),
        dual_norm: Some(f64::INFINITY),
        lower_bound: Some(f64::NEG_INFINITY),
        orthogonality: Some(error.clone()),
        ..metrics()
    });
    assert!(came.model_value.unwrap().is_nan(), "{came:?}");
    assert!(came.orthogonality.as_ref().unwrap().error.is_nan(), "{came:?}");
    assert_eq!(
        (came.dual_norm, came.lower_bound),
        (Some(f64::INFINITY), Some(f64::NEG_INFINITY))
    );
    let came = watched(CommittedStep {
        model_value: Some(f64::NAN),
        dual_norm: Some(f64::NAN),
        lower_bound: Some(f64::NEG_INFINITY),
        orthogonality: Some(error),
        ..committed()
    });
    assert!(came.model_value.unwrap().is_nan(), "{came:?}");
    assert!(came.dual_norm.unwrap().is_nan(), "{came:?}");
    assert!(came.orthogonality.as_ref().unwrap().error.is_nan(), "{came:?}");
    assert_eq!(came.lower_bound, Some(f64::NEG_INFINITY));
}

#[test]
fn another_protocol_version_is_refused_by_name() {
    let mut message = v1::MemberMessage::from(&FromMember {
        header: header(),
        body: MemberBody::CommId(Vec::new()),
    });
    message.header.as_mut().unwrap().protocol_version = 99;
    let error = FromMember::try_from(message).unwrap_err();
    assert_eq!(
        error,
        ConvertError::ProtocolVersion {
            ours: PROTOCOL_VERSION,
            theirs: 99
        }
    );
    assert!(error.to_string().contains("protocol version 99"), "{error}");
}

#[test]
fn missing_parts_and_short_hashes_name_message_and_field() {
    let empty = v1::MemberMessage {
        header: Some((&header()).into()),
        body: None,
    };
    assert_eq!(
        FromMember::try_from(empty).unwrap_err().to_string(),
        "the message MemberMessage came without its body"
    );
    assert!(
        FromMember::try_from(v1::MemberMessage::default())
            .unwrap_err()
            .to_string()
            .contains("header")
    );
    let mut ready = v1::MemberMessage::from(&FromMember {
        header: header(),
        body: MemberBody::Ready(Ready {
            hash: [0; 32],
            transports: Vec::new(),
        }),
    });
    if let Some(v1::member_message::Body::Ready(ready)) = ready.body.as_mut() {
        ready.parameter_hash.truncate(8);
    }
    let error = FromMember::try_from(ready).unwrap_err().to_string();
    assert!(
        error.contains("parameter_hash") && error.contains("8 bytes instead of 32"),
        "{error}"
    );
}

#[test]
fn a_secret_is_never_printed() {
    let generation = Generation {
        stamp: header().stamp,
        members: Vec::new(),
        lanes: 1,
        resume: None,
        replay_through: 0,
        secret: [213; 32],
    };
    assert!(!format!("{generation:?}").contains("213"));
}

proptest! {
    #[test]
    fn the_larger_word_is_the_newer_directive(a in 0u64..1 << 50, b in 0u64..1 << 50, i in 0u8..5, j in 0u8..5) {
        use DirectiveKind::*;
        let kinds = [None, Resume, Pause, Stop, Regroup];
        let first = Directive { sequence: a, kind: kinds[i as usize] };
        let second = Directive { sequence: b, kind: kinds[j as usize] };
        prop_assert_eq!(Directive::from_word(first.to_word()), Option::Some(first));
        if a < b {
            prop_assert!(first.to_word() < second.to_word());
        }
    }

    #[test]
    fn bytes_from_a_stranger_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = v1::MemberMessage::decode(&bytes[..]) {
            let _refused_or_understood = FromMember::try_from(message);
        }
        if let Ok(message) = v1::CoordinatorMessage::decode(&bytes[..]) {
            let _refused_or_understood = FromCoordinator::try_from(message);
        }
    }
}
