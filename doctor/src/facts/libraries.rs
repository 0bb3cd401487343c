//! Which files the dynamic linker would take for a program, found as it finds them, without starting the program.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};

use object::read::elf::{Dyn as _, FileHeader as _};
use object::{Endianness, ReadCache, ReadRef, elf};
use serde::Serialize;

use crate::facts::{Places, names_in, text_of};

/// Where the dynamic linker looks.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// `LD_LIBRARY_PATH`.
    pub first: Vec<PathBuf>,
    /// The system's folders.
    pub system: Vec<PathBuf>,
}

/// Folders that every linker knows.
const STANDARD: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

impl Search {
    /// Of this machine and this process's environment.
    pub fn of(places: &Places, environment: &dyn Fn(&str) -> Option<String>) -> Search {
        let path = environment("LD_LIBRARY_PATH").unwrap_or_default();
        let mut system = Vec::new();
        let mut files = VecDeque::from([places.etc.join("ld.so.conf")]);
        let folder = places.etc.join("ld.so.conf.d");
        files.extend(
            names_in(&folder)
                .into_iter()
                .filter(|name| name.ends_with(".conf"))
                .map(|name| folder.join(name)),
        );
        for file in files {
            let text = text_of(&file).unwrap_or_default();
            system.extend(
                text.lines()
                    .map(str::trim)
                    .filter(|line| line.starts_with('/'))
                    .map(PathBuf::from),
            );
        }
        system.extend(STANDARD.map(PathBuf::from));
        Search {
            first: std::env::split_paths(&path)
                .filter(|folder| !folder.as_os_str().is_empty())
                .collect(),
            system,
        }
    }

    /// A library by its name: in `LD_LIBRARY_PATH`, then in these folders, then in the system's.
    pub fn find_near(&self, name: &str, near: &[PathBuf]) -> Option<PathBuf> {
        let folders = self.first.iter().chain(near).chain(&self.system);
        folders.map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

/// A program and the libraries that it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Linked {
    /// The program.
    pub program: PathBuf,
    /// Every library that it, or one of its libraries, needs: where it is, or none.
    pub libraries: BTreeMap<String, Option<PathBuf>>,
    /// Who needs each of those that are missing.
    pub needed_by: BTreeMap<String, PathBuf>,
}

impl Linked {
    /// Looks at a program. None where it is none that the linker would load: a script, say.
    pub fn look(program: &Path, search: &Search) -> Option<Linked> {
        let mut linked = Linked {
            program: program.to_owned(),
            ..Linked::default()
        };
        let mut left = VecDeque::from([(program.to_owned(), needs(program)?)]);
        while let Some((file, needs)) = left.pop_front() {
            for name in &needs.names {
                if linked.libraries.contains_key(name) {
                    continue;
                }
                let found = search.find_near(name, &needs.folders(&file));
                match &found {
                    // The system's own libraries are whole, or nothing at all would start here.
                    Some(path) if search.system.iter().any(|folder| path.starts_with(folder)) => {}
                    Some(path) => left.extend(self::needs(path).map(|needs| (path.clone(), needs))),
                    None => {
                        linked.needed_by.insert(name.clone(), file.clone());
                    }
                }
                linked.libraries.insert(name.clone(), found);
            }
        }
        Some(linked)
    }

    /// Where a library is whose name begins so.
    pub fn place_of(&self, beginning: &str) -> Option<&Path> {
        let found = self.libraries.iter().find(|(name, _)| name.starts_with(beginning));
        found.and_then(|(_, path)| path.as_deref())
    }

    /// Folders in which libraries were found that are not the system's, in the order of names.
    pub fn folders(&self) -> Vec<PathBuf> {
        let folders = self.libraries.values().flatten().filter_map(|path| path.parent());
        let mut folders: Vec<PathBuf> = folders.map(Path::to_owned).collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// Which MPI it is linked with, by the names of its library.
    pub fn mpi(&self) -> Option<Mpi> {
        let name = self
            .libraries
            .keys()
            .find(|name| name.starts_with("libmpi") && name.contains(".so"))?;
        // 12 is the number that MPICH and its kin have agreed on.
        let is_mpich = name.starts_with("libmpich") || name.ends_with(".so.12");
        Some(if is_mpich { Mpi::Mpich } else { Mpi::OpenMpi })
    }
}

/// A family of MPIs that share a binary interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Mpi {
    /// Open MPI.
    #[serde(rename = "Open MPI")]
    OpenMpi,
    /// MPICH, Intel MPI, MVAPICH, Cray MPICH.
    #[serde(rename = "MPICH")]
    Mpich,
}

impl Mpi {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Mpi::OpenMpi => "Open MPI",
            Mpi::Mpich => "MPICH",
        }
    }
}

/// What an ELF file names.
struct Needs {
    names: Vec<String>,
    run_path: Vec<String>,
}

impl Needs {
    /// The folders of its run path.
    fn folders(&self, file: &Path) -> Vec<PathBuf> {
        let origin = std::fs::canonicalize(file).ok();
        let origin = origin.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        let expand = |folder: &String| {
            let origin = origin.to_string_lossy();
            PathBuf::from(folder.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin))
        };
        self.run_path.iter().map(expand).collect()
    }
}

