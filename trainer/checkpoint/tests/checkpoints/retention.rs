//! What is kept, what is deleted, and in which order.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::mutilation::Victim;
use crate::scene::{Scene, seed};

fn name(step: u64, term: u64) -> CheckpointName {
    CheckpointName {
        term,
        generation: 1,
        step,
    }
}

fn policy(keep_last: usize, keep_every: u64) -> Retention {
    Retention {
        keep_last,
        keep_every,
        grace: Duration::ZERO,
    }
}

#[test]
fn the_last_ones_and_the_milestones_stay() {
    let steps = |names: Vec<CheckpointName>| names.iter().map(|name| name.step).collect::<Vec<_>>();
    let present: Vec<CheckpointName> = (1..=10).map(|n| name(n * 10, 1)).collect();
    assert_eq!(steps(to_delete(&present, 3, 0)), [10, 20, 30, 40, 50, 60, 70]);
    assert_eq!(steps(to_delete(&present, 3, 40)), [10, 20, 30, 50, 60, 70]);
    assert_eq!(steps(to_delete(&present, 0, 0)).len(), 9, "the newest stays always");
    assert_eq!(steps(to_delete(&present, 20, 0)), [0; 0]);
    assert_eq!(to_delete(&[], 1, 1), []);
    // Step 40 was done again after a rewind: the one of the closed branch is no milestone.
    let again = [name(40, 1), name(50, 1), name(40, 2), name(50, 2)];
    assert_eq!(to_delete(&again, 1, 40), [name(40, 1), name(50, 1)]);
}

#[test]
fn for_any_set_of_checkpoints_the_rules_hold() {
    let mut random = StdRng::seed_from_u64(seed("retention"));
    for _ in 0..1000 {
        let present: Vec<CheckpointName> = (0..random.random_range(0..30))
            .map(|_| name(random.random_range(0..40), random.random_range(1..4)))
            .collect();
        let (last, every) = (random.random_range(0..6), random.random_range(0..7));
        let deleted = to_delete(&present, last, every);
        let distinct: HashSet<_> = present.iter().copied().collect();
        let gone: HashSet<_> = deleted.iter().copied().collect();
        assert_eq!(gone.len(), deleted.len());
        assert!(gone.is_subset(&distinct) && deleted.is_sorted());
        let mut kept: Vec<_> = distinct.difference(&gone).copied().collect();
        kept.sort();
        assert!(kept.len() >= distinct.len().min(last.max(1)));
        let mut newest: Vec<_> = distinct.iter().copied().collect();
        newest.sort();
        assert!(newest.iter().rev().take(last.max(1)).all(|name| kept.contains(name)));
        let step_is_kept = |step| kept.iter().any(|name| name.step == step);
        assert!(
            distinct
                .iter()
                .all(|name| every == 0 || name.step % every > 0 || step_is_kept(name.step))
        );
        // What stays, stays: a second pass deletes nothing.
        assert_eq!(to_delete(&kept, last, every), []);
    }
}

#[test]
fn a_pass_deletes_manifests_and_the_parts_that_nobody_else_names() {
    let scene = Scene::random(21);
    let mut random = StdRng::seed_from_u64(21);
    for store in [
        Store::memory(Limits::default()).unwrap(),
        Store::folder(&tempfile::tempdir().unwrap().keep(), Limits::default()).unwrap(),
    ] {
        for step in 1..=6 {
            scene.write(&store, step, 2, &mut random);
        }
        // The parts of step 6 again, under a later term: shared by two manifests.
        let shared = store.open_checkpoint(name(6, 1)).unwrap();
        let again = Manifest::new(
            scene.run(6, 2, 1),
            scene.tensors.clone(),
            shared.manifest().parts().to_vec(),
        )
        .unwrap();
        store.commit(&again).unwrap();
        // Parts of a checkpoint that was never committed.
        let orphans = scene.write_parts(&store, 7, 2, &mut random);
        let young = store
            .retain(
                &Retention {
                    grace: GRACE,
                    ..policy(1, 3)
                },
                |_| true,
            )
            .unwrap();
        assert_eq!(
            young.checkpoints.iter().map(|name| name.step).collect::<Vec<_>>(),
            [1, 2, 4, 5, 6]
        );
        assert_eq!(young.files, 0, "what is young may be in the making");
        let swept = store.retain(&policy(1, 3), |_| true).unwrap();
        assert!(swept.checkpoints.is_empty() && swept.files > 0 && swept.bytes > 0);
        assert_eq!(store.list().unwrap(), [name(6, 2), name(3, 1)]);
        for kept in store.list().unwrap() {
            let reader = store.open_checkpoint(kept).unwrap();
            reader.verify_all().unwrap();
            scene.check(&reader, 4, &mut random);
        }
        assert!(orphans.iter().all(|part| store.part_bytes(part).is_err()));
        assert_eq!(store.retain(&policy(1, 3), |_| true).unwrap().files, 0);
        if store.name() != "memory" {
            fs::remove_dir_all(store.name()).unwrap();
        }
    }
}

