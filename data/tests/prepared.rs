//! A data folder: what `prepare` writes, what `open` refuses, what training and validation read from it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lockstep_data::*;
use proptest::prelude::*;

fn prepare_text(folder: &Path, text: &str, tokenizer: TokenizerChoice) -> PathBuf {
    let input = folder.join("input.txt");
    fs::write(&input, text).unwrap();
    let options = Options {
        inputs: vec![input],
        out: folder.join("data"),
        tokenizer,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    options.out
}

fn all(split: &Split) -> Vec<u32> {
    let mut tokens = vec![0; split.tokens() as usize];
    split.read(0, &mut tokens).unwrap();
    tokens
}

fn verse(bytes: usize) -> String {
    (0..)
        .map(|line| format!("line {line} of a long poem, and {} more\n", line * 7 % 13))
        .take(bytes / 20 + 1)
        .collect::<String>()[..bytes]
        .to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn bytes_keep_exactly_the_last_tenth_for_validation() {
    for length in [20, 1000, 1003, 1009] {
        let folder = tempfile::tempdir().unwrap();
        let text = verse(length);
        let data = Dataset::open(&prepare_text(folder.path(), &text, TokenizerChoice::Byte)).unwrap();
        let cut = length - length / 10;
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        assert_eq!(all(data.train()), bytes(&text[..cut]));
        assert_eq!(all(data.validation()), bytes(&text[cut..]));
        assert_eq!(data.vocab(), 256);
    }
}

#[test]
fn a_character_is_never_cut_in_two() {
    let folder = tempfile::tempdir().unwrap();
    let text = "ä€𝄞".repeat(50);
    let data = Dataset::open(&prepare_text(folder.path(), &text, TokenizerChoice::Byte)).unwrap();
    let tokenizer = data.tokenizer().unwrap();
    let (train, validation) = (
        tokenizer.decode(&all(data.train())),
        tokenizer.decode(&all(data.validation())),
    );
    assert!(!train.contains('\u{fffd}') && !validation.contains('\u{fffd}'));
    assert_eq!(train + &validation, text);
}

#[test]
fn several_files_and_folders_are_one_text_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("books/inner")).unwrap();
    for (name, text) in [
        ("first.txt", "1".repeat(40)),
        ("books/b.txt", "b".repeat(30)),
        ("books/a.txt", "a".repeat(20)),
        ("books/inner/z.txt", "z".repeat(10)),
        ("books/.hidden", "h".into()),
    ] {
        fs::write(path(name), text).unwrap();
    }
    let options = Options {
        inputs: vec![path("first.txt"), path("books")],
        out: path("out"),
        tokenizer: TokenizerChoice::Byte,
    };
    let summary = prepare(&options, &AtomicBool::new(false)).unwrap();
    assert_eq!(
        (
            summary.documents,
            summary.bytes,
            summary.train_tokens,
            summary.validation_tokens
        ),
        (4, 100, 90, 10)
    );
    let data = Dataset::open(&options.out).unwrap();
    let tokenizer = data.tokenizer().unwrap();
    assert_eq!(
        tokenizer.decode(&all(data.train())),
        "1".repeat(40) + &"a".repeat(20) + &"b".repeat(30)
    );
    assert_eq!(tokenizer.decode(&all(data.validation())), "z".repeat(10));
}

#[test]
fn gpt2_tokens_are_those_of_gpt2() {
    let tokenizer = Tokenizer::gpt2();
    assert_eq!(tokenizer.encode("Hello world").unwrap(), [15496, 995]);
    assert_eq!(tokenizer.vocab(), 50257);
    assert_eq!(
        tokenizer.encode("<|endoftext|>").unwrap().len(),
        7,
        "a special word in the text is text"
    );
    assert_eq!(
        tokenizer.decode(&[15496, 995, 50256, 60000]),
        "Hello world<|endoftext|>\u{fffd}"
    );
}

