//! Where the checkpoints of the run lie: a folder, on a small disk of its own where one shall be full. Checkpoints are found
//! and damaged here.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::chaos::network::set;
use crate::chaos::schedule::Dice;
use crate::failure::{Failure, on_path};

/// The store's folder in the place of the run.
pub(super) const STORE: &str = "checkpoints";
/// What fills the disk.
const FILLER: &str = "filler";
/// Room for many times what is kept.
const SIZE: &str = "32m";

/// The store; its disk is taken away when this is dropped.
pub(super) struct Store {
    folder: PathBuf,
    is_disk: bool,
}

impl Store {
    pub(super) fn new(place: &Path, is_disk: bool) -> Result<Store, Failure> {
        let folder = place.join(STORE);
        fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
        if is_disk {
            set(
                "mount",
                &format!("-t tmpfs -o size={SIZE} lockstep-chaos {}", folder.display()),
            )?;
        }
        Ok(Store { folder, is_disk })
    }

    pub(super) fn has_one(&self) -> Result<bool, Failure> {
        Ok(self.newest()?.is_some())
    }

    /// The manifest of the checkpoint that would be loaded.
    fn newest(&self) -> Result<Option<PathBuf>, Failure> {
        let mut newest = None;
        for step in entries(&self.folder)? {
            let name = step.file_name().unwrap_or_default().to_string_lossy();
            let Some(Ok(number)) = name.strip_prefix("step-").map(str::parse::<u64>) else {
                continue;
            };
            for manifest in entries(&step)? {
                let is_manifest = manifest.extension().is_some_and(|end| end == "json");
                if is_manifest && newest.as_ref().is_none_or(|(step, _)| *step < number) {
                    newest = Some((number, manifest));
                }
            }
        }
        Ok(newest.map(|(_, manifest)| manifest))
    }

    /// Changes a byte of the newest manifest or of one of its parts, cuts the file short, or removes it.
    pub(super) fn damage_newest(&self, dice: &mut Dice) -> Result<(), Failure> {
        let Some(manifest) = self.newest()? else {
            return Ok(());
        };
        let text = fs::read_to_string(&manifest).map_err(on_path("read", &manifest))?;
        let parts: Vec<PathBuf> = entries(&self.folder.join("parts"))?
            .into_iter()
            .filter(|part| {
                part.file_stem()
                    .is_some_and(|hash| text.contains(&*hash.to_string_lossy()))
            })
            .collect();
        let victim = match parts.get(dice.below(parts.len() as u64 + 1) as usize) {
            Some(part) => part,
            None => &manifest,
        };
        let mut bytes = fs::read(victim).map_err(on_path("read", victim))?;
        let place = dice.below(bytes.len().max(1) as u64) as usize;
        match dice.below(3) {
            0 => return fs::remove_file(victim).map_err(on_path("remove", victim)),
            1 => bytes.truncate(place),
            _ => bytes[place] ^= 1 << dice.below(8),
        }
        fs::write(victim, bytes).map_err(on_path("write", victim))
    }

    /// Takes all the room that the disk has.
    pub(super) fn fill(&self) -> Result<(), Failure> {
        let path = self.folder.join(FILLER);
        let mut file = File::create(&path).map_err(on_path("create", &path))?;
        let mut bytes = vec![0; 1 << 20];
        while !bytes.is_empty() && self.is_disk {
            match file.write(&bytes) {
                Ok(_) => {}
                // The rest of the room is less than that.
                Err(error) if error.kind() == ErrorKind::StorageFull => bytes.truncate(bytes.len() / 2),
                Err(error) => return Err(on_path("write", &path)(error)),
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn free(&self) -> Result<(), Failure> {
        let path = self.folder.join(FILLER);
        fs::remove_file(&path).map_err(on_path("remove", &path))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.is_disk {
            // What is left is told at the end. Lazily: a process that was just killed may be in there still.
            let _gone = set("umount", &format!("--lazy {}", self.folder.display()));
        }
    }
}

/// Disks that are mounted in `folder`.
pub(super) fn left_disks(folder: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places
        .filter(|place| Path::new(place).starts_with(folder))
        .map(str::to_owned)
        .collect()
}

/// What lies in a folder; one that is not there has nothing in it.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(on_path("read", folder)(error)),
    };
    let mut paths = Vec::new();
    for entry in read {
        paths.push(entry.map_err(on_path("read", folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_two_checkpoints() -> (tempfile::TempDir, Store) {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path(), false).unwrap();
        assert!(!store.has_one().unwrap());
        fs::create_dir(store.folder.join("parts")).unwrap();
        for (step, part) in [(100, "aa"), (20, "bb")] {
            let folder = store.folder.join(format!("step-{step}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("term-1-generation-1.json"), format!("names {part}")).unwrap();
            fs::write(store.folder.join(format!("parts/{part}.safetensors")), part.repeat(40)).unwrap();
        }
        (place, store)
    }

    fn content(store: &Store) -> Vec<Option<Vec<u8>>> {
        let names = [
            "step-100/term-1-generation-1.json",
            "parts/aa.safetensors",
            "step-20/term-1-generation-1.json",
            "parts/bb.safetensors",
        ];
        names
            .iter()
            .map(|name| fs::read(store.folder.join(name)).ok())
            .collect()
    }

    #[test]
    fn a_file_of_the_newest_checkpoint_is_damaged_and_no_other() {
        let mut damaged = [false; 2];
        for seed in 0..40 {
            let (_place, store) = with_two_checkpoints();
            let before = content(&store);
            store.damage_newest(&mut Dice::new(seed)).unwrap();
            let after = content(&store);
            let changed: Vec<usize> = (0..4).filter(|index| before[*index] != after[*index]).collect();
            assert!(changed == [0] || changed == [1], "seed {seed}: {changed:?}");
            damaged[changed[0]] = true;
        }
        assert_eq!(damaged, [true; 2], "manifest and part have their turn");
    }
}
