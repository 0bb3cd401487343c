//! What the launcher does about what happens: a pure state machine over interrupts, exits of trainers, the run's end
//! and the clock. It asks for actions and in the end gives a verdict; it touches nothing itself.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_proto::domain::{Outcome, RunEnd};

/// After a failure the other trainers may take so long to see the abort and go.
const ABORT_GRACE: Duration = Duration::from_secs(3);
/// When every trainer is gone, the coordinator's own word of it may take so long.
const LAST_WORD_GRACE: Duration = Duration::from_secs(1);
/// After a good end the trainers may take so long to go: their files are written, only memory is left to free.
const END_GRACE: Duration = Duration::from_secs(10);

/// The exit code of a trainer that was set apart from a run that goes on.
const SET_APART: i32 = 4;

/// How a trainer process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(SET_APART) => write!(f, "ended with exit code {SET_APART}: a bit of its memory had changed"),
            Exit::Code(code) => write!(f, "ended with exit code {code}"),
            Exit::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "was killed by signal {signal} ({name})"),
                None => write!(f, "was killed by signal {signal}"),
            },
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    names
        .iter()
        .find(|(number, _)| *number == signal)
        .map(|(_, name)| *name)
}

/// A process that the launcher has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// A trainer.
    Rank(u32),
    /// mpirun, which has started all trainers.
    Mpirun,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Process::Rank(rank) => write!(f, "rank {rank}"),
            Process::Mpirun => f.write_str("mpirun"),
        }
    }
}

/// A process that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exited {
    pub(crate) process: Process,
    pub(crate) pid: u32,
    pub(crate) exit: Exit,
}

impl std::fmt::Display for Exited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {}) {}", self.process, self.pid, self.exit)
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// Ctrl-C, or a signal that asks to end.
    Interrupt,
    /// A trainer ended.
    Exited(Exited),
    /// A step was made: the run trains.
    Stepped,
    /// The coordinator says that the run is over.
    Ended(RunEnd),
    /// The coordinator's events broke off.
    EventsLost,
    /// Time went by.
    Clock,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Tell the operator.
    Say(String),
    /// Ask the coordinator to stop at the next step.
    AskStop,
    /// Start this trainer again: it joins the run that goes on.
    Restart(Process),
    /// Kill every trainer that is left.
    KillAll,
}

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every planned step was made.
    Completed,
    /// An operator stopped it.
    Stopped,
    /// Anything else.
    Failed {
        /// One sentence.
        reason: String,
        /// The process whose log tells more.
        process: Option<Process>,
    },
}

/// The launcher's view of a run.
#[derive(Debug)]
pub(crate) struct Supervisor {
    running: BTreeMap<Process, u32>,
    /// Trainers that may still be started again; none where the world cannot be formed anew.
    restarts: Option<u32>,
    /// Whether a step was made.
    trains: bool,
    interrupts: u32,
    /// Exits that are not good ones, in the order in which they were seen, before anything was killed.
    bad_exits: Vec<Exited>,
    ended: Option<RunEnd>,
    events_lost: bool,
    killed: bool,
    deadline: Option<Duration>,
}

impl Supervisor {
    /// Watches these processes, with their ids.
    pub(crate) fn new(trainers: impl IntoIterator<Item = (Process, u32)>) -> Supervisor {
        Supervisor {
            running: trainers.into_iter().collect(),
            restarts: None,
            trains: false,
            interrupts: 0,
            bad_exits: Vec::new(),
            ended: None,
            events_lost: false,
            killed: false,
            deadline: None,
        }
    }

    /// Lets up to `restarts` trainers be started again that a signal or a crash has ended; after that, a run that trains goes
    /// on with those that are left.
    pub(crate) fn with_restarts(self, restarts: u32) -> Supervisor {
        Supervisor {
            restarts: Some(restarts),
            ..self
        }
    }

    /// A trainer was started again.
    pub(crate) fn restarted(&mut self, process: Process, pid: u32) {
        self.running.insert(process, pid);
    }

    /// Takes in what happened at `now` (since any fixed moment).
    pub(crate) fn on(&mut self, input: Input, now: Duration) -> Vec<Action> {
        match input {
            Input::Interrupt => self.interrupt(),
            Input::Exited(exited) => self.exited(exited, now),
            Input::Stepped => {
                self.trains = true;
                Vec::new()
            }
            Input::Ended(end) => {
                let failed = matches!(end.outcome, Outcome::Failed { .. });
                self.ended.get_or_insert(end);
                self.wait_at_most(if failed { ABORT_GRACE } else { END_GRACE }, now);
                Vec::new()
            }
            Input::EventsLost => {
                if self.ended.is_none() {
                    self.events_lost = true;
                    self.wait_at_most(ABORT_GRACE, now);
                }
                Vec::new()
            }
            Input::Clock => match self.deadline {
                Some(deadline) if now >= deadline && !self.running.is_empty() && !self.killed => {
                    let pids: Vec<String> = self
                        .running
                        .iter()
                        .map(|(process, pid)| format!("{process} (pid {pid})"))
                        .collect();
                    self.kill(format!("killing what has not ended: {}", pids.join(", ")))
                }
                _ => Vec::new(),
            },
        }
    }

