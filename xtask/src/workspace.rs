//! Where things are: the repository, the built programs, and a `cargo` with a clean environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;

/// The checkout that this command was started in.
pub(crate) struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// The folder with the programs that cargo builds, of which xtask itself is one.
    pub(crate) programs: PathBuf,
}

impl Workspace {
    /// Finds the repository from the current folder upwards.
    pub(crate) fn find() -> Result<Workspace, Failure> {
        let here = std::env::current_dir()
            .map_err(|error| Failure::work(format!("the current folder cannot be read: {error}")))?;
        let root = root_above(&here).ok_or_else(|| {
            Failure::input(format!(
                "neither {} nor a folder above it is the Lockstep repository; change into it and run the command again",
                here.display()
            ))
        })?;
        let me = std::env::current_exe()
            .map_err(|error| Failure::work(format!("the path of this program cannot be read: {error}")))?;
        let programs = me.parent().unwrap_or(&root).to_path_buf();
        Ok(Workspace { root, programs })
    }

    /// Where setup puts libtorch when the user has none.
    pub(crate) fn third_party(&self) -> PathBuf {
        self.root.join("third_party")
    }

    /// A program built by cargo beside xtask.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// `cargo` in the repository, without the variables that `cargo run` gave to xtask itself: they would make cargo
    /// believe that build scripts have to run again.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).env("LC_ALL", "C");
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_of_cargo_run) {
                command.env_remove(name);
            }
        }
        if self.user_libtorch().is_none() {
            command.env_remove("LIBTORCH");
        }
        command
    }

    /// The libtorch that the user has chosen with `LIBTORCH`; cargo's own config sets that variable too, to the place
    /// under `third_party`, which does not count.
    pub(crate) fn user_libtorch(&self) -> Option<PathBuf> {
        let chosen = PathBuf::from(std::env::var_os("LIBTORCH").filter(|value| !value.is_empty())?);
        (!same_place(&chosen, &self.third_party().join("libtorch/torch"))).then_some(chosen)
    }
}

fn root_above(start: &Path) -> Option<PathBuf> {
    start
        .ancestors()
        .find(|folder| folder.join("xtask/Cargo.toml").is_file() && folder.join("Cargo.toml").is_file())
        .map(Path::to_path_buf)
}

fn is_of_cargo_run(name: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// Whether two paths mean one place, also when the last parts do not exist yet.
fn same_place(left: &Path, right: &Path) -> bool {
    resolved(left) == resolved(right)
}

fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => resolved(parent).join(name),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_found_from_a_folder_inside_it() {
        let tree = tempfile::tempdir().unwrap();
        let inside = tree.path().join("trainer/src");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(tree.path().join("xtask")).unwrap();
        assert_eq!(root_above(&inside), None);
        std::fs::write(tree.path().join("xtask/Cargo.toml"), "").unwrap();
        std::fs::write(tree.path().join("Cargo.toml"), "").unwrap();
        assert_eq!(root_above(&inside).as_deref(), Some(tree.path()));
    }

    #[test]
    fn a_place_is_recognised_before_it_exists_and_through_links() {
        let tree = tempfile::tempdir().unwrap();
        let real = tree.path().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = tree.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(same_place(&real.join("not/yet"), &link.join("not/yet")));
        assert!(!same_place(&real.join("not/yet"), &link.join("not")));
    }

    #[test]
    fn settings_of_the_user_reach_cargo_and_those_of_cargo_run_do_not() {
        assert!(is_of_cargo_run("CARGO_PKG_VERSION") && is_of_cargo_run("CARGO_MANIFEST_DIR"));
        for kept in [
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_INCREMENTAL",
            "CARGO_NET_OFFLINE",
            "PATH",
        ] {
            assert!(!is_of_cargo_run(kept), "{kept}");
        }
    }
}
