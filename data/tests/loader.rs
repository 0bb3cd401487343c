//! The loader: in order, ahead of need, with errors in their places, and gone when it is dropped.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lockstep_data::*;

fn dataset(folder: &Path) -> Arc<Dataset> {
    let input = folder.join("input.txt");
    fs::write(&input, "to be or not to be, that is the question. ".repeat(100)).unwrap();
    let options = Options {
        inputs: vec![input],
        out: folder.join("data"),
        tokenizer: TokenizerChoice::Byte,
    };
    prepare(&options, &AtomicBool::new(false)).unwrap();
    Arc::new(Dataset::open(&options.out).unwrap())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "waited too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn micro_batches_come_in_the_order_of_submission() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let order = Order::new(1, data.train().training_samples(16));
    let mut loader = Loader::start(data.clone(), order, 16, 3).unwrap();
    let ranges: Vec<_> = (0..40u64).rev().map(|index| index * 4..index * 4 + 4).collect();
    ranges.iter().for_each(|range| loader.submit(range.clone()));
    assert_eq!(loader.outstanding(), 40);
    for range in ranges {
        assert_eq!(loader.next(), micro_batch(data.train(), &order, range, 16));
    }
    assert_eq!(loader.outstanding(), 0);
    assert!(matches!(loader.next(), Err(DataError::Loader(_))));
    loader.submit(0..1);
    assert!(loader.next().is_ok());
}

/// Truncates the shard under the loader: what was read before stays good, which shows that it was read ahead; what
/// comes after is an error in its place, and the loader goes on after it.
#[test]
fn it_reads_ahead_and_gives_errors_in_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let samples = data.train().training_samples(16);
    let order = Order::new(1, samples);
    let shard = folder.path().join("data/train-00000.shard");
    let content = fs::read(&shard).unwrap();
    let mut loader = Loader::start(data.clone(), order, 16, 2).unwrap();
    loader.submit(0..4);
    loader.submit(4..8);
    let expected = [
        micro_batch(data.train(), &order, 0..4, 16),
        micro_batch(data.train(), &order, 4..8, 16),
    ];
    // Ready without being asked for: taken when the shard has already been cut short.
    wait_until("two are ready", || loader.ready() == 2);
    let open = fs::OpenOptions::new().write(true).open(&shard).unwrap();
    open.set_len(30).unwrap();
    loader.submit(8..12);
    assert_eq!([loader.next(), loader.next()], expected);
    assert_eq!(loader.outstanding(), 1);
    let sentence = loader.next().unwrap_err().to_string();
    assert!(sentence.contains("train-00000.shard"), "{sentence}");
    fs::write(&shard, content).unwrap();
    loader.submit(12..16);
    assert_eq!(loader.next(), micro_batch(data.train(), &order, 12..16, 16));
}

#[test]
fn dropping_it_ends_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let order = Order::new(1, data.train().training_samples(16));
    let mut loader = Loader::start(data.clone(), order, 16, 1).unwrap();
    // More than fits into its queue: the thread waits for room when it is dropped.
    (0..50).for_each(|index| loader.submit(index..index + 1));
    loader.next().unwrap();
    drop(loader);
    wait_until("the thread has let go of the data", || Arc::strong_count(&data) == 1);
}
