//! Who has stopped moving. Members say twice a second what their device threads do, with a counter that only the device
//! thread raises; a rank's lease is renewed when the counter has risen, and by nothing else.
//!
//! Way of data: [`Leases::heard`] takes each [`Progress`], [`Leases::lapsed`] is asked on every tick about the ranks of the
//! present generation, and what it finds becomes [`Event::Lapsed`](crate::run::Event::Lapsed), which the ledger keeps. So
//! the flood of progress decides nothing that could not be replayed.
//!
//! The rules:
//!
//! - Who says nothing at all for as long as the lease is *silent*: its host, its network or its process is gone or stopped.
//! - Who stays in one phase for longer than that phase's deadline, while somebody else waits for other ranks, *hangs*. The
//!   deadline is the lease, or [`MARGIN`] times the longest time that any rank ever took for the phase, whichever is more; a
//!   phase that nobody has left yet has [`UNKNOWN`] leases. Ranks measure their phases themselves and say so, since most
//!   phases are shorter than the time between two words.
//! - Who waits for others is never blamed. Where some rank still moves, the others may be waiting for it, so nobody is
//!   blamed; nor where all are in computing phases, since then the machines are slow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockstep_proto::domain::Progress;

use crate::run::Peer;

/// A phase may take so many times as long as it ever did.
const MARGIN: u32 = 8;
/// A phase that was never left has so many leases.
const UNKNOWN: u32 = 6;
/// So long people do not ask whom the others wait for.
const NOTICEABLE: Duration = Duration::from_secs(2);
/// Longer between two looks, and it was the coordinator that did not move: nobody's time has run.
const LATE_LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Seen {
    progress: Progress,
    /// When its counter last rose.
    moved: Duration,
    /// When it last said something.
    heard: Duration,
}

/// The leases of the ranks.
#[derive(Clone, Debug)]
pub struct Leases {
    lease: Duration,
    seen: BTreeMap<Peer, Seen>,
    /// The longest time that any rank says it took for a phase.
    longest: BTreeMap<String, Duration>,
    looked: Duration,
    /// Whether everything that is heard renews a lease.
    #[cfg(test)]
    pub(super) is_renewed_by_words: bool,
}

impl Leases {
    /// Leases of that length.
    pub fn new(lease: Duration) -> Leases {
        Leases {
            lease,
            seen: BTreeMap::new(),
            longest: BTreeMap::new(),
            looked: Duration::ZERO,
            #[cfg(test)]
            is_renewed_by_words: false,
        }
    }

    /// A member said what its device thread does. `now` never goes back.
    pub fn heard(&mut self, peer: Peer, progress: &Progress, now: Duration) {
        if let Some(longest) = progress.longest_ms.map(Duration::from_millis) {
            let known = self.longest.entry(progress.phase.clone()).or_default();
            *known = longest.max(*known);
        }
        let Some(seen) = self.seen.get_mut(&peer) else {
            self.seen.insert(peer, Seen::now(progress.clone(), now));
            return;
        };
        seen.heard = now;
        let has_moved = progress.counter > seen.progress.counter;
        #[cfg(test)]
        let has_moved = has_moved || self.is_renewed_by_words;
        if !has_moved {
            return;
        }
        *seen = Seen::now(progress.clone(), now);
    }

    /// A member's stream is gone.
    pub fn gone(&mut self, peer: Peer) {
        self.seen.remove(&peer);
    }

    /// Who of `ranks`, the ranks that are in the collectives of the present generation, has stopped moving, and how that
    /// shows.
    pub fn lapsed(&mut self, ranks: &BTreeSet<Peer>, now: Duration) -> Vec<(Peer, String)> {
        let slept = now.saturating_sub(self.looked);
        self.looked = now;
        if slept > LATE_LOOK {
            for seen in self.seen.values_mut() {
                (seen.moved, seen.heard) = ((seen.moved + slept).min(now), (seen.heard + slept).min(now));
            }
        }
        if self.of(ranks).count() < ranks.len() {
            for peer in ranks {
                // Whoever has said nothing yet has its lease from now on.
                let nothing = || Progress {
                    phase: "begin".to_owned(),
                    waits: true,
                    ..Progress::default()
                };
                self.seen.entry(*peer).or_insert_with(|| Seen::now(nothing(), now));
            }
        }
        let since = |at: Duration| now.saturating_sub(at);
        let silent: Vec<_> = self
            .of(ranks)
            .filter(|(_, seen)| since(seen.heard) >= self.lease)
            .collect();
        if !silent.is_empty() {
            let of = |seen: &Seen| format!("nothing was heard of it for {:.1} s", since(seen.heard).as_secs_f64());
            return silent.into_iter().map(|(peer, seen)| (peer, of(seen))).collect();
        }
        // In a run that goes on the first one that is asked moves.
        let mut busy = self.of(ranks).filter(|(_, seen)| !seen.progress.waits);
        if busy.any(|(_, seen)| since(seen.moved) < self.deadline(seen)) {
            return Vec::new();
        }
        let busy: Vec<_> = self.of(ranks).filter(|(_, seen)| !seen.progress.waits).collect();
        let is_waited_for = busy.len() < ranks.len() || ranks.len() == 1;
        if !is_waited_for {
            return Vec::new();
        }
        let of = |seen: &Seen| {
            let longest = self.longest.get(&seen.progress.phase);
            format!(
                "its device thread has been in {} of step {} for {:.1} s ({}), and does not wait for anybody",
                seen.progress.phase,
                seen.progress.step,
                since(seen.moved).as_secs_f64(),
                longest.map_or_else(
                    || "nobody has left that phase yet".to_owned(),
                    |longest| format!("that phase took {:.1} s at most so far", longest.as_secs_f64())
                )
            )
        };
        busy.into_iter().map(|(peer, seen)| (peer, of(seen))).collect()
    }

