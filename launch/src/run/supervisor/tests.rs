//! The supervisor, event by event and at random.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const START: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(100);

fn two() -> Supervisor {
    Supervisor::new([(Process::Rank(0), 100), (Process::Rank(1), 101)])
}

fn exited(rank: u32, exit: Exit) -> Input {
    Input::Exited(Exited {
        process: Process::Rank(rank),
        pid: 100 + rank,
        exit,
    })
}

fn ended(outcome: Outcome, reason: &str) -> Input {
    Input::Ended(RunEnd {
        outcome,
        reason: reason.to_owned(),
        last_step: 3,
    })
}

fn failed(reason: &str) -> Input {
    ended(
        Outcome::Failed {
            reason: reason.to_owned(),
        },
        reason,
    )
}

#[test]
fn a_run_that_completes_is_good_once_every_trainer_is_gone() {
    let mut supervisor = two();
    assert_eq!(supervisor.on(exited(0, Exit::Code(0)), START), []);
    assert_eq!(supervisor.on(ended(Outcome::Completed, "done"), START), []);
    assert_eq!(supervisor.verdict(START), None);
    assert_eq!(supervisor.on(exited(1, Exit::Code(0)), START), []);
    assert_eq!(supervisor.verdict(START), Some(Verdict::Completed));
}

#[test]
fn the_end_may_come_after_the_last_trainer_has_gone() {
    let mut supervisor = two();
    supervisor.on(exited(0, Exit::Code(0)), START);
    supervisor.on(exited(1, Exit::Code(0)), START);
    assert_eq!(supervisor.verdict(START), None);
    supervisor.on(ended(Outcome::Completed, "done"), START);
    assert_eq!(supervisor.verdict(START), Some(Verdict::Completed));
}

#[test]
fn the_first_interrupt_asks_and_the_second_kills() {
    let mut supervisor = two();
    assert!(supervisor.on(Input::Interrupt, START).contains(&Action::AskStop));
    assert!(supervisor.on(Input::Interrupt, START).contains(&Action::KillAll));
    assert_eq!(supervisor.on(Input::Interrupt, START), []);
    supervisor.on(exited(0, Exit::Signal(9)), START);
    assert_eq!(supervisor.verdict(START), None, "all are reaped first");
    supervisor.on(exited(1, Exit::Signal(9)), START);
    assert!(matches!(supervisor.verdict(START), Some(Verdict::Failed { .. })));
}

#[test]
fn a_stopped_run_is_stopped() {
    let mut supervisor = two();
    supervisor.on(Input::Interrupt, START);
    assert_eq!(
        supervisor.on(exited(0, Exit::Code(3)), START),
        [],
        "it may go before the end is told"
    );
    supervisor.on(ended(Outcome::Stopped, "stopped"), START);
    supervisor.on(exited(1, Exit::Code(3)), START);
    assert_eq!(supervisor.verdict(START), Some(Verdict::Stopped));
}

#[test]
fn a_killed_trainer_is_told_at_once_and_named_with_rank_and_pid() {
    let mut supervisor = two();
    let said = supervisor.on(exited(1, Exit::Signal(9)), START);
    assert_eq!(
        said,
        [Action::Say(
            "rank 1 (pid 101) was killed by signal 9 (SIGKILL); the run ends".to_owned()
        )]
    );
    supervisor.on(failed("rank 1 (pid 101, trainer-1 on here) was lost"), START);
    assert_eq!(
        supervisor.on(exited(0, Exit::Code(1)), START),
        [],
        "its end follows from the first"
    );
    let reason = "rank 1 (pid 101, trainer-1 on here) was lost; rank 1 (pid 101) was killed by signal 9 (SIGKILL)";
    assert_eq!(
        supervisor.verdict(START),
        Some(Verdict::Failed {
            reason: reason.to_owned(),
            process: Some(Process::Rank(1))
        })
    );
}

