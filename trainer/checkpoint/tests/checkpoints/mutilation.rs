//! Five hundred ways to damage a checkpoint: none is loaded, each is named, the one before is used.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_checkpoint::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::scene::{Scene, seed};

/// A store of three checkpoints with parts of several owners.
pub(crate) struct Victim {
    pub(crate) folder: PathBuf,
    pub(crate) store: Store,
    pub(crate) scene: Scene,
    /// Oldest first.
    pub(crate) readers: Vec<Reader>,
}

impl Victim {
    /// `store` keeps its files under `folder`.
    pub(crate) fn new(store: Store, folder: &Path, random: &mut StdRng) -> Victim {
        let scene = loop {
            let scene = Scene::random(random.random());
            let elements: usize = scene.tensors.iter().map(|t| t.arrays[0].elements()).sum();
            // Large enough for several owners, small enough for hundreds of rounds.
            if scene.tensors.len() > 2 && (1000..2 * BLOCK).contains(&elements) {
                break scene;
            }
        };
        let readers = loop {
            let names = [10, 20, 30].map(|step| scene.write(&store, step, 3, random));
            let readers = names.map(|name| store.open_checkpoint(name).unwrap());
            if readers.iter().all(|reader| reader.manifest().parts().len() > 1) {
                break readers;
            }
            fs::remove_dir_all(folder).unwrap();
            fs::create_dir_all(folder).unwrap();
        };
        Victim {
            folder: folder.to_owned(),
            store,
            scene,
            readers: readers.into(),
        }
    }

    /// Damages the newest checkpoint, looks, and mends it again.
    pub(crate) fn round(&self, random: &mut StdRng) -> &'static str {
        let part = |age: usize, random: &mut StdRng| {
            let reader = &self.readers[2 - age];
            reader.manifest().parts().choose(random).unwrap().file()
        };
        let manifest = |age: usize| self.readers[2 - age].name().file();
        let mut damage = Damage {
            folder: &self.folder,
            before: Vec::new(),
        };
        // What was done, which files the sentence may name, how many checkpoints fall.
        let victim = part(0, random);
        let (what, named, fallen) = match random.random_range(0..14) {
            0 => (damage.truncate(&victim, random), vec![victim], 1),
            1 => (damage.flip(&victim, random), vec![victim], 1),
            2 => (damage.append(&victim, random), vec![victim], 1),
            3 => (damage.zero_tail(&victim, random), vec![victim], 1),
            4 => (damage.remove(&victim), vec![victim], 1),
            5 => {
                let other = loop {
                    let other = part(0, random);
                    if other != victim {
                        break other;
                    }
                };
                (
                    damage.swap("swapped between ranks", &victim, &other),
                    vec![victim, other],
                    1,
                )
            }
            6 => {
                let other = part(1, random);
                (
                    damage.swap("swapped between steps", &victim, &other),
                    vec![victim, other],
                    2,
                )
            }
            7 => (
                damage.copy("older part in its place", &part(1, random), &victim),
                vec![victim],
                1,
            ),
            8 => (damage.truncate(&manifest(0), random), vec![manifest(0)], 1),
            9 => (
                damage.flip(&manifest(0), random),
                vec![manifest(0), "format version".to_owned()],
                1,
            ),
            10 => (
                damage.copy("older manifest in its place", &manifest(1), &manifest(0)),
                vec![manifest(0)],
                1,
            ),
            11 => (
                damage.swap("swapped manifests", &manifest(0), &manifest(1)),
                vec![manifest(0), manifest(1)],
                2,
            ),
            12 => (
                damage.edit(&manifest(0), random),
                vec![manifest(0), "format version".to_owned()],
                1,
            ),
            _ => (damage.append(&manifest(0), random), vec![manifest(0)], 1),
        };
        let newest = self.store.newest_good(Depth::Bytes, |_| Ok(())).unwrap();
        assert_eq!(
            newest.reader.unwrap().name().step,
            30 - 10 * fallen as u64,
            "after: {what}"
        );
        assert_eq!(newest.refused.len(), fallen, "after: {what}");
        for (refused, step) in newest.refused.iter().zip([30, 20]) {
            assert_eq!(refused.name.step, step);
            let reason = &refused.reason;
            assert!(
                named.iter().any(|name| reason.contains(name)),
                "{what}: {named:?} not in: {reason}"
            );
            assert!(reason.contains(&refused.name.to_string()), "{what}: {reason}");
        }
        // Without the look at every byte, reading says so.
        if let Ok(reader) = self.store.open_checkpoint(self.readers[2].name()) {
            let refusals = self.scene.refusals(&reader);
            // What lies before or behind the blocks is seen by the look at every byte alone.
            assert!(refusals > 0 || reader.verify_all().is_err(), "after: {what}");
        }
        damage.mend();
        what
    }
}

