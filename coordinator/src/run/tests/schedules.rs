//! The simulator's random schedules, and the proof that it finds faults.

use std::time::Instant;

use lockstep_proto::domain::Outcome;

use crate::run::simulator::{Coverage, Fault, IMPORTANT, Tears, Zombies, simulate};

/// The seed of the first schedule, from `LOCKSTEP_SIMULATOR_SEED` where it is set.
fn first_seed() -> u64 {
    std::env::var("LOCKSTEP_SIMULATOR_SEED").map_or(20_260, |seed| seed.parse().expect("a number"))
}

const SCHEDULES: u64 = 10_000;

#[test]
fn ten_thousand_random_schedules_keep_every_invariant() {
    let (first, began) = (first_seed(), Instant::now());
    println!("schedules from seed {first} on (LOCKSTEP_SIMULATOR_SEED changes it)");
    let (mut completed, mut stopped, mut failed, mut steps) = (0, 0, 0, 0);
    let (mut checkpoints, mut loaded, mut drifts) = (0, 0, 0);
    let (mut hung, mut muted, mut lapsed) = (0, 0, 0);
    let (mut generations, mut resumed, mut replayed, mut restarts, mut went_on) = (0, 0, 0, 0, 0);
    let (mut rewinds, mut unusable) = (0, 0);
    let (mut operators_rewinds, mut planned_stops) = (0, 0);
    let (mut tears, mut coverage) = (Tears::default(), Coverage::default());
    let (mut zombies, mut breaks, mut cuts) = (Zombies::default(), 0, 0);
    let schedules = std::env::var("LOCKSTEP_SIMULATOR_SCHEDULES");
    let schedules = schedules.map_or(SCHEDULES, |count| count.parse().expect("a number"));
    for seed in first..first + schedules {
        match simulate(seed, None) {
            Err(violation) => panic!(
                "seed {seed} breaks invariant {}: {}",
                violation.invariant, violation.what
            ),
            Ok(report) => {
                steps += report.committed;
                generations += report.generations;
                resumed += report.resumed;
                replayed += report.replayed;
                restarts += report.restarts;
                rewinds += report.rewinds;
                unusable += report.unusable;
                operators_rewinds += report.operators_rewinds;
                planned_stops += u64::from(report.is_stopped_as_planned);
                went_on += report.went_on;
                checkpoints += report.checkpoints;
                loaded += report.loaded;
                drifts += report.drifts;
                hung += report.hung;
                muted += report.muted;
                lapsed += report.lapsed;
                tears.lost += report.tears.lost;
                tears.untold += report.tears.untold;
                tears.told_in_part += report.tears.told_in_part;
                zombies.lived_on += report.zombies.lived_on;
                zombies.heard += report.zombies.heard;
                zombies.said += report.zombies.said;
                zombies.fenced += report.zombies.fenced;
                breaks += report.breaks;
                cuts += report.cuts;
                coverage.add(&report.coverage);
                match report.end.outcome {
                    Outcome::Completed => completed += 1,
                    Outcome::Stopped => stopped += 1,
                    Outcome::Failed { .. } => failed += 1,
                }
            }
        }
    }
    println!(
        "{completed} completed, {stopped} stopped, {failed} failed, {steps} steps, {replayed} of them again, \
         {generations} generations, {resumed} of them from a snapshot, {restarts} coordinators replaced, {went_on} \
         generations went on in another term, {checkpoints} checkpoints, {loaded} loaded, {drifts} \
         members whose memory changed, {hung} that hung and {muted} that were not heard, {lapsed} leases that lapsed, {unusable} steps that could not be made and {rewinds} rewinds, {operators_rewinds} that operators asked \
         for, {planned_stops} stops that they had planned, {:?}",
        began.elapsed()
    );
    let Tears {
        lost,
        untold,
        told_in_part,
    } = tears;
    println!(
        "{} coordinators were killed in a transaction: {lost} times nothing of it was kept, {untold} times nothing told, \
         {told_in_part} times some of it",
        lost + untold + told_in_part
    );
    let Zombies {
        lived_on,
        heard,
        said,
        fenced,
    } = zombies;
    println!(
        "{lived_on} lived on after they were replaced: they heard {heard} events and said {said} things, and {fenced} could \
         not write; {breaks} streams broke, {cuts} networks fell apart"
    );
    println!("decided on, by kind of event and phase:\n{}", coverage.table());
    println!("never: {}", coverage.unseen(None).join(", "));
    let missing = coverage.unseen(Some(&IMPORTANT));
    assert!(missing.is_empty(), "no schedule has {}", missing.join(", "));
    assert!(
        said > SCHEDULES / 500
            && [lived_on, heard, fenced, breaks, cuts]
                .into_iter()
                .all(|count| count > SCHEDULES / 50),
        "too little fell apart"
    );
    assert!(
        [lost, untold, told_in_part]
            .into_iter()
            .all(|count| count > SCHEDULES / 50),
        "too few transactions were torn"
    );
    assert!(
        [completed, stopped, failed]
            .into_iter()
            .all(|ended| ended > SCHEDULES / 10)
            && replayed > SCHEDULES / 4
            && [steps, generations].into_iter().all(|count| count > SCHEDULES / 2)
            && [
                loaded,
                hung,
                muted,
                lapsed,
                went_on,
                rewinds,
                operators_rewinds,
                planned_stops
            ]
            .into_iter()
            .all(|count| count > SCHEDULES / 25)
            && [resumed, restarts, checkpoints, drifts]
                .into_iter()
                .all(|count| count > SCHEDULES / 10),
        "the schedules are not varied enough"
    );
}

