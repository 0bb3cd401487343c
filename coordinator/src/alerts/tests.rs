//! When each alert begins and ends, from the numbers alone.

use lockstep_proto::domain::JoinInfo;

use super::*;
use crate::dashboard::tests::step;

fn alerts() -> Alerts {
    Alerts::new(AlertsSection::default(), 0.0)
}

/// Steps of about this loss, a second each, from `from` on.
fn quiet(alerts: &mut Alerts, from: u64, steps: u64) {
    for number in from..from + steps {
        let loss = 3.0 + (number % 5) as f64 * 0.01;
        alerts.stepped(&with(number, loss), number as f64);
    }
}

fn with(number: u64, loss: f64) -> CommittedStep {
    CommittedStep {
        loss,
        step_ms: 1000.0,
        ..step(number)
    }
}

fn member(rank: u32, phase: &str, waits: bool) -> MemberStatus {
    MemberStatus {
        info: JoinInfo {
            member: format!("m{rank}"),
            host: "here".to_owned(),
            ..JoinInfo::default()
        },
        place: Some((rank, rank..rank + 1)),
        reported_step: 1,
        phase: phase.to_owned(),
        transports: Vec::new(),
        waits,
    }
}

fn glance(now: f64, members: &[MemberStatus]) -> Glance<'_> {
    Glance {
        now,
        phase: "training",
        reason: "step 8 of 10",
        members,
        ..Glance::default()
    }
}

fn words(alerts: &Alerts) -> Vec<String> {
    alerts.raised().into_iter().map(|alert| alert.kind).collect()
}

#[test]
fn a_loss_far_beyond_its_spread_is_a_spike_until_ten_good_steps_have_followed() {
    let mut alerts = alerts();
    quiet(&mut alerts, 1, 40);
    assert!(words(&alerts).is_empty());
    alerts.stepped(&with(41, 3.4), 41.0);
    let raised = alerts.raised();
    assert_eq!((raised[0].kind.as_str(), raised[0].since), ("spike", 41.0));
    assert!(
        raised[0].sentence.starts_with("the loss of step 41 is 3.4000, "),
        "{}",
        raised[0].sentence
    );
    quiet(&mut alerts, 42, 9);
    assert_eq!(words(&alerts), ["spike"]);
    quiet(&mut alerts, 51, 1);
    assert!(words(&alerts).is_empty());
    assert_eq!(alerts.all()[0].until, Some(51.0));
    let news: Vec<bool> = alerts.take_news().iter().map(|alert| alert.until.is_some()).collect();
    assert_eq!(news, [false, true], "one raised, one cleared, each told once");
    assert!(alerts.take_news().is_empty());
}

#[test]
fn a_loss_that_falls_fast_or_has_no_spread_yet_is_no_spike_and_one_that_is_no_number_is() {
    let mut alerts = alerts();
    for number in 1..=60 {
        alerts.stepped(&with(number, 10.0 / number as f64), number as f64);
    }
    assert!(words(&alerts).is_empty());
    alerts.stepped(&with(61, f64::NAN), 61.0);
    assert!(alerts.raised()[0].sentence.contains("the loss of step 61 is NaN"));
    quiet(&mut alerts, 62, 3);
    let mut fresh = self::alerts();
    fresh.stepped(&with(1, 3.0), 1.0);
    fresh.stepped(&with(2, 300.0), 2.0);
    assert!(words(&fresh).is_empty(), "two steps are no spread");
}

#[test]
fn a_skipped_step_is_told_with_its_reason() {
    let mut alerts = alerts();
    let skipped = CommittedStep {
        skipped: Some("its gradient is infinite".to_owned()),
        ..with(1, f64::NAN)
    };
    alerts.stepped(&skipped, 1.0);
    assert_eq!(
        alerts.raised()[0].sentence,
        "step 1 was skipped: its gradient is infinite"
    );
}

#[test]
fn a_run_stalls_after_ten_usual_steps_but_not_while_it_is_paused_or_validates() {
    let mut alerts = alerts();
    for number in 1..=20 {
        alerts.stepped(
            &CommittedStep {
                step_ms: 10_000.0,
                ..with(number, 3.0)
            },
            number as f64 * 10.0,
        );
    }
    alerts.look(&glance(299.0, &[]));
    assert!(words(&alerts).is_empty(), "a step takes 10 s, so 99 s are no stall");
    let validating = [member(0, "validation", false)];
    alerts.look(&glance(400.0, &validating));
    alerts.look(&Glance {
        phase: "paused",
        ..glance(400.0, &[])
    });
    assert!(words(&alerts).is_empty());
    alerts.look(&glance(401.0, &[]));
    assert_eq!(
        alerts.raised()[0].sentence,
        "no step was committed for 201 s, and one usually takes 10.0 s: step 8 of 10"
    );
    alerts.stepped(&with(21, 3.0), 402.0);
    alerts.look(&glance(403.0, &[]));
    assert!(words(&alerts).is_empty());
}

#[test]
fn a_run_that_never_makes_a_step_stalls_after_a_minute() {
    let mut alerts = alerts();
    alerts.look(&Glance {
        phase: "waiting-for-members",
        reason: "1 of 2 members",
        ..glance(59.0, &[])
    });
    assert!(words(&alerts).is_empty());
    alerts.look(&Glance {
        phase: "waiting-for-members",
        reason: "1 of 2 members",
        ..glance(61.0, &[])
    });
    assert_eq!(
        alerts.raised()[0].sentence,
        "no step was committed for 61 s: 1 of 2 members"
    );
}

