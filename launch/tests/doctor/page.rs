//! docs/troubleshooting.md goes by what is seen: each sentence that it quotes is one that a program says.

use std::fs;
use std::path::{Path, PathBuf};

/// What the system, the dynamic linker and rustls say.
const OF_OTHERS: [&str; 9] = [
    "error while loading shared libraries",
    "Too many open files",
    "Resource temporarily unavailable",
    "No space left on device",
    "UnknownIssuer",
    "certificate not valid for name",
    "certificate expired",
    "certificate not valid yet",
    "CertificateRequired",
];
/// Parts of one sentence are not further from each other than this.
const NEAR: usize = 400;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The sources of all programs, as they are printed: strings that go on in the next line are joined.
fn sources() -> Vec<String> {
    let mut folders = [
        "config",
        "coordinator",
        "data",
        "doctor",
        "launch",
        "proto",
        "security",
        "trainer",
    ]
    .map(|name| repository().join(name))
    .to_vec();
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match path.is_dir() {
                true if name != "tests" => folders.push(path),
                false if name.ends_with(".rs") && name != "tests.rs" => {
                    texts.push(printed(&fs::read_to_string(path).unwrap()))
                }
                _ => {}
            }
        }
    }
    texts
}

fn printed(source: &str) -> String {
    let mut text = String::new();
    let mut goes_on = false;
    for line in source.lines() {
        let line = if goes_on { line.trim_start() } else { line };
        goes_on = line.ends_with('\\');
        text.push_str(line.trim_end_matches('\\'));
        if !goes_on {
            text.push('\n');
        }
    }
    text.replace("\\\"", "\"")
}

/// Whether a text has these parts one after the other.
fn has(text: &str, parts: &[&str]) -> bool {
    let (first, others) = parts.split_first().unwrap();
    text.match_indices(first).any(|(at, _)| {
        let end = text[at..]
            .char_indices()
            .nth(NEAR)
            .map_or(text.len(), |(length, _)| at + length);
        let mut rest = &text[at + first.len()..end];
        others.iter().all(|part| match rest.find(part) {
            Some(found) => {
                rest = &rest[found + part.len()..];
                true
            }
            None => false,
        })
    })
}

/// What stands in backquotes in the first cells of the page's tables.
fn quotes(page: &str) -> Vec<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split('|').next());
    let quoted = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

#[test]
fn every_sentence_that_troubleshooting_quotes_is_said_by_some_program() {
    let page = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let quotes = quotes(&page);
    assert!(quotes.len() > 30, "{quotes:?}");
    let sources = sources();
    for quote in &quotes {
        let parts: Vec<&str> = quote
            .split('…')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        let is_said = || sources.iter().any(|source| has(source, &parts));
        assert!(
            OF_OTHERS.contains(&quote.as_str()) || is_said(),
            "nobody says `{quote}`"
        );
    }
    let unused: Vec<_> = OF_OTHERS
        .iter()
        .filter(|words| !quotes.iter().any(|quote| quote == *words))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn parts_of_a_quote_stand_in_order_in_one_sentence() {
    let text = printed("format!(\"the folder {} \\\n         is \\\"in use\\\" by {pid}\")");
    assert!(has(&text, &["the folder", "is \"in use\" by"]));
    assert!(!has(&text, &["is \"in use\" by", "the folder"]));
    assert!(!has(&text, &["the folder", "holds"]));
    assert_eq!(
        quotes("| `a …` or `b` | c `d` |\n| --- | --- |\nword `e`"),
        ["a …", "b"]
    );
}
