//! `lockstep data prepare` through the real binary.
#![allow(clippy::unwrap_used)]

mod stage;

use std::fs;

use lockstep_data::{Dataset, Tokenizer};
use stage::{Stage, said};

#[test]
fn bytes_keep_the_last_tenth_of_the_text_for_validation() {
    let stage = Stage::new();
    let text = stage.read("text.txt");
    let data = Dataset::open(&stage.path("data")).unwrap();
    let mut tokens = vec![0; data.validation().tokens() as usize];
    data.validation().read(0, &mut tokens).unwrap();
    assert_eq!(data.train().tokens() as usize, text.len() - text.len() / 10);
    assert_eq!(Tokenizer::byte().decode(&tokens), text[text.len() - text.len() / 10..]);
}

#[test]
fn every_tokenizer_prepares_and_says_what_it_did() {
    let stage = Stage::new();
    for (tokenizer, vocab) in [("byte", 256), ("gpt2", 50257), ("train:300", 300)] {
        let output = stage.lockstep(&format!("data prepare --tokenizer {tokenizer} --out data text.txt"));
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            said(&output).contains(&format!("vocabulary {vocab}")),
            "{}",
            said(&output)
        );
        assert_eq!(Dataset::open(&stage.path("data")).unwrap().vocab(), vocab);
    }
    let stored: serde_json::Value = serde_json::from_str(&stage.read("data/tokenizer.json")).unwrap();
    fs::write(stage.path("mine.json"), stored["definition"].to_string()).unwrap();
    let output = stage.lockstep("data prepare --tokenizer mine.json --out again text.txt");
    assert!(output.status.success(), "{}", said(&output));
    let manifest_hash = |folder| Dataset::open(&stage.path(folder)).unwrap().manifest_hash();
    assert_eq!(manifest_hash("again"), manifest_hash("data"));
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let stage = Stage::new();
    fs::write(stage.path("empty.txt"), "").unwrap();
    fs::create_dir(stage.path("full")).unwrap();
    fs::write(stage.path("full/thing"), "precious").unwrap();
    let before = stage.listing();
    for (words, parts) in [
        ("--out new absent.txt", ["absent.txt", "No such file"]),
        ("--out new empty.txt", ["empty.txt", "give more text"]),
        ("--out full text.txt", ["full", "choose another --out"]),
        ("--out new", ["PATH", "required"]),
        ("text.txt", ["--out", "required"]),
        (
            "--tokenizer llama --out new text.txt",
            ["llama", "byte, gpt2, FILE.json or train:VOCAB"],
        ),
        ("--tokenizer train:9 --out new text.txt", ["train:9", "257"]),
        (
            "--tokenizer absent.json --out new text.txt",
            ["absent.json", "No such file"],
        ),
        (
            "--tokenizer data/manifest.json --out new text.txt",
            ["data/manifest.json", "`tokenizers` library"],
        ),
    ] {
        let output = stage.lockstep(&format!("data prepare {words}"));
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        for part in parts {
            assert!(
                said(&output).contains(part),
                "{words}: {part:?} is missing in: {}",
                said(&output)
            );
        }
        assert!(stage.listing() == before, "{words} wrote something");
    }
}