fn needs(path: &Path) -> Option<Needs> {
    // Only headers and names are read: libtorch has hundreds of megabytes.
    let cache = ReadCache::new(File::open(path).ok()?);
    parsed(&cache)
}

fn parsed<'data>(data: impl ReadRef<'data>) -> Option<Needs> {
    let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, data).ok()?;
    let (entries, index) = sections.dynamic(endian, data).ok()??;
    let strings = sections.strings(endian, data, index).ok()?;
    let texts = |tag: u32| {
        let of_tag = entries.iter().filter(move |entry| entry.tag32(endian) == Some(tag));
        let places = of_tag.filter_map(|entry| entry.val32(endian));
        let texts = places.filter_map(|place| strings.get(place).ok());
        texts
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect::<Vec<_>>()
    };
    let paths = [elf::DT_RUNPATH, elf::DT_RPATH].map(texts).concat();
    Some(Needs {
        names: texts(elf::DT_NEEDED),
        run_path: paths
            .iter()
            .flat_map(|path| path.split(':'))
            .map(str::to_owned)
            .collect(),
    })
}

/// The version of a library: in the name of the file that it is a link to, else in the records of its package.
pub fn found_version(path: &Path) -> Option<String> {
    let file = std::fs::canonicalize(path).ok()?;
    let name = file.file_name()?.to_str()?;
    let (stem, numbers) = name.split_once(".so").unwrap_or((name, ""));
    let numbers = numbers.trim_start_matches('.');
    if numbers.contains('.') {
        return Some(numbers.to_owned());
    }
    packaged_version(&file, stem.trim_start_matches("lib"))
}

/// The version of the package that a file belongs to, whose name has `word` in it: Python's packages leave a folder for it.
fn packaged_version(file: &Path, word: &str) -> Option<String> {
    file.ancestors().skip(1).take(5).find_map(|folder| {
        names_in(folder).into_iter().find_map(|name| {
            let (package, version) = name.strip_suffix(".dist-info")?.rsplit_once('-')?;
            (package == word || package.split('_').any(|part| part == word)).then(|| version.to_owned())
        })
    })
}

/// The version of the libtorch in a folder of libraries: of the package, or of the archive that it came in.
pub fn libtorch_version(folder: &Path) -> Option<String> {
    let file = std::fs::canonicalize(folder.join("libtorch_cpu.so")).ok()?;
    let archive = || text_of(&file.parent()?.parent()?.join("build-version")).map(|text| text.trim().to_owned());
    packaged_version(&file, "torch").or_else(archive)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn this_test_s_libraries_are_found_and_a_script_has_none() {
        let own = std::env::current_exe().unwrap();
        let search = Search::of(&Places::default(), &|_| None);
        let linked = Linked::look(&own, &search).unwrap();
        assert!(linked.place_of("libc.so").is_some(), "{linked:?}");
        assert!(linked.needed_by.is_empty(), "{linked:?}");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("script"), "#!/bin/sh\n").unwrap();
        assert_eq!(Linked::look(&folder.path().join("script"), &search), None);
    }

    #[test]
    fn versions_are_in_names_or_in_the_records_of_packages() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("nvidia/nccl/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::create_dir_all(root.path().join("nvidia_nccl_cu13-2.29.7.dist-info")).unwrap();
        fs::create_dir_all(root.path().join("torch-2.13.0.dist-info")).unwrap();
        fs::create_dir_all(root.path().join("torch/lib")).unwrap();
        fs::write(lib.join("libnccl.so.2"), "").unwrap();
        fs::write(root.path().join("torch/lib/libtorch_cpu.so"), "").unwrap();
        assert_eq!(found_version(&lib.join("libnccl.so.2")).as_deref(), Some("2.29.7"));
        assert_eq!(
            libtorch_version(&root.path().join("torch/lib")).as_deref(),
            Some("2.13.0")
        );
        fs::write(lib.join("libcuda.so.580.95.05"), "").unwrap();
        std::os::unix::fs::symlink("libcuda.so.580.95.05", lib.join("libcuda.so.1")).unwrap();
        assert_eq!(found_version(&lib.join("libcuda.so.1")).as_deref(), Some("580.95.05"));
    }

    #[test]
    fn the_names_of_libraries_tell_which_mpi() {
        let with = |name: &str| {
            let libraries = BTreeMap::from([("libc.so.6".to_owned(), None), (name.to_owned(), None)]);
            let linked = Linked {
                libraries,
                ..Linked::default()
            };
            linked.mpi()
        };
        assert_eq!(with("libmpi.so.40"), Some(Mpi::OpenMpi));
        assert_eq!(with("libmpich.so.12"), Some(Mpi::Mpich));
        assert_eq!(with("libmpi.so.12"), Some(Mpi::Mpich));
        assert_eq!(with("libmpi_cray.so.12"), Some(Mpi::Mpich));
        assert_eq!(with("libm.so.6"), None);
    }
}
