//! What a recording says: which thread did what, in the order in which it was done.
//!
//! A log is plain data: recorded by the guard, or written by hand in a test of the checker.

use std::collections::BTreeMap;
use std::fmt;
use std::ops;
use std::sync::Arc;

/// A part of one memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Which memory, in words: "gradients".
    pub memory: Arc<str>,
    /// Its first byte and the one behind its last.
    pub bytes: ops::Range<usize>,
}

impl Range {
    /// `bytes` of `memory`.
    pub fn new(memory: &str, bytes: ops::Range<usize>) -> Range {
        Range {
            memory: memory.into(),
            bytes,
        }
    }

    /// What both have, if that is not nothing.
    pub fn overlap(&self, other: &Range) -> Option<Range> {
        let bytes = self.bytes.start.max(other.bytes.start)..self.bytes.end.min(other.bytes.end);
        (self.memory == other.memory && !bytes.is_empty()).then(|| Range {
            memory: Arc::clone(&self.memory),
            bytes,
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}..{}]", self.memory, self.bytes.start, self.bytes.end)
    }
}

/// How memory is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its values are used.
    Read,
    /// Its values are replaced.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

/// Where work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// On a stream of the device, some time after it was given to it.
    Stream(i64),
    /// On the thread itself, at once.
    Host,
}

/// One thing that a thread did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Memory is touched.
    Touch {
        /// Where.
        place: Place,
        /// How.
        access: Access,
        /// Which memory.
        range: Range,
        /// By what, in words: "send of bucket 2".
        by: String,
    },
    /// An event is recorded on a stream.
    Record {
        /// The event.
        event: u64,
        /// The stream.
        stream: i64,
    },
    /// A stream is told to wait for the last record of an event; where there is none, it waits for nothing.
    Wait {
        /// The event.
        event: u64,
        /// The stream that waits.
        stream: i64,
    },
    /// The thread asks whether the last record of an event is done.
    Query {
        /// The event.
        event: u64,
        /// The answer.
        done: bool,
    },
    /// The thread waits for the last record of an event.
    Synchronise {
        /// The event.
        event: u64,
    },
    /// The thread waits for all that was given to a stream.
    SynchroniseStream {
        /// The stream.
        stream: i64,
    },
    /// The thread sends a message to another thread.
    Send {
        /// Its number.
        message: u64,
    },
    /// The thread has received a message.
    Receive {
        /// Its number.
        message: u64,
    },
}

/// An action and the thread that did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The thread's name.
    pub thread: Arc<str>,
    /// What it did.
    pub action: Action,
}

/// A recording: entries, numbered by lines from 1, and the names of events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// What was done, in order.
    pub entries: Vec<Entry>,
    /// Names of events that were given one; others are called e1, e2, ….
    pub names: BTreeMap<u64, String>,
}

impl Log {
    /// Adds an entry.
    pub fn push(&mut self, thread: &str, action: Action) {
        self.entries.push(Entry {
            thread: thread.into(),
            action,
        });
    }

    /// The event's name.
    pub fn event(&self, event: u64) -> String {
        self.names
            .get(&event)
            .map_or_else(|| format!("e{event}"), |name| format!("e{event} ({name})"))
    }

    /// The log without line `line` (from 1).
    pub fn without(&self, line: usize) -> Log {
        let mut log = self.clone();
        if (1..=log.entries.len()).contains(&line) {
            log.entries.remove(line - 1);
        }
        log
    }

    /// What the log says of these parts of memory only: accesses elsewhere are left out, and every edge stays.
    pub fn within(&self, parts: &[Range]) -> Log {
        let mut log = Log {
            entries: Vec::new(),
            names: self.names.clone(),
        };
        for entry in &self.entries {
            let Action::Touch {
                place,
                access,
                range,
                by,
            } = &entry.action
            else {
                log.entries.push(entry.clone());
                continue;
            };
            for range in parts.iter().filter_map(|part| range.overlap(part)) {
                log.push(
                    &entry.thread,
                    Action::Touch {
                        place: *place,
                        access: *access,
                        range,
                        by: by.clone(),
                    },
                );
            }
        }
        log
    }

    /// One entry in words: "thread C: s1 waits e3 (ready[0])".
    pub fn describe(&self, entry: &Entry) -> String {
        let what = match &entry.action {
            Action::Touch {
                place: Place::Stream(stream),
                access,
                range,
                by,
            } => format!("s{stream} {access} {range} ({by})"),
            Action::Touch {
                place: Place::Host,
                access,
                range,
                by,
            } => format!("host {access} {range} ({by})"),
            Action::Record { event, stream } => format!("record {} on s{stream}", self.event(*event)),
            Action::Wait { event, stream } => format!("s{stream} waits {}", self.event(*event)),
            Action::Query { event, done } => format!(
                "query {}: {}",
                self.event(*event),
                if *done { "done" } else { "not done" }
            ),
            Action::Synchronise { event } => format!("synchronise with {}", self.event(*event)),
            Action::SynchroniseStream { stream } => format!("synchronise with s{stream}"),
            Action::Send { message } => format!("send message {message}"),
            Action::Receive { message } => format!("receive message {message}"),
        };
        format!("thread {}: {what}", entry.thread)
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (entry, line) in self.entries.iter().zip(1..) {
            writeln!(f, "{line:4} {}", self.describe(entry))?;
        }
        Ok(())
    }
}
