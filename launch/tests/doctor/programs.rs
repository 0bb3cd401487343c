//! Programs and libraries that are missing, broken or of another version.

use std::fs;

use crate::ward::Ward;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program that says what a trainer says.
fn source() -> String {
    format!(
        "#include <stdio.h>\nint gone(void);\nint main(void) {{ printf(\"lockstep-trainer {VERSION}\\n\"); return gone(); }}\n"
    )
}

#[test]
fn a_trainer_that_is_missing_of_another_version_or_does_not_start() {
    let ward = Ward::new();
    let report = ward.examine_with("run.toml -n 1", &[("LOCKSTEP_TRAINER", "/absent/trainer")]);
    report.found(
        "trainer-missing",
        &["/absent/trainer", "cargo build --release -p lockstep-trainer"],
    );
    ward.program("trainer", "#!/bin/sh\necho lockstep-trainer 9.9.9\n");
    ward.examine("run.toml -n 1")
        .found("trainer-version", &["9.9.9", VERSION]);
    ward.program(
        "trainer",
        "#!/bin/sh\necho 'symbol lookup error: undefined symbol' >&2\nexit 127\n",
    );
    ward.examine("run.toml -n 1")
        .found("trainer-broken", &["undefined symbol", "127"]);
}

#[test]
fn a_library_that_is_not_where_the_linker_looks() {
    let ward = Ward::new();
    let empty = "int gone(void) { return 0; }\n";
    let Some(library) = ward.compiled("libgone.so", empty, "-shared -fPIC") else {
        return;
    };
    ward.compiled("trainer", &source(), "-L. -lgone -Wl,--no-as-needed");
    let folder = ward.path("");
    let with = [("LD_LIBRARY_PATH", folder.to_str().unwrap())];
    assert!(
        !ward
            .examine_with("run.toml -n 1", &with)
            .ids()
            .contains(&"library-missing"),
        "it is there"
    );
    fs::remove_file(library).unwrap();
    ward.examine_with("run.toml -n 1", &with)
        .found("library-missing", &["libgone.so", "LD_LIBRARY_PATH"]);
}

#[test]
fn a_library_that_only_the_linker_finds_is_not_missing() {
    let ward = Ward::new();
    let empty = "int gone(void) { return 0; }\n";
    if ward.compiled("libgone.so", empty, "-shared -fPIC").is_none() {
        return;
    }
    ward.compiled("trainer", &source(), "-L. -lgone -Wl,--no-as-needed");
    // A folder of the linker's own, for processors that know more instructions.
    let inner = ward.path("lib/glibc-hwcaps/x86-64-v2");
    fs::create_dir_all(&inner).unwrap();
    fs::rename(ward.path("libgone.so"), inner.join("libgone.so")).unwrap();
    let folder = ward.path("lib");
    let report = ward.examine_with("run.toml -n 1", &[("LD_LIBRARY_PATH", folder.to_str().unwrap())]);
    assert!(!report.ids().contains(&"library-missing"), "{report:?}");
}

#[test]
fn another_libtorch_and_a_folder_without_one() {
    let ward = Ward::new();
    fs::create_dir_all(ward.path("site/torch/lib")).unwrap();
    fs::create_dir_all(ward.path("site/torch-2.4.0.dist-info")).unwrap();
    let report = ward.examine_with("run.toml -n 1", &[("LIBTORCH", ward.path("site").to_str().unwrap())]);
    report.found("libtorch-folder", &["lib/libtorch_cpu.so", "site"]);
    let empty = "int gone(void) { return 0; }\n";
    let options = "-shared -fPIC -Wl,-soname,libtorch_cpu.so";
    if ward
        .compiled("site/torch/lib/libtorch_cpu.so", empty, options)
        .is_none()
    {
        return;
    }
    ward.compiled(
        "trainer",
        &source(),
        "-Lsite/torch/lib -ltorch_cpu -Wl,-rpath,$ORIGIN/site/torch/lib",
    );
    ward.examine("run.toml -n 1")
        .ids()
        .iter()
        .for_each(|id| assert_ne!(*id, "library-missing"));
    let report = ward.examine("run.toml -n 1");
    assert!(report.ids().contains(&"libtorch-version"), "{report:?}");
    assert!(report.json.to_string().contains("libtorch is 2.4.0"), "{report:?}");
}

/// A trainer that is linked with something that has the name of Open MPI's library.
fn linked_with_open_mpi(ward: &Ward) -> bool {
    let empty = "int gone(void) { return 0; }\n";
    let options = "-shared -fPIC -Wl,-soname,libmpi.so.40";
    ward.compiled("libmpi.so.40", empty, options).is_some()
        && ward
            .compiled("no-mpi-trainer", &source(), "-L. -l:libmpi.so.40 -Wl,-rpath,$ORIGIN")
            .is_some()
}

#[test]
fn an_mpirun_that_is_missing_or_of_another_mpi() {
    let ward = Ward::new();
    let words = "run.toml -n 2 --backend mpi";
    let only_mpi = |report: crate::ward::Report, id: &str, parts: &[&str]| {
        let text = report.json["findings"].to_string();
        assert!(report.ids().contains(&id), "{report:?}");
        parts
            .iter()
            .for_each(|part| assert!(text.contains(part), "{part:?} is missing in {text}"));
    };
    let report = ward.examine_with(words, &[("LOCKSTEP_MPIRUN", "/absent/mpirun")]);
    only_mpi(report, "trainer-missing", &["lockstep-trainer-mpi"]);
    if !linked_with_open_mpi(&ward) {
        return;
    }
    let report = ward.examine_with(words, &[("LOCKSTEP_MPIRUN", "/absent/mpirun")]);
    only_mpi(report, "mpirun-missing", &["/absent/mpirun", "--backend host"]);
    let hydra = ward.program("hydra", "#!/bin/sh\necho 'HYDRA build details:'\n");
    let report = ward.examine_with(words, &[("LOCKSTEP_MPIRUN", hydra.to_str().unwrap())]);
    only_mpi(report, "mpi-mismatch", &["linked with Open MPI", "of MPICH"]);
    let own = ward.program("orterun", "#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n");
    let report = ward.examine_with(words, &[("LOCKSTEP_MPIRUN", own.to_str().unwrap())]);
    assert!(!report.ids().contains(&"mpi-mismatch"), "{report:?}");
}

#[test]
fn the_mpirun_of_a_real_mpich_does_not_fit_open_mpi() {
    let ward = Ward::new();
    if !crate::ward::may(&["mpirun.mpich", "--version"]) || !linked_with_open_mpi(&ward) {
        return;
    }
    let report = ward.examine_with("run.toml -n 2 --backend mpi", &[("LOCKSTEP_MPIRUN", "mpirun.mpich")]);
    assert!(report.ids().contains(&"mpi-mismatch"), "{report:?}");
}