#[test]
fn documents_are_parted_by_the_end_of_text_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let inputs: Vec<PathBuf> = ["one", "two"].map(|name| folder.path().join(name)).to_vec();
    fs::write(&inputs[0], "Hello world").unwrap();
    fs::write(&inputs[1], " Hello world".repeat(30)).unwrap();
    let options = Options {
        inputs,
        out: folder.path().join("data"),
        tokenizer: TokenizerChoice::Gpt2,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    let data = Dataset::open(&options.out).unwrap();
    assert_eq!(all(data.train())[..4], [15496, 995, 50256, 18435]);
}

#[test]
fn a_trained_tokenizer_is_the_same_each_time_and_gives_the_text_back() {
    let text = verse(20_000);
    let train = || Tokenizer::train(400, [text.as_str()]).unwrap();
    let (first, second) = (train(), train());
    assert_eq!(first.to_json().unwrap(), second.to_json().unwrap());
    assert_eq!(first.vocab(), 400);
    let tokens = first.encode(&text).unwrap();
    assert!(
        tokens.len() < text.len() / 2,
        "{} tokens for {} bytes",
        tokens.len(),
        text.len()
    );
    assert_eq!(first.decode(&tokens), text);
    let foreign = "größer 𝄞\r\n\t end";
    assert_eq!(first.decode(&first.encode(foreign).unwrap()), foreign);
}

#[test]
fn a_library_file_is_taken_and_goes_with_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let trained = Tokenizer::train(300, [verse(5000).as_str()]).unwrap();
    let stored: serde_json::Value = serde_json::from_str(&trained.to_json().unwrap()).unwrap();
    let file = folder.path().join("mine.json");
    fs::write(&file, stored["definition"].to_string()).unwrap();
    let choice: TokenizerChoice = file.to_str().unwrap().parse().unwrap();
    let out = prepare_text(folder.path(), &verse(3000), choice);
    let data = Dataset::open(&out).unwrap();
    assert_eq!(data.vocab(), 300);
    assert_eq!(
        data.tokenizer().unwrap().decode(&all(data.train())),
        verse(3000)[..2700]
    );
    fs::write(&file, "{}").unwrap();
    assert!(
        Tokenizer::from_library_file(&file)
            .unwrap_err()
            .to_string()
            .contains("mine.json")
    );
}

#[test]
fn words_for_a_tokenizer() {
    assert_eq!("byte".parse(), Ok(TokenizerChoice::Byte));
    assert_eq!("train:300".parse(), Ok(TokenizerChoice::Train(300)));
    for word in ["train:256", "train:x", "train:", "bpe", ""] {
        assert!(word.parse::<TokenizerChoice>().is_err(), "{word}");
    }
}

#[test]
fn prepare_refuses_what_it_cannot_use_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty.txt"), "").unwrap();
    fs::write(path("short.txt"), "ten bytes!").unwrap();
    fs::write(path("binary.bin"), [b'a', 0xff, b'b']).unwrap();
    fs::write(path("good.txt"), verse(100)).unwrap();
    fs::create_dir_all(path("full/of")).unwrap();
    fs::write(path("full/of/things"), "precious").unwrap();
    fs::create_dir(path("nothing")).unwrap();
    let before = names(folder.path());
    for (input, out, part) in [
        ("absent.txt", "out", "absent.txt"),
        ("empty.txt", "out", "too little"),
        ("short.txt", "out", "at least 2"),
        ("binary.bin", "out", "not UTF-8 text (byte 1)"),
        ("nothing", "out", "no text file"),
        ("good.txt", "full", "holds other things"),
        ("good.txt", "good.txt", "good.txt"),
        ("full", "full/inner", "lies in the input folder"),
    ] {
        let options = Options {
            inputs: vec![path(input)],
            out: path(out),
            tokenizer: TokenizerChoice::Byte,
        };
        let sentence = prepare(&options, &AtomicBool::new(false)).expect_err(input).to_string();
        assert!(sentence.contains(part), "{part:?} is missing in: {sentence}");
        assert_eq!(names(folder.path()), before, "{input} to {out}");
    }
    assert_eq!(fs::read_to_string(path("full/of/things")).unwrap(), "precious");
}

