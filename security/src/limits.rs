//! How often somebody may do something: token buckets, of which there is never more than a fixed number.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Fills at a rate, holds so many, and gives one out at a time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full one; `rate` is by second.
    pub fn new(rate: f64, burst: f64, now: Instant) -> Bucket {
        Bucket {
            rate,
            burst,
            level: burst,
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.burst);
        self.at = now;
    }

    /// Takes one out, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let is_there = self.level >= 1.0;
        if is_there {
            self.level -= 1.0;
        }
        is_there
    }
}

/// A bucket for each caller. Full ones are forgotten, and while too many are not full, new callers get nothing.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    most: usize,
    of: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Buckets<K> {
    /// For at most `most` callers at a time.
    pub fn new(rate: f64, burst: f64, most: usize) -> Buckets<K> {
        Buckets {
            rate,
            burst,
            most,
            of: HashMap::new(),
        }
    }

    /// Takes one out of a caller's bucket, if there is one.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        if !self.of.contains_key(&key) && self.of.len() >= self.most {
            self.of.retain(|_, bucket| {
                bucket.fill(now);
                bucket.level < bucket.burst
            });
            if self.of.len() >= self.most {
                return false;
            }
        }
        let (rate, burst) = (self.rate, self.burst);
        let bucket = self.of.entry(key).or_insert_with(|| Bucket::new(rate, burst, now));
        bucket.take(now)
    }

    /// Callers that are remembered.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut buckets = Buckets::new(2.0, 3.0, 10);
        let taken = |buckets: &mut Buckets<u8>, at: f64| {
            let now = start + Duration::from_secs_f64(at);
            (0..10).filter(|_| buckets.take(1, now)).count()
        };
        assert_eq!(taken(&mut buckets, 0.0), 3);
        assert_eq!(taken(&mut buckets, 1.0), 2);
        assert_eq!(taken(&mut buckets, 100.0), 3);
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1.0, 1.0, 100);
        let given = (0..1000u32).filter(|key| buckets.take(*key, start)).count();
        assert_eq!((given, buckets.len()), (100, 100));
        assert!(
            buckets.take(5000, start + Duration::from_secs(2)),
            "full ones are forgotten"
        );
        assert_eq!(buckets.len(), 1);
    }
}
