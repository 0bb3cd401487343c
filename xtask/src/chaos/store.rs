//! Where the checkpoints of the run lie: a folder, on a small disk of its own where one shall be full, or a bucket of an S3
//! server, whose files lie in a folder too. Checkpoints are found and damaged here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::chaos::network::set;
use crate::chaos::process::Process;
use crate::chaos::schedule::Dice;
use crate::failure::{Failure, on_path};

/// The store's folder in the place of the run.
const STORE: &str = "checkpoints";
/// Where checkpoints lie in the bucket, and the bucket in its server.
const PREFIX: &str = "chaos";
const BUCKET: &str = "bucket";
/// What fills the disk.
const FILLER: &str = "filler";
/// Room for many times what is kept.
const SIZE: &str = "32m";
/// How long the server may take to serve.
const STARTING: Duration = Duration::from_secs(30);

/// The store; its disk is taken away when this is dropped, and its server ends.
pub(super) struct Store {
    /// Where its files lie.
    folder: PathBuf,
    is_disk: bool,
    bucket: Option<Process>,
    /// What its users need in their environment.
    variables: Vec<(String, String)>,
}

impl Store {
    pub(super) fn in_folder(place: &Path, is_disk: bool) -> Result<Store, Failure> {
        let folder = place.join(STORE);
        fs::create_dir_all(&folder).map_err(on_path("create", &folder))?;
        if is_disk {
            set(
                "mount",
                &format!("-t tmpfs -o size={SIZE} lockstep-chaos {}", folder.display()),
            )?;
        }
        Ok(Store {
            folder,
            is_disk,
            bucket: None,
            variables: Vec::new(),
        })
    }

    /// Starts an S3 server; `program` is `bucket-double`.
    pub(super) fn in_bucket(place: &Path, program: &Path, seed: u64) -> Result<Store, Failure> {
        let words = [program.display().to_string(), STORE.to_owned(), seed.to_string()];
        let mut bucket = Process::start("bucket", place, &words, &[])?;
        let since = Instant::now();
        loop {
            let said = bucket.log_since(0);
            if let Some((lines, _)) = said.split_once("\n\n") {
                let pair = |line: &str| {
                    line.split_once('=')
                        .map(|(name, value)| (name.to_owned(), value.to_owned()))
                };
                return Ok(Store {
                    folder: place.join(STORE).join(BUCKET).join(PREFIX),
                    is_disk: false,
                    bucket: Some(bucket),
                    variables: lines.lines().filter_map(pair).collect(),
                });
            }
            if bucket.ended()?.is_some() || since.elapsed() > STARTING {
                return Err(Failure::work(format!("the S3 server does not serve; it said: {said}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a config calls it.
    pub(super) fn location(&self) -> String {
        match self.bucket {
            None => STORE.to_owned(),
            Some(_) => format!("s3://{BUCKET}/{PREFIX}"),
        }
    }

    pub(super) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// What goes wrong with the server from now on, in the words of `bucket-double`.
    pub(super) fn trouble(&mut self, orders: &str) -> Result<(), Failure> {
        match &mut self.bucket {
            Some(bucket) => bucket.tell(orders),
            None => Err(Failure::work("the checkpoints of this run lie in no bucket")),
        }
    }

    /// The step of the newest checkpoint; 0: there is none.
    pub(super) fn newest_step(&self) -> Result<u64, Failure> {
        Ok(self.manifests()?.pop().map_or(0, |(step, _)| step))
    }

    pub(super) fn has_one(&self) -> Result<bool, Failure> {
        Ok(self.newest()?.is_some())
    }

    /// The manifest of the checkpoint that would be loaded.
    fn newest(&self) -> Result<Option<PathBuf>, Failure> {
        Ok(self.manifests()?.pop().map(|(_, manifest)| manifest))
    }

    /// All manifests with their steps, the newest last.
    fn manifests(&self) -> Result<Vec<(u64, PathBuf)>, Failure> {
        let mut manifests = Vec::new();
        for step in entries(&self.folder)? {
            let name = step.file_name().unwrap_or_default().to_string_lossy();
            let Some(Ok(number)) = name.strip_prefix("step-").map(str::parse::<u64>) else {
                continue;
            };
            let files = entries(&step)?.into_iter();
            manifests.extend(
                files
                    .filter(|file| file.extension().is_some_and(|end| end == "json"))
                    .map(|file| (number, file)),
            );
        }
        manifests.sort();
        Ok(manifests)
    }

    /// The files of parts that are there, also of those that are being written.
    pub(super) fn parts(&self) -> Result<BTreeSet<PathBuf>, Failure> {
        Ok(entries(&self.folder.join("parts"))?.into_iter().collect())
    }

    /// Those of `parts` that belong to no checkpoint: half of what is written, or the half of a checkpoint.
    pub(super) fn torn(&self, parts: &BTreeSet<PathBuf>) -> Result<Vec<String>, Failure> {
        let mut text = String::new();
        for (_, manifest) in self.manifests()? {
            text += &fs::read_to_string(&manifest).map_err(on_path("read", &manifest))?;
        }
        let names = parts
            .iter()
            .filter_map(|part| Some(part.file_name()?.to_string_lossy().into_owned()));
        let is_whole = |name: &str| {
            name.strip_suffix(".safetensors")
                .is_some_and(|hash| text.contains(hash))
        };
        Ok(names.filter(|name| !is_whole(name)).collect())
    }

    /// Changes a byte of the newest manifest or of one of its parts, cuts the file short, or removes it.
    pub(super) fn damage_newest(&self, dice: &mut Dice) -> Result<(), Failure> {
        let Some(manifest) = self.newest()? else {
            return Ok(());
        };
        let text = fs::read_to_string(&manifest).map_err(on_path("read", &manifest))?;
        let parts: Vec<PathBuf> = self
            .parts()?
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
        let store = Store::in_folder(place.path(), false).unwrap();
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

    #[test]
    fn parts_that_no_checkpoint_names_are_torn() {
        let (_place, store) = with_two_checkpoints();
        let had = store.parts().unwrap();
        assert!(store.torn(&had).unwrap().is_empty());
        for name in ["cc.safetensors", "aa.safetensors#1"] {
            fs::write(store.folder.join("parts").join(name), "half").unwrap();
        }
        let new = store.parts().unwrap().difference(&had).cloned().collect();
        assert_eq!(store.torn(&new).unwrap(), ["aa.safetensors#1", "cc.safetensors"]);
        assert_eq!(store.newest_step().unwrap(), 100);
    }
}
