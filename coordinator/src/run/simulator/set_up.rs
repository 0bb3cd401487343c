//! What a schedule begins with, all of it from its seed: the run, its trainers, what will go wrong, and what operators say.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lockstep_config::{AdaptiveBy, AdaptiveSection, BatchSchedule};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::checker::{Checker, Violation};
use super::trainers::Trainers;
use super::{Coverage, Fault, LEASE, Report, Simulation, Tears, Trouble, Turnover, Zombies};
use crate::branches::Rewinds;
use crate::changes::{Ask, Setting};
use crate::ledger::Shadow;
use crate::plan::Planner;
use crate::run::tests::facts;
use crate::run::{Event, Keeps, Leases, Order, Recorded, Run, RunFacts, Wanted, Worlds};

/// One whole schedule. `fault`: what is wrong with the machine.
pub(in crate::run) fn simulate(seed: u64, fault: Option<Fault>) -> Result<Report, Violation> {
    let mut rng = StdRng::seed_from_u64(seed);
    let ranks = rng.random_range(1..=4_u32);
    let steps = rng.random_range(1..=40_u64);
    let lanes = rng.random_range(ranks..=9);
    let mut facts = facts(ranks, lanes, steps);
    if seed % 5 == 2 {
        adapt(&mut facts, &mut StdRng::seed_from_u64(seed.rotate_left(40)));
    }
    let is_elastic = rng.random_ratio(2, 3);
    if is_elastic {
        let least = rng.random_range(1..=ranks);
        facts.worlds = Worlds {
            first: ranks,
            least,
            most: rng.random_range(ranks..=lanes),
            patience: Duration::from_millis(500),
        };
    }
    // A fixed world that does not come back ends the run, so it has the time to.
    facts.return_patience = Duration::from_millis(if is_elastic { 500 } else { 10_000 });
    facts.window = Duration::from_millis(rng.random_range(1..=400));
    facts.term = rng.random_range(1..5);
    facts.last_generation = rng.random_range(0..3);
    let trouble = [
        Trouble::Nothing,
        Trouble::Nothing,
        Trouble::Pauses,
        Trouble::Stop,
        Trouble::Abandonment,
        Trouble::WrongHash,
        Trouble::WrongInitialHash,
        Trouble::NotFinite,
    ][rng.random_range(0..8)];
    let commands = match trouble {
        Trouble::Pauses => vec![
            (rng.random_range(1..300), Event::Pause),
            (rng.random_range(1..200), Event::Resume),
        ],
        Trouble::Stop if rng.random() => vec![
            (rng.random_range(1..300), Event::Pause),
            (rng.random_range(1..200), Event::Stop),
        ],
        Trouble::Stop => vec![
            (rng.random_range(1..400), Event::Stop),
            (rng.random_range(1..20), Event::Pause),
        ],
        Trouble::Abandonment => vec![(rng.random_range(1..300), Event::Abandon)],
        _ => Vec::new(),
    };
    let mut odd = StdRng::seed_from_u64(!seed);
    let mut turnover = match is_elastic {
        true => Turnover {
            deaths: rng.random_range(0..=4),
            // A fault of the machine is looked for in schedules without.
            drifts: fault.map_or_else(|| odd.random_range(0..=2), |_| 0),
            joins: rng.random_range(0..=3),
            drains: rng.random_range(0..=2),
            hangs: rng.random_range(0..=1),
            restarts: rng.random_range(0..=2),
            mutes: rng.random_range(0..=1),
            ..Turnover::default()
        },
        false => Turnover {
            deaths: u32::from(rng.random_ratio(1, 4)),
            restarts: rng.random_range(0..=1),
            ..Turnover::default()
        },
    };
    let mut wild = StdRng::seed_from_u64(seed.rotate_left(32));
    let mut commands = more_commands(commands, &mut wild);
    if wild.random_ratio(1, 3) {
        let when = wild.random_range(0..=commands.len());
        commands.insert(when, (wild.random_range(1..200), Event::Checkpoint));
    }
    if seed % 3 != 1 {
        order_changes(&mut commands, &mut StdRng::seed_from_u64(seed.rotate_left(48)));
    }
    more_orders(&mut commands, steps, &mut StdRng::seed_from_u64(seed.rotate_left(8)));
    let mut backwards = StdRng::seed_from_u64(seed.rotate_left(16));
    let bad_samples = rewinds(&mut facts, &mut backwards);
    facts.keeps = backwards.random_ratio(1, 2).then(|| Keeps {
        last: backwards.random_range(1..=3),
        every: [0, 8][backwards.random_range(0..2)],
    });
    turnover.restarts += u32::from(is_elastic && wild.random_ratio(1, 2));
    turnover.failures = u32::from(wild.random_ratio(1, 12));
    if is_elastic || wild.random_ratio(1, 8) {
        turnover.breaks = wild.random_range(0..=2);
        turnover.cuts = wild.random_range(0..=1);
    }
    let least = facts.worlds.least as usize;
    let (checker, term) = (Checker::new(&facts), facts.term);
    let mut run = Run::new(facts).map_err(|refusal| Violation::new(10, refusal.reason))?;
    run.fault = fault;
    let snapshot_every = rng.random_range(0..=6);
    let mut trainers = Trainers::new(ranks, term, snapshot_every);
    trainers.fault = fault;
    trainers.bad_samples = bad_samples;
    let simulation = Simulation {
        leases: leases(fault),
        lapsed: 0,
        shadow: Shadow::of(&run),
        run,
        checker,
        ledger: Recorded::default(),
        commissions: VecDeque::new(),
        restarts: 0,
        lost_early: false,
        trainers,
        now: Duration::ZERO,
        trouble,
        strikes: rng.random_range(1..=steps),
        turnover,
        least,
        commands,
        is_traced: std::env::var_os("LOCKSTEP_SIMULATOR_TRACE").is_some(),
        rng,
        odd,
        wild,
        torn: None,
        tears: Tears::default(),
        zombie: None,
        zombies: Zombies::default(),
        breaks: 0,
        cuts: 0,
        failures: 0,
        coverage: Coverage::default(),
    };
    simulation.run_to_the_end(steps)
}

