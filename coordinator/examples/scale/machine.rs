//! The pure machine with worlds of growing size: a whole life of a run, event by event, each kind timed by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use lockstep_config::{Length, RunConfig};
use lockstep_coordinator::plan::Planner;
use lockstep_coordinator::run::{Decision, Directive, Event, Leases, Peer, Phase, Run, RunFacts, Worlds};
use lockstep_proto::domain::{JoinInfo, Part, Progress, Ready, StepMetrics, StepReport};

use crate::numbers::table;

/// Steps whose reports are timed.
const STEPS: u64 = 6;
/// Looks at the leases that are timed.
const LOOKS: u32 = 10;

/// Options of `scale machine`.
#[derive(Args)]
pub(crate) struct Options {
    /// Sizes of worlds, each with its column.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000, 100_000])]
    members: Vec<u32>,
}

/// Prints microseconds by kind of event, a column a world, and the growth from each world to the next.
pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    let mut rows: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let mut before: BTreeMap<&'static str, f64> = BTreeMap::new();
    for &members in &options.members {
        let life = Life::live(members)?;
        for (kind, times) in life.times {
            let mean = times.total.as_secs_f64() * 1e6 / f64::from(times.count);
            let worst = times.worst.as_secs_f64() * 1e6;
            let growth = before.insert(kind, mean).map(|before| mean / before);
            let growth = growth.map_or_else(String::new, |growth| format!(" (×{growth:.1})"));
            let cells = rows.entry(kind).or_insert_with(|| vec![kind.to_owned()]);
            cells.push(format!("{mean:.2}{growth}"));
            cells.push(format!("{worst:.0}"));
        }
        eprintln!("{members} members are measured");
    }
    let mut header = vec!["event".to_owned()];
    for members in &options.members {
        header.push(format!("{members}, mean µs"));
        header.push("worst".to_owned());
    }
    println!(
        "Microseconds of the machine an event; behind them the growth from the world before. What one event changes is said \
         of each kind: an event of one member should not grow, one that tells every member something grows with them.\n"
    );
    println!("{}", table(&header, &rows.into_values().collect::<Vec<_>>()));
    Ok(())
}

/// What events of one kind took.
#[derive(Default)]
struct Times {
    total: Duration,
    worst: Duration,
    count: u32,
}

struct Life {
    run: Run,
    leases: Leases,
    now: Duration,
    times: BTreeMap<&'static str, Times>,
}

impl Life {
    /// Lives a run of `members` members.
    fn live(members: u32) -> anyhow::Result<Life> {
        let run = Run::new(facts(members)?).map_err(|refusal| anyhow::anyhow!(refusal.reason))?;
        let mut life = Life {
            run,
            leases: Leases::new(Duration::from_secs(60)),
            now: Duration::ZERO,
            times: BTreeMap::new(),
        };
        let peers = 0..Peer::from(members);
        for peer in peers.clone() {
            let info = info(peer);
            life.feed(
                ["join, one member", "join, the last: a generation"],
                Event::Join { peer, info },
            );
        }
        life.expect(Phase::WaitingForCommId);
        life.begin(members);
        for step in 1..=STEPS {
            for peer in peers.clone() {
                life.progress(peer, step);
                life.report(peer, step);
                if step == STEPS {
                    life.holds(peer, members);
                }
            }
        }
        for _ in 0..LOOKS {
            life.tick();
        }
        life.expect(Phase::Training);
        // The last one is lost: the others are told to abort, and leave one after the other.
        let stamp = life.run.stamp();
        let lost = peers.end - 1;
        life.feed(["loss of a member: an abort"; 2], Event::MemberLost { peer: lost });
        for peer in 0..lost {
            let left = Event::Stopped {
                peer,
                stamp,
                cause: None,
                parts: Vec::new(),
                checkpoint_is_bad: false,
                drifted: None,
                unusable: None,
            };
            life.feed(["left, one rank", "left, the last: a generation"], left);
        }
        life.expect(Phase::WaitingForCommId);
        Ok(life)
    }

    fn expect(&self, phase: Phase) {
        assert_eq!(self.run.phase(), phase, "{}", self.run.reason());
    }