    /// The verdict, once every trainer is gone and nothing more is to be expected at `now`.
    pub(crate) fn verdict(&self, now: Duration) -> Option<Verdict> {
        if !self.running.is_empty() {
            return None;
        }
        // The end may still be on its way from the coordinator when the last trainer goes.
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        if self.ended.is_none() && self.interrupts < 2 && !late {
            return None;
        }
        Some(self.judge())
    }

    fn judge(&self) -> Verdict {
        let failed = |reason: String, process| Verdict::Failed { reason, process };
        if self.interrupts >= 2 {
            return failed(
                "killed by the operator (second Ctrl-C); no final files were written".to_owned(),
                None,
            );
        }
        let culprit = self.culprit();
        match &self.ended {
            Some(RunEnd {
                outcome: Outcome::Failed { .. },
                reason,
                ..
            }) => match culprit {
                Some(culprit) => failed(format!("{reason}; {culprit}"), Some(culprit.process)),
                None => failed(reason.clone(), None),
            },
            _ if culprit.is_some() => {
                let (reason, process) = culprit.map(|culprit| (culprit.to_string(), culprit.process)).unzip();
                failed(reason.unwrap_or_default(), process)
            }
            Some(RunEnd {
                outcome: Outcome::Completed,
                ..
            }) => Verdict::Completed,
            Some(RunEnd {
                outcome: Outcome::Stopped,
                ..
            }) => Verdict::Stopped,
            None => failed(
                match self.events_lost {
                    true => "the coordinator fell silent".to_owned(),
                    false => "every trainer has gone, but the run had not ended".to_owned(),
                },
                None,
            ),
        }
    }

    /// The trainer whose end began it: one that a signal killed, else the one that the coordinator names, else the
    /// first one seen. The others ended because it did.
    fn culprit(&self) -> Option<&Exited> {
        let signalled = self
            .bad_exits
            .iter()
            .find(|exited| matches!(exited.exit, Exit::Signal(_)));
        let named = || {
            let reason = self.ended.as_ref().map(|end| end.reason.as_str()).unwrap_or_default();
            self.bad_exits
                .iter()
                .find(|exited| reason.contains(&format!("(pid {}", exited.pid)))
        };
        let first = || match self.ended {
            None => self.bad_exits.first(),
            Some(_) => None,
        };
        signalled.or_else(named).or_else(first)
    }

    fn interrupt(&mut self) -> Vec<Action> {
        self.interrupts += 1;
        match self.interrupts {
            1 if self.ended.is_none() => vec![
                Action::Say("stopping at the end of this step; once more to stop at once".to_owned()),
                Action::AskStop,
            ],
            2 => self.kill("stopping at once".to_owned()),
            _ => Vec::new(),
        }
    }

    fn exited(&mut self, exited: Exited, now: Duration) -> Vec<Action> {
        self.running.remove(&exited.process);
        // One that failed or was refused has said why, and would only say it again.
        let crashed = !matches!(exited.exit, Exit::Code(0..=3));
        let goes_on = self.ended.is_none() && !self.events_lost && !self.killed && self.interrupts == 0;
        if let Some(left) = self.restarts.filter(|_| crashed && goes_on) {
            if left > 0 {
                self.restarts = Some(left - 1);
                return vec![
                    Action::Say(format!("{exited}; it is started again")),
                    Action::Restart(exited.process),
                ];
            }
            if self.trains && !self.running.is_empty() {
                let left = self.running.len();
                let ranks = if left == 1 { "rank" } else { "ranks" };
                return vec![Action::Say(format!("{exited}; the run goes on with {left} {ranks}"))];
            }
        }
        if self.running.is_empty() && self.ended.is_none() {
            self.wait_at_most(LAST_WORD_GRACE, now);
        }
        // Done, or stopped by the operator: either way it has said farewell to the coordinator before.
        let well = matches!(exited.exit, Exit::Code(0 | 3));
        let over = self
            .ended
            .as_ref()
            .is_some_and(|end| !matches!(end.outcome, Outcome::Failed { .. }));
        if well || self.killed || over && matches!(exited.exit, Exit::Code(_)) {
            return Vec::new();
        }
        self.bad_exits.push(exited);
        self.wait_at_most(ABORT_GRACE, now);
        if self.bad_exits.len() > 1 || self.ended.is_some() {
            // One death is told; those that follow from it are not.
            return Vec::new();
        }
        vec![Action::Say(format!("{exited}; the run ends"))]
    }

    fn kill(&mut self, sentence: String) -> Vec<Action> {
        self.killed = true;
        vec![Action::Say(sentence), Action::KillAll]
    }

    fn wait_at_most(&mut self, grace: Duration, now: Duration) {
        let deadline = now + grace;
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }
}

#[cfg(test)]
mod tests;
