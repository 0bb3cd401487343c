//! A run of many faults, and the table that it ends with.
//!
//! `LOCKSTEP_FAULTS` says how many of each sort, `LOCKSTEP_SEED` repeats a run, and `LOCKSTEP_FAULT` one world of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;

/// Faults of a sort where nothing else is said.
const FAULTS: u64 = 40;

/// A fault that ended as it should.
pub(crate) struct Played {
    pub(crate) name: &'static str,
    /// What survivors may wait before they say that somebody is silent, where nothing else tells them.
    pub(crate) waits: Duration,
    /// How long after the fault the last survivor knew; none where it did no harm.
    pub(crate) slowest: Option<Duration>,
}

/// Plays many worlds, by seed and number, so many at once. `play` gives none where one did not end as it should.
///
/// # Panics
/// If one did not.
pub(crate) fn run(sort: &str, at_once: usize, play: impl Fn(u64, u64) -> Option<Played> + Sync) {
    let seed = told("LOCKSTEP_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 40));
    println!("LOCKSTEP_SEED={seed}");
    let (first, end) = match told("LOCKSTEP_FAULT") {
        Some(one) => (one, one + 1),
        None => (0, told("LOCKSTEP_FAULTS").unwrap_or(FAULTS)),
    };
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(0));
    let (table, started) = (Mutex::new(Table::default()), Instant::now());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return;
                    }
                    match play(seed, number) {
                        Some(played) => table.lock().unwrap().add(played),
                        None => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    println!("{sort}, {} faults in {:.1?}", end - first, started.elapsed());
    println!("{}", table.into_inner().unwrap());
    let failed = failed.into_inner();
    assert!(
        failed == 0,
        "{failed} of the faults did not end as they should: each is named above"
    );
}

/// A number from the environment.
fn told(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// What became of a kind of fault.
#[derive(Default)]
struct Row {
    count: u64,
    harmless: u64,
    waits: Duration,
    slowest: Duration,
}

/// By fault.
#[derive(Default)]
struct Table(BTreeMap<&'static str, Row>);

impl Table {
    fn add(&mut self, played: Played) {
        let row = self.0.entry(played.name).or_default();
        row.count += 1;
        row.harmless += u64::from(played.slowest.is_none());
        row.waits = row.waits.max(played.waits);
        row.slowest = row.slowest.max(played.slowest.unwrap_or_default());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:<36} {:>5} {:>9} {:>8} {:>10}",
            "fault", "count", "harmless", "waits s", "slowest s"
        )?;
        for (name, row) in &self.0 {
            let Row { count, harmless, .. } = row;
            let (waits, slowest) = (row.waits.as_secs_f64(), row.slowest.as_secs_f64());
            writeln!(
                formatter,
                "{name:<36} {count:>5} {harmless:>9} {waits:>8.1} {slowest:>10.3}"
            )?;
        }
        Ok(())
    }
}
