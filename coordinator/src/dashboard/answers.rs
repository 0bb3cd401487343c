//! What the page is told, as JSON. Keys are those of `metrics.jsonl` where they say the same.

use lockstep_proto::domain::{MemberStatus, Outcome, RunEnd, RunStatus};
use serde_json::{Value, json};

use crate::dashboard::{Board, Formed, Shared};

/// What an operator may ask for: its name, the word on its button, what it does, and the phases in which it can be done.
/// The page makes its buttons of these, so that no button is without effect.
pub(super) struct Command {
    pub(super) name: &'static str,
    label: &'static str,
    title: &'static str,
    /// Asked before it is done; empty: it is done at once.
    confirm: &'static str,
    is_possible: fn(&str) -> bool,
}

/// The commands, in the order of their buttons.
pub(super) const COMMANDS: [Command; 4] = [
    Command {
        name: "pause",
        label: "Pause",
        title: "Wait at the end of the running step",
        confirm: "",
        is_possible: |phase| !matches!(phase, "paused" | "stopping" | "finishing" | "failing" | "ended"),
    },
    Command {
        name: "resume",
        label: "Resume",
        title: "Go on with the run",
        confirm: "",
        is_possible: |phase| phase == "paused",
    },
    Command {
        name: "checkpoint",
        label: "Checkpoint",
        title: "Write a checkpoint as soon as possible",
        confirm: "",
        is_possible: |phase| phase == "training",
    },
    Command {
        name: "stop",
        label: "Stop",
        title: "End the run at the end of the running step and write its final files",
        confirm: "Stop the run after the running step? It can be resumed later from the command line.",
        is_possible: |phase| !matches!(phase, "stopping" | "finishing" | "failing" | "ended"),
    },
];

/// Where a page stands: what it has of everything that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rows: (u64, u64),
    pub(super) decisions: usize,
    /// The number of the newest generation.
    pub(super) generation: u64,
}

/// More new steps than that at once, and the page takes a whole view.
const MOST_NEW: usize = 1000;

impl Board {
    /// All but the history.
    pub(super) fn state(&self) -> Value {
        let shared = self.lock();
        let mut state = self.present(&shared);
        state["decisions"] = json!(shared.decisions);
        state["decisions_before"] = json!(shared.decisions_before);
        state["generations"] = shared.generations.iter().map(generation).collect();
        state
    }

    /// Where a page stands that has taken everything.
    pub(super) fn place(&self) -> Place {
        self.lock().place()
    }

    /// What is new to a page, and where it stands then. A page that has not got the rows before takes a whole view.
    pub(super) fn news(&self, before: Place) -> (Value, Place) {
        let shared = self.lock();
        let mut news = json!({ "state": self.present(&shared) });
        match shared.history.after(before.rows, MOST_NEW) {
            Some(view) => news["history"] = json!(view),
            None => news["reset"] = json!(true),
        }
        let new = before.decisions.saturating_sub(shared.decisions_before);
        news["decisions"] = json!(shared.decisions.get(new..).unwrap_or_default());
        news["generations"] = shared
            .generations
            .iter()
            .filter(|formed| formed.generation.stamp.generation > before.generation)
            .map(generation)
            .collect();
        (news, shared.place())
    }

    /// Whether the run is over.
    pub(super) fn is_over(&self) -> bool {
        self.lock().end.is_some()
    }

    fn present(&self, shared: &Shared) -> Value {
        let phase = match (&shared.end, &shared.status) {
            (Some(_), _) => "ended",
            (None, Some(status)) => &status.phase,
            (None, None) => "starting",
        };
        let is_live = shared.end.is_none() && shared.status.is_some();
        let commands = COMMANDS.iter().filter(|_| is_live).map(|command| {
            json!({
                "name": command.name, "label": command.label, "title": command.title, "confirm": command.confirm,
                "possible": (command.is_possible)(phase),
            })
        });
        let members = shared.members.iter().filter(|_| shared.end.is_none());
        json!({
            "run": { "name": self.name, "id": self.run_id, "lanes": self.lanes, "total_steps": self.total_steps },
            "phase": phase,
            "status": shared.status.as_ref().map(status),
            "last": shared.history.last().map(crate::files::StepLine::of),
            "validation": shared.history.newest_validation(),
            "members": members.map(|one| member(one, shared)).collect::<Vec<_>>(),
            "alerts": shared.alerts.all(),
            "commands": commands.collect::<Vec<_>>(),
            "may_set": is_live && !matches!(phase, "stopping" | "finishing" | "failing" | "ended"),
            "end": shared.end.as_ref().map(end),
        })
    }
}

impl Shared {
    fn place(&self) -> Place {
        Place {
            rows: self.history.place(),
            decisions: self.decisions_before + self.decisions.len(),
            generation: self
                .generations
                .last()
                .map_or(0, |last| last.generation.stamp.generation),
        }
    }
}

fn status(status: &RunStatus) -> Value {
    json!({
        "reason": status.reason, "step": status.step, "ranks": status.ranks, "members": status.members,
        "backend": status.backend, "term": status.header.stamp.term, "generation": status.header.stamp.generation,
        "transports": status.transports, "skipped_steps": status.skipped_steps, "last_skip": status.last_skip,
        "rewinds": status.rewinds, "last_rewind": status.last_rewind,
    })
}

fn member(member: &MemberStatus, shared: &Shared) -> Value {
    let info = &member.info;
    let place = member.place.as_ref();
    json!({
        "member": info.member, "pid": info.pid, "host": info.host, "devices": info.devices,
        "rank": place.map(|(rank, _)| rank), "lanes": place.map(|(_, lanes)| [lanes.start, lanes.end]),
        "step": member.reported_step, "phase": member.phase, "waits": member.waits,
        "shares": shared.alerts.peers().shares(&info.member),
    })
}

fn generation(formed: &Formed) -> Value {
    let Formed { generation, at } = formed;
    let members = generation.members.iter().map(|place| {
        json!({
            "member": place.member, "rank": place.rank, "host": place.host, "pid": place.pid,
            "lanes": [place.lanes.start, place.lanes.end],
        })
    });
    json!({
        "number": generation.stamp.generation, "term": generation.stamp.term, "at": at,
        "from_step": generation.resume.as_ref().map_or(0, |resume| resume.step) + 1,
        "members": members.collect::<Vec<_>>(),
    })
}

fn end(end: &RunEnd) -> Value {
    let outcome = match end.outcome {
        Outcome::Completed => "completed",
        Outcome::Stopped => "stopped",
        Outcome::Failed { .. } => "failed",
    };
    json!({ "outcome": outcome, "reason": end.reason, "last_step": end.last_step })
}
