//! A real writer is killed with SIGKILL at random moments. Whatever the moment, there is a good checkpoint to resume from,
//! at least the last one that was announced, and a retention pass takes away what the writer left.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::scene::{Scene, seed};

const FOLDER: &str = "CHECKPOINT_WRITER_FOLDER";
const STEP: &str = "CHECKPOINT_WRITER_STEP";
const KEEP: Retention = Retention {
    keep_last: 2,
    keep_every: 0,
    grace: Duration::ZERO,
};

fn scene() -> Scene {
    let tensors = vec![
        TensorEntry::new("hidden", &[96, 64], TensorKind::Hidden, &["master", "momentum"]),
        TensorEntry::new("other", &[5, BLOCK - 7], TensorKind::Other, &["master", "second"]),
    ];
    Scene { seed: 11, tensors }
}

/// The writer, as which this test binary is started: a checkpoint a step, until it is killed.
#[test]
#[ignore = "is started by the test below, and ends when it is killed"]
fn writer_process() {
    let folder = std::env::var_os(FOLDER).expect("it is started by another test");
    let store = Store::folder(Path::new(&folder), Limits::default()).unwrap();
    let first: u64 = std::env::var(STEP).unwrap().parse().unwrap();
    for step in first.. {
        let name = scene().write(&store, step, 2, &mut StdRng::seed_from_u64(step));
        // Straight to the descriptor: the test harness holds back what is printed.
        writeln!(std::io::stderr(), "committed {}", name.step).unwrap();
        store.retain(&KEEP, |_| true).unwrap();
    }
}

/// The writer's process, which ends with its value: by SIGKILL.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Every file under a folder, by its path inside.
fn files(folder: &Path) -> BTreeSet<String> {
    fn walk(root: &Path, folder: &Path, files: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                files.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_good_checkpoint() {
    let mut random = StdRng::seed_from_u64(seed("kills"));
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let mut committed = scene().write(&store, 1, 1, &mut random).step;
    let (mut leftovers, mut unannounced) = (0, 0);
    for round in 0..100 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::writer_process", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(STEP, (committed + 1).to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut writer = Writer(child);
        // Two in three rounds wait for a sign of life, so that slow machines see kills in the middle of the work.
        let mut lines = BufReader::new(writer.0.stderr.take().unwrap()).lines();
        let announced = |line: std::io::Result<String>| -> Option<u64> {
            line.ok()?.split_once("committed ")?.1.trim().parse().ok()
        };
        if round % 3 > 0 {
            committed = lines.by_ref().find_map(announced).expect("the writer wrote nothing");
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..60_000)));
        drop(writer);
        committed = lines.filter_map(announced).last().unwrap_or(committed);

        let newest = store.newest_good(Depth::Bytes, |_| Ok(())).unwrap();
        assert!(newest.refused.is_empty(), "{:?}", newest.refused);
        let reader = newest.reader.unwrap();
        assert!(
            reader.name().step >= committed,
            "step {committed} was announced, {} is the newest",
            reader.name()
        );
        scene().check(&reader, 3, &mut random);
        unannounced += u32::from(reader.name().step > committed);
        committed = reader.name().step;

        let swept = store.retain(&KEEP, |_| true).unwrap();
        leftovers += swept.files;
        let kept = store.list().unwrap();
        assert!(kept.len() <= 2 && kept[0].step == committed);
        let mut expected = BTreeSet::new();
        for name in kept {
            let reader = store.open_checkpoint(name).unwrap();
            reader.verify_all().unwrap();
            expected.insert(name.file());
            expected.extend(reader.manifest().parts().iter().map(PartEntry::file));
        }
        assert_eq!(files(folder.path()), expected);
    }
    println!("{committed} checkpoints, {leftovers} files swept, {unannounced} commits that were not announced");
    // Else the kills came at no moment that matters.
    assert!(leftovers > 0);
}