#[test]
fn a_rank_for_which_its_peers_wait_is_named_with_the_phase_in_which_it_is_slow() {
    let mut alerts = alerts();
    // Of four looks, the slow rank is in backward in three; its peers in one, and wait in two.
    let slow = |turn: usize| member(1, ["backward", "backward", "backward", "forward"][turn], false);
    let fast = |rank: u32, turn: usize| {
        let (phase, waits) = [
            ("forward", false),
            ("backward", false),
            ("reduce", true),
            ("reduce", true),
        ][turn];
        member(rank, phase, waits)
    };
    for look in 0..60_usize {
        let turn = look % 4;
        let members = [fast(0, turn), slow(turn), fast(2, turn)];
        alerts.look(&glance(look as f64 / 2.0, &members));
    }
    let raised = alerts.raised();
    assert_eq!(raised.len(), 1, "{raised:?}");
    assert_eq!(
        (raised[0].kind.as_str(), raised[0].about.as_str()),
        ("straggler", "rank 1")
    );
    assert!(
        raised[0]
            .sentence
            .starts_with("rank 1 (m1 on here) is slower than its peers in backward: it spends 50 % more"),
        "{}",
        raised[0].sentence
    );
    let shares = alerts.peers().shares("m0");
    assert_eq!(shares[0], ("reduce".to_owned(), 0.5, 0.5));
    // It recovers: after a minute nothing is left of it.
    for look in 60..200_usize {
        let turn = look % 4;
        let members = [fast(0, turn), fast(1, turn), fast(2, turn)];
        alerts.look(&glance(look as f64 / 2.0, &members));
    }
    assert!(
        alerts.raised().iter().all(|alert| alert.kind != "straggler"),
        "{:?}",
        alerts.raised()
    );
}

#[test]
fn equal_ranks_are_no_stragglers_however_much_they_wait() {
    let mut alerts = alerts();
    for look in 0..100_usize {
        let waits = look % 2 == 0;
        alerts.look(&glance(
            look as f64 / 2.0,
            &[member(0, "reduce", waits), member(1, "reduce", waits)],
        ));
    }
    assert!(alerts.raised().iter().all(|alert| alert.kind != "straggler"));
}

#[test]
fn the_rank_that_hangs_is_told_at_once() {
    let mut alerts = alerts();
    let waited_for = (
        "rank 1".to_owned(),
        "it has been in forward of step 7 for 4.0 s".to_owned(),
    );
    alerts.look(&Glance {
        waited_for: Some(&waited_for),
        ..glance(1.0, &[])
    });
    assert_eq!(
        alerts.raised()[0].sentence,
        "the others wait for rank 1: it has been in forward of step 7 for 4.0 s"
    );
    alerts.look(&glance(2.0, &[]));
    assert!(words(&alerts).is_empty());
}

#[test]
fn slow_data_is_told_when_it_lasts_and_cleared_well_below() {
    let mut alerts = alerts();
    let waiting = |number: u64, ms: f64| CommittedStep {
        phases: vec![("data_ms".to_owned(), ms)],
        ..with(number, 3.0)
    };
    for number in 1..=60 {
        alerts.stepped(&waiting(number, 50.0), number as f64);
    }
    alerts.stepped(&waiting(61, 600.0), 61.0);
    assert!(words(&alerts).is_empty(), "one late batch is no slow data");
    for number in 62..=100 {
        alerts.stepped(&waiting(number, 300.0), number as f64);
    }
    assert_eq!(words(&alerts), ["slow-data"]);
    for number in 101..=103 {
        alerts.stepped(&waiting(number, 100.0), number as f64);
    }
    assert_eq!(words(&alerts), ["slow-data"], "between good and bad it stays");
    for number in 104..=200 {
        alerts.stepped(&waiting(number, 50.0), number as f64);
    }
    assert!(words(&alerts).is_empty());
}

#[test]
fn disk_and_certificate_are_told_in_time_and_cleared_with_a_margin() {
    let mut alerts = alerts();
    let disk = |free| Glance {
        free_mib: Some(free),
        ..glance(1.0, &[])
    };
    alerts.look(&disk(1023));
    assert!(alerts.raised()[0].sentence.contains("1023 MiB left"));
    alerts.look(&disk(1100));
    assert_eq!(words(&alerts), ["disk"]);
    alerts.look(&disk(2000));
    assert!(words(&alerts).is_empty());
    let certificate = |days: f64| Glance {
        certificate_until: Some(1.0 + days * 86_400.0),
        ..glance(1.0, &[])
    };
    alerts.look(&certificate(13.5));
    assert_eq!(
        alerts.raised()[0].sentence,
        "the certificate expires in 13.5 days: renew it"
    );
    alerts.look(&certificate(365.0));
    assert!(words(&alerts).is_empty());
}

#[test]
fn what_happened_once_is_shown_for_a_while_and_the_end_clears_everything() {
    let mut alerts = alerts();
    alerts.happened(
        Kind::Drift,
        "rank 1",
        "the memory of rank 1 has changed".to_owned(),
        10.0,
    );
    alerts.look(&glance(20.0, &[]));
    assert_eq!(words(&alerts), ["drift"]);
    alerts.stepped(&with(1, 3.0), 999.0);
    alerts.look(&glance(1000.0, &[]));
    assert!(words(&alerts).is_empty());
    alerts.happened(Kind::Checkpoint, "", "the disk is full".to_owned(), 1001.0);
    alerts.went_well(Kind::Checkpoint, 1002.0);
    assert!(words(&alerts).is_empty());
    alerts.happened(Kind::Checkpoint, "", "the disk is full".to_owned(), 1003.0);
    alerts.ended(1004.0);
    assert!(words(&alerts).is_empty());
    assert_eq!(alerts.all().len(), 3);
}
