//! docs/environment.md has every variable of the environment that the sources name, each once, and no other of ours.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What our own variables begin with.
const OURS: &str = "LOCKSTEP_";
/// How variables of others begin that our programs read or set.
const OTHERS: [&str; 14] = [
    "CUBLASLT_",
    "CUBLAS_",
    "CUDA_VISIBLE_",
    "GOMP_",
    "KMP_",
    "MASTER_",
    "MKL_NUM_",
    "MPI_LOCAL",
    "OMPI_",
    "OMP_",
    "PMIX_",
    "PMI_",
    "PRTE_",
    "SLURM_",
];
/// The same of names that are nothing else.
const WHOLE: [&str; 7] = [
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LD_LIBRARY_PATH",
    "NCCL_COMM_BLOCKING",
    "RANK",
    "RUST_LOG",
    "WORLD_SIZE",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every Rust file, with its text; not what is built or fetched, and not this one.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders = vec![repository()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let is_ours = !name.starts_with('.') && name != "target" && name != "third_party";
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if name.ends_with(".rs") && !path.ends_with(file!()) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 300, "{} files", found.len());
    found
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'
}

/// The names of ours in a text; a name that goes on after its last letter, as in `LOCKSTEP_…`, is none.
fn ours(text: &str) -> BTreeSet<String> {
    let names = text.match_indices(OURS).map(|(at, _)| {
        let rest = &text[at..];
        rest[..rest.find(|c| !is_of_name(c)).unwrap_or(rest.len())].to_owned()
    });
    names.filter(|name| name != OURS && !name.ends_with('_')).collect()
}

/// Names of others that stand as words of their own in a source.
fn others(text: &str) -> BTreeSet<String> {
    let words = text.split('"').filter(|word| !word.is_empty());
    let is_it = |word: &&str| {
        let is_family = OTHERS
            .iter()
            .any(|family| word.len() > family.len() && word.starts_with(family));
        (is_family || WHOLE.contains(word)) && word.chars().all(|c| is_of_name(c) || c.is_ascii_lowercase())
    };
    words.filter(is_it).map(str::to_owned).collect()
}

/// The names in the first cells of the tables.
fn documented() -> Vec<String> {
    let text = fs::read_to_string(repository().join("docs/environment.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |row: &str| {
        assert_eq!(row.matches(" | ").count(), 3, "every row has four cells: {row}");
        row.split('`').next().unwrap().to_owned()
    };
    rows.map(row).collect()
}

#[test]
fn every_variable_of_the_sources_is_in_the_table_and_no_other_of_ours() {
    let documented = documented();
    let known: BTreeSet<String> = documented.iter().cloned().collect();
    assert_eq!(known.len(), documented.len(), "a name stands twice");
    let mut named = BTreeSet::new();
    for (path, text) in sources() {
        let in_tests = path.components().any(|part| part.as_os_str() == "tests");
        let mut names = ours(&text);
        if !in_tests {
            names.append(&mut others(&text));
        }
        for name in &names {
            assert!(
                known.contains(name),
                "{} names {name}, which docs/environment.md does not have",
                path.display()
            );
        }
        named.append(&mut names);
    }
    for name in known.iter().filter(|name| name.starts_with(OURS)) {
        assert!(
            named.contains(name),
            "docs/environment.md has {name}, which no source names"
        );
    }
}

#[test]
fn a_name_is_a_whole_word_in_the_right_place() {
    let names = |text: &str| ours(text).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names("`LOCKSTEP_A=1` and LOCKSTEP_B_2, LOCKSTEP_…, starts_with(\"LOCKSTEP_\")"),
        "LOCKSTEP_A LOCKSTEP_B_2"
    );
    let found = others(r#"read("OMPI_COMM_WORLD_RANK"), "OMPI_", "RANK", "a RANK", "PMI_RANK = {rank}""#);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["OMPI_COMM_WORLD_RANK", "RANK"]);
}
