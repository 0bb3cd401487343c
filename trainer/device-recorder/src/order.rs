//! The happens-before checker: vector clocks over a log.
//!
//! Every stream and every thread has a clock: for each of them, how many of its accesses are known to be finished.
//! 1. Work given to a stream comes after all that the giving thread knows, and after all earlier work of the stream.
//! 2. A record takes the stream's clock; a stream that waits for it, or a thread that saw it done, knows that clock.
//! 3. Only the holder of a record's token waits for it or asks for it, so whoever does so also knows what the recording
//!    thread knew when it recorded.
//! 4. A message carries the sender's clock to the receiver.
//! 5. Nothing else orders: the place in the log does not, and neither does a wait for an event that was not recorded.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::log::{Access, Action, Log, Place, Range};

/// What was proven: every pair of conflicting accesses is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Accesses in the log.
    pub accesses: usize,
    /// Pairs that overlap and of which one writes. A proof over none proves nothing.
    pub pairs: usize,
    /// Pairs of these between different streams or threads.
    pub pairs_between_places: usize,
}

/// Two accesses to the same memory, one of them a write, that nothing orders: the result depends on chance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing orders line {first} ({first_words}) before line {second} ({second_words}) on {range}: {missing}")]
pub struct Unordered {
    /// The line of the first access in the log, from 1.
    pub first: usize,
    /// It in words.
    pub first_words: String,
    /// The line of the second access.
    pub second: usize,
    /// It in words.
    pub second_words: String,
    /// The bytes that both touch.
    pub range: Range,
    /// The edge that is missing, in words.
    pub missing: String,
}

/// Who has a clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Agent {
    Stream(i64),
    Thread(Arc<str>),
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agent::Stream(id) => write!(f, "s{id}"),
            Agent::Thread(name) => write!(f, "thread {name}"),
        }
    }
}

/// For each agent, by its number, how many of its accesses are finished.
#[derive(Debug, Clone, Default)]
struct Clock(Vec<u64>);

impl Clock {
    fn get(&self, agent: usize) -> u64 {
        self.0.get(agent).copied().unwrap_or(0)
    }

    fn join(&mut self, other: &Clock) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    fn tick(&mut self, agent: usize) -> u64 {
        self.0.resize(self.0.len().max(agent + 1), 0);
        self.0[agent] += 1;
        self.0[agent]
    }
}

/// Numbers of agents and their clocks.
#[derive(Default)]
struct Clocks {
    numbers: HashMap<Agent, usize>,
    clocks: Vec<Clock>,
}

impl Clocks {
    fn number(&mut self, agent: Agent) -> usize {
        let next = self.clocks.len();
        let number = *self.numbers.entry(agent).or_insert(next);
        if number == next {
            self.clocks.push(Clock::default());
        }
        number
    }

    fn of(&self, agent: usize) -> Clock {
        self.clocks[agent].clone()
    }

    fn join(&mut self, agent: usize, clock: &Clock) {
        self.clocks[agent].join(clock);
    }
}

/// An access that the checker has passed.
struct Passed<'a> {
    line: usize,
    agent: usize,
    at: u64,
    access: Access,
    range: &'a Range,
}

/// What is known through an event: the stream's clock at its last record, and the recording thread's.
struct Moment {
    stream: Clock,
    thread: Clock,
}