#[test]
fn a_cancelled_prepare_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.txt");
    fs::write(&input, verse(1000)).unwrap();
    let options = Options {
        inputs: vec![input],
        out: folder.path().join("data"),
        tokenizer: TokenizerChoice::Byte,
    };
    assert_eq!(prepare(&options, &AtomicBool::new(true)), Err(DataError::Interrupted));
    assert_eq!(names(folder.path()), ["input.txt"]);
}

#[test]
fn a_former_data_folder_is_replaced_as_a_whole_and_leftovers_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let out = prepare_text(folder.path(), &verse(2000), TokenizerChoice::Gpt2);
    let former = Dataset::open(&out).unwrap();
    // What a killed `prepare` leaves: no process has this id.
    fs::create_dir(folder.path().join(".data.preparing-4194999")).unwrap();
    prepare_text(folder.path(), &verse(1000), TokenizerChoice::Byte);
    let latter = Dataset::open(&out).unwrap();
    assert_ne!(former.manifest_hash(), latter.manifest_hash());
    assert_eq!(latter.train().tokens(), 900);
    assert_eq!(names(folder.path()), ["data", "input.txt"]);
}

#[test]
fn the_same_text_gives_the_same_hash() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hash = |folder: &Path| {
        Dataset::open(&prepare_text(folder, &verse(5000), TokenizerChoice::Train(300)))
            .unwrap()
            .manifest_hash()
    };
    assert_eq!(hash(one.path()), hash(two.path()));
}

/// Opening must fail, naming `file` and holding `part`.
fn refused(out: &Path, file: &str, part: &str) {
    let sentence = Dataset::open(out).expect_err(part).to_string();
    assert!(
        sentence.contains(file) && sentence.contains(part),
        "{file:?} or {part:?} is missing in: {sentence}"
    );
}

#[test]
fn missing_truncated_and_edited_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = prepare_text(folder.path(), &verse(1000), TokenizerChoice::Byte);
    for name in ["train-00000.shard", "validation-00000.shard"] {
        let path = out.join(name);
        let good = fs::read(&path).unwrap();
        let mut edited = good.clone();
        *edited.last_mut().unwrap() ^= 1;
        let mut longer = good.clone();
        longer.push(0);
        let mut foreign = good.clone();
        foreign[0] = b'X';
        let mut newer = good.clone();
        newer[8] = 9;
        for (content, part) in [
            (&good[..good.len() - 1], "truncated"),
            (&good[..10], "truncated"),
            (&[][..], "truncated"),
            (&edited[..], "was changed"),
            (&longer[..], "too long"),
            (&foreign[..], "not a shard"),
            (&newer[..], "version 9"),
        ] {
            fs::write(&path, content).unwrap();
            refused(&out, name, part);
        }
        fs::remove_file(&path).unwrap();
        refused(&out, name, "No such file");
        fs::write(&path, good).unwrap();
        Dataset::open(&out).unwrap();
    }
    let path = out.join("tokenizer.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("byte", "gpt2")).unwrap();
    refused(&out, "tokenizer.json", "was changed");
    fs::remove_file(&path).unwrap();
    refused(&out, "tokenizer.json", "No such file");
}

