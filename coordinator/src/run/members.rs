//! Who is there: the members by stream, and beside them what decisions ask of all of them again and again, kept as it
//! changes. So an event of one member costs the same in a world of two ranks and in one of a hundred thousand.
//!
//! Way of data: a member is put in, taken out, or changed ([`Members::change`]); what it counts for before and after that
//! ([`Seat`]) is taken out of the indexes and put into them. Whoever asks reads an index; the members themselves are walked
//! only where all of them are told something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::domain::{Generation, JoinInfo, Part, Progress};

use crate::run::reach::Stands;
use crate::run::{Farewell, Peer};

/// A member as the machine knows it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) info: JoinInfo,
    /// In the present generation, if it is part of it.
    pub(super) rank: Option<u32>,
    pub(super) ready: Option<Stands>,
    /// Whether plans of the present generation may not have reached it.
    pub(super) has_no_plans: bool,
    pub(super) reported: u64,
    pub(super) progress: Progress,
    pub(super) finished: Option<Farewell>,
    /// Whether its farewell was acknowledged.
    pub(super) is_heard: bool,
    /// Whether its stream closed after its farewell.
    pub(super) is_gone: bool,
    /// Whether its stream closed without one, and it counts as ended nevertheless.
    pub(super) is_missed: bool,
    /// Whether it has left the collectives, since the present generation was formed.
    pub(super) stopped: bool,
    /// Since when it is known that it does not go on.
    pub(super) lapsed: Option<Duration>,
    /// The number of the generation in whose collectives it still is, though it is no rank of the present one; since when
    /// that is known.
    pub(super) astray: Option<(u64, Duration)>,
    /// Why it must leave, if it must: it is part of no further generation.
    pub(super) leaving: Option<String>,
    /// The parts of snapshots that it holds.
    pub(super) parts: BTreeSet<Part>,
}

impl Member {
    pub(super) fn new(info: JoinInfo) -> Member {
        Member {
            info,
            rank: None,
            ready: None,
            has_no_plans: false,
            reported: 0,
            progress: Progress::default(),
            finished: None,
            is_heard: false,
            is_gone: false,
            is_missed: false,
            stopped: false,
            lapsed: None,
            astray: None,
            leaving: None,
            parts: BTreeSet::new(),
        }
    }

    /// Whether it is a rank whose device may wait in a collective.
    pub(super) fn is_in_collectives(&self) -> bool {
        self.rank.is_some() && !self.stopped && self.finished.is_none()
    }

    /// Whether it has ended its part of a run that goes on without it.
    pub(super) fn is_released(&self) -> bool {
        self.rank.is_none() && self.finished.is_some() && self.is_heard
    }

    /// Whether it may be a rank of the next generation.
    pub(super) fn is_candidate(&self) -> bool {
        self.finished.is_none() && self.leaving.is_none() && self.astray.is_none()
    }

    fn seat(&self) -> Seat {
        let unheard = self.finished.as_ref().filter(|_| !self.is_heard);
        Seat {
            rank: self.rank,
            is_in_collectives: self.is_in_collectives(),
            is_ready: self.ready.is_some(),
            is_candidate: self.is_candidate(),
            is_finished: self.finished.is_some(),
            unheard: unheard.map(|(_, step)| *step),
            has_lapsed: self.lapsed.is_some(),
            is_astray: self.astray.is_some(),
        }
    }
}

/// What a member counts for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seat {
    rank: Option<u32>,
    is_in_collectives: bool,
    is_ready: bool,
    is_candidate: bool,
    is_finished: bool,
    /// The step of its farewell, as long as that is not acknowledged.
    unheard: Option<u64>,
    has_lapsed: bool,
    is_astray: bool,
}

/// The members that count for something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Indexes {
    /// The streams of each name.
    names: BTreeMap<String, BTreeSet<Peer>>,
    ranks: BTreeSet<(u32, Peer)>,
    in_collectives: BTreeSet<Peer>,
    /// Those of them that have not lapsed.
    moving: BTreeSet<Peer>,
    /// Ranks that are not ready.
    unready: BTreeSet<Peer>,
    /// Ranks that have not said farewell.
    unfinished_ranks: BTreeSet<Peer>,
    /// Ranks whose farewells are not acknowledged, by the step that they name.
    unheard_ranks: BTreeSet<(u64, Peer)>,
    /// Members of no rank whose farewells are not acknowledged.
    unheard_others: BTreeSet<Peer>,
    candidates: usize,
    ready: usize,
    unfinished: usize,
    lapsed: usize,
    astray: usize,
    /// The rank of each name in the present generation.
    places: BTreeMap<String, u32>,
    /// The ranks of the present generation of whose name nobody is there.
    absent: BTreeSet<u32>,
}