/// What impatient operators say besides: everything twice, or a pause before the end of it all.
fn more_commands(commands: Vec<(u32, Event)>, wild: &mut StdRng) -> Vec<(u32, Event)> {
    let mut more = Vec::with_capacity(2 * commands.len());
    for (wait, event) in commands {
        if event == Event::Abandon && wild.random_ratio(1, 3) {
            more.push((wild.random_range(1..200), Event::Pause));
        }
        let again = wild
            .random_ratio(1, 4)
            .then(|| (wild.random_range(1..30), event.clone()));
        more.push((wait, event));
        more.extend(again);
    }
    more
}

/// Whether whoever said it waits for an answer.
pub(super) fn is_a_command(event: &Event) -> bool {
    matches!(
        event,
        Event::Pause | Event::Resume | Event::Checkpoint | Event::Stop | Event::Abandon | Event::Ordered(_)
    )
}

/// Operators change what is planned, and some of them say it twice.
fn order_changes(commands: &mut Vec<(u32, Event)>, rng: &mut StdRng) {
    for number in 0..rng.random_range(1..=4) {
        let mut ask = Ask::default();
        match rng.random_range(0..5) {
            0 => ask.learning_rate = Some(Setting::Value(rng.random_range(0.1..2.0))),
            1 => ask.learning_rate = Some(Setting::Factor(0.5)),
            2 => ask.batch = Some(Setting::Value(f64::from(rng.random_range(1..20_u32)))),
            3 => ask.skip_samples = Some(rng.random_range(1..30)),
            _ => (ask.learning_rate, ask.validate_every) = (Some(Setting::Schedule), Some(2)),
        }
        let order = Order {
            wanted: Wanted::Change(ask),
            key: format!("order {number}"),
            if_step_before: rng.random_ratio(1, 4).then(|| rng.random_range(1..60)),
            dry_run: rng.random_ratio(1, 8),
        };
        let event = Event::Ordered(Box::new(order));
        for _ in 0..rng.random_range(1..=2) {
            let when = rng.random_range(0..=commands.len());
            commands.insert(when, (rng.random_range(1..120), event.clone()));
        }
    }
}

/// The batch follows the noise of the gradient.
fn adapt(facts: &mut RunFacts, rng: &mut StdRng) {
    let mut config = facts.planner.config().clone();
    config.batch.schedule = BatchSchedule::Constant { size: 4 };
    config.batch.adaptive = Some(AdaptiveSection {
        every: rng.random_range(1..=6),
        most: rng.random_range(8..=40),
        growth: if rng.random() { 2.0 } else { 1.4 },
        patience: rng.random_range(1..=2),
        shrinks: rng.random(),
        smooth: rng.random_range(1..=4),
        by: AdaptiveBy::Noise { target: 1.0 },
    });
    if let Ok(planner) = Planner::new(&config, 0) {
        facts.planner = planner;
    }
}

/// In some schedules operators plan where the run stops, or have it go back.
fn more_orders(commands: &mut Vec<(u32, Event)>, steps: u64, rng: &mut StdRng) {
    let mut wanted = Vec::new();
    if rng.random_ratio(1, 2) {
        let stop_at = |step| {
            Wanted::Change(Ask {
                stop_at: Some(step),
                ..Ask::default()
            })
        };
        wanted.push(stop_at(rng.random_range(1..=steps)));
        if rng.random_ratio(1, 4) {
            wanted.push(stop_at(0));
        }
    }
    if rng.random_ratio(1, 2) {
        for _ in 0..rng.random_range(1..=3) {
            // The beginning can always be had; what lies between wants a checkpoint or a snapshot.
            let to = match rng.random_ratio(1, 3) {
                true => 0,
                false => rng.random_range(0..=steps),
            };
            wanted.push(Wanted::Rewind { to });
        }
    }
    for (number, wanted) in wanted.into_iter().enumerate() {
        let order = Order {
            wanted,
            key: format!("other order {number}"),
            if_step_before: rng.random_ratio(1, 8).then(|| rng.random_range(1..60)),
            dry_run: rng.random_ratio(1, 8),
        };
        let event = Event::Ordered(Box::new(order));
        for _ in 0..rng.random_range(1..=2) {
            let when = rng.random_range(0..=commands.len());
            commands.insert(when, (rng.random_range(1..100), event.clone()));
        }
    }
}

/// In some schedules there are samples that no step can be made with, and a rule for that.
fn rewinds(facts: &mut RunFacts, rng: &mut StdRng) -> BTreeSet<u64> {
    if !facts.worlds.are_elastic() || rng.random_ratio(1, 2) {
        return BTreeSet::new();
    }
    let skips = rng.random_ratio(7, 8);
    facts.rewinds = Some(Rewinds {
        most: 3,
        steps: rng.random_range(0..=8),
        skips,
        rate_factor: if skips && rng.random() { 1.0 } else { 0.5 },
    });
    let end = facts.planner.total_samples();
    (0..rng.random_range(1..=3)).map(|_| rng.random_range(0..end)).collect()
}

/// The leases of a life of the coordinator.
pub(super) fn leases(fault: Option<Fault>) -> Leases {
    let mut leases = Leases::new(LEASE);
    leases.is_renewed_by_words = fault == Some(Fault::RenewLeasesOfDeadThreads);
    leases
}
