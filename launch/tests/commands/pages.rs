//! The pages of the documentation as blocks: what language each is in, and what is said of it.
//!
//! Way of data: README.md and docs/*.md → [`Block`]s in their order; a block of commands has a line before it that says how it is
//! tried, as an HTML comment that readers do not see.

use std::fs;
use std::path::{Path, PathBuf};

/// How the commands of a block are tried.
#[derive(Debug, PartialEq)]
pub(crate) enum Tried {
    /// By the test of this folder, in the page's own place, after the page's blocks before it.
    Here,
    /// The same, while a run of four ranks is being trained in that place.
    BesideARun,
    /// By another test: its file.
    By(String),
    /// By nobody, and why not.
    Not(String),
    /// Nothing is said.
    Unsaid,
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) page: String,
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) tried: Tried,
    pub(crate) text: String,
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every page with its text.
pub(crate) fn pages() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned()];
    let mut folders = vec!["docs".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(repository().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => folders.push(name),
                false if name.ends_with(".md") => names.push(name),
                false => {}
            }
        }
    }
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(repository().join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// The blocks of a page. One that is only indented has no language and is a mistake, which the empty language tells.
pub(crate) fn blocks(page: &str, text: &str) -> Vec<Block> {
    let lines: Vec<&str> = text.lines().collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let is_indented = lines[at].starts_with("    ") && at > 0 && lines[at - 1].is_empty();
        let fence = lines[at].trim_start().strip_prefix("```");
        if fence.is_none() && !is_indented {
            at += 1;
            continue;
        }
        let ends = |line: &&str| match fence {
            Some(_) => line.trim() == "```",
            None => !line.is_empty() && !line.starts_with("    "),
        };
        let body = at + usize::from(fence.is_some());
        let length = lines[body..].iter().position(ends);
        let end = length.map_or(lines.len(), |length| body + length);
        let said = lines[..at].iter().rev().find(|line| !line.trim().is_empty());
        blocks.push(Block {
            page: page.to_owned(),
            line: at + 1,
            language: fence.unwrap_or_default().to_owned(),
            tried: said.map_or(Tried::Unsaid, |line| tried(line)),
            text: lines[body..end].join("\n"),
        });
        at = end + 1;
    }
    blocks
}

fn tried(line: &str) -> Tried {
    let comment = line
        .trim()
        .strip_prefix("<!--")
        .and_then(|rest| rest.strip_suffix("-->"));
    let said = comment.unwrap_or_default().trim();
    if let Some(why) = said.strip_prefix("not run:") {
        return Tried::Not(why.trim().to_owned());
    }
    match said.strip_prefix("run ") {
        Some("here") => Tried::Here,
        Some("here, beside a run") => Tried::BesideARun,
        Some(other) => match other.strip_prefix("by ") {
            Some(file) => Tried::By(file.to_owned()),
            None => Tried::Unsaid,
        },
        None => Tried::Unsaid,
    }
}

/// The commands of a block: comments taken off, lines that go on joined.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| {
        let code = line.split(" #").next().unwrap_or_default();
        code.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[test]
fn a_page_is_read_as_its_blocks() {
    let text = "words\n\n<!-- run here -->\n```sh\na b \\\n  c # why\n```\n\n    indented\n\nword\n<!-- not run: dear -->\n```sh\nx\n```\n";
    let read = blocks("p", text);
    assert_eq!(read.len(), 3);
    assert_eq!((read[0].line, &read[0].tried), (4, &Tried::Here));
    assert_eq!(commands(&read[0].text), ["a b c"]);
    assert_eq!((read[1].language.as_str(), read[1].text.trim()), ("", "indented"));
    assert_eq!(read[2].tried, Tried::Not("dear".to_owned()));
    assert_eq!(
        tried("<!-- run by launch/tests/mpi.rs -->"),
        Tried::By("launch/tests/mpi.rs".to_owned())
    );
    assert_eq!(tried("<!-- run sometimes -->"), Tried::Unsaid);
}
