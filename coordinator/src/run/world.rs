//! Who may be part of the run, and how members become ranks.

use lockstep_data::rank_lanes;
use lockstep_proto::domain::{CoordinatorBody, Generation, JoinInfo, MemberPlace, Outcome, Stamp};

use crate::run::{Directive, Member, Peer, Phase, Record, Refusal, Run, Wish};

impl Run {
    /// Why this member cannot join, if it cannot.
    pub(super) fn refusal_of(&self, info: &JoinInfo) -> Option<Refusal> {
        let name = &info.member;
        let refuse = |kind, reason| Some(Refusal::new(kind, name.as_str(), reason));
        let differs = |kind, what: &str, theirs: &str, ours: &str, advice: &str| {
            refuse(
                kind,
                format!("member {name} has the {what} {theirs}, and the run has {ours}: {advice}"),
            )
        };
        if let Some(end) = &self.end {
            return refuse(
                "RUN_OVER",
                format!("member {name} cannot join: the run is over ({})", end.reason),
            );
        }
        // One that was released from a run that goes on may still be on its way out when another process takes its place.
        let is_there = |member: &&Member| !member.is_released();
        if let Some(present) = self.members.named(name).map(|(_, member)| member).find(is_there) {
            let (pid, host) = (present.info.pid, &present.info.host);
            let reason = format!(
                "a member named {name} is already in the run (pid {pid} on {host}): give every trainer a name of its own"
            );
            return refuse("NAME_TAKEN", reason);
        }
        let is_back = self.phase == Phase::WaitingForReturn && self.place_of(name).is_some();
        if self.phase != Phase::WaitingForMembers && !is_back && !self.facts.worlds.are_elastic() {
            let ranks = self.ranks();
            let reason = format!("member {name} cannot join: the run has {ranks} ranks and all of them are there");
            return refuse("WORLD_FULL", reason);
        }
        if info.config_hash != self.facts.config_hash {
            let advice = "train with the config that the coordinator sends";
            return differs(
                "CONFIG_DIFFERS",
                "config hash",
                &info.config_hash,
                &self.facts.config_hash,
                advice,
            );
        }
        if info.data_hash != self.facts.data_hash {
            let advice = "give every host the same prepared data";
            return differs(
                "DATA_DIFFERS",
                "data hash",
                &info.data_hash,
                &self.facts.data_hash,
                advice,
            );
        }
        let (build, fingerprint) = self.fixed.as_ref()?;
        if info.build != *build {
            let advice = "start every trainer from one build";
            return differs("BUILD_DIFFERS", "build", &info.build, build, advice);
        }
        if info.fingerprint != *fingerprint {
            let advice =
                "its numbers would not have the same bits, so use the same kind of hardware, libraries and threads";
            return differs(
                "FINGERPRINT_DIFFERS",
                "fingerprint",
                &info.fingerprint,
                fingerprint,
                advice,
            );
        }
        None
    }

    /// Takes a member in. The one that completes a world makes its generation; one that comes later waits for the next one.
    pub(super) fn admit(&mut self, peer: Peer, info: JoinInfo, directives: &mut Vec<Directive>) {
        let reason = format!("member {} (pid {} on {}) joined", info.member, info.pid, info.host);
        directives.push(Directive::Persist(Record::Decision { reason }));
        let name = info.member.clone();
        self.take_in(peer, Member::new(info));
        if self.phase == Phase::WaitingForReturn {
            self.is_new(&name, directives);
        }
        self.welcome(directives);
    }

    pub(super) fn take_in(&mut self, peer: Peer, member: Member) {
        let info = &member.info;
        self.fixed
            .get_or_insert_with(|| (info.build.clone(), info.fingerprint.clone()));
        self.members.insert(peer, member);
    }

    /// Lets a member that has come be part of a world, now or at the end of a step.
    pub(super) fn welcome(&mut self, directives: &mut Vec<Directive>) {
        match self.phase {
            Phase::WaitingForMembers => self.form_if_enough(directives),
            Phase::Training | Phase::Paused => self.grow(directives),
            _ => {}
        }
    }

