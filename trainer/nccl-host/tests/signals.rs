//! Publishes and calls between communicators, where a rank leaves early.
#![allow(clippy::unwrap_used)]

use std::thread;
use std::time::Duration;

use nccl_host::{Aborter, Call, CallKind, Communicator, CommunicatorId, Error};

fn join(id: &CommunicatorId, rank: u32) -> Communicator {
    Communicator::connect(id, rank, 3, Duration::from_secs(30), &Aborter::new()).unwrap()
}

#[test]
fn a_rank_that_published_and_left_does_not_end_a_wait_for_the_others() {
    let id = CommunicatorId::new(&[1; 32], 4).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| join(&id, 1).signal().published(1));
        scope.spawn(|| {
            let mut late = join(&id, 2);
            // Several slices of rank 0's sleep, in each of which it sees that rank 1 is gone.
            thread::sleep(Duration::from_millis(60));
            late.signal().published(1);
            late.wait_published(1).unwrap();
        });
        let mut waiting = join(&id, 0);
        waiting.signal().published(1);
        waiting.wait_published(1).unwrap();
        // But what rank 1 has not given is missed, and the communicator is spent.
        assert!(matches!(
            waiting.wait_published(2).unwrap_err(),
            Error::PeerLeft { rank: 1 | 2, .. }
        ));
        let later = waiting.enter(Call::new(CallKind::Barrier, 0)).unwrap_err();
        assert!(later.to_string().contains("an earlier call failed: rank"), "{later}");
    });
}