#[test]
fn the_culprit_is_the_one_killed_even_where_its_victim_is_seen_first() {
    let mut supervisor = two();
    supervisor.on(exited(0, Exit::Code(1)), START);
    supervisor.on(exited(1, Exit::Signal(9)), START);
    assert!(matches!(
        supervisor.verdict(LATER),
        Some(Verdict::Failed {
            process: Some(Process::Rank(1)),
            ..
        })
    ));
}

#[test]
fn the_culprit_is_the_one_that_the_coordinator_names() {
    let mut supervisor = two();
    supervisor.on(exited(0, Exit::Code(1)), START);
    supervisor.on(exited(1, Exit::Code(1)), START);
    supervisor.on(
        failed("rank 1 (pid 101, trainer-1 on here) failed: the loss is not finite"),
        START,
    );
    let Some(Verdict::Failed {
        reason,
        process: Some(Process::Rank(1)),
    }) = supervisor.verdict(START)
    else {
        panic!()
    };
    assert!(
        reason.contains("not finite") && reason.contains("exit code 1"),
        "{reason}"
    );
}

#[test]
fn those_that_outlive_a_failure_are_killed_after_a_while() {
    let mut supervisor = two();
    supervisor.on(exited(1, Exit::Signal(11)), START);
    assert_eq!(supervisor.on(Input::Clock, START), []);
    assert!(supervisor.on(Input::Clock, ABORT_GRACE).contains(&Action::KillAll));
    assert_eq!(supervisor.on(Input::Clock, LATER), [], "once");
    assert_eq!(supervisor.verdict(LATER), None);
    supervisor.on(exited(0, Exit::Signal(9)), LATER);
    let Some(Verdict::Failed { process, .. }) = supervisor.verdict(LATER) else {
        panic!()
    };
    assert_eq!(
        process,
        Some(Process::Rank(1)),
        "what was killed afterwards is not to blame"
    );
}

#[test]
fn trainers_that_all_go_without_an_end_are_a_failure() {
    let mut supervisor = two();
    supervisor.on(exited(0, Exit::Code(0)), START);
    supervisor.on(exited(1, Exit::Code(0)), START);
    assert_eq!(supervisor.verdict(START), None);
    assert!(matches!(supervisor.verdict(LATER), Some(Verdict::Failed { .. })));
}

#[test]
fn a_silent_coordinator_is_a_failure_and_ends_everything() {
    let mut supervisor = two();
    supervisor.on(Input::EventsLost, START);
    assert!(supervisor.on(Input::Clock, LATER).contains(&Action::KillAll));
    supervisor.on(exited(0, Exit::Signal(9)), LATER);
    supervisor.on(exited(1, Exit::Signal(9)), LATER);
    let Some(Verdict::Failed { reason, .. }) = supervisor.verdict(LATER) else {
        panic!()
    };
    assert!(reason.contains("silent"), "{reason}");
}

fn any_exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(Exit::Code(0)),
        Just(Exit::Code(3)),
        (1..255i32).prop_map(Exit::Code),
        (1..20i32).prop_map(Exit::Signal)
    ]
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        Just(Input::Interrupt),
        Just(Input::EventsLost),
        Just(Input::Clock),
        Just(ended(Outcome::Completed, "done")),
        Just(ended(Outcome::Stopped, "stopped")),
        Just(failed("rank 1 (pid 101, trainer-1 on here) failed")),
        (0..3u32, any_exit()).prop_map(|(rank, exit)| exited(rank, exit)),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: there is a verdict in the end, every trainer is gone by then, and a
    /// good one is given only to a run that the coordinator ended well.
    #[test]
    fn there_is_always_an_end(inputs in proptest::collection::vec((any_input(), 0..2000u64), 0..20)) {
        let mut supervisor = Supervisor::new((0..3).map(|rank| (Process::Rank(rank), 100 + rank)));
        let mut left: Vec<u32> = vec![0, 1, 2];
        let mut now = START;
        let mut first_end = None;
        let mut killed = false;
        for (input, later) in inputs {
            now += Duration::from_millis(later);
            match &input {
                Input::Exited(exited) if !left.contains(&(exited.pid - 100)) => continue,
                Input::Exited(exited) => left.retain(|rank| *rank != exited.pid - 100),
                Input::Ended(end) => { first_end.get_or_insert(end.outcome.clone()); }
                _ => {}
            }
            killed |= supervisor.on(input, now).contains(&Action::KillAll);
            if let Some(verdict) = supervisor.verdict(now) {
                prop_assert!(left.is_empty());
                match verdict {
                    Verdict::Completed => prop_assert_eq!(first_end, Some(Outcome::Completed)),
                    Verdict::Stopped => prop_assert_eq!(first_end, Some(Outcome::Stopped)),
                    Verdict::Failed { reason, .. } => prop_assert!(!reason.is_empty()),
                }
                return Ok(());
            }
        }
        // The run goes on until something ends it; two interrupts always do.
        for _ in 0..2 {
            killed |= supervisor.on(Input::Interrupt, now).contains(&Action::KillAll);
        }
        killed |= supervisor.on(Input::Clock, now + LATER).contains(&Action::KillAll);
        prop_assert!(killed || left.is_empty());
        for rank in left {
            supervisor.on(exited(rank, Exit::Signal(9)), now + LATER);
        }
        prop_assert!(supervisor.verdict(now + LATER + LATER).is_some());
    }
}

