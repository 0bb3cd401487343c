//! What is kept, and taking the rest away: manifests first, then the parts that no manifest names, so that a crash in between
//! leaves garbage, which the next pass removes, and never a manifest without its parts.
//!
//! A pass belongs to whoever commits, and between checkpoints. What is younger than the grace stays even so: it may be the
//! part of a checkpoint that is still being written.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use object_store::{ObjectMeta, ObjectStoreExt};

use crate::error::CheckpointError;
use crate::hash::ContentHash;
use crate::manifest::CheckpointName;
use crate::part::part_file;
use crate::read::Reader;
use crate::store::Store;
use crate::verify::{Depth, Refused};

/// How long a part without a manifest stays, usually: longer than any checkpoint takes to write.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// So many of the newest; the newest one stays always.
    pub keep_last: usize,
    /// And every one whose step is a multiple of this; 0: none more.
    pub keep_every: u64,
    /// How old a part without a manifest must be to go: [`GRACE`], or less where nobody else can be writing.
    pub grace: Duration,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Checkpoints deleted, oldest first.
    pub checkpoints: Vec<CheckpointName>,
    /// Files deleted beside their manifests: parts, and what interrupted writes left.
    pub files: usize,
    /// Bytes of those files.
    pub bytes: u64,
    /// Checkpoints that are damaged or of an unknown version, and still there.
    pub refused: Vec<Refused>,
}

/// Which of `present` are to be deleted, oldest first: all but the newest `keep_last` (at least one) and, of each step that is
/// a multiple of `keep_every`, the newest.
pub fn to_delete(present: &[CheckpointName], keep_last: usize, keep_every: u64) -> Vec<CheckpointName> {
    let mut newest_first = present.to_vec();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    newest_first.dedup();
    let mut kept_steps = HashSet::new();
    let mut deleted: Vec<CheckpointName> = newest_first
        .into_iter()
        .enumerate()
        .filter(|(age, name)| {
            let milestone = keep_every > 0 && name.step.is_multiple_of(keep_every) && kept_steps.insert(name.step);
            *age >= keep_last.max(1) && !milestone
        })
        .map(|(_, name)| name)
        .collect();
    deleted.reverse();
    deleted
}

/// What a manifest turned out to be.
enum Found {
    /// Good as far as lengths tell.
    Whole(Reader),
    /// Readable, but its parts are not all there.
    Broken(Reader, String),
    /// Not readable; its parts are not known.
    Unreadable(CheckpointError),
}

impl Store {
    /// One pass; `counts` knows those that whoever commits relies on. Only they count among the newest and the milestones: a
    /// checkpoint whose commit was never acknowledged would else take the place of one that a run will want to go on from.
    /// Damaged ones do not count either. Both go when so many that count are newer. Those of an unknown version stay, and while
    /// there is a manifest that cannot be read, so do all parts.
    ///
    /// # Errors
    /// The store did not answer. What was done so far is sound, and the next pass does the rest.
    pub fn retain(
        &self,
        policy: &Retention,
        counts: impl Fn(&CheckpointName) -> bool,
    ) -> Result<Swept, CheckpointError> {
        let mut swept = Swept::default();
        let mut found = BTreeMap::new();
        for name in self.list()? {
            found.insert(name, self.look(name)?);
        }
        let whole: Vec<CheckpointName> = found
            .iter()
            .filter(|(name, manifest)| counts(name) && matches!(manifest, Found::Whole(_)))
            .map(|(name, _)| *name)
            .collect();
        let mut deleted = to_delete(&whole, policy.keep_last, policy.keep_every);
        let oldest_of_newest = whole.iter().rev().nth(policy.keep_last.max(1) - 1);
        deleted.extend(found.iter().filter_map(|(name, manifest)| {
            let is_of_no_use = match manifest {
                Found::Whole(_) => !counts(name),
                Found::Broken(..) => true,
                Found::Unreadable(error) => !matches!(error, CheckpointError::UnknownVersion { .. }),
            };
            (is_of_no_use && oldest_of_newest.is_some_and(|oldest| name < oldest)).then_some(*name)
        }));
        deleted.sort_unstable();
        for name in deleted {
            self.delete(&name.file())?;
            // Before a part goes, its manifest must be gone for good.
            self.flush(&name.file())?;
            self.remove_empty_folder(&name.file());
            found.remove(&name);
            swept.checkpoints.push(name);
        }
        self.sweep(policy.grace, found, &mut swept)?;
        Ok(swept)
    }