impl Indexes {
    fn seat(&mut self, peer: Peer, seat: Seat) {
        if let Some(rank) = seat.rank {
            self.ranks.insert((rank, peer));
            if !seat.is_ready {
                self.unready.insert(peer);
            }
            if !seat.is_finished {
                self.unfinished_ranks.insert(peer);
            }
        }
        if seat.is_in_collectives {
            self.in_collectives.insert(peer);
            if !seat.has_lapsed {
                self.moving.insert(peer);
            }
        }
        match (seat.unheard, seat.rank) {
            (Some(step), Some(_)) => drop(self.unheard_ranks.insert((step, peer))),
            (Some(_), None) => drop(self.unheard_others.insert(peer)),
            (None, _) => {}
        }
        for (count, counts) in self.counts(seat) {
            *count += usize::from(counts);
        }
    }

    fn unseat(&mut self, peer: Peer, seat: Seat) {
        if let Some(rank) = seat.rank {
            self.ranks.remove(&(rank, peer));
        }
        for of in [
            &mut self.unready,
            &mut self.unfinished_ranks,
            &mut self.in_collectives,
            &mut self.moving,
        ] {
            of.remove(&peer);
        }
        if let Some(step) = seat.unheard {
            self.unheard_ranks.remove(&(step, peer));
            self.unheard_others.remove(&peer);
        }
        for (count, counts) in self.counts(seat) {
            *count -= usize::from(counts);
        }
    }

    fn counts(&mut self, seat: Seat) -> [(&mut usize, bool); 5] {
        [
            (&mut self.candidates, seat.is_candidate),
            (&mut self.ready, seat.is_ready),
            (&mut self.unfinished, !seat.is_finished),
            (&mut self.lapsed, seat.has_lapsed),
            (&mut self.astray, seat.is_astray),
        ]
    }

    fn comes(&mut self, peer: Peer, name: &str) {
        self.names.entry(name.to_owned()).or_default().insert(peer);
        if let Some(rank) = self.places.get(name) {
            self.absent.remove(rank);
        }
    }

    fn goes(&mut self, peer: Peer, name: &str) {
        let Some(streams) = self.names.get_mut(name) else {
            return;
        };
        streams.remove(&peer);
        if streams.is_empty() {
            self.names.remove(name);
            self.absent.extend(self.places.get(name));
        }
    }
}

/// The members by stream. A copy is free until it, or what it was copied from, is changed: orders that are only tried are tried
/// on a copy of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    all: Arc<BTreeMap<Peer, Member>>,
    of: Arc<Indexes>,
}

impl Members {
    pub(super) fn get(&self, peer: &Peer) -> Option<&Member> {
        self.all.get(peer)
    }

    pub(super) fn contains_key(&self, peer: &Peer) -> bool {
        self.all.contains_key(peer)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// All of them, in the order of streams.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Peer, &Member)> {
        self.all.iter()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Member> {
        self.all.values()
    }

    pub(super) fn insert(&mut self, peer: Peer, member: Member) {
        self.remove(&peer);
        let of = Arc::make_mut(&mut self.of);
        of.comes(peer, &member.info.member);
        of.seat(peer, member.seat());
        Arc::make_mut(&mut self.all).insert(peer, member);
    }

    pub(super) fn remove(&mut self, peer: &Peer) -> Option<Member> {
        if !self.all.contains_key(peer) {
            return None;
        }
        let member = Arc::make_mut(&mut self.all).remove(peer)?;
        let of = Arc::make_mut(&mut self.of);
        of.unseat(*peer, member.seat());
        of.goes(*peer, &member.info.member);
        Some(member)
    }

    /// Changes a member, but not its name. What `change` answers; none where nobody is there.
    pub(super) fn change<T>(&mut self, peer: &Peer, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        if !self.all.contains_key(peer) {
            return None;
        }
        let member = Arc::make_mut(&mut self.all).get_mut(peer)?;
        let before = member.seat();
        let answer = change(member);
        let after = member.seat();
        if before != after {
            let of = Arc::make_mut(&mut self.of);
            of.unseat(*peer, before);
            of.seat(*peer, after);
        }
        Some(answer)
    }

    /// Changes every member, but no name.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut Member)) {
        let peers: Vec<Peer> = self.all.keys().copied().collect();
        for peer in peers {
            self.change(&peer, &mut change);
        }
    }