#[test]
fn a_trainer_that_a_signal_ends_is_started_again_while_the_run_goes_on() {
    let mut supervisor = two().with_restarts(2);
    let restart = |supervisor: &mut Supervisor, rank, exit| {
        let actions = supervisor.on(exited(rank, exit), START);
        actions.contains(&Action::Restart(Process::Rank(rank)))
    };
    assert!(restart(&mut supervisor, 1, Exit::Signal(9)));
    supervisor.restarted(Process::Rank(1), 101);
    assert!(restart(&mut supervisor, 1, Exit::Code(101)), "a panic");
    supervisor.restarted(Process::Rank(1), 101);
    supervisor.on(ended(Outcome::Completed, "done"), START);
    supervisor.on(exited(0, Exit::Code(0)), START);
    supervisor.on(exited(1, Exit::Code(0)), START);
    assert_eq!(supervisor.verdict(START), Some(Verdict::Completed));
}

#[test]
fn what_has_failed_or_was_asked_to_end_is_not_started_again_and_neither_is_one_too_many() {
    let is_restarted = |supervisor: &mut Supervisor, exit| {
        let actions = supervisor.on(exited(1, exit), START);
        actions.iter().any(|action| matches!(action, Action::Restart(_)))
    };
    for code in [0, 1, 2, 3] {
        assert!(!is_restarted(&mut two().with_restarts(9), Exit::Code(code)), "{code}");
    }
    let mut stopped = two().with_restarts(9);
    stopped.on(Input::Interrupt, START);
    assert!(!is_restarted(&mut stopped, Exit::Signal(9)));
    let mut over = two().with_restarts(9);
    over.on(failed("why"), START);
    assert!(!is_restarted(&mut over, Exit::Signal(9)));
    assert!(!is_restarted(&mut two().with_restarts(0), Exit::Signal(9)));
}

#[test]
fn without_restarts_a_run_that_trains_goes_on_with_those_that_are_left() {
    let mut supervisor = two().with_restarts(0);
    supervisor.on(Input::Stepped, START);
    let said = supervisor.on(exited(1, Exit::Signal(9)), START);
    assert!(
        matches!(&said[..], [Action::Say(sentence)] if sentence.ends_with("the run goes on with 1 rank")),
        "{said:?}"
    );
    assert_eq!(supervisor.on(Input::Clock, LATER), []);
    supervisor.on(ended(Outcome::Completed, "done"), LATER);
    supervisor.on(exited(0, Exit::Code(0)), LATER);
    assert_eq!(supervisor.verdict(LATER), Some(Verdict::Completed));
    let mut fixed = two();
    fixed.on(Input::Stepped, START);
    fixed.on(exited(1, Exit::Signal(9)), START);
    assert!(fixed.on(Input::Clock, LATER).contains(&Action::KillAll));
}