#[test]
fn manifests_that_are_missing_broken_or_of_another_version_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = prepare_text(folder.path(), &verse(1000), TokenizerChoice::Byte);
    let path = out.join("manifest.json");
    let good = fs::read_to_string(&path).unwrap();
    for (content, part) in [
        (good.replace("\"version\": 1", "\"version\": 7"), "version 7"),
        (good.replace("\"version\": 1,", ""), "no version"),
        (good[..good.len() / 2].to_owned(), "broken"),
        (good.replace("\"vocab\"", "\"vocabulary\""), "broken"),
        (good.replace("900", "901"), "the manifest says 901"),
        (good.replacen("900", "901", 1), "do not add up"),
        (
            good.replace("train-00000.shard", "../train-00000.shard"),
            "plain file name",
        ),
    ] {
        assert_ne!(content, good, "{part}");
        fs::write(&path, content).unwrap();
        let named = if part.starts_with("the manifest says") {
            "shard"
        } else {
            "manifest.json"
        };
        refused(&out, named, part);
    }
    fs::remove_file(&path).unwrap();
    refused(&out, "data", "not a data folder");
    refused(&folder.path().join("absent"), "absent", "No such file");
    fs::write(&path, good).unwrap();
    fs::write(out.join("tokenizer.json"), "{\"version\":3,\"kind\":\"byte\"}").unwrap();
    let sentence = Tokenizer::load(&out).unwrap_err().to_string();
    assert!(
        sentence.contains("tokenizer.json") && sentence.contains("version 3"),
        "{sentence}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn shards_give_back_what_was_written(vocab in prop_oneof![Just(256u32), Just(1 << 16), Just(1 << 17)], raw in proptest::collection::vec(any::<u32>(), 1..500), at in any::<prop::sample::Index>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.shard");
        let tokens: Vec<u32> = raw.iter().map(|token| token % vocab).collect();
        let hash = shard::write(&path, vocab, &tokens).unwrap();
        let shard = shard::Shard::open(&path).unwrap();
        prop_assert_eq!(shard.hash().unwrap(), hash);
        let first = at.index(tokens.len());
        let mut out = vec![0; tokens.len() - first];
        shard.read(first as u64, &mut out).unwrap();
        prop_assert_eq!(&out, &tokens[first..]);
        prop_assert!(shard.read(first as u64 + 1, &mut out).is_err());
    }

    #[test]
    fn validation_predicts_every_token_but_the_first_exactly_once(length in 20..1500usize, micro_batch in 1..9u32, sequence in 1..70u32) {
        let folder = tempfile::tempdir().unwrap();
        let text = verse(length);
        let data = Arc::new(Dataset::open(&prepare_text(folder.path(), &text, TokenizerChoice::Byte)).unwrap());
        let set = ValidationSet::new(data.clone(), micro_batch, sequence);
        let tokens = all(data.validation());
        let (mut inputs, mut targets, mut counted) = (vec![], vec![], 0);
        for index in 0..set.count() {
            let batch = set.micro_batch(index).unwrap();
            prop_assert_eq!((batch.rows, batch.columns), (micro_batch, sequence));
            prop_assert_eq!(batch.inputs.len(), (micro_batch * sequence) as usize);
            prop_assert_eq!(batch.targets.len(), batch.inputs.len());
            for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                if *target != IGNORE {
                    inputs.push(*input as u32);
                    targets.push(*target as u32);
                }
            }
            prop_assert!(batch.counted > 0);
            counted += batch.counted;
        }
        prop_assert_eq!(&inputs, &tokens[..tokens.len() - 1]);
        prop_assert_eq!(&targets, &tokens[1..]);
        prop_assert_eq!(counted, set.tokens());
        prop_assert!(set.micro_batch(set.count()).is_err());
    }
}

#[test]
fn training_micro_batches_are_the_windows_of_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::open(&prepare_text(folder.path(), &verse(1200), TokenizerChoice::Byte)).unwrap();
    let tokens = all(data.train());
    assert_eq!(data.train().training_samples(32), 33);
    let order = Order::new(3, 33);
    let batch = micro_batch(data.train(), &order, 30..36, 32).unwrap();
    assert_eq!((batch.rows, batch.columns, batch.counted), (6, 32, 6 * 32));
    for (row, sample) in (30..36).enumerate() {
        let first = order.sample(sample) as usize * 32;
        let place = row * 32..(row + 1) * 32;
        let wide = |range: std::ops::Range<usize>| tokens[range].iter().map(|t| i64::from(*t)).collect::<Vec<_>>();
        assert_eq!(batch.inputs[place.clone()], wide(first..first + 32));
        assert_eq!(batch.targets[place], wide(first + 1..first + 33));
    }
}