#[test]
fn damaged_ones_do_not_count_and_unknown_ones_protect_all_parts() {
    let mut random = StdRng::seed_from_u64(22);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let victim = Victim::new(store.clone(), folder.path(), &mut random);
    let manifest = |n: usize| folder.path().join(victim.readers[n].name().file());
    let parts = || fs::read_dir(folder.path().join("parts")).unwrap().count();
    let before = parts();

    // The newest has lost a part: the one before counts as the newest, and stays.
    fs::remove_file(folder.path().join(victim.readers[2].manifest().parts()[0].file())).unwrap();
    let swept = store.retain(&policy(1, 0), |_| true).unwrap();
    assert_eq!(swept.checkpoints, [victim.readers[0].name()]);
    assert_eq!(swept.refused.len(), 1);
    assert!(
        swept.refused[0].reason.contains("is missing from"),
        "{}",
        swept.refused[0].reason
    );
    assert!(store.newest_good(Depth::Bytes, |_| Ok(())).unwrap().reader.is_some());
    assert!(parts() < before);

    // A newer build's manifest: nothing of it is known, so no part goes.
    let orphans = victim.scene.write_parts(&store, 70, 2, &mut random);
    let text = fs::read_to_string(manifest(1)).unwrap();
    let newer = CheckpointName {
        step: 15,
        ..victim.readers[1].name()
    };
    fs::create_dir(folder.path().join("step-15")).unwrap();
    fs::write(
        folder.path().join(newer.file()),
        text.replacen("\"version\":1", "\"version\":9", 1),
    )
    .unwrap();
    let swept = store.retain(&policy(1, 0), |_| true).unwrap();
    assert!(swept.checkpoints.is_empty() && swept.files == 0);
    assert!(swept.refused.iter().any(|r| r.reason.contains("format version 9")));
    assert!(orphans.iter().all(|part| store.part_bytes(part).is_ok()));

    // A damaged manifest, once enough good ones are newer, goes, and with it what held the parts back.
    fs::write(folder.path().join(newer.file()), "{").unwrap();
    let swept = store.retain(&policy(1, 0), |_| true).unwrap();
    assert_eq!(swept.checkpoints, [newer]);
    assert!(swept.files > 0);
    assert!(orphans.iter().all(|part| store.part_bytes(part).is_err()));
}

#[test]
fn a_checkpoint_that_nobody_relies_on_takes_no_place_of_one_that_counts() {
    let mut random = StdRng::seed_from_u64(23);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let victim = Victim::new(store.clone(), folder.path(), &mut random);
    let [oldest, middle, newest] = [0, 1, 2].map(|n| victim.readers[n].name());

    // The newest was committed and its answer lost: the coordinator will go on from the two before.
    let swept = store.retain(&policy(2, 0), |name| *name != newest).unwrap();
    assert!(swept.checkpoints.is_empty() && swept.refused.is_empty());
    // It stays also where it is no milestone and one that counts is older.
    let swept = store.retain(&policy(1, 0), |name| *name != newest).unwrap();
    assert_eq!(swept.checkpoints, [oldest]);
    assert_eq!(store.list().unwrap(), [newest, middle]);

    // One that nobody relies on goes when so many that count are newer.
    let swept = store.retain(&policy(1, 0), |name| *name == newest).unwrap();
    assert_eq!(swept.checkpoints, [middle]);
    store.open_checkpoint(newest).unwrap().verify_all().unwrap();
}
