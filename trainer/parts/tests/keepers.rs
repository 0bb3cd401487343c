//! What keepers promise each other, over real servers on loopback.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lockstep_parts::{Keeper, Name, PartsError, token};

const PATIENCE: Duration = Duration::from_secs(20);

fn keeper() -> Keeper {
    Keeper::open(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap()
}

fn name(step: u64, part: u32) -> Name {
    Name {
        step,
        generation: 3,
        part,
    }
}

fn never() -> bool {
    false
}

fn address(keeper: &Keeper) -> String {
    keeper.address().to_string()
}

#[test]
fn a_part_of_any_length_comes_whole_and_with_its_hash() {
    let (owner, buddy) = (keeper(), keeper());
    let token = token(&[7; 32]);
    owner.admit(3, token);
    for (part, length) in [0usize, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 3]
        .into_iter()
        .enumerate()
    {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + at / 257) as u8).collect();
        let kept = owner.keep(name(8, part as u32), Arc::new(bytes.clone()));
        assert_eq!(kept.hash, *blake3::hash(&bytes).as_bytes());
        let asked = (&token, Some(kept.hash));
        let came = buddy.fetch(name(8, part as u32), &[address(&owner)], asked, PATIENCE, &never);
        assert!(*came.unwrap() == bytes, "{length} bytes");
    }
}

#[test]
fn a_part_that_is_still_being_made_is_waited_for() {
    let (owner, buddy) = (keeper(), keeper());
    let token = token(&[7; 32]);
    owner.admit(3, token);
    thread::scope(|scope| {
        let fetching = scope.spawn(|| buddy.fetch(name(9, 0), &[address(&owner)], (&token, None), PATIENCE, &never));
        thread::sleep(Duration::from_millis(100));
        owner.keep(name(9, 0), Arc::new(vec![1, 2, 3]));
        assert_eq!(*fetching.join().unwrap().unwrap(), [1, 2, 3]);
    });
}

#[test]
fn who_does_not_know_the_token_gets_nothing() {
    let (owner, stranger) = (keeper(), keeper());
    owner.admit(3, token(&[7; 32]));
    owner.keep(name(8, 0), Arc::new(vec![1]));
    for other in [token(&[8; 32]), [0; 32]] {
        let refusal = stranger.fetch(name(8, 0), &[address(&owner)], (&other, None), PATIENCE, &never);
        let sentence = refusal.unwrap_err().to_string();
        assert!(
            sentence.contains("part 0 of the snapshot of step 8") && sentence.contains("under that token"),
            "{sentence}"
        );
    }
}

#[test]
fn the_next_holder_is_asked_where_one_is_gone_or_holds_something_else() {
    let (owner, other, asker) = (keeper(), keeper(), keeper());
    let token = token(&[7; 32]);
    let gone = {
        let short_lived = keeper();
        address(&short_lived)
    };
    for keeper in [&owner, &other] {
        keeper.admit(3, token);
    }
    other.keep(name(8, 0), Arc::new(vec![9; 100]));
    let kept = owner.keep(name(8, 0), Arc::new(vec![1; 100]));
    let addresses = [gone.clone(), address(&other), address(&owner)];
    let asked = (&token, Some(kept.hash));
    assert_eq!(
        *asker.fetch(name(8, 0), &addresses, asked, PATIENCE, &never).unwrap(),
        [1; 100]
    );
    let sentence = asker
        .fetch(name(8, 0), &addresses[..2], asked, PATIENCE, &never)
        .unwrap_err()
        .to_string();
    assert!(
        sentence.contains(&gone) && sentence.contains("does not answer") && sentence.contains("another part"),
        "{sentence}"
    );
}

#[test]
fn what_is_kept_here_is_not_asked_for() {
    let owner = keeper();
    let kept = owner.keep(name(8, 0), Arc::new(vec![5]));
    let own = owner.fetch(name(8, 0), &[], (&[0; 32], Some(kept.hash)), PATIENCE, &never);
    assert_eq!(*own.unwrap(), [5]);
    let sentence = owner
        .fetch(name(8, 1), &[], (&[0; 32], None), PATIENCE, &never)
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("no member is known to hold it"), "{sentence}");
}

#[test]
fn an_end_of_the_generation_ends_a_wait() {
    let (owner, buddy) = (keeper(), keeper());
    let token = token(&[7; 32]);
    owner.admit(3, token);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let is_over = || over.load(Ordering::Relaxed);
            buddy.fetch(
                name(9, 0),
                &[address(&owner)],
                (&token, None),
                Duration::from_secs(600),
                &is_over,
            )
        });
        thread::sleep(Duration::from_millis(50));
        over.store(true, Ordering::Relaxed);
        assert!(matches!(fetching.join().unwrap(), Err(PartsError::Over)));
    });
}

#[test]
fn who_is_no_member_is_told_apart_from_one_that_holds_nothing() {
    let asker = keeper();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = [0; 64];
        let _heard = stream.read(&mut heard).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let refused = asker.fetch(
        name(1, 0),
        std::slice::from_ref(&address),
        (&[0; 32], None),
        PATIENCE,
        &never,
    );
    assert!(refused.unwrap_err().to_string().contains(&address));
    other.join().unwrap();
}

#[test]
fn older_parts_are_freed_and_the_newest_stay() {
    let owner = keeper();
    for step in [4, 8, 12] {
        owner.keep(name(step, 0), Arc::new(vec![0; 10]));
    }
    owner.free_before(8);
    assert_eq!(owner.bytes(), 20);
    let steps: Vec<u64> = owner.parts().into_iter().map(|part| part.step).collect();
    assert_eq!(steps, [8, 12]);
}