    /// Times one event; the second name is for one whose decision speaks to many.
    fn feed(&mut self, [one, many]: [&'static str; 2], event: Event) {
        let began = Instant::now();
        let decision = self.run.step(event, self.now);
        let reason = self.run.reason();
        let spoken = decision
            .directives
            .iter()
            .filter(|done| matches!(done, Directive::Send { .. }));
        let name = if spoken.count() > 1 { many } else { one };
        drop::<(Decision, String)>((decision, reason));
        self.note(name, began.elapsed());
    }

    fn note(&mut self, name: &'static str, took: Duration) {
        let times = self.times.entry(name).or_default();
        times.total += took;
        times.worst = times.worst.max(took);
        times.count += 1;
    }

    fn begin(&mut self, members: u32) {
        let stamp = self.run.stamp();
        let comm_id = Event::CommId {
            peer: 0,
            stamp,
            id: vec![9; 32],
        };
        self.feed(["communicator id, passed on"; 2], comm_id);
        for peer in 0..Peer::from(members) {
            let ready = Ready {
                hash: [0; 32],
                transports: Vec::new(),
            };
            self.feed(
                ["ready, one rank", "ready, the last: plans"],
                Event::Ready {
                    peer,
                    stamp,
                    ready: ready.into(),
                },
            );
        }
        self.expect(Phase::Training);
    }

    fn progress(&mut self, peer: Peer, step: u64) {
        let progress = Progress {
            step,
            phase: "forward".to_owned(),
            counter: step,
            waits: false,
            longest_ms: Some(100),
        };
        let began = Instant::now();
        self.leases.heard(peer, &progress, self.now);
        drop(self.run.step(Event::Progress { peer, progress }, self.now));
        self.note("progress, one member", began.elapsed());
    }

    fn report(&mut self, peer: Peer, step: u64) {
        let metrics = StepMetrics {
            loss: 2.0,
            step_ms: 1000.0,
            tokens: 64,
            ..StepMetrics::default()
        };
        let report = StepReport {
            stamp: self.run.stamp(),
            rank: peer as u32,
            step,
            parameter_hash: [step as u8; 32],
            metrics: (peer == 0).then_some(metrics),
            validation: None,
            peak_memory_mib: 100,
        };
        self.feed(
            ["report, one rank", "report, the last: commit, plans"],
            Event::Report { peer, report },
        );
    }

    /// Each rank holds its own part and its neighbour's.
    fn holds(&mut self, peer: Peer, members: u32) {
        let stamp = self.run.stamp();
        for of in [peer as u32, (peer as u32 + 1) % members] {
            let part = Part {
                step: STEPS,
                generation: stamp.generation,
                part: of,
                hash: [7; 32],
            };
            self.feed(
                ["holds, one part", "holds, the last: a snapshot"],
                Event::Holds { peer, stamp, part },
            );
        }
    }

    fn tick(&mut self) {
        self.now += Duration::from_millis(100);
        let began = Instant::now();
        let lapsed = self.leases.lapsed(self.run.watched(), self.now);
        assert!(lapsed.is_empty(), "nobody has lapsed");
        drop((lapsed, self.run.step(Event::Tick, self.now)));
        self.note("tick: the leases of all", began.elapsed());
        let began = Instant::now();
        let looked = (self.run.members(), self.run.transports());
        drop(looked);
        self.note("look at all, for the page", began.elapsed());
    }
}

fn info(peer: Peer) -> JoinInfo {
    JoinInfo {
        member: format!("trainer-{peer}"),
        pid: 4000,
        host: format!("host-{}", peer / 8),
        build: "build".to_owned(),
        config_hash: "config".to_owned(),
        data_hash: "data".to_owned(),
        fingerprint: "avx2, 1 thread".to_owned(),
        devices: vec!["cpu".to_owned()],
        parts_address: format!("host-{}:{}", peer / 8, 5000 + peer % 8),
    }
}

fn facts(members: u32) -> anyhow::Result<RunFacts> {
    let text = r#"
        [run]
        name = "scale"
        steps = 1
        [data]
        path = "data"
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 1
        schedule = 4
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
    "#;
    let mut config = RunConfig::parse(text, "scale", &[])?;
    config.run.length = Length::Steps(1_000_000);
    Ok(RunFacts {
        config_hash: "config".to_owned(),
        data_hash: "data".to_owned(),
        lanes: members,
        worlds: Worlds {
            first: members,
            least: 1,
            most: members,
            patience: Duration::from_secs(10),
        },
        term: 1,
        last_generation: 0,
        return_patience: Duration::from_secs(60),
        is_resumed: false,
        window: Duration::from_secs(5),
        secret: [3; 32],
        planner: Planner::new(&config, 0)?,
        rewinds: None,
        keeps: None,
        stops_once: true,
    })
}
