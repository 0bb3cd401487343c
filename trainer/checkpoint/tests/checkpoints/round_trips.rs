//! What one world writes, any other reads, bit for bit.

use std::sync::Arc;

use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::scene::{Scene, seed};

#[test]
fn any_world_reads_what_any_other_wrote() {
    let mut random = StdRng::seed_from_u64(seed("round trips"));
    let folder = tempfile::tempdir().unwrap();
    let on_disk = Store::folder(&folder.path().join("made/on the way#1"), Limits::default()).unwrap();
    let in_memory = Store::memory(Limits::default()).unwrap();
    for round in 0..60 {
        let scene = Scene::random(random.random());
        let store = if round % 2 == 0 { &on_disk } else { &in_memory };
        let (writers, readers) = (random.random_range(1..=9), random.random_range(1..=9));
        let name = scene.write(store, round, writers, &mut random);
        let reader = store.open_checkpoint(name).unwrap();
        assert_eq!(reader.manifest().run(), &scene.run(round, 1, 1));
        reader.verify_all().unwrap();
        scene.check(&reader, readers, &mut random);
    }
}

#[test]
fn the_newest_is_the_newest_in_the_life_of_the_run() {
    let scene = Scene::random(5);
    let mut random = StdRng::seed_from_u64(5);
    let store = Store::memory(Limits::default()).unwrap();
    let names = [(100, 1), (200, 1), (110, 2), (120, 2)]
        .map(|(step, term)| scene.write_in_term(&store, step, term, 2, &mut random));
    let mut newest_first = names;
    newest_first.reverse();
    assert_eq!(store.list().unwrap(), newest_first);
    let newest = store.newest_good(Depth::Bytes, |_| Ok(())).unwrap();
    assert_eq!(newest.reader.unwrap().name(), names[3]);
    let newest = store
        .newest_good(Depth::Bytes, |manifest| match manifest.run().term {
            2 => Err("is of a branch that is closed".to_owned()),
            _ => Ok(()),
        })
        .unwrap();
    assert_eq!(newest.reader.unwrap().name(), names[1]);
    assert_eq!(newest.refused.len(), 2);
    assert!(newest.refused[0].reason.contains("closed"));
}

#[test]
fn equal_content_is_one_part_and_is_not_written_again() {
    let scene = Scene::random(6);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let write = || scene.write_parts(&store, 1, 3, &mut StdRng::seed_from_u64(1));
    let first = write();
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("parts"))
            .unwrap()
            .map(|file| {
                let file = file.unwrap();
                (file.file_name(), file.metadata().unwrap().modified().unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let before = files();
    assert_eq!(write(), first);
    assert_eq!(files(), before, "a part that was there was written again");
    // A damaged one is no part that is there.
    let damaged = folder.path().join(first[0].file());
    let length = std::fs::metadata(&damaged).unwrap().len();
    std::fs::write(&damaged, vec![7; length as usize]).unwrap();
    assert_eq!(write(), first);
    assert_eq!(ContentHash::of(&std::fs::read(&damaged).unwrap()), first[0].hash);
}

#[test]
fn a_commit_is_refused_unless_every_block_is_there_once() {
    let mut random = StdRng::seed_from_u64(7);
    let tensors = vec![
        TensorEntry::new("hidden", &[8, 6], TensorKind::Hidden, &["master", "momentum"]),
        TensorEntry::new("other", &[3, BLOCK], TensorKind::Other, &["master"]),
    ];
    let scene = Scene { seed: 7, tensors };
    let store = Store::memory(Limits::default()).unwrap();
    let parts = scene.write_parts(&store, 1, 2, &mut random);
    let manifest =
        |tensors: &[TensorEntry], parts: Vec<PartEntry>| Manifest::new(scene.run(1, 1, 1), tensors.to_vec(), parts);
    let refused = |tensors: &[TensorEntry], parts: Vec<PartEntry>, words: &str| {
        let error = manifest(tensors, parts).unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("step 1"),
            "{words:?} is missing in: {error}"
        );
    };
    let full: Vec<PartEntry> = parts.iter().filter(|part| !part.blocks.is_empty()).cloned().collect();
    refused(&scene.tensors, full[1..].to_vec(), "");
    refused(
        &scene.tensors,
        [full.clone(), vec![full[0].clone()]].concat(),
        "is there twice",
    );
    refused(&scene.tensors[..1], full.clone(), "in no list of tensors");
    let twice = [scene.tensors.clone(), vec![scene.tensors[0].clone()]].concat();
    refused(&twice, full.clone(), "two tensors have the name");
    let mut larger = scene.tensors.clone();
    larger[1] = TensorEntry::new("other", &[4, BLOCK], TensorKind::Other, &["master"]);
    refused(&larger, full.clone(), "other/master[196608:262144] is in no part");
    larger[1] = TensorEntry::new("other", &[usize::MAX, 3], TensorKind::Other, &["master"]);
    refused(&larger, full.clone(), "blocks, and all parts together hold");
    let mut moved = full.clone();
    moved[0].blocks[0].offset += 4;
    refused(&scene.tensors, moved, "at byte");
    let mut cut = full.clone();
    cut[0].blocks[0].elements[1] -= 1;
    refused(&scene.tensors, cut, "");

    // A part that the store does not have.
    let elsewhere = Store::memory(Limits::default()).unwrap();
    let whole = manifest(&scene.tensors, full).unwrap();
    let error = elsewhere.commit(&whole).unwrap_err().to_string();
    assert!(error.contains("is not in memory"), "{error}");
    assert!(elsewhere.list().unwrap().is_empty());

    // The same again is no error, another one in its place is.
    let name = store.commit(&whole).unwrap();
    assert_eq!(store.commit(&whole).unwrap(), name);
    let mut values = scene.run(1, 1, 1);
    values.cursor += 1;
    let other = Manifest::new(values, scene.tensors.clone(), parts).unwrap();
    let error = store.commit(&other).unwrap_err();
    assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
    assert_eq!(store.open_checkpoint(name).unwrap().manifest().run().cursor, 32);
}

#[test]
fn what_fits_no_block_is_refused_before_it_is_written() {
    let tensor = TensorEntry::new("t", &[2 * BLOCK + 5], TensorKind::Other, &["master"]);
    let values = |n: usize| Arc::<[f32]>::from(vec![0.5; n]);
    let mut part = Part::new();
    part.add(&tensor, "master", BLOCK..2 * BLOCK, values(BLOCK)).unwrap();
    for (array, range, n, words) in [
        ("momentum", 0..BLOCK, BLOCK, "has no array"),
        ("master", 0..BLOCK - 1, BLOCK - 1, "borders of blocks"),
        ("master", 1..BLOCK, BLOCK - 1, "borders of blocks"),
        ("master", 2 * BLOCK..2 * BLOCK + 6, 6, "borders of blocks"),
        ("master", 0..0, 0, "borders of blocks"),
        ("master", 0..BLOCK, BLOCK - 1, "was given 65535 values"),
        ("master", 0..2 * BLOCK, 2 * BLOCK, "has some of it already"),
        ("master", BLOCK..2 * BLOCK, BLOCK, "has some of it already"),
    ] {
        let error = part.add(&tensor, array, range, values(n)).unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} is missing in: {error}");
    }
    part.add(&tensor, "master", 2 * BLOCK..2 * BLOCK + 5, values(5))
        .unwrap();
    part.add(&tensor, "master", 0..BLOCK, values(BLOCK)).unwrap();
    assert_eq!(part.seal().unwrap().entry().blocks.len(), 3);
}

