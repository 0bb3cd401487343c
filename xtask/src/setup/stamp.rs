//! The stamp: `setup.json` in a folder, such as `libtorch`, says which wheels a folder was made of and how long its libraries are. It is
//! written last, so a folder without it, or one that does not agree with it, is not complete.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::wheels::Selection;
use crate::failure::{Failure, on_path};

const FILE: &str = "setup.json";
const VERSION: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    version: u32,
    wheels: Vec<Pin>,
    libraries: Vec<Library>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pin {
    name: String,
    version: String,
    sha256: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Library {
    path: String,
    bytes: u64,
}

/// What is known about the folder of a selection.
#[derive(Debug, PartialEq)]
pub(crate) enum State {
    /// Nothing is there.
    Absent,
    /// The pinned wheels, whole.
    Complete,
    /// Something else, for the reason given.
    Unfinished(String),
}

/// Looks at `folder` and changes nothing.
pub(crate) fn state(selection: &Selection, folder: &Path) -> State {
    if folder.symlink_metadata().is_err() {
        return State::Absent;
    }
    let Ok(text) = fs::read_to_string(folder.join(FILE)) else {
        return State::Unfinished(format!("it has no {FILE}, so it was not finished"));
    };
    let Ok(stamp) = serde_json::from_str::<Stamp>(&text) else {
        return State::Unfinished(format!("its {FILE} cannot be read"));
    };
    if stamp.version != VERSION {
        return State::Unfinished(format!(
            "its {FILE} has version {}, and this is {VERSION}",
            stamp.version
        ));
    }
    if stamp.wheels != pins(selection) {
        return State::Unfinished("it was made of other wheels than those that are pinned now".into());
    }
    for library in &stamp.libraries {
        let length = fs::metadata(folder.join(&library.path))
            .map(|metadata| metadata.len())
            .ok();
        if length != Some(library.bytes) {
            return State::Unfinished(format!("{} is missing or has another length", library.path));
        }
    }
    State::Complete
}

/// Declares the folder whole, after its libraries have reached the disk.
pub(crate) fn write(selection: &Selection, folder: &Path) -> Result<(), Failure> {
    let mut libraries = Vec::new();
    for path in selection.essential {
        let full = folder.join(path);
        let file = File::open(&full).map_err(on_path("read", &full))?;
        file.sync_all().map_err(on_path("write", &full))?;
        let bytes = file.metadata().map_err(on_path("read", &full))?.len();
        libraries.push(Library {
            path: (*path).into(),
            bytes,
        });
    }
    let stamp = Stamp {
        version: VERSION,
        wheels: pins(selection),
        libraries,
    };
    let path = folder.join(FILE);
    let text = serde_json::to_string_pretty(&stamp)
        .map_err(|error| Failure::work(format!("{} cannot be written: {error}", path.display())))?;
    let mut file = File::create(&path).map_err(on_path("create", &path))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(on_path("write", &path))
}

fn pins(selection: &Selection) -> Vec<Pin> {
    selection
        .wheels
        .iter()
        .map(|wheel| Pin {
            name: wheel.name.into(),
            version: wheel.version.into(),
            sha256: wheel.sha256.into(),
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::wheels::LIBTORCH;
    use super::*;

    /// A folder that looks complete to [`state`].
    pub(crate) fn make_complete(libtorch: &Path) {
        for path in LIBTORCH.essential {
            let full = libtorch.join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, path).unwrap();
        }
        write(&LIBTORCH, libtorch).unwrap();
    }

    #[test]
    fn a_folder_is_complete_only_with_a_stamp_that_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let libtorch = folder.path().join("libtorch");
        assert_eq!(state(&LIBTORCH, &libtorch), State::Absent);
        make_complete(&libtorch);
        assert_eq!(state(&LIBTORCH, &libtorch), State::Complete);
        fs::remove_file(libtorch.join(FILE)).unwrap();
        assert!(matches!(state(&LIBTORCH, &libtorch), State::Unfinished(reason) if reason.contains("not finished")));
    }

    #[test]
    fn a_torn_library_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        make_complete(folder.path());
        fs::write(folder.path().join("torch/lib/libtorch_cpu.so"), "torn").unwrap();
        assert!(
            matches!(state(&LIBTORCH, folder.path()), State::Unfinished(reason) if reason.contains("libtorch_cpu.so"))
        );
    }

    #[test]
    fn other_pins_and_unknown_versions_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        make_complete(folder.path());
        let path = folder.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            good.replace(LIBTORCH.wheels[0].sha256, LIBTORCH.wheels[1].sha256),
        )
        .unwrap();
        assert!(
            matches!(state(&LIBTORCH, folder.path()), State::Unfinished(reason) if reason.contains("other wheels"))
        );
        fs::write(&path, good.replace("\"version\": 1", "\"version\": 99")).unwrap();
        assert!(matches!(state(&LIBTORCH, folder.path()), State::Unfinished(reason) if reason.contains("99")));
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(
            matches!(state(&LIBTORCH, folder.path()), State::Unfinished(reason) if reason.contains("cannot be read"))
        );
    }
}
