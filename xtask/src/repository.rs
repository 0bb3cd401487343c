//! Rules about the files themselves, so that the repository works on any machine:
//!
//! 1. No file names a place of one machine, nor the host of a package registry.
//! 2. Versions of dependencies stand in the root `Cargo.toml` only.
//! 3. `unsafe` stays in the crates that are there to hold it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, on_path};

/// Crates whose business is memory that Rust cannot check.
const UNSAFE_CRATES: &[&str] = &[
    "trainer/nccl-host/",
    "trainer/nccl-rs/",
    "trainer/nccl-double/",
    "trainer/accelerator-double/",
    "trainer/autograd/",
    "trainer/device-recorder/",
    "trainer/gpu-kernels/",
    "trainer/kernels/",
    "trainer/mpi/",
];

/// What git ignores, and git itself.
const SKIPPED: &[&str] = &[".git", "target", "third_party", "runs", "demo"];

/// Written in two parts, so that this file does not break its own rule.
const MACHINE_PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/tm", "p/"),
    concat!("../sha", "red"),
];
const REGISTRY_HOSTS: &[&str] = &[
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("crates", ".io"),
    concat!("download.py", "torch.org"),
    concat!("npmjs", ".org"),
];

/// Refuses a repository that breaks a rule, with every place that does.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    let mut files = Vec::new();
    list(root, Path::new(""), &mut files)?;
    let mut offences = Vec::new();
    for file in &files {
        let bytes = fs::read(root.join(file)).map_err(on_path("read", file))?;
        if let Ok(text) = String::from_utf8(bytes) {
            offences.extend(offences_in(&file.to_string_lossy(), &text));
        }
    }
    if offences.is_empty() {
        println!("{} files keep the rules of the repository", files.len());
        return Ok(());
    }
    for offence in &offences {
        println!("{offence}");
    }
    Err(Failure::work(format!(
        "{} places break the rules of the repository; they are listed above",
        offences.len()
    )))
}

fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let full = root.join(folder);
    let mut entries = fs::read_dir(&full)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .map_err(on_path("read", &full))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = folder.join(entry.file_name());
        let kind = entry.file_type().map_err(on_path("read", &path))?;
        if kind.is_dir() && !SKIPPED.iter().any(|skipped| path == Path::new(skipped)) {
            list(root, &path, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// The offences of one file; `path` is relative to the repository, with `/` between its parts.
fn offences_in(path: &str, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    for (content, line) in text.lines().zip(1..) {
        for place in MACHINE_PLACES.iter().filter(|place| content.contains(*place)) {
            offences.push(format!(
                "{path}:{line}: names {place}, a place of one machine; use a relative path"
            ));
        }
        // The lock file names the index of the registry on every entry, as cargo writes it.
        for host in REGISTRY_HOSTS
            .iter()
            .filter(|host| path != "Cargo.lock" && content.contains(*host))
        {
            offences.push(format!(
                "{path}:{line}: names {host}, the host of a package registry; name the package only"
            ));
        }
    }
    if path.ends_with("/Cargo.toml") {
        offences.extend(versions_in(path, text));
    }
    if path.ends_with(".rs") && !UNSAFE_CRATES.iter().any(|folder| path.starts_with(folder)) {
        for (content, line) in code_of(text).lines().zip(1..) {
            if content
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "unsafe")
            {
                offences.push(format!(
                    "{path}:{line}: `unsafe` belongs into {} only",
                    UNSAFE_CRATES.join(", ")
                ));
            }
            if content.contains("allow(unsafe_code)") {
                offences.push(format!(
                    "{path}:{line}: allows unsafe_code outside {}",
                    UNSAFE_CRATES.join(", ")
                ));
            }
        }
    }
    offences
}

/// Dependencies of a crate that do not take their version from the workspace.
fn versions_in(path: &str, text: &str) -> Vec<String> {
    let manifest: toml::Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("{path}: is not TOML: {}", error.message())],
    };
    let tables = |manifest: &toml::Table| -> Vec<toml::Table> {
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .filter_map(|name| manifest.get(*name)?.as_table().cloned())
            .collect()
    };
    let mut all = tables(&manifest);
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        all.extend(targets.values().filter_map(toml::Value::as_table).flat_map(tables));
    }
    all.iter()
        .flatten()
        .filter(|(_, value)| value.get("workspace").and_then(toml::Value::as_bool) != Some(true))
        .map(|(name, _)| format!("{path}: {name} must say `workspace = true`; versions stand in the root Cargo.toml"))
        .collect()
}

