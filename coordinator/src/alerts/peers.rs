//! How the ranks spend their time, from looks at them. Only rank 0 reports how long its phases take; but every member says
//! twice a second in which phase its device thread is and whether it waits, and a hundred such words are a profile. Where
//! one rank is slower than its peers, they wait and it does not, and the phase in which it is found more often than they are
//! is the one that is slow.

use std::collections::{BTreeMap, VecDeque};

use lockstep_proto::domain::MemberStatus;

/// Looks that are remembered: a minute of them.
const LOOKS: usize = 120;
/// Fewer looks say nothing.
const LEAST_LOOKS: usize = 30;

/// What was seen of a member, look by look: its phase, and whether it waited.
type Looks = VecDeque<(String, bool)>;

/// How the ranks of the present generation spend their time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    seen: BTreeMap<String, Looks>,
}

/// A rank that is slower than its peers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slower {
    pub(crate) member: String,
    /// The phase in which it is found more often than its peers, by so much of its time.
    pub(crate) phase: String,
    pub(crate) more: f64,
    /// The share of their time for which its peers wait.
    pub(crate) peers_wait: f64,
    /// By how much that is more than its own.
    pub(crate) gap: f64,
}

impl Peers {
    /// Takes a look at the ranks. Another world is looked at from the beginning.
    pub(crate) fn saw(&mut self, members: &[MemberStatus]) {
        let ranks: Vec<&MemberStatus> = members.iter().filter(|member| member.place.is_some()).collect();
        let is_same =
            self.seen.len() == ranks.len() && ranks.iter().all(|rank| self.seen.contains_key(&rank.info.member));
        if !is_same {
            self.seen.clear();
        }
        for rank in ranks {
            let looks = self.seen.entry(rank.info.member.clone()).or_default();
            looks.push_back((rank.phase.clone(), rank.waits));
            if looks.len() > LOOKS {
                looks.pop_front();
            }
        }
    }

    /// The share of a member's looks in each phase, the largest first, with how much of it was waiting.
    pub(crate) fn shares(&self, member: &str) -> Vec<(String, f64, f64)> {
        let Some(looks) = self.seen.get(member).filter(|looks| !looks.is_empty()) else {
            return Vec::new();
        };
        let mut shares: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for (phase, waits) in looks {
            let (all, waiting) = shares.entry(phase).or_default();
            *all += 1;
            *waiting += u32::from(*waits);
        }
        let mut shares: Vec<_> = shares
            .into_iter()
            .map(|(phase, (all, waiting))| {
                let share = |count: u32| f64::from(count) / looks.len() as f64;
                (phase.to_owned(), share(all), share(waiting))
            })
            .collect();
        shares.sort_by(|one, other| other.1.total_cmp(&one.1));
        shares
    }

    /// Every rank whose peers wait for more of their time than it does, once enough was seen.
    pub(crate) fn slower(&self) -> Vec<Slower> {
        let is_known = self.seen.values().all(|looks| looks.len() >= LEAST_LOOKS);
        if self.seen.len() < 2 || !is_known {
            return Vec::new();
        }
        let of = |looks: &Looks, wanted: &dyn Fn(&(String, bool)) -> bool| {
            looks.iter().filter(|look| wanted(look)).count() as f64 / looks.len() as f64
        };
        let slower = |(member, looks): (&String, &Looks)| {
            let peers: Vec<&Looks> = self
                .seen
                .iter()
                .filter(|(other, _)| *other != member)
                .map(|(_, looks)| looks)
                .collect();
            let mean = |wanted: &dyn Fn(&(String, bool)) -> bool| {
                peers.iter().map(|looks| of(looks, wanted)).sum::<f64>() / peers.len() as f64
            };
            let peers_wait = mean(&|(_, waits)| *waits);
            let gap = peers_wait - of(looks, &|(_, waits)| *waits);
            let phases = looks.iter().filter(|(_, waits)| !waits).map(|(phase, _)| phase);
            let more = |phase: &String| {
                let is_in = |look: &(String, bool)| look.0 == *phase && !look.1;
                of(looks, &is_in) - mean(&is_in)
            };
            let (phase, more) = phases
                .map(|phase| (phase, more(phase)))
                .max_by(|one, other| one.1.total_cmp(&other.1))?;
            Some(Slower {
                member: member.clone(),
                phase: phase.clone(),
                more,
                peers_wait,
                gap,
            })
        };
        self.seen
            .iter()
            .filter_map(slower)
            .filter(|slower| slower.gap > 0.0)
            .collect()
    }
}
