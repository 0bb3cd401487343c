//! A config that is written and read again is the same config.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use lockstep_config::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const MAX: u64 = i64::MAX as u64;

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        1e-12..1e12f64,
        Just(1.0),
        Just(1e-8),
        Just(f64::MIN_POSITIVE),
        Just(1e300)
    ]
}

fn run() -> impl Strategy<Value = RunSection> {
    let length = prop_oneof![
        (1..=MAX).prop_map(Length::Steps),
        (1..=MAX).prop_map(Length::Samples),
        (1..=MAX).prop_map(Length::Tokens),
        (0.01..1e6f64).prop_map(Length::Epochs)
    ];
    (
        "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        0..=MAX,
        1..=4096u32,
        length,
        1..=1024u32,
        precision(),
        prop_oneof![Just(Reduction::Invariant), Just(Reduction::Fast)],
    )
        .prop_map(
            |(name, seed, lanes, length, intra_op_threads, precision, reduction)| RunSection {
                name,
                seed,
                lanes,
                length,
                intra_op_threads,
                precision,
                reduction,
                device: Device::Cpu,
            },
        )
}

fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::Bf16), Just(Precision::Fp32)]
}

fn path() -> impl Strategy<Value = PathBuf> {
    // Any text but an empty one, with quotes, backslashes and control characters among it.
    "\\PC{1,20}|[\"'\\\\\\n\\t#=]{1,8}".prop_map(PathBuf::from)
}

fn model_and_data() -> impl Strategy<Value = (ModelSection, DataSection)> {
    let shape = (
        1..=1024u32,
        1..=64u32,
        1..=64u32,
        1..=1000u32,
        option::of(0..1000u32),
        option::of(1..=2_147_483_647u32),
    );
    (shape, any::<[bool; 2]>(), path(), option::of(path())).prop_map(
        |((layers, heads, head, sequence_length, longer, vocab), [bias, qk_norm], path, validation)| {
            let model = ModelSection {
                kind: ModelKind::Gpt2,
                layers,
                heads,
                width: heads * head,
                vocab,
                bias,
                qk_norm,
                context: longer.map(|longer| sequence_length + longer),
            };
            (
                model,
                DataSection {
                    path,
                    validation,
                    sequence_length,
                },
            )
        },
    )
}

fn batch() -> impl Strategy<Value = BatchSection> {
    let size = 1..=16_777_216u64;
    let steps = (size.clone(), vec((1..1000u64, size.clone()), 0..5)).prop_map(|(first, later)| {
        let mut from = 0;
        let mut sizes = vec![(0, first)];
        for (gap, size) in later {
            from += gap;
            sizes.push((from, size));
        }
        BatchSchedule::Steps { sizes }
    });
    let samples = (1..=16_777_216u32).prop_map(f64::from).boxed();
    let growth = (samples.clone(), 1.01..8.0f64, 1..MAX_LENGTH).prop_map(|(start, factor, every)| Shape::Growth {
        start,
        factor,
        every: every as f64,
        limit: Some(16_777_216.0),
    });
    let ramp = (samples.clone(), samples).prop_map(|(start, end)| Shape::Ramp {
        ends: Ends::Between { start, end },
        form: RampForm::Linear,
        over: Some(100.0),
    });
    let curve = (unit(), prop_oneof![growth, ramp]).prop_map(|(unit, shape)| {
        let curve = Curve { warmup: None, shape };
        BatchSchedule::Curve(Schedule { unit, curve })
    });
    let schedule = prop_oneof![size.prop_map(|size| BatchSchedule::Constant { size }), steps, curve];
    (1..=65_536u32, schedule).prop_map(|(micro_batch, schedule)| BatchSection {
        micro_batch,
        schedule,
        adaptive: None,
    })
}

fn adaptive() -> impl Strategy<Value = AdaptiveSection> {
    let by = prop_oneof![
        (0.01..100.0f64).prop_map(|target| AdaptiveBy::Noise { target }),
        Just(AdaptiveBy::Goodput),
    ];
    (
        1..=1_000_000u64,
        1.01..16.0f64,
        1..=1000u32,
        any::<bool>(),
        1..=1_000_000u64,
        by,
    )
        .prop_map(|(every, growth, patience, shrinks, smooth, by)| AdaptiveSection {
            every,
            most: 16_777_216,
            growth,
            patience,
            shrinks,
            smooth,
            by,
        })
}