    /// Who may be a rank of the next generation, in the order of ranks.
    pub(super) fn candidates(&self) -> Vec<Peer> {
        let candidates = self.members.iter().filter(|(_, member)| member.is_candidate());
        let mut candidates: Vec<_> = candidates
            .map(|(peer, member)| (natural_order(&member.info.member), *peer))
            .collect();
        candidates.sort();
        candidates.into_iter().map(|(_, peer)| peer).collect()
    }

    /// Ranks of a world of so many candidates.
    pub(super) fn world_of(&self, candidates: usize) -> usize {
        let most = self.facts.worlds.most.min(self.facts.lanes);
        candidates.min(most as usize)
    }

    /// Members that make a world, now.
    pub(super) fn needed(&self) -> u32 {
        let worlds = self.facts.worlds;
        match self.begins_anew {
            true => worlds.first,
            false => worlds.least,
        }
    }

    /// Forms a generation of the members that are there, if they are enough.
    pub(super) fn form_if_enough(&mut self, directives: &mut Vec<Directive>) {
        if self.members.candidates() < self.needed() as usize {
            if self.wish == Wish::Stop {
                // Nobody need come only to stop.
                let reason = format!(
                    "the run was stopped after step {}, while it waited for trainers",
                    self.committed
                );
                self.end_with(Outcome::Stopped, reason, directives);
            }
            return;
        }
        let mut order = self.candidates();
        order.truncate(self.world_of(order.len()));
        let (lanes, ranks) = (self.facts.lanes, order.len() as u32);
        self.members.change_all(|member| {
            (member.rank, member.ready, member.stopped, member.lapsed) = (None, None, false, None);
        });
        let mut places = Vec::with_capacity(order.len());
        for (rank, peer) in (0..ranks).zip(&order) {
            places.extend(self.members.change(peer, |member| {
                member.rank = Some(rank);
                MemberPlace {
                    member: member.info.member.clone(),
                    rank,
                    lanes: rank_lanes(rank, ranks, lanes),
                    pid: member.info.pid,
                    host: member.info.host.clone(),
                    parts_address: member.info.parts_address.clone(),
                }
            }));
        }
        let before = self.stamp();
        let stamp = Stamp {
            term: self.facts.term,
            generation: before.generation + 1,
        };
        let secret = secret(&self.facts.secret, stamp.generation);
        let generation = Generation {
            stamp,
            members: places,
            lanes,
            resume: self.what_to_resume(),
            replay_through: self.committed,
            secret,
        };
        self.worlds_of.insert(stamp.generation, ranks);
        // Newer ones could not be had any more, and what is made now must be able to stand.
        self.snapshot = generation.resume.as_ref().map_or(0, |resume| resume.step);
        self.take_generation(generation.clone());
        self.regroup = None;
        self.unusable = None;
        self.begins_anew = false;
        self.reports.clear();
        self.lacking = None;
        self.writing.clear();
        self.phase = Phase::WaitingForCommId;
        directives.push(Directive::Persist(Record::Generation(generation.clone())));
        self.broadcast(CoordinatorBody::Generation(generation), directives);
        self.say_the_wish(directives);
    }
}

/// Sorts trainer-2 before trainer-10.
fn natural_order(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (
        stem.to_owned(),
        name[stem.len()..].parse().unwrap_or(0),
        name.to_owned(),
    )
}

/// A secret of the generation's own: the same in every term, since its parts of snapshots outlive a term.
pub(super) fn secret(key: &[u8; 32], generation: u64) -> [u8; 32] {
    blake3::keyed_hash(key, &generation.to_le_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_numbers_in_the_names() {
        let mut names = ["trainer-10", "trainer-2", "other", "trainer-0"];
        names.sort_by_key(|name| natural_order(name));
        assert_eq!(names, ["other", "trainer-0", "trainer-2", "trainer-10"]);
    }
}
