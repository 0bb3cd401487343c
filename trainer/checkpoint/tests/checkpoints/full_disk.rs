//! A disk that is full in the middle of a part: the write is an error that names the store, the checkpoint before stands, and
//! nothing of the attempt stays.

use std::path::Path;
use std::process::Command;

use lockstep_checkpoint::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::scene::Scene;

const FOLDER: &str = "CHECKPOINT_FULL_DISK_FOLDER";

fn scene(elements: usize) -> Scene {
    Scene {
        seed: 12,
        tensors: vec![TensorEntry::new("w", &[elements], TensorKind::Other, &["master"])],
    }
}

fn part(scene: &Scene) -> Sealed<'static> {
    let elements = scene.tensors[0].arrays[0].elements();
    let mut part = Part::new();
    part.add(
        &scene.tensors[0],
        "master",
        0..elements,
        scene.values(2, 0, 0, 0..elements),
    )
    .unwrap();
    part.seal().unwrap()
}

/// Runs where no file may grow beyond a megabyte.
#[test]
#[ignore = "is started by the test below, under a limit"]
fn writer_on_a_full_disk() {
    let folder = std::env::var_os(FOLDER).expect("it is started by another test");
    let store = Store::folder(Path::new(&folder), Limits::default()).unwrap();
    // One goes in at once, the other in pieces.
    for elements in [500_000, 5_000_000] {
        let error = store.write(&part(&scene(elements))).unwrap_err();
        assert!(matches!(error, CheckpointError::Store { .. }), "{error}");
        let text = error.to_string();
        for words in [
            folder.to_str().unwrap(),
            "could not write parts/",
            "File too large",
            "disk is full",
        ] {
            assert!(text.contains(words), "{words:?} is missing in: {text}");
        }
    }
    std::fs::write(Path::new(&folder).join("refused"), b"both").unwrap();
}

#[test]
fn a_full_disk_refuses_the_part_and_the_checkpoint_before_stands() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let name = scene(1000).write(&store, 1, 1, &mut StdRng::seed_from_u64(1));
    // The shell sets the limit and keeps its signal away; both are inherited.
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk::writer_on_a_full_disk", "--ignored"])
        .env(FOLDER, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read(folder.path().join("refused")).unwrap(), b"both");

    let reader = store.newest_good(Depth::Bytes, |_| Ok(())).unwrap().reader.unwrap();
    assert_eq!(reader.name(), name);
    let parts: Vec<_> = std::fs::read_dir(folder.path().join("parts")).unwrap().collect();
    assert_eq!(parts.len(), 1, "the attempt left something: {parts:?}");
}
