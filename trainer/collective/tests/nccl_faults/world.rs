//! One world: its ranks as threads, each with a device of its own; what they do to themselves; what they must be told.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use accelerator_double::{HostAccelerator, double};
use lockstep_collective::{Aborter, Accelerator, CollectiveError};
use nccl_double::Call;
use nccl_host::Error;
use nccl_rs::Code;

use crate::load::waited_for_a_core;
use crate::nccl_world::{PATIENCE, World};
use crate::plan::{Fault, Plan, ROUNDS};
use crate::rounds::{Difference, Rounds, Step, Turn};

/// How long after the fault the last rank must know, beside what it may wait and what all waited for a core.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Rounds of the world after the fault.
const AFTERWARDS: u64 = 2;
const WISH: &str = "the test wants it";

/// What became of a rank.
struct Ended {
    result: Result<(), CollectiveError>,
    at: Instant,
    /// How long its thread was ready to run and had no core.
    starved: Duration,
}

/// A world in which not everybody was told what should be, or not in time: ranks have waited too shortly for the machine that
/// they were on, or something is wrong. In words.
pub(crate) struct Impatient(pub(crate) String);

/// Plays one world. How long after the fault the last rank knew; none where it did no harm.
pub(crate) fn play(plan: &Plan) -> Result<Option<Duration>, Impatient> {
    let (world, next) = (World::new(), World::new());
    for each in [&world, &next] {
        double().set_polls(&each.unique, plan.polls.0, plan.polls.1);
    }
    let fault = OnceLock::new();
    if plan.is_early() || plan.is_late() {
        fault.get_or_init(Instant::now);
        order(plan, &world);
    }
    let ended: Vec<Ended> = thread::scope(|scope| {
        let ranks: Vec<_> = (0..plan.size)
            .map(|rank| {
                let (worlds, fault) = ([&world, &next], &fault);
                scope.spawn(move || live(plan, rank, worlds, fault))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    world.assert_clean("the world with the fault");
    next.assert_clean("the world after it");
    judge(plan, &ended, fault.get().copied())
}

/// Orders the double to do it.
fn order(plan: &Plan, world: &World) {
    match plan.fault {
        Fault::Hang(call, stage) => double().hang(&world.unique, plan.rank, call, stage),
        Fault::Fail(call, stage, code) => double().fail(&world.unique, plan.rank, call, stage, code),
        _ => {}
    }
}

/// The life of a rank: a world with a fault, then one without, on the same device.
fn live(plan: &Plan, rank: u32, [world, next]: [&World; 2], fault: &OnceLock<Instant>) -> Ended {
    let device = HostAccelerator::new();
    let on_device = || Arc::clone(&device) as Arc<dyn Accelerator>;
    let (result, at) = if (plan.fault, plan.rank) == (Fault::Absent, rank) {
        (Ok(()), Instant::now())
    } else {
        let aborter = Aborter::new();
        let met = world.meet((rank, plan.size), on_device(), plan.stall, &aborter);
        // A rank whose beginning fails may have met the others, as far as they know.
        match met.and_then(|collective| Rounds::new(plan.seed, plan.elements, collective, Arc::clone(&device))) {
            Ok(mut rounds) => {
                let result = with_fault(plan, rank, &mut rounds, world, &aborter, fault);
                let at = Instant::now();
                if result.is_err() {
                    let later = rounds.again().unwrap_err();
                    assert!(later.is_aborted(), "after a failure: {later}");
                }
                (result, at)
            }
            Err(failure) => (Err(failure), Instant::now()),
        }
    };
    let again = next.meet((rank, plan.size), on_device(), PATIENCE, &Aborter::new());
    let mut rounds = Rounds::new(plan.seed + 1, plan.elements, again.unwrap(), Arc::clone(&device)).unwrap();
    for round in 0..AFTERWARDS {
        assert!(rounds.play(round, |_, _| Turn::Call).unwrap());
    }
    drop(rounds);
    assert_eq!(device.offences(), 0, "something came before NCCL's success");
    Ended {
        result,
        at,
        starved: waited_for_a_core("/proc/thread-self/schedstat"),
    }
}

/// The rounds of the world with the fault.
fn with_fault(
    plan: &Plan,
    rank: u32,
    rounds: &mut Rounds,
    world: &World,
    aborter: &Aborter,
    fault: &OnceLock<Instant>,
) -> Result<(), CollectiveError> {
    let mut helper = None;
    let mut played = Ok(true);
    for round in 0..ROUNDS {
        played = rounds.play(round, |place, step| {
            if rank != plan.rank || plan.is_early() || plan.is_late() {
                return Turn::Call;
            }
            let now = (round, place) == plan.moment;
            match plan.fault {
                Fault::Differ(difference) if round == plan.moment.0 && is_of(difference, step) => {
                    // Of two steps that it could be, the first.
                    if difference == Difference::Call && fault.get().is_some() {
                        return Turn::Call;
                    }
                    fault.get_or_init(Instant::now);
                    Turn::Differ(difference)
                }
                Fault::Leave if now => {
                    fault.get_or_init(Instant::now);
                    Turn::Leave
                }
                Fault::Abort(after) if now => {
                    let (aborter, began) = (aborter.clone(), Instant::now());
                    fault.get_or_init(|| began + after);
                    helper = Some(thread::spawn(move || {
                        thread::sleep(after);
                        aborter.abort(WISH);
                    }));
                    Turn::Call
                }
                Fault::Hang(..) | Fault::Fail(..) if now => {
                    fault.get_or_init(Instant::now);
                    order(plan, world);
                    Turn::Call
                }
                _ => Turn::Call,
            }
        });
        if !matches!(played, Ok(true)) {
            break;
        }
    }
    if let Some(helper) = helper {
        helper.join().unwrap();
    }
    played.map(|_| ())
}

/// Whether a rank can do this in place of that step.
fn is_of(difference: Difference, step: Step) -> bool {
    match difference {
        // A reduction has no header of its own.
        Difference::Call => step != Step::Reduce,
        Difference::Buffer => step == Step::Allocate,
        Difference::Root => step == Step::Broadcast,
        Difference::Ranges => step == Step::Gather,
        Difference::Count | Difference::Skip => step == Step::Reduce,
    }
}

/// Whether every rank was told what the fault must tell it, in time.
fn judge(plan: &Plan, all: &[Ended], began: Option<Instant>) -> Result<Option<Duration>, Impatient> {
    let results: Vec<_> = all.iter().map(|ended| &ended.result).collect();
    let may_do_no_harm = matches!(plan.fault, Fault::Hang(..) | Fault::Fail(..) | Fault::Abort(_)) && !plan.is_early();
    if results.iter().all(|result| result.is_ok()) && may_do_no_harm {
        return Ok(None);
    }
    let began = began.ok_or_else(|| Impatient(format!("nothing was done, and yet: {results:?}")))?;
    for (rank, result) in (0..).zip(&results) {
        let right = match result {
            Ok(()) => rank == plan.rank && matches!(plan.fault, Fault::Leave | Fault::Absent),
            Err(failure) if rank == plan.rank => is_of_the_guilty(plan, failure),
            Err(failure) => is_of_another(plan, rank, failure),
        };
        if !right {
            return Err(Impatient(format!(
                "rank {rank} was told {result:?} of rank {}: {results:?}",
                plan.rank
            )));
        }
    }
    let times = all.iter().map(|ended| ended.at.saturating_duration_since(began));
    let (slowest, starved) = (times.max(), all.iter().map(|ended| ended.starved).sum::<Duration>());
    if slowest > Some(plan.waits() + AT_ONCE + starved) {
        return Err(Impatient(format!(
            "it took {slowest:?} until all knew, who had waited {starved:?} for a core: {results:?}"
        )));
    }
    Ok(slowest)
}

/// Whether this is what the rank hears that has the fault.
fn is_of_the_guilty(plan: &Plan, failure: &CollectiveError) -> bool {
    match (plan.fault, failure) {
        (Fault::Hang(Call::Init, _), CollectiveError::Transport(Error::Deadline { .. })) => true,
        (Fault::Hang(..), CollectiveError::Overdue { rank, .. }) => *rank == plan.rank,
        (Fault::Fail(function, _, code), CollectiveError::Nccl { rank, call, source }) => {
            *rank == plan.rank && (*call == "join") == (function == Call::Init) && has_code(source, code)
        }
        (Fault::Abort(_), failure) => failure.is_aborted() && failure.to_string().contains(WISH),
        (Fault::Differ(Difference::Count | Difference::Skip), failure) => differs(failure, |rank| rank != plan.rank),
        (Fault::Differ(_), CollectiveError::Transport(Error::Mismatch { rank, .. })) => *rank != plan.rank,
        _ => false,
    }
}

/// Whether this is what `own`, one of the others, hears.
fn is_of_another(plan: &Plan, own: u32, failure: &CollectiveError) -> bool {
    match (plan.fault, failure) {
        (_, CollectiveError::Transport(Error::Deadline { missing, .. })) => {
            plan.is_early() && missing.contains(&plan.rank)
        }
        (Fault::Differ(Difference::Count | Difference::Skip), failure) => differs(failure, |rank| rank == plan.rank),
        (Fault::Differ(_), CollectiveError::Transport(Error::Mismatch { rank, .. })) => *rank == plan.rank,
        (Fault::Differ(_), _) => false,
        (_, CollectiveError::Overdue { rank, waited_for, .. }) => *rank == own && waited_for.contains(&plan.rank),
        _ => false,
    }
}

/// A reduction has no header: NCCL finds the difference, or the next header does, or nobody comes to it.
fn differs(failure: &CollectiveError, names: impl Fn(u32) -> bool) -> bool {
    match failure {
        CollectiveError::Transport(Error::Mismatch { rank, .. }) => names(*rank),
        CollectiveError::Overdue { waited_for, .. } => waited_for.iter().any(|rank| names(*rank)),
        CollectiveError::Nccl { source, .. } => has_code(source, Code::InvalidArgument),
        _ => false,
    }
}

fn has_code(error: &nccl_rs::Error, expected: Code) -> bool {
    matches!(error, nccl_rs::Error::Nccl { code, .. } if *code == expected)
}