    fn look(&self, name: CheckpointName) -> Result<Found, CheckpointError> {
        let reader = match self.open_checkpoint(name) {
            Ok(reader) => reader,
            Err(error) if error.refuses() => return Ok(Found::Unreadable(error)),
            Err(error) => return Err(error),
        };
        match reader.verify(Depth::Lengths) {
            Ok(()) => Ok(Found::Whole(reader)),
            Err(error) if error.refuses() => Ok(Found::Broken(reader, error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Deletes old parts that no manifest names.
    fn sweep(
        &self,
        grace: Duration,
        mut found: BTreeMap<CheckpointName, Found>,
        swept: &mut Swept,
    ) -> Result<(), CheckpointError> {
        let files = self.files()?;
        // Manifests that came while this pass was on its way.
        let names = files
            .iter()
            .filter_map(|file| CheckpointName::from_file(file.location.as_ref()));
        for name in names {
            if let std::collections::btree_map::Entry::Vacant(place) = found.entry(name) {
                place.insert(self.look(name)?);
            }
        }
        let mut named = HashSet::new();
        let mut all_known = true;
        for (name, manifest) in found.into_iter().rev() {
            let reason = match manifest {
                Found::Whole(reader) => {
                    named.extend(reader.manifest().parts().iter().map(|part| part.file()));
                    continue;
                }
                Found::Broken(reader, reason) => {
                    named.extend(reader.manifest().parts().iter().map(|part| part.file()));
                    reason
                }
                Found::Unreadable(error) => {
                    all_known = false;
                    error.to_string()
                }
            };
            swept.refused.push(Refused { name, reason });
        }
        if all_known {
            for file in files.iter().filter(|file| is_part(file.location.as_ref())) {
                let name = file.location.as_ref();
                if !named.contains(name) && is_older(age_of(file), grace) {
                    self.delete(name)?;
                    swept.files += 1;
                    swept.bytes += file.size;
                }
            }
        }
        self.remove_leftovers(grace, swept)
    }

    fn delete(&self, file: &str) -> Result<(), CheckpointError> {
        match self.wait("delete", file, async || self.objects().delete(&file.into()).await) {
            // Deleted by a pass that was interrupted, or by somebody else.
            Err(CheckpointError::Missing { .. }) => Ok(()),
            // Not every S3 store says that a file which is gone already is gone.
            Err(_) if self.is_remote() && self.length(file).is_ok_and(|length| length.is_none()) => Ok(()),
            other => other,
        }
    }

    /// Removes the folder of a deleted manifest if nothing is in it any more; leaving it harms nothing.
    fn remove_empty_folder(&self, file: &str) {
        if let Some(folder) = self
            .path()
            .and_then(|root| root.join(file).parent().map(Path::to_owned))
        {
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// Removes from a folder what interrupted writes left beside the places of their files: `NAME#1` and the like, which
    /// no listing shows.
    fn remove_leftovers(&self, grace: Duration, swept: &mut Swept) -> Result<(), CheckpointError> {
        let Some(root) = self.path() else {
            return Ok(());
        };
        let failed = |doing, path: &Path, error: std::io::Error| CheckpointError::Store {
            store: self.name().to_owned(),
            doing,
            file: path.display().to_string(),
            cause: error.to_string(),
            advice: "See who may write to the folder",
        };
        for folder in children(root).map_err(|e| failed("list", root, e))? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !folder.is_dir() || !(name == "parts" || name.starts_with("step-")) {
                continue;
            }
            for path in children(&folder).map_err(|e| failed("list", &folder, e))? {
                let staged = path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains('#'));
                let Ok(facts) = path.metadata() else { continue };
                let age = facts
                    .modified()
                    .ok()
                    .and_then(|t| SystemTime::now().duration_since(t).ok());
                if staged && is_older(age, grace) {
                    std::fs::remove_file(&path).map_err(|e| failed("delete", &path, e))?;
                    swept.files += 1;
                    swept.bytes += facts.len();
                }
            }
            if name.starts_with("step-") {
                // Succeeds where the write of a manifest was interrupted and nothing else is there.
                let _ = std::fs::remove_dir(&folder);
            }
        }
        Ok(())
    }
}

fn children(folder: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn is_part(file: &str) -> bool {
    let hash = file
        .strip_prefix("parts/")
        .and_then(|name| name.strip_suffix(".safetensors"))
        .and_then(ContentHash::from_hex);
    hash.is_some_and(|hash| part_file(&hash) == file)
}

fn age_of(file: &ObjectMeta) -> Option<Duration> {
    SystemTime::now().duration_since(file.last_modified.into()).ok()
}

/// A clock that runs behind makes a file come from the future: then it is young.
fn is_older(age: Option<Duration>, grace: Duration) -> bool {
    age.unwrap_or_default() >= grace
}
