//! Every command in README.md and docs/ is tried: here, as a reader would type it, or by the test that is named beside it; or it
//! is said beside it why not.
#![allow(clippy::unwrap_used)]

mod pages;
mod place;
#[path = "../stage/mod.rs"]
mod stage;

use std::fs;

use crate::pages::{Block, Tried, blocks, commands, pages, repository};
use crate::place::Place;

/// Languages that are no commands. Those of them that a program reads are tested beside that program.
const OTHERS: &[&str] = &["text", "toml", "json", "python", "yaml"];

fn all() -> Vec<Block> {
    pages().iter().flat_map(|(page, text)| blocks(page, text)).collect()
}

/// What stands for a command in the source of another test: its subcommand, or else its program; what only sets variables needs
/// none.
fn mark(command: &str) -> Option<&str> {
    if command.starts_with("export ") {
        return Some("");
    }
    let mut words = command
        .split(' ')
        .skip_while(|word| word.contains('=') || *word == "sudo");
    let program = words.next()?.rsplit('/').next()?;
    let subcommand = words.find(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    match program {
        "lockstep" | "lockstep-trainer" | "lockstep-trainer-mpi" => subcommand.or(Some(program)),
        _ => Some(program),
    }
}

#[test]
fn every_block_has_a_language_and_every_block_of_commands_says_how_it_is_tried() {
    let mut wrong = Vec::new();
    let mut counts = [0; 4];
    for block in all() {
        let at = format!("{}:{}", block.page, block.line);
        if block.language != "sh" {
            if !OTHERS.contains(&block.language.as_str()) {
                wrong.push(format!(
                    "{at}: the language {:?}: fence it as sh or {OTHERS:?}",
                    block.language
                ));
            }
            continue;
        }
        match &block.tried {
            Tried::Here => counts[0] += 1,
            Tried::BesideARun => counts[1] += 1,
            Tried::By(file) => {
                counts[2] += 1;
                let source: String = file.split(", ").map(source).collect();
                for command in commands(&block.text) {
                    if mark(&command).is_none_or(|mark| !source.contains(mark)) {
                        wrong.push(format!("{at}: nothing in {file} speaks of `{command}`"));
                    }
                }
            }
            Tried::Not(why) => {
                counts[3] += 1;
                if why.split_whitespace().count() < 3 {
                    wrong.push(format!("{at}: {why:?} is no reason"));
                }
            }
            Tried::Unsaid => wrong.push(format!(
                "{at}: nothing says how its commands are tried: write <!-- run here -->, <!-- run here, beside a run -->, \
                 <!-- run by FILE --> or <!-- not run: WHY --> before it"
            )),
        }
    }
    println!(
        "blocks run here {}, beside a run {}, by other tests {}, not run {}",
        counts[0], counts[1], counts[2], counts[3]
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file's text, or that of all files in a folder.
fn source(name: &str) -> String {
    let path = repository().join(name);
    match path.is_dir() {
        false => fs::read_to_string(&path).unwrap_or_default(),
        true => {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
            entries
                .map(|path| fs::read_to_string(path).unwrap_or_default())
                .collect()
        }
    }
}

#[test]
fn what_is_to_be_run_here_works_as_it_is_written() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let blocks = blocks(&page, &text);
        let is_here = |block: &&Block| matches!(block.tried, Tried::Here | Tried::BesideARun);
        let mut place: Option<Place> = None;
        for block in blocks.iter().filter(|block| block.language == "sh").filter(is_here) {
            let place = place.get_or_insert_with(Place::new);
            match block.tried {
                Tried::BesideARun => place.train_beside(),
                _ => place.train_no_more(),
            }
            println!("{page}:{}", block.line);
            wrong.extend(place.run(block));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
