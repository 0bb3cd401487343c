//! How ranks reach each other, in little room: each says it of every other, and in a large world nearly all say the same.

use std::collections::BTreeMap;

use lockstep_proto::domain::Ready;

/// In larger worlds a member's line leaves out how it reaches each rank: that would be a list of ranks for every rank.
const MOST_LISTED: u32 = 64;

/// What a rank said when its communicator stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stands {
    /// Hash of its parameters.
    pub hash: [u8; 32],
    /// How it reaches each rank, by rank: neighbours that it reaches alike are one entry.
    ways: Vec<(String, u32)>,
}

impl From<Ready> for Stands {
    fn from(ready: Ready) -> Stands {
        let mut ways: Vec<(String, u32)> = Vec::new();
        for transport in ready.transports {
            match ways.last_mut() {
                Some((last, ranks)) if *last == transport => *ranks += 1,
                _ => ways.push((transport, 1)),
            }
        }
        ways.shrink_to_fit();
        Stands { hash: ready.hash, ways }
    }
}

impl Stands {
    /// How it reaches each rank, by rank; nothing in a large world.
    pub(super) fn listed(&self) -> Vec<String> {
        let ranks: u32 = self.ways.iter().map(|(_, ranks)| *ranks).sum();
        if ranks > MOST_LISTED {
            return Vec::new();
        }
        let ways = self.ways.iter();
        ways.flat_map(|(way, ranks)| std::iter::repeat_n(way.clone(), *ranks as usize))
            .collect()
    }

    /// Adds how it, rank `rank`, reaches the ranks behind it.
    pub(super) fn count_behind<'a>(&'a self, rank: u32, pairs: &mut BTreeMap<&'a str, u32>) {
        let mut begin = 0;
        for (way, ranks) in &self.ways {
            let end = begin + ranks;
            let behind = end.saturating_sub(begin.max(rank + 1));
            if behind > 0 {
                let pairs = pairs.entry(way).or_default();
                // The largest number that the answer can say.
                *pairs = pairs.saturating_add(behind);
            }
            begin = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands(transports: &[&str]) -> Stands {
        let transports = transports.iter().map(|&transport| transport.to_owned()).collect();
        Ready {
            hash: [1; 32],
            transports,
        }
        .into()
    }

    #[test]
    fn every_pair_is_counted_once_at_its_lower_rank() {
        let said = [
            stands(&["", "shm", "tcp", "tcp"]),
            stands(&["shm", "", "tcp", "tcp"]),
            stands(&["tcp", "tcp", "", "shm"]),
            stands(&["tcp", "tcp", "shm", ""]),
        ];
        let mut pairs = BTreeMap::new();
        for (rank, stands) in (0..).zip(&said) {
            stands.count_behind(rank, &mut pairs);
        }
        assert_eq!(pairs, BTreeMap::from([("shm", 2), ("tcp", 4)]));
    }

    #[test]
    fn a_small_world_is_listed_by_rank_and_a_large_one_only_counted() {
        assert_eq!(stands(&["", "shm", "tcp"]).listed(), ["", "shm", "tcp"]);
        let large = stands(&["tcp"; 65]);
        assert!(large.listed().is_empty() && large.ways.len() == 1);
        let mut pairs = BTreeMap::new();
        large.count_behind(60, &mut pairs);
        assert_eq!(pairs, BTreeMap::from([("tcp", 4)]));
    }
}