/// Proves that `log` orders all conflicting accesses, or names the first that it does not.
pub fn check(log: &Log) -> Result<Proof, Box<Unordered>> {
    let mut clocks = Clocks::default();
    let mut moments: HashMap<u64, Moment> = HashMap::new();
    let mut messages: HashMap<u64, Clock> = HashMap::new();
    let mut passed: HashMap<&str, Vec<Passed>> = HashMap::new();
    let mut proof = Proof {
        accesses: 0,
        pairs: 0,
        pairs_between_places: 0,
    };
    for (entry, line) in log.entries.iter().zip(1..) {
        let thread = clocks.number(Agent::Thread(Arc::clone(&entry.thread)));
        // Rule 1: whatever is given to a stream comes after what the giving thread knows.
        let given_to = |clocks: &mut Clocks, stream: i64| {
            let stream = clocks.number(Agent::Stream(stream));
            let known = clocks.of(thread);
            clocks.join(stream, &known);
            stream
        };
        match &entry.action {
            Action::Touch {
                place, access, range, ..
            } => {
                let agent = match place {
                    Place::Stream(stream) => given_to(&mut clocks, *stream),
                    Place::Host => thread,
                };
                let at = clocks.clocks[agent].tick(agent);
                let known = &clocks.clocks[agent];
                let earlier = passed.entry(range.memory.as_ref()).or_default();
                for first in earlier.iter() {
                    let Some(overlap) = first.range.overlap(range) else {
                        continue;
                    };
                    if first.access == Access::Read && *access == Access::Read {
                        continue;
                    }
                    proof.pairs += 1;
                    proof.pairs_between_places += usize::from(first.agent != agent);
                    if known.get(first.agent) < first.at {
                        return Err(Box::new(unordered(log, first.line, line, overlap)));
                    }
                }
                proof.accesses += 1;
                earlier.push(Passed {
                    line,
                    agent,
                    at,
                    access: *access,
                    range,
                });
            }
            Action::Record { event, stream } => {
                let stream = given_to(&mut clocks, *stream);
                moments.insert(
                    *event,
                    Moment {
                        stream: clocks.of(stream),
                        thread: clocks.of(thread),
                    },
                );
            }
            Action::Wait { event, stream } => {
                if let Some(moment) = moments.get(event) {
                    clocks.join(thread, &moment.thread);
                    let stream = given_to(&mut clocks, *stream);
                    clocks.join(stream, &moment.stream);
                }
            }
            Action::Query { event, done } => {
                if let Some(moment) = moments.get(event) {
                    clocks.join(thread, &moment.thread);
                    if *done {
                        clocks.join(thread, &moment.stream);
                    }
                }
            }
            Action::Synchronise { event } => {
                if let Some(moment) = moments.get(event) {
                    clocks.join(thread, &moment.thread);
                    clocks.join(thread, &moment.stream);
                }
            }
            Action::SynchroniseStream { stream } => {
                let stream = clocks.number(Agent::Stream(*stream));
                let finished = clocks.of(stream);
                clocks.join(thread, &finished);
            }
            Action::Send { message } => {
                messages.insert(*message, clocks.of(thread));
            }
            Action::Receive { message } => {
                if let Some(clock) = messages.get(message) {
                    clocks.join(thread, clock);
                }
            }
        }
    }
    Ok(proof)
}

fn agent_of(log: &Log, line: usize) -> Agent {
    let entry = &log.entries[line - 1];
    match entry.action {
        Action::Touch {
            place: Place::Stream(stream),
            ..
        } => Agent::Stream(stream),
        _ => Agent::Thread(Arc::clone(&entry.thread)),
    }
}

/// The report on two lines, with the edge that would have helped.
fn unordered(log: &Log, first: usize, second: usize, range: Range) -> Unordered {
    let (from, to) = (agent_of(log, first), agent_of(log, second));
    let waits = match to {
        Agent::Stream(_) => format!("{to} does not wait for"),
        Agent::Thread(_) => format!("{to} does not synchronise with"),
    };
    let missing = match &from {
        Agent::Stream(stream) => {
            let record = (first..second - 1).find_map(|index| match &log.entries[index].action {
                Action::Record { event, stream: on } if on == stream => Some((*event, index + 1)),
                _ => None,
            });
            match record {
                Some((event, line)) => format!("{waits} {}, recorded on {from} at line {line}", log.event(event)),
                None => format!("no event is recorded on {from} between the two that {to} could wait for"),
            }
        }
        Agent::Thread(_) => format!("no message or token from {from}, sent after the first, reaches {to}"),
    };
    let words = |line: usize| log.describe(&log.entries[line - 1]);
    Unordered {
        first,
        first_words: words(first),
        second,
        second_words: words(second),
        range,
        missing,
    }
}