    /// Takes everybody out who is not wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Member) -> bool) {
        let unwanted = self.all.iter().filter(|(_, member)| !wanted(member));
        let unwanted: Vec<Peer> = unwanted.map(|(peer, _)| *peer).collect();
        for peer in unwanted {
            self.remove(&peer);
        }
    }

    /// The ranks of the present generation are those of this one.
    pub(super) fn take_places(&mut self, generation: &Generation) {
        let of = Arc::make_mut(&mut self.of);
        let places = generation.members.iter();
        of.places = places.map(|place| (place.member.clone(), place.rank)).collect();
        let absent = of.places.iter().filter(|(name, _)| !of.names.contains_key(*name));
        of.absent = absent.map(|(_, rank)| *rank).collect();
    }

    /// The rank that a name has in the present generation.
    pub(super) fn place_of(&self, name: &str) -> Option<u32> {
        self.of.places.get(name).copied()
    }

    /// The ranks of the present generation of whose name nobody is there, in order.
    pub(super) fn absent(&self) -> &BTreeSet<u32> {
        &self.of.absent
    }

    /// The members of a name.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = (Peer, &Member)> {
        let peers = self.of.names.get(name).into_iter().flatten();
        peers.filter_map(|peer| Some((*peer, self.all.get(peer)?)))
    }

    /// The member of a rank.
    pub(super) fn of_rank(&self, rank: u32) -> Option<(Peer, &Member)> {
        let (_, peer) = self.of.ranks.range((rank, 0)..=(rank, Peer::MAX)).next()?;
        Some((*peer, self.all.get(peer)?))
    }

    /// Ranks that are in the collectives, in the order of streams.
    pub(super) fn in_collectives(&self) -> &BTreeSet<Peer> {
        &self.of.in_collectives
    }

    /// Those of them of whom it is not known that they do not go on.
    pub(super) fn moving(&self) -> &BTreeSet<Peer> {
        &self.of.moving
    }

    /// Ranks that are not ready, in the order of streams.
    pub(super) fn unready(&self) -> &BTreeSet<Peer> {
        &self.of.unready
    }

    /// Ranks that have not said farewell, in the order of streams.
    pub(super) fn unfinished_ranks(&self) -> &BTreeSet<Peer> {
        &self.of.unfinished_ranks
    }

    /// Whether nobody is there who has not said farewell.
    pub(super) fn all_have_finished(&self) -> bool {
        self.of.unfinished == 0
    }

    /// Whose farewells are not acknowledged, in the order of streams. Of ranks only those whose steps go up to `through`.
    pub(super) fn unheard(&self, through: u64) -> BTreeSet<Peer> {
        let ranks = self.of.unheard_ranks.range(..=(through, Peer::MAX));
        ranks
            .map(|(_, peer)| *peer)
            .chain(self.of.unheard_others.iter().copied())
            .collect()
    }

    /// Who may be a rank of the next generation: how many.
    pub(super) fn candidates(&self) -> usize {
        self.of.candidates
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.of.ready
    }

    /// Whether somebody is in the collectives of an older generation, or does not go on.
    pub(super) fn has_stray_or_lapsed(&self) -> bool {
        self.of.astray + self.of.lapsed > 0
    }

    /// What the indexes do not say as the members do, if anything.
    #[cfg(test)]
    pub(super) fn disagreement(&self) -> Option<String> {
        let mut anew = Members::default();
        let of = Arc::make_mut(&mut anew.of);
        of.places = self.of.places.clone();
        let names: BTreeSet<&String> = self.all.values().map(|member| &member.info.member).collect();
        let absent = of.places.iter().filter(|(name, _)| !names.contains(name));
        of.absent = absent.map(|(_, rank)| *rank).collect();
        for (peer, member) in self.all.iter() {
            anew.insert(*peer, member.clone());
        }
        (anew.of != self.of).then(|| format!("the indexes are {:?} and should be {:?}", self.of, anew.of))
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = (&'a Peer, &'a Member);
    type IntoIter = std::collections::btree_map::Iter<'a, Peer, Member>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}
