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

/// Phases that are told apart; what is in yet another one is in the last of them.
const MOST_PHASES: usize = 256;

/// What was seen of a member, look by look: the number of its phase, and whether it waited.
type Looks = VecDeque<(u16, bool)>;

/// How the ranks of the present generation spend their time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    seen: BTreeMap<String, Looks>,
    /// The phases by number.
    phases: Vec<String>,
}

/// How often something was seen of a member, as shares of its looks.
struct Shares {
    /// By phase, what was waiting in it left out.
    busy: Vec<f64>,
    waits: f64,
}

impl Shares {
    fn of(looks: &Looks, phases: usize) -> Shares {
        let mut shares = Shares {
            busy: vec![0.0; phases],
            waits: 0.0,
        };
        for (phase, waits) in looks {
            match waits {
                true => shares.waits += 1.0,
                false => shares.busy[usize::from(*phase)] += 1.0,
            }
        }
        let all = shares.busy.iter_mut().chain([&mut shares.waits]);
        all.for_each(|count| *count /= looks.len() as f64);
        shares
    }
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
            self.phases.clear();
        }
        for rank in ranks {
            let phase = self.number_of(&rank.phase);
            if !self.seen.contains_key(&rank.info.member) {
                self.seen.insert(rank.info.member.clone(), Looks::new());
            }
            let Some(looks) = self.seen.get_mut(&rank.info.member) else {
                continue;
            };
            looks.push_back((phase, rank.waits));
            if looks.len() > LOOKS {
                looks.pop_front();
            }
        }
    }

    fn number_of(&mut self, phase: &str) -> u16 {
        let known = self.phases.iter().position(|known| known == phase);
        let number = known.unwrap_or_else(|| {
            if self.phases.len() < MOST_PHASES {
                self.phases.push(phase.to_owned());
            }
            self.phases.len() - 1
        });
        number as u16
    }

    /// The share of a member's looks in each phase, the largest first, with how much of it was waiting.
    pub(crate) fn shares(&self, member: &str) -> Vec<(String, f64, f64)> {
        let Some(looks) = self.seen.get(member).filter(|looks| !looks.is_empty()) else {
            return Vec::new();
        };
        let mut shares: BTreeMap<u16, (u32, u32)> = BTreeMap::new();
        for (phase, waits) in looks {
            let (all, waiting) = shares.entry(*phase).or_default();
            *all += 1;
            *waiting += u32::from(*waits);
        }
        let mut shares: Vec<_> = shares
            .into_iter()
            .map(|(phase, (all, waiting))| {
                let share = |count: u32| f64::from(count) / looks.len() as f64;
                (self.phases[usize::from(phase)].clone(), share(all), share(waiting))
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
        let phases = self.phases.len();
        let shares: Vec<(&String, Shares)> = self
            .seen
            .iter()
            .map(|(member, looks)| (member, Shares::of(looks, phases)))
            .collect();
        // The mean of a member's peers is that of all, without its own share.
        let others = (shares.len() - 1) as f64;
        let sum = |of: &dyn Fn(&Shares) -> f64| shares.iter().map(|(_, shares)| of(shares)).sum::<f64>();
        let waits = sum(&|shares| shares.waits);
        let busy: Vec<f64> = (0..phases).map(|phase| sum(&|shares| shares.busy[phase])).collect();
        let slower = |(member, own): &(&String, Shares)| {
            let peers_wait = (waits - own.waits) / others;
            let gap = peers_wait - own.waits;
            let is_found = |phase: &usize| own.busy[*phase] > 0.0;
            let more = |phase: usize| (phase, own.busy[phase] - (busy[phase] - own.busy[phase]) / others);
            let phase = (0..phases).filter(is_found).map(more);
            let (phase, more) = phase.max_by(|one, other| one.1.total_cmp(&other.1))?;
            (gap > 0.0).then(|| Slower {
                member: (*member).clone(),
                phase: self.phases[phase].clone(),
                more,
                peers_wait,
                gap,
            })
        };
        shares.iter().filter_map(slower).collect()
    }
}