    /// The rank that the others have been waiting for, for longer than is usual, and where it is: for people, long before its
    /// lease is over.
    pub fn waited_for(&self, ranks: &BTreeSet<Peer>, now: Duration) -> Option<(Peer, String)> {
        let since = |at: Duration| now.saturating_sub(at);
        let longest_silent = self.of(ranks).max_by_key(|(_, seen)| since(seen.heard));
        if let Some((peer, seen)) = longest_silent.filter(|(_, seen)| since(seen.heard) >= NOTICEABLE) {
            return Some((
                peer,
                format!("nothing was heard of it for {:.1} s", since(seen.heard).as_secs_f64()),
            ));
        }
        let busy = self.of(ranks).filter(|(_, seen)| !seen.progress.waits);
        let (peer, seen) = busy.max_by_key(|(_, seen)| since(seen.moved))?;
        let usual = self.longest.get(&seen.progress.phase).copied().unwrap_or_default() * 2;
        (since(seen.moved) >= usual.max(NOTICEABLE)).then(|| {
            let (phase, step) = (&seen.progress.phase, seen.progress.step);
            (
                peer,
                format!(
                    "it has been in {phase} of step {step} for {:.1} s",
                    since(seen.moved).as_secs_f64()
                ),
            )
        })
    }

    /// Those of `ranks` of whom something is known. Both are in the order of streams, so one walk is enough.
    fn of<'a>(&'a self, ranks: &'a BTreeSet<Peer>) -> impl Iterator<Item = (Peer, &'a Seen)> {
        let mut seen = self.seen.iter().peekable();
        ranks.iter().filter_map(move |rank| {
            while seen.next_if(|(peer, _)| *peer < rank).is_some() {}
            let (peer, seen) = seen.next_if(|(peer, _)| *peer == rank)?;
            Some((*peer, seen))
        })
    }

    /// How long a rank may stay where it is.
    fn deadline(&self, seen: &Seen) -> Duration {
        match self.longest.get(&seen.progress.phase) {
            Some(longest) => self.lease.max(*longest * MARGIN),
            None => self.lease * UNKNOWN,
        }
    }
}