/// The text of a Rust file with comments and the contents of literals blanked out, line by line as before.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |code: &mut String, from: usize, to: usize| {
        code.extend(
            chars[from..to.min(chars.len())]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
    };
    while at < chars.len() {
        let end = match (chars[at], chars.get(at + 1)) {
            ('/', Some('/')) => chars[at..]
                .iter()
                .position(|c| *c == '\n')
                .map_or(chars.len(), |n| at + n),
            ('/', Some('*')) => end_of_block_comment(&chars, at),
            ('"', _) => end_of_string(&chars, at + 1),
            ('r', Some('"' | '#')) if at == 0 || !is_word(chars[at - 1]) => end_of_raw_string(&chars, at + 1),
            ('\'', Some('\\')) => chars[(at + 3).min(chars.len())..]
                .iter()
                .position(|c| *c == '\'')
                .map_or(chars.len(), |n| at + 3 + n + 1),
            ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
            _ => at,
        };
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            blank(&mut code, at, end);
            at = end;
        }
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// `at` is behind the `r`; returns `at - 1` (nothing skipped) where this is no raw string, such as `r#type`.
fn end_of_raw_string(chars: &[char], at: usize) -> usize {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return at - 1;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = at + hashes + 1;
    chars[body..]
        .windows(close.len())
        .position(|window| window == close)
        .map_or(chars.len(), |n| body + n + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_machine_and_registry_hosts_are_refused_with_their_line() {
        let text = format!("fine\nsee {}x and {}\n", MACHINE_PLACES[0], REGISTRY_HOSTS[0]);
        let offences = offences_in("docs/a.md", &text);
        assert_eq!(offences.len(), 2, "{offences:?}");
        assert!(
            offences.iter().all(|offence| offence.starts_with("docs/a.md:2: ")),
            "{offences:?}"
        );
        assert!(offences_in("Cargo.lock", REGISTRY_HOSTS[2]).is_empty());
        assert!(offences_in("docs/a.md", "the run folder runs/a, third_party/libtorch").is_empty());
    }

    #[test]
    fn versions_outside_the_root_are_refused() {
        let text = "[dependencies]\nserde.workspace = true\ntoml = { workspace = true, features = [\"x\"] }\nlibc = \"0.2\"\n\
                    [dev-dependencies]\nrand = { version = \"0.9\" }\n[target.'cfg(unix)'.dependencies]\nnix = \"0.31\"\n";
        let offences = offences_in("data/Cargo.toml", text);
        for (name, offence) in ["libc", "rand", "nix"].iter().zip(&offences) {
            assert!(offence.contains(name), "{offence}");
        }
        assert_eq!(offences.len(), 3, "{offences:?}");
        assert!(offences_in("Cargo.toml", "[workspace.dependencies]\nlibc = \"0.2\"\n").is_empty());
    }

    #[test]
    fn unsafe_code_is_refused_outside_its_crates_and_the_word_in_prose_is_not() {
        let block = "fn f() {\n    unsafe { g() }\n}\n";
        let offences = offences_in("data/src/lib.rs", block);
        assert!(
            offences.len() == 1 && offences[0].starts_with("data/src/lib.rs:2:"),
            "{offences:?}"
        );
        assert!(offences_in("trainer/kernels/src/lib.rs", block).is_empty());
        assert_eq!(offences_in("data/src/lib.rs", "#![allow(unsafe_code)]").len(), 1);
        for prose in [
            "// unsafe { }",
            "/* unsafe /* unsafe */ unsafe */",
            "let s = \"unsafe \\\" unsafe\";",
            "let s = r#\"unsafe \" unsafe\"#;",
            "let c = '\"'; let not_unsafe_ = 1; // unsafe",
        ] {
            assert!(offences_in("data/src/lib.rs", prose).is_empty(), "{prose}");
        }
        for code in [
            "let c = '\"'; unsafe { }",
            "fn f<'a>(r#type: &'a str) { unsafe { } }",
            "\"a\\\\\"; unsafe impl",
        ] {
            assert_eq!(offences_in("data/src/lib.rs", code).len(), 1, "{code}");
        }
    }
}