/// Files as they were.
struct Damage<'a> {
    folder: &'a Path,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Damage<'_> {
    fn take(&mut self, file: &str) -> (PathBuf, Vec<u8>) {
        let path = self.folder.join(file);
        let bytes = fs::read(&path).unwrap();
        self.before.push((path.clone(), bytes.clone()));
        (path, bytes)
    }

    fn truncate(&mut self, file: &str, random: &mut StdRng) -> &'static str {
        let (path, bytes) = self.take(file);
        fs::write(path, &bytes[..random.random_range(0..bytes.len())]).unwrap();
        "truncated"
    }

    fn flip(&mut self, file: &str, random: &mut StdRng) -> &'static str {
        let (path, mut bytes) = self.take(file);
        let at = random.random_range(0..bytes.len());
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(path, bytes).unwrap();
        "a bit flipped"
    }

    fn append(&mut self, file: &str, random: &mut StdRng) -> &'static str {
        let (path, mut bytes) = self.take(file);
        bytes.extend(vec![
            *[0, b' ', b'\n', 255].choose(random).unwrap();
            random.random_range(1..5000)
        ]);
        fs::write(path, bytes).unwrap();
        "longer"
    }

    fn zero_tail(&mut self, file: &str, random: &mut StdRng) -> &'static str {
        let (path, mut bytes) = self.take(file);
        let at = random.random_range(0..bytes.len() - 4);
        // Never what was there before.
        bytes[at..].fill(0);
        bytes[at] = 1;
        let old = &self.before[0].1;
        if &bytes == old {
            bytes[at] = 2;
        }
        fs::write(path, bytes).unwrap();
        "its tail was never written"
    }

    fn remove(&mut self, file: &str) -> &'static str {
        let (path, _) = self.take(file);
        fs::remove_file(path).unwrap();
        "removed"
    }

    fn swap(&mut self, what: &'static str, one: &str, other: &str) -> &'static str {
        let ((one, first), (other, second)) = (self.take(one), self.take(other));
        fs::write(one, second).unwrap();
        fs::write(other, first).unwrap();
        what
    }

    fn copy(&mut self, what: &'static str, from: &str, to: &str) -> &'static str {
        let (_, bytes) = self.take(from);
        let (to, _) = self.take(to);
        fs::write(to, bytes).unwrap();
        what
    }

    fn edit(&mut self, file: &str, random: &mut StdRng) -> &'static str {
        let (path, bytes) = self.take(file);
        let text = String::from_utf8(bytes).unwrap();
        let (what, from, to) = *[
            ("another version", "\"version\":1", "\"version\":2"),
            ("another cursor", "\"cursor\":960", "\"cursor\":961"),
            ("another step", "\"step\":30", "\"step\":29"),
            ("another term", "\"term\":1", "\"term\":2"),
            ("another format", "lockstep-checkpoint", "lockstep-Checkpoint"),
            ("another kind", "\"kind\":\"other\"", "\"kind\":\"hidden\""),
            ("one more key", "\"format\":", "\"more\":1,\"format\":"),
            ("a space", ",\"body\":", ", \"body\":"),
            ("a key twice", "\"version\":1", "\"version\":1,\"version\":1"),
        ]
        .choose(random)
        .unwrap();
        let edited = text.replacen(from, to, 1);
        if edited == text {
            // This scene has no such text; any other change will do.
            fs::write(path, text.replace("run-", "Run-")).unwrap();
            return "another run";
        }
        fs::write(path, edited).unwrap();
        what
    }

    fn mend(self) {
        for (path, bytes) in self.before {
            fs::write(path, bytes).unwrap();
        }
    }
}

#[test]
fn no_mutilated_checkpoint_is_loaded_and_the_one_before_is_used() {
    let mut random = StdRng::seed_from_u64(seed("mutilations"));
    let mut done = std::collections::BTreeMap::new();
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path(), Limits::default()).unwrap();
        let victim = Victim::new(store, folder.path(), &mut random);
        for _ in 0..100 {
            *done.entry(victim.round(&mut random)).or_insert(0) += 1;
        }
        // Mended, all is well again.
        for reader in &victim.readers {
            reader.verify_all().unwrap();
        }
    }
    println!("{done:?}");
    assert_eq!(done.values().sum::<i32>(), 500);
}

#[test]
fn with_nothing_good_there_is_nothing_and_every_reason() {
    let mut random = StdRng::seed_from_u64(1);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path(), Limits::default()).unwrap();
    let victim = Victim::new(store, folder.path(), &mut random);
    fs::remove_dir_all(folder.path().join("parts")).unwrap();
    // Neither a hint nor a file of another name is asked.
    fs::write(folder.path().join("latest"), victim.readers[2].name().file()).unwrap();
    fs::copy(
        folder.path().join(victim.readers[2].name().file()),
        folder.path().join("step-30/term-01-generation-1.json"),
    )
    .unwrap();
    for depth in [Depth::Lengths, Depth::Bytes] {
        let newest = victim.store.newest_good(depth, |_| Ok(())).unwrap();
        assert!(newest.reader.is_none());
        assert_eq!(newest.refused.len(), 3);
        for refused in newest.refused {
            assert!(refused.reason.contains("is missing from"), "{}", refused.reason);
        }
    }
}

#[test]
fn a_store_that_does_not_answer_is_no_reason_to_go_back() {
    let settings = [
        ("AWS_ENDPOINT", "http://127.0.0.1:9"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "here"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let limits = Limits {
        retrying: std::time::Duration::from_millis(300),
        ..Limits::default()
    };
    let store = Store::open_with("s3://bucket/run", limits, settings).unwrap();
    let error = store.newest_good(Depth::Bytes, |_| Ok(())).err().unwrap();
    assert!(!error.refuses());
    let text = error.to_string();
    assert!(
        text.contains("s3://bucket/run") && text.contains("credentials"),
        "{text}"
    );
}