impl Seen {
    fn now(progress: Progress, now: Duration) -> Seen {
        Seen {
            progress,
            moved: now,
            heard: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    /// Leases of two ranks, and a clock that goes by in steps of a tenth of a second.
    struct World {
        leases: Leases,
        now: Duration,
        counters: [u64; 2],
        longest_ms: Option<u64>,
    }

    impl World {
        fn new() -> World {
            World {
                leases: Leases::new(LEASE),
                now: Duration::ZERO,
                counters: [0; 2],
                longest_ms: Some(100),
            }
        }

        /// Lets `seconds` go by; each rank says all the while what it does: a phase that moves (`true`) or does not, and
        /// whether it waits. Who says nothing is `None`. Who had lapsed first.
        fn pass(&mut self, seconds: f64, ranks: [Option<(&str, bool, bool)>; 2]) -> Vec<(Peer, String)> {
            let end = self.now + Duration::from_secs_f64(seconds);
            // Whatever a rank does now it has begun to do.
            self.counters = self.counters.map(|counter| counter + 1);
            while self.now < end {
                self.now += Duration::from_millis(100);
                for (peer, says) in (0..).zip(ranks) {
                    let Some((phase, moves, waits)) = says else { continue };
                    let counter = &mut self.counters[peer as usize];
                    *counter += u64::from(moves);
                    let progress = Progress {
                        step: 7,
                        phase: phase.to_owned(),
                        counter: *counter,
                        waits,
                        longest_ms: self.longest_ms,
                    };
                    self.leases.heard(peer, &progress, self.now);
                }
                let lapsed = self.leases.lapsed(&BTreeSet::from([0, 1]), self.now);
                if !lapsed.is_empty() {
                    return lapsed;
                }
            }
            Vec::new()
        }
    }

    #[test]
    fn people_are_told_whom_the_others_wait_for_long_before_a_lease_is_over() {
        let mut world = World::new();
        let waited_for = |world: &World| world.leases.waited_for(&BTreeSet::from([0, 1]), world.now);
        world.pass(1.0, [MOVES, WAITS]);
        assert_eq!(waited_for(&world), None);
        world.pass(3.0, [STANDS, WAITS]);
        let (peer, how) = waited_for(&world).unwrap();
        assert!(
            peer == 0 && how.starts_with("it has been in forward of step 7 for "),
            "{peer} {how}"
        );
        world.pass(1.0, [MOVES, WAITS]);
        world.pass(3.0, [MOVES, None]);
        let (peer, how) = waited_for(&world).unwrap();
        assert!(
            peer == 1 && how.starts_with("nothing was heard of it for "),
            "{peer} {how}"
        );
    }

    const MOVES: Option<(&str, bool, bool)> = Some(("forward", true, false));
    const STANDS: Option<(&str, bool, bool)> = Some(("forward", false, false));
    const WAITS: Option<(&str, bool, bool)> = Some(("forward", false, true));

    #[test]
    fn a_rank_that_stands_still_while_another_waits_hangs_and_the_other_is_never_blamed() {
        let mut world = World::new();
        assert_eq!(world.pass(60.0, [MOVES, MOVES]), []);
        // It has moved just now, so that its last phase is known.
        let lapsed = world.pass(60.0, [STANDS, WAITS]);
        assert_eq!(lapsed.len(), 1);
        assert_eq!(lapsed[0].0, 0);
        assert!(
            lapsed[0]
                .1
                .starts_with("its device thread has been in forward of step 7 for 10."),
            "{lapsed:?}"
        );
    }

    #[test]
    fn nobody_is_blamed_where_all_are_slow_or_all_wait_or_somebody_still_moves() {
        for ranks in [[STANDS, STANDS], [WAITS, WAITS], [MOVES, WAITS], [MOVES, STANDS]] {
            let mut world = World::new();
            world.pass(1.0, [MOVES, MOVES]);
            assert_eq!(world.pass(600.0, ranks), [], "{ranks:?}");
        }
    }

    #[test]
    fn a_phase_may_take_eight_times_as_long_as_it_ever_did_and_one_that_is_new_sixty_seconds() {
        let mut world = World::new();
        world.longest_ms = Some(4000);
        let lapsed = world.pass(1000.0, [STANDS, WAITS]);
        assert!(
            lapsed[0].1.contains("that phase took 4.0 s at most so far"),
            "{lapsed:?}"
        );
        assert!((32.0..33.0).contains(&world.now.as_secs_f64()), "{:?}", world.now);

        let mut world = World::new();
        world.longest_ms = None;
        let lapsed = world.pass(1000.0, [Some(("compile", false, false)), WAITS]);
        assert!((60.0..61.0).contains(&world.now.as_secs_f64()), "{:?}", world.now);
        assert!(lapsed[0].1.contains("nobody has left that phase yet"), "{lapsed:?}");
    }

    #[test]
    fn who_says_nothing_is_silent_even_if_it_waited() {
        let mut world = World::new();
        world.pass(1.0, [MOVES, WAITS]);
        let lapsed = world.pass(60.0, [MOVES, None]);
        assert_eq!(lapsed.len(), 1);
        assert_eq!(lapsed[0].0, 1);
        assert!(lapsed[0].1.starts_with("nothing was heard of it for 10."), "{lapsed:?}");
    }

    #[test]
    fn who_never_said_anything_has_a_lease_too() {
        let mut world = World::new();
        let lapsed = world.pass(60.0, [MOVES, None]);
        assert_eq!(lapsed.len(), 1);
        assert_eq!(lapsed[0].0, 1);
    }

    #[test]
    fn while_the_coordinator_itself_did_not_move_nobodys_time_runs() {
        let mut world = World::new();
        world.pass(1.0, [MOVES, MOVES]);
        world.now += Duration::from_secs(3600);
        assert_eq!(world.leases.lapsed(&BTreeSet::from([0, 1]), world.now), []);
        assert_eq!(world.pass(5.0, [None, None]), []);
        assert_eq!(world.pass(20.0, [None, None]).len(), 2);
    }

    #[test]
    fn a_member_that_is_gone_and_comes_again_begins_anew() {
        let mut world = World::new();
        world.pass(1.0, [MOVES, MOVES]);
        world.leases.gone(1);
        world.counters[1] = 0;
        assert_eq!(world.pass(60.0, [MOVES, MOVES]), []);
    }
}
