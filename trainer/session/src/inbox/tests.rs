//! Generations, aborts and terms that cross on the way.

use super::*;

fn stamp(term: u64, generation: u64) -> Stamp {
    Stamp { term, generation }
}

fn said(inbox: &Inbox, stamp: Stamp, body: CoordinatorBody) {
    let run_id = "run".to_owned();
    inbox.accept(FromCoordinator {
        header: Header { run_id, stamp },
        body,
    });
}

fn begins(inbox: &Inbox, stamp: Stamp) {
    let generation = Generation {
        stamp,
        members: Vec::new(),
        lanes: 4,
        resume: None,
        replay_through: 0,
        secret: [0; 32],
    };
    said(inbox, stamp, CoordinatorBody::Generation(generation));
}

fn is_aborted(inbox: &Inbox, stamp: Stamp) {
    let reason = "a rank was lost".to_owned();
    said(inbox, stamp, CoordinatorBody::Abort { reason });
}

fn leaves(inbox: &Inbox, stamp: Stamp) {
    let farewell = FromMember {
        header: Header {
            run_id: "run".to_owned(),
            stamp,
        },
        body: MemberBody::Stopped {
            step: 7,
            cause: None,
            parts: Vec::new(),
            checkpoint_is_bad: false,
            drifted: None,
            unusable: None,
        },
    };
    inbox.leave(stamp, farewell);
}

#[test]
fn the_abort_of_a_generation_that_was_left_is_not_heard_in_a_later_term_either() {
    for term in [1, 2] {
        let inbox = Inbox::new();
        begins(&inbox, stamp(1, 3));
        leaves(&inbox, stamp(1, 3));
        is_aborted(&inbox, stamp(term, 3));
        assert!(!inbox.abort.is_set(), "in term {term}");
        begins(&inbox, stamp(term, 4));
        assert_eq!(inbox.wait_for_generation(stamp(1, 3)).unwrap().stamp, stamp(term, 4));
        is_aborted(&inbox, stamp(term, 4));
        assert!(inbox.abort.is_set(), "the next one's is heard in term {term}");
    }
}

#[test]
fn a_generation_that_is_aborted_before_anybody_looked_at_it_is_still_taken_up() {
    let inbox = Inbox::new();
    begins(&inbox, stamp(1, 1));
    is_aborted(&inbox, stamp(1, 1));
    assert_eq!(inbox.wait_for_generation(Stamp::default()).unwrap().stamp, stamp(1, 1));
    let error = inbox.wait(None, "a plan", |state| state.take_plan(1)).unwrap_err();
    assert!(matches!(error, SessionError::Aborted { .. }), "{error}");
    leaves(&inbox, stamp(1, 1));
    assert!(!inbox.abort.is_set());
}

#[test]
fn a_run_that_is_over_gives_no_more_generations() {
    let inbox = Inbox::new();
    let reason = "all steps were made".to_owned();
    let outcome = lockstep_proto::domain::Outcome::Completed;
    said(&inbox, stamp(1, 1), CoordinatorBody::Release { outcome, reason });
    begins(&inbox, stamp(1, 2));
    let error = inbox.wait_for_generation(Stamp::default()).unwrap_err();
    assert!(matches!(error, SessionError::Released { .. }), "{error}");
}
