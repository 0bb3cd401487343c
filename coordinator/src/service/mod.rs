//! The services of a run: thin. They carry messages between sockets and the machine, and decide nothing.
//!
//! Way of data: a member's stream (`attach`, `training`) and operators' calls (`control`) become [`mailbox::Letter`]s; the
//! run's own thread (`executor`) hands them to the machine, makes what it decides durable, writes the files, and
//! only then sends. `status` turns refusals into rich errors. The services run on another thread (`server`), so
//! that a slow disk never delays a keepalive. Whoever calls has come in by `incoming` and passed the `guard`, which
//! tells the `caller`; `files` asks the system for a place for everybody. Every queue between them is bounded: a full box
//! holds back whoever fills it, and a member that does not take what it is told is cut off.

mod attach;
mod caller;
mod checkpoints;
mod control;
mod executor;
mod files;
mod guard;
mod incoming;
mod mailbox;
mod server;
mod status;
mod training;

pub(crate) use caller::Caller;
pub(crate) use checkpoints::{CheckpointOptions, Committer, tensors};
pub(crate) use control::LONGEST_KEY;
pub(crate) use executor::{Executor, ExecutorParts};
pub(crate) use files::allow_for;
pub(crate) use mailbox::{Letter, Mailbox, mailbox};
pub(crate) use server::{Admission, serve};

/// Largest message either way.
pub(crate) const MESSAGE_LIMIT: usize = 4 << 20;
