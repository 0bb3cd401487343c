//! The same promises in an S3 store, behind a network that refuses, loses answers and dawdles.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bucket_double::Trouble;
use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mutilation::Victim;
use crate::s3_server::S3Server;
use crate::scene::{Scene, seed};

/// Slow answers come later than the client waits.
const TROUBLE: Trouble = Trouble {
    refused: 0.06,
    lost: 0.03,
    cut: 0.01,
    slow: 0.01,
    delay: Duration::from_millis(1500),
};

/// The client gives a request up before the server's slow answers come.
fn impatient() -> Limits {
    Limits {
        request: Duration::from_secs(1),
        ..Limits::default()
    }
}

#[test]
fn any_world_reads_what_any_other_wrote_through_a_bad_network() {
    let seed = seed("S3 round trips");
    let mut random = StdRng::seed_from_u64(seed);
    let server = S3Server::start(TROUBLE, seed);
    let store = server.store("runs/a run", impatient());
    for step in 0..8 {
        let scene = Scene::random(random.random());
        let (writers, readers) = (random.random_range(1..=5), random.random_range(1..=5));
        let name = scene.write(&store, step, writers, &mut random);
        let reader = store.open_checkpoint(name).unwrap();
        reader.verify_all().unwrap();
        scene.check(&reader, readers, &mut random);
    }
    // Large enough for many pieces.
    let tensors = vec![TensorEntry::new("large", &[7, 1 << 20], TensorKind::Other, &["master"])];
    let scene = Scene { seed, tensors };
    let name = scene.write(&store, 8, 1, &mut random);
    assert_eq!(store.list().unwrap()[0], name);
    let newest = store.newest_good(Depth::Bytes, |_| Ok(())).unwrap();
    scene.check(&newest.reader.unwrap(), 2, &mut random);
    let swept = store
        .retain(
            &Retention {
                keep_last: 2,
                keep_every: 3,
                grace: Duration::ZERO,
            },
            |_| true,
        )
        .unwrap();
    assert!(swept.refused.is_empty(), "{:?}", swept.refused);
    let steps: Vec<u64> = store.list().unwrap().iter().map(|name| name.step).collect();
    assert_eq!(steps, [8, 7, 6, 3, 0]);
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let troubles = server.troubles();
    println!(
        "{} requests, {} refused, {} answers lost, {} cut, {} slow",
        count(&troubles.requests),
        count(&troubles.refused),
        count(&troubles.lost),
        count(&troubles.cut),
        count(&troubles.slow)
    );
    assert!(count(&troubles.refused) > 0 && count(&troubles.lost) > 0);
}

#[test]
fn no_mutilated_checkpoint_is_loaded_from_a_bad_network() {
    let seed = seed("S3 mutilations");
    let mut random = StdRng::seed_from_u64(seed);
    let server = S3Server::start(Trouble { slow: 0.0, ..TROUBLE }, seed);
    let store = server.store("runs/b", impatient());
    let victim = Victim::new(store, &server.folder("runs/b"), &mut random);
    for _ in 0..30 {
        victim.round(&mut random);
    }
}

#[test]
fn of_two_that_commit_the_same_name_one_is_refused() {
    let server = S3Server::start(Trouble::default(), 0);
    let scene = Scene::random(31);
    let stores = [0, 1].map(|_| server.store("c", impatient()));
    let parts = scene.write_parts(&stores[0], 1, 2, &mut StdRng::seed_from_u64(31));
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = stores
            .iter()
            .zip([1, 2])
            .map(|(store, cursor)| {
                let mut run = scene.run(1, 1, 1);
                run.cursor = cursor;
                let manifest = Manifest::new(run, scene.tensors.clone(), parts.clone()).unwrap();
                scope.spawn(move || store.commit(&manifest).map(|_| cursor))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let won: Vec<_> = outcomes.iter().flatten().collect();
    let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!((won.len(), lost.len()), (1, 1), "{outcomes:?}");
    assert!(matches!(lost[0], CheckpointError::Exists { .. }), "{}", lost[0]);
    let name = stores[0].list().unwrap()[0];
    assert_eq!(
        stores[1].open_checkpoint(name).unwrap().manifest().run().cursor,
        *won[0]
    );
}

#[test]
fn wrong_credentials_are_an_error_that_names_the_store() {
    let server = S3Server::start(Trouble::default(), 0);
    let store = server.store_with("another", "d", impatient());
    let error = store.list().unwrap_err();
    assert!(matches!(error, CheckpointError::Store { .. }));
    let text = error.to_string();
    assert!(
        text.contains("s3://bucket/d") && text.contains("SignatureDoesNotMatch"),
        "{text}"
    );
}

#[test]
fn a_server_that_never_answers_meets_the_deadline() {
    let server = S3Server::start(
        Trouble {
            slow: 1.0,
            delay: TROUBLE.delay,
            ..Trouble::default()
        },
        0,
    );
    let limits = Limits {
        request: Duration::from_millis(300),
        call: Duration::from_millis(900),
        ..Limits::default()
    };
    let error = server.store("e", limits).list().unwrap_err().to_string();
    assert!(error.contains("took longer than 0.9 s"), "{error}");
}