/// The largest whole number of a float64's ones.
const MAX_LENGTH: u64 = 1 << 53;

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![
        Just(Unit::Steps),
        Just(Unit::Samples),
        Just(Unit::Tokens),
        Just(Unit::Epochs)
    ]
}

fn length() -> BoxedStrategy<f64> {
    prop_oneof![
        (1..=MAX_LENGTH).prop_map(|length| length as f64),
        (1..10_000u32).prop_map(f64::from)
    ]
    .boxed()
}

fn form() -> impl Strategy<Value = RampForm> {
    prop_oneof![
        Just(RampForm::Linear),
        Just(RampForm::Cosine),
        (0.1..9.0f64).prop_map(|power| RampForm::Polynomial { power }),
        Just(RampForm::Exponential)
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let floor = 0.001..=1.0f64;
    let ends = prop_oneof![
        (number(), floor.clone()).prop_map(|(peak, floor)| Ends::Peak { peak, floor }),
        (number(), number()).prop_map(|(start, end)| Ends::Between { start, end })
    ];
    let problem = prop_oneof![
        Just(Problem::SmoothConvex),
        Just(Problem::NonConvex),
        (0.01..=1.0f64).prop_map(|gamma| Problem::Holder { gamma })
    ];
    let between = prop_oneof![Just(Between::Hold), Just(Between::Linear)];
    let stable = prop_oneof![
        Just(RampForm::Linear),
        Just(RampForm::Cosine),
        (0.1..9.0f64).prop_map(|power| RampForm::Polynomial { power })
    ];
    prop_oneof![
        number().prop_map(|value| Shape::Constant { value }),
        (ends, form(), option::of(length())).prop_map(|(ends, form, over)| Shape::Ramp { ends, form, over }),
        (number(), floor, 1e-6..=1.0f64, stable).prop_map(|(peak, floor, decay, form)| Shape::WarmupStableDecay {
            peak,
            floor,
            decay,
            form
        }),
        (number(), 0.01..3.0f64, length(), option::of(problem)).prop_map(|(peak, exponent, scale, problem)| {
            Shape::Power {
                peak,
                exponent,
                scale: Some(scale),
                problem,
            }
        }),
        (number(), 0.1..4.0f64, length(), any::<bool>()).prop_map(|(start, factor, every, is_bound)| Shape::Growth {
            start,
            factor,
            every,
            limit: is_bound.then_some(start * if factor < 1.0 { 0.5 } else { 2.0 }),
        }),
        (vec((1..1000u32, number()), 0..5), number(), between).prop_map(|(later, first, between)| {
            let mut at = 0;
            let mut points = vec![(0.0, first)];
            for (gap, value) in later {
                at += gap;
                points.push((f64::from(at), value));
            }
            Shape::Points { points, between }
        }),
    ]
}

fn curve() -> impl Strategy<Value = Curve> {
    let warmup = prop_oneof![
        (length(), 0.0..1.0f64).prop_map(|(length, from)| Warmup {
            length,
            from,
            form: WarmupForm::Linear
        }),
        (length(), 0.001..1.0f64).prop_map(|(length, from)| Warmup {
            length,
            from,
            form: WarmupForm::Exponential
        }),
    ];
    let simple = (option::of(warmup), shape()).prop_map(|(warmup, shape)| Curve { warmup, shape });
    simple.prop_recursive(3, 12, 3, |inner| {
        let parts = (vec((inner.clone(), length()), 0..3), inner.clone()).prop_map(|(parts, last)| {
            let mut parts: Vec<_> = parts.into_iter().map(|(curve, lasts)| (curve, Some(lasts))).collect();
            parts.push((last, None));
            Shape::Sequence { parts }
        });
        let product = vec(inner, 1..3).prop_map(|factors| Shape::Product { factors });
        prop_oneof![parts, product].prop_map(|shape| Curve { warmup: None, shape })
    })
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (unit(), curve()).prop_map(|(unit, curve)| Schedule { unit, curve })
}

fn learning_rate() -> impl Strategy<Value = LearningRateSection> {
    let coupling = prop_oneof![
        Just(Coupling::None),
        (1.0..1e6f64).prop_map(|base| Coupling::Linear { base }),
        (1.0..1e6f64).prop_map(|base| Coupling::SquareRoot { base })
    ];
    (schedule(), coupling).prop_map(|(schedule, coupling)| LearningRateSection { schedule, coupling })
}

fn method() -> impl Strategy<Value = Method> {
    let members: Vec<Method> = Steepest::all().map(Method::Steepest).collect();
    let others = [
        Method::Muon,
        Method::NorMuon,
        Method::AdamW,
        Method::Sgd,
        Method::Momo,
        Method::MomoAdam,
    ];
    prop_oneof![
        proptest::sample::select(members),
        proptest::sample::select(others.to_vec())
    ]
}

fn polar() -> impl Strategy<Value = PolarSection> {
    let method = prop_oneof![
        Just(PolarMethod::PolarExpress),
        Just(PolarMethod::NewtonSchulz(PolarTable::Jordan)),
        Just(PolarMethod::NewtonSchulz(PolarTable::You)),
        Just(PolarMethod::NewtonSchulz(PolarTable::Cans)),
        (1..=2u32).prop_map(|restart| PolarMethod::Gram { restart }),
        Just(PolarMethod::Svd),
    ];
    (method, 1..=99u32, precision()).prop_map(|(method, steps, precision)| match method {
        PolarMethod::Svd => PolarSection {
            method,
            steps: 5,
            precision: Precision::Fp32,
        },
        _ => PolarSection {
            method,
            steps,
            precision,
        },
    })
}

fn momo() -> impl Strategy<Value = MomoSection> {
    let bound = prop_oneof![(-10.0..10.0f64).prop_map(LowerBound::Fixed), Just(LowerBound::Auto)];
    let decay = prop_oneof![Just(MomoDecay::Paper), Just(MomoDecay::Exact)];
    (bound, decay).prop_map(|(lower_bound, decay)| MomoSection { lower_bound, decay })
}

fn rules() -> impl Strategy<Value = (Option<Vec<HiddenRule>>, Vec<GroupRule>)> {
    let pattern = || "\\*?[a-z.?\"]{1,12}\\*?";
    let split = prop_oneof![(1..=65_536u32).prop_map(Split::Parts), Just(Split::Heads)];
    let hidden = (pattern(), option::of(split)).prop_map(|(pattern, hidden)| HiddenRule { pattern, hidden });
    let group =
        (pattern(), number(), option::of(0.0..1.0f64)).prop_map(|(pattern, lr_scale, weight_decay)| GroupRule {
            pattern,
            lr_scale,
            weight_decay,
        });
    (option::of(vec(hidden, 1..4)), vec(group, 0..3))
}

/// Any section that a config may hold: keys that do not belong to a method have their resting values.
fn optimizer() -> impl Strategy<Value = OptimizerSection> {
    let unit = 0.0..1.0f64;
    let scaling = prop_oneof![
        Just(Scaling::None),
        Just(Scaling::Original),
        Just(Scaling::MatchRms),
        Just(Scaling::Fan)
    ];
    let words = (
        method(),
        scaling,
        any::<[bool; 3]>(),
        polar(),
        option::of(momo()),
        rules(),
    );
    let numbers = (
        unit.clone(),
        [unit.clone(), unit],
        number(),
        number(),
        number(),
        option::of(number()),
    );
    (words, numbers).prop_map(
        |(
            (method, scaling, [nesterov, normalized, cautious], polar, momo, (hidden, groups)),
            (momentum, betas, epsilon, weight_decay, hidden_scale, clip_norm),
        )| {
            let family = matches!(method, Method::Steepest(_));
            let stands_alone = matches!(method, Method::Momo | Method::MomoAdam);
            let momo = match (family, stands_alone, momo) {
                (true, _, momo) => momo,
                (_, true, momo) => Some(MomoSection {
                    lower_bound: momo.map_or(LowerBound::Fixed(0.0), |momo| momo.lower_bound),
                    decay: MomoDecay::Paper,
                }),
                _ => None,
            };
            let one_moment = matches!(method, Method::Sgd | Method::Momo);
            let adam = matches!(method, Method::AdamW | Method::MomoAdam);
            let betas = if one_moment { [momentum, 0.95] } else { betas };
            let orthogonalises = method.orthogonalises();
            OptimizerSection {
                method,
                momentum: if adam || momo.is_some() { betas[0] } else { momentum },
                nesterov: nesterov && matches!(method, Method::Muon | Method::NorMuon | Method::Sgd),
                normalized: normalized && method == Method::Sgd,
                betas,
                epsilon: if one_moment { 1e-8 } else { epsilon },
                weight_decay,
                cautious: cautious && momo.is_none(),
                hidden_scale: if orthogonalises { hidden_scale } else { 1.0 },
                scaling: if orthogonalises { scaling } else { Scaling::None },
                clip_norm: clip_norm.filter(|_| momo.is_none()),
                polar: match orthogonalises {
                    true => polar,
                    false => PolarSection {
                        method: PolarMethod::PolarExpress,
                        steps: 5,
                        precision: Precision::Bf16,
                    },
                },
                momo,
                hidden: hidden.filter(|_| orthogonalises),
                groups: if stands_alone { Vec::new() } else { groups },
            }
        },
    )
}

fn collective() -> impl Strategy<Value = CollectiveSection> {
    let backend = prop_oneof![
        Just(CollectiveBackend::Auto),
        Just(CollectiveBackend::Host),
        Just(CollectiveBackend::Mpi)
    ];
    let wire = prop_oneof![Just(Wire::Fp32), Just(Wire::Bf16)];
    let transport = prop_oneof![Just(HostTransport::Auto), Just(HostTransport::Tcp)];
    (backend, wire, any::<bool>(), transport, 1e-3..=86_400.0f64).prop_map(
        |(backend, wire, overlap, transport, deadline_seconds)| CollectiveSection {
            backend,
            wire,
            overlap,
            transport,
            deadline_seconds,
        },
    )
}

fn fault(lanes: u32) -> impl Strategy<Value = FaultSection> {
    let most = (1..=lanes).prop_flat_map(move |least| (Just(least), proptest::option::of(least..=lanes)));
    let not_finite = prop_oneof![
        Just(OnNotFinite::Stop),
        Just(OnNotFinite::Skip),
        Just(OnNotFinite::Rewind)
    ];
    let spike = prop_oneof![
        Just(OnSpike::Off),
        Just(OnSpike::Stop),
        Just(OnSpike::Skip),
        Just(OnSpike::Rewind)
    ];
    let skips = (not_finite, spike, 1e-3..=1e3f64, any::<u32>(), 0..=MAX);
    let rewinds = (0..=1000u32, 0..=MAX, any::<bool>(), 1e-3..=0.999f64);
    let times = (1e-3..=86_400.0f64, 2.0..=86_400.0f64);
    (most, 0..=MAX, any::<u32>(), times, skips, rewinds).prop_map(
        |((min_ranks, max_ranks), snapshot_every, max_restarts, times, skips, rewinds)| {
            let (max_rewinds, rewind_steps, rewind_skip, rewind_factor) = rewinds;
            let (patience_seconds, lease_seconds) = times;
            let (on_not_finite, on_spike, spike_sigmas, max_skips, drift_every) = skips;
            FaultSection {
                min_ranks,
                max_ranks,
                snapshot_every,
                max_restarts,
                patience_seconds,
                lease_seconds,
                on_not_finite,
                on_spike,
                spike_sigmas,
                max_skips,
                max_rewinds,
                rewind_steps,
                rewind_skip,
                rewind_factor,
                drift_every,
            }
        },
    )
}

fn checkpoint() -> impl Strategy<Value = CheckpointSection> {
    let store = option::of("[a-z./]{1,12}|s3://[a-z]{3,9}(/[a-z]{1,9}){0,2}");
    (0..=MAX, 1..=MAX, 0..=MAX, store).prop_map(|(every, keep_last, keep_every, store)| CheckpointSection {
        every,
        keep_last,
        keep_every,
        store,
    })
}

fn security() -> impl Strategy<Value = SecuritySection> {
    let file = || "[a-z./]{1,12}".prop_map(PathBuf::from);
    let pair = option::of((file(), file()));
    let limits = (1..=1_000_000u64, 1..=1_000_000u64, 1..=1_000_000u64, 1..=1_000_000u64);
    (pair, option::of(file()), option::of(file()), any::<bool>(), limits).prop_map(
        |(pair, client_ca, tokens, insecure_bind, limits)| {
            let (certificate, key) = pair.unzip();
            SecuritySection {
                client_ca: client_ca.filter(|_| certificate.is_some()),
                certificate,
                key,
                tokens,
                insecure_bind,
                calls_per_second: limits.0,
                failures_per_minute: limits.1,
                connections_per_address: limits.2,
                connections: limits.3,
            }
        },
    )
}

fn alerts() -> impl Strategy<Value = AlertsSection> {
    let webhook = prop_oneof![
        Just((None, None)),
        "https?://[a-z]{3,9}/[a-z]{1,9}".prop_map(|url| (Some(url), None)),
        "[a-z./]{1,12}".prop_map(|file| (None, Some(PathBuf::from(file)))),
    ];
    let numbers = (number(), 1.0..1e9f64, 1.0..=86_400.0f64, 1e-9..0.999f64, 1e-9..0.999f64);
    (numbers, 0..=MAX, 0..=36_500u64, webhook).prop_map(
        |((spike_sigmas, stall_factor, stall_seconds, straggler_share, data_share), disk_mib, certificate_days, at)| {
            AlertsSection {
                spike_sigmas,
                stall_factor,
                stall_seconds,
                straggler_share,
                data_share,
                disk_mib,
                certificate_days,
                webhook: at.0,
                webhook_file: at.1,
            }
        },
    )
}

fn telemetry() -> impl Strategy<Value = TelemetrySection> {
    option::of("https?://[a-z]{3,9}(:[1-9][0-9]{3})?(/[a-z]{1,9})?/?").prop_map(|otlp| TelemetrySection { otlp })
}

fn config() -> impl Strategy<Value = RunConfig> {
    let coordinator =
        (any::<u16>(), 1e-3..=3600.0f64, any::<bool>()).prop_map(|(port, plan_window_seconds, record_events)| {
            CoordinatorSection {
                bind: ([127, 0, 0, 1], port).into(),
                plan_window_seconds,
                record_events,
            }
        });
    (
        run().prop_flat_map(|run| {
            let fault = fault(run.lanes);
            (Just(run), fault)
        }),
        model_and_data(),
        (batch(), option::of(adaptive())),
        (
            learning_rate(),
            option::of(Just(Schedule::constant(0.5))),
            option::of(schedule()),
        ),
        optimizer(),
        (0..=MAX, checkpoint()),
        collective(),
        (coordinator, security(), alerts(), telemetry()),
    )
        .prop_map(
            |(
                (run, mut fault),
                (model, data),
                (mut batch, adaptive),
                (learning_rate, momentum, weight_decay),
                mut optimizer,
                (every, checkpoint),
                collective,
                (coordinator, security, alerts, telemetry),
            )| {
                if collective.backend == CollectiveBackend::Mpi && fault.may_rewind() {
                    // A world of MPI cannot be formed anew.
                    (fault.on_not_finite, fault.on_spike) = (OnNotFinite::Skip, OnSpike::Skip);
                }
                if let BatchSchedule::Constant { size } = batch.schedule {
                    let has_lanes = run.reduction == Reduction::Invariant && run.lanes > 1;
                    batch.adaptive = adaptive.filter(|_| has_lanes && size > u64::from(batch.micro_batch));
                }
                if !optimizer.method.orthogonalises() {
                    optimizer.polar.precision = run.precision;
                }
                RunConfig {
                    run,
                    data,
                    model,
                    batch,
                    learning_rate,
                    momentum: momentum.filter(|_| optimizer.may_change_momentum().is_ok()),
                    weight_decay,
                    optimizer,
                    validation: ValidationSection { every },
                    checkpoint,
                    collective,
                    fault,
                    coordinator,
                    security,
                    alerts,
                    telemetry,
                }
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(config in config()) {
        let text = config.to_toml();
        let again = RunConfig::parse(&text, "config.toml", &[]);
        prop_assert_eq!(again.as_ref(), Ok(&config), "{}", text);
    }

    #[test]
    fn the_hash_is_of_what_decides_the_bits(config in config()) {
        let mut other = config.clone();
        other.run.name = "another".into();
        other.checkpoint = CheckpointSection { every: 7, keep_last: 2, keep_every: 14, store: Some("elsewhere".into()) };
        other.coordinator = CoordinatorSection { bind: ([127, 0, 0, 1], 1).into(), plan_window_seconds: 1.0, record_events: false };
        other.security = SecuritySection { tokens: Some("others".into()), connections: 9, ..SecuritySection::default() };
        other.alerts = AlertsSection { webhook: Some("http://elsewhere/".into()), ..AlertsSection::default() };
        other.telemetry = TelemetrySection { otlp: config.telemetry.otlp.is_none().then(|| "http://elsewhere".into()) };
        let FaultSection { on_not_finite, on_spike, spike_sigmas, .. } = config.fault;
        let FaultSection { rewind_steps, rewind_skip, rewind_factor, .. } = config.fault;
        other.fault = FaultSection { on_not_finite, on_spike, spike_sigmas, ..FaultSection::default() };
        if config.fault.may_rewind() {
            let ours = other.hash();
            other.fault = FaultSection { rewind_steps, rewind_skip, rewind_factor, ..other.fault };
            prop_assert_ne!(other.hash(), ours);
        }
        other.collective = CollectiveSection { wire: config.collective.wire, ..CollectiveSection::default() };
        prop_assert_eq!(other.hash(), config.hash());
        other.collective.wire = if other.collective.wire == Wire::Fp32 { Wire::Bf16 } else { Wire::Fp32 };
        prop_assert_ne!(other.hash(), config.hash());
        other.collective.wire = config.collective.wire;
        other.fault.spike_sigmas += 1.0;
        prop_assert_ne!(other.hash(), config.hash());
        other.fault.spike_sigmas = spike_sigmas;
        other.run.seed ^= 1;
        prop_assert_ne!(other.hash(), config.hash());
    }
}

#[test]
fn the_same_value_has_the_same_meaning_in_every_spelling() {
    let base = |schedules: &str| {
        format!(
            "[run]\nname = \"a\"\nsteps = 1\n[data]\npath = \"d\"\nsequence_length = 8\n[model]\nlayers = 1\nheads = 1\nwidth = 8\n{schedules}"
        )
    };
    let read = |text: &str| RunConfig::parse(text, "run.toml", &[]).unwrap();
    let short = read(&base(
        "[batch]\nmicro_batch = 1\nschedule = 8\n[learning_rate]\nschedule = 0.5\n",
    ));
    let long = read(&base(
        "[batch]\nmicro_batch = 1\nschedule = { kind = \"constant\", size = 8 }\n[learning_rate.schedule]\nkind = \"constant\"\npeak = 0.5\n",
    ));
    assert_eq!(short, long);
    assert_eq!(short.hash(), long.hash());
}

#[test]
fn a_named_method_is_its_three_words() {
    let read = |text: &str| OptimizerSection::parse(text.parse().unwrap(), "run.toml", Precision::Fp32).unwrap();
    for (name, descent, product, other) in [
        ("muonadam", "constrained", "max", "ada-inf"),
        ("muonmax", "regularized", "hybrid", "ada-2"),
        ("scion", "constrained", "max", "sign"),
        ("polargrad", "regularised", "l2", "ada-2"),
    ] {
        let spelt = format!("descent = \"{descent}\"\nproduct = \"{product}\"\nother = \"{other}\"");
        assert_eq!(read(&format!("method = \"{name}\"")), read(&spelt));
    }
    assert_eq!(Steepest::all().count(), 18);
    let aliases = read("scaling = \"moonlight\"");
    assert_eq!(aliases, read("scaling = \"match_rms_adamw\""));
    assert_eq!(aliases, read("scaling = \"match-rms\""));
    let family = read("method = \"scion\"\nmomentum = 0.9");
    assert_eq!((family.momentum, family.betas), (0.9, [0.9, 0.95]));
    let family = read("method = \"scion\"\nbetas = [0.8, 0.9]");
    assert_eq!((family.momentum, family.betas), (0.8, [0.8, 0.9]));
}

#[test]
fn a_set_wins_over_the_file_and_the_later_one_over_the_earlier() {
    let text = "[run]\nname = \"a\"\nsteps = 1\n[data]\npath = \"d\"\nsequence_length = 8\n[model]\nlayers = 1\nheads = 1\nwidth = 8\n[batch]\nmicro_batch = 1\nschedule = 8\n[learning_rate]\nschedule = 0.5\n";
    let sets = [
        "run.seed=3",
        "run.seed=4",
        "data.path=some/dir",
        "optimizer.polar.steps=7",
        "run.name=\"quoted\"",
    ];
    let config = RunConfig::parse(text, "run.toml", &sets.map(str::to_owned)).unwrap();
    assert_eq!(config.run.seed, 4);
    assert_eq!(config.run.name, "quoted");
    let named = RunConfig::parse(
        text,
        "run.toml",
        &["run.name=007".to_owned(), "data.path=2026".to_owned()],
    )
    .unwrap();
    assert_eq!(
        (named.run.name.as_str(), named.data.path),
        ("007", PathBuf::from("2026"))
    );
    assert_eq!(config.data.path, PathBuf::from("some/dir"));
    assert_eq!(config.optimizer.polar.steps, 7);
}
