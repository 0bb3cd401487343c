//! `setup`: a C++ compiler and libtorch, then nothing more is needed to build.
//!
//! The way of things: [`tools`] checks the compiler, [`mpi`] sees to an MPI, [`jobs`] to MPICH and Slurm and [`browser`] to
//! a Chromium, which may be missing; a `LIBTORCH` of the user's is checked by [`chosen`] and used; else [`stamp`] says whether `third_party/libtorch` is complete. If not, [`wheels`] fetches the pinned wheels into
//! `third_party/.download` and checks their hashes, [`unpack`] takes what a build needs out of them into
//! `third_party/.libtorch.partial`, and the folder is renamed when its stamp is written. So an interruption at any
//! moment leaves either no `libtorch` or a whole one, and what was downloaded whole is not downloaded again.
//! The libraries for GPUs, [`cuda`], go the same way into a folder of their own.

pub(crate) mod browser;
mod chosen;
pub(crate) mod cuda;
pub(crate) mod jobs;
pub(crate) mod mpi;
pub(crate) mod python;
mod stamp;
pub(crate) mod tools;
mod unpack;
mod wheels;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::failure::{Failure, on_path};
use crate::workspace::Workspace;

pub(crate) use wheels::Selection;

/// Makes the workspace ready to build, and says what was done. `root` puts libtorch elsewhere than `third_party`.
pub(crate) fn setup(workspace: &Workspace, root: Option<&Path>) -> Result<(), Failure> {
    prepare(workspace, root, Wheels::Removed).map(|_| ())
}

/// As [`setup`], and fetches the CUDA libraries. What both are made of is downloaded once.
pub(crate) fn setup_for_gpus(workspace: &Workspace, root: Option<&Path>) -> Result<(), Failure> {
    let third_party = prepare(workspace, root, Wheels::Kept)?;
    install(&cuda::CUDA, &third_party).map(|_| ())
}

/// What becomes of wheels when they have been unpacked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wheels {
    Removed,
    Kept,
}

/// What [`setup`] does; gives the folder that everything is under.
fn prepare(workspace: &Workspace, root: Option<&Path>, then: Wheels) -> Result<PathBuf, Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Failure::input(
            "Lockstep runs on Linux on x86-64 so far, and this is another system; use such a machine or a container",
        ));
    }
    let third_party = root.map_or_else(|| workspace.third_party(), Path::to_path_buf);
    fs::create_dir_all(&third_party).map_err(on_path("create", &third_party))?;
    tools::check_compiler(&third_party)?;
    mpi::prepare();
    jobs::prepare();
    browser::prepare();
    if root.is_none()
        && let Some(libtorch) = workspace.user_libtorch()
    {
        chosen::check(&libtorch)?;
        println!(
            "setup: LIBTORCH is set, so libtorch {} at {} is used",
            wheels::TORCH,
            libtorch.display()
        );
        return Ok(third_party);
    }
    place(&wheels::LIBTORCH, &third_party, then)?;
    Ok(third_party)
}

/// Where a selection is, if it is whole.
pub(crate) fn in_place(selection: &Selection, third_party: &Path) -> Option<PathBuf> {
    let place = third_party.join(selection.folder);
    (stamp::state(selection, &place) == stamp::State::Complete).then_some(place)
}

/// Puts what is selected into its folder under `third_party`, unless it is there, and gives the folder.
pub(crate) fn install(selection: &Selection, third_party: &Path) -> Result<PathBuf, Failure> {
    place(selection, third_party, Wheels::Removed)
}

/// As [`install`], with what shall become of the wheels.
fn place(selection: &Selection, third_party: &Path, then: Wheels) -> Result<PathBuf, Failure> {
    let Selection {
        chore, title, folder, ..
    } = selection;
    let place = third_party.join(folder);
    let lock_path = third_party.join(".lock");
    let lock = File::create(&lock_path).map_err(on_path("create", &lock_path))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        println!(
            "{chore}: another setup is at work in {}; waiting for it",
            third_party.display()
        );
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| Failure::work(format!("cannot lock {}: {error}", lock_path.display())))?;
    }

    match stamp::state(selection, &place) {
        stamp::State::Complete => {
            println!("{chore}: {title} is in place at {}: nothing to do", place.display());
            return Ok(place);
        }
        stamp::State::Absent => {}
        stamp::State::Unfinished(reason) => println!("{chore}: {} is made anew: {reason}", place.display()),
    }

    let started = Instant::now();
    let downloads = third_party.join(".download");
    fs::create_dir_all(&downloads).map_err(on_path("create", &downloads))?;
    let missing = wheels::missing(selection, &downloads)?;
    let needed = wheels::download_bytes(&missing) + selection.unpacked_bytes;
    check_space(chore, third_party, needed)?;
    wheels::download(selection, &missing, &downloads)?;

    let partial = third_party.join(format!(".{folder}.partial"));
    remove_folder(&partial)?;
    for wheel in selection.wheels {
        let file = wheels::verified(chore, wheel, &downloads)?;
        unpack::unpack(selection, &file, &partial)?;
    }
    (selection.finish)(&partial)?;
    stamp::write(selection, &partial)?;

    let old = third_party.join(format!(".{folder}.old"));
    remove_folder(&old)?;
    if place.symlink_metadata().is_ok() {
        fs::rename(&place, &old).map_err(on_path("move away", &place))?;
    }
    fs::rename(&partial, &place).map_err(on_path("rename", &partial))?;
    remove_folder(&old)?;
    if then == Wheels::Removed {
        wheels::discard(selection, &downloads)?;
    }
    println!(
        "{chore}: {title} is ready at {} ({:.0} s)",
        place.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(place)
}

fn remove_folder(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(on_path("remove", path)(error)),
        _ => Ok(()),
    }
}

fn check_space(chore: &str, folder: &Path, needed: u64) -> Result<(), Failure> {
    let system = statvfs(folder).map_err(|error| {
        Failure::work(format!(
            "the free space of {} cannot be read: {error}",
            folder.display()
        ))
    })?;
    enough_space(chore, folder, system.f_bavail.saturating_mul(system.f_frsize), needed)
}

fn enough_space(chore: &str, folder: &Path, free: u64, needed: u64) -> Result<(), Failure> {
    if free >= needed {
        return Ok(());
    }
    Err(Failure::input(format!(
        "{chore} needs {} MiB of free disk space under {} and there are {} MiB; free some space and run `cargo xtask {chore}` again",
        needed >> 20,
        folder.display(),
        free >> 20
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_disk_is_refused_before_anything_is_fetched() {
        let folder = Path::new("third_party");
        assert!(enough_space("setup", folder, 10 << 20, 10 << 20).is_ok());
        let sentence = enough_space("setup", folder, 9 << 20, 10 << 20)
            .unwrap_err()
            .to_string();
        assert!(sentence.contains("10 MiB") && sentence.contains("9 MiB") && sentence.contains("third_party"));
    }

    #[test]
    fn a_complete_folder_is_left_alone() {
        let third_party = tempfile::tempdir().unwrap();
        let libtorch = third_party.path().join("libtorch");
        stamp::tests::make_complete(&libtorch);
        install(&wheels::LIBTORCH, third_party.path()).unwrap();
        assert!(!third_party.path().join(".download").exists(), "nothing was fetched");
    }
}