#[test]
fn a_part_that_came_from_elsewhere_is_taken_only_whole() {
    let scene = Scene::random(8);
    let (here, there) = (
        Store::memory(Limits::default()).unwrap(),
        Store::memory(Limits::default()).unwrap(),
    );
    let mut random = StdRng::seed_from_u64(8);
    let entries = scene.write_parts(&here, 3, 2, &mut random);
    for entry in &entries {
        let bytes = here.part_bytes(entry).unwrap();
        let mut torn = bytes.to_vec();
        torn.pop();
        assert!(there.adopt(entry, torn.into()).is_err());
        there.adopt(entry, bytes).unwrap();
    }
    let manifest = Manifest::new(scene.run(3, 1, 1), scene.tensors.clone(), entries).unwrap();
    let name = there.commit(&manifest).unwrap();
    scene.check(&there.open_checkpoint(name).unwrap(), 3, &mut random);
}

#[test]
fn ranges_and_names_that_are_not_there_are_named() {
    let scene = Scene {
        seed: 9,
        tensors: vec![TensorEntry::new("w", &[10], TensorKind::Other, &["master", "momentum"])],
    };
    let store = Store::memory(Limits::default()).unwrap();
    let name = scene.write(&store, 1, 1, &mut StdRng::seed_from_u64(9));
    let reader = store.open_checkpoint(name).unwrap();
    for (tensor, array, range, words) in [
        ("v", "master", 0..1, "has no tensor \"v\""),
        ("w", "second", 0..1, "it has master, momentum"),
        ("w", "master", 5..11, "elements 5..11 of w/master, which has 10"),
        ("w", "master", 0..2, "into 1 places"),
    ] {
        let error = reader.read(tensor, array, range, &mut [0.0]).unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} is missing in: {error}");
    }
    let text = inspect(&reader).to_string();
    for words in [
        "step-1/term-1-generation-1",
        "w [10] other: master [10], momentum [10]",
        "momo.h",
    ] {
        assert!(text.contains(words), "{words:?} is missing in:\n{text}");
    }
    assert_eq!(serde_json::to_value(inspect(&reader)).unwrap()["parameters"], 10);
}

#[test]
fn addresses_that_are_no_stores_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    let plain = ("AWS_ENDPOINT".to_owned(), "http://localhost:9".to_owned());
    for (location, words) in [
        ("gs://bucket/x", "gs:// is not known"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://bucket/prefix", "AWS_ALLOW_HTTP"),
        (file, "folder that can be written to"),
    ] {
        let error = Store::open_with(location, Limits::default(), [plain.clone()])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(words) && error.contains(location),
            "{words:?} is missing in: {error}"
        );
    }
}