#[test]
fn the_simulator_finds_deliberate_faults() {
    let faults: [(Fault, &[u32]); 26] = [
        (Fault::CommitBeforeEveryHash, &[5]),
        (Fault::SendBeforeDurable, &[6]),
        (Fault::AlterPlanForOneMember, &[4]),
        (Fault::ForgetOneAbort, &[8, 9]),
        (Fault::FallBackToAnOlderTerm, &[2]),
        (Fault::FormBeforeAllHaveStopped, &[1, 10]),
        (Fault::SnapshotWithoutBuddies, &[12]),
        (Fault::ResumeFromWhatNobodyHolds, &[11]),
        (Fault::GoOnBeforeAllAreBack, &[1, 10]),
        (Fault::BelieveOlderGenerations, &[1, 5, 10, 13]),
        (Fault::HearFarewellsEarly, &[10]),
        (Fault::CommissionBeforeAllAreWritten, &[13]),
        (Fault::RenewLeasesOfDeadThreads, &[10]),
        (Fault::FreeSnapshotsTooEarly, &[15]),
        (Fault::ResumeFromAClosedBranch, &[17]),
        (Fault::FreeWhatARewindNeeds, &[15]),
        (Fault::ForgetChanges, &[18]),
        (Fault::AdaptAtOnce, &[20]),
        (Fault::PlanBeforeTheDecision, &[20]),
        (Fault::CarryOutTwice, &[18]),
        (Fault::GoBackTooFar, &[17]),
        (Fault::HearAClosedBranch, &[5, 10]),
        (Fault::PlanBehindTheStop, &[19]),
        (Fault::ObeyOlderTerms, &[1, 10, 16]),
        (Fault::SendBeforeTheTransaction, &[6]),
        (Fault::WriteWithoutTheLock, &[2, 4, 5, 6, 17, 18]),
    ];
    for (fault, invariants) in faults {
        let first = first_seed();
        let found = (first..first + SCHEDULES).find_map(|seed| simulate(seed, Some(fault)).err());
        let found = found.unwrap_or_else(|| panic!("no schedule from seed {first} on finds {fault:?}"));
        assert!(
            invariants.contains(&found.invariant),
            "{fault:?} breaks {}: {}",
            found.invariant,
            found.what
        );
    }
}
