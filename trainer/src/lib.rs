//! The process that trains, and the commands that need libtorch.
//!
//! - [`model`]: what is trained
//! - [`sharding`]: where every number lies and who owns it (pure)
//! - [`step`]: one step on one rank
//! - [`snapshot`]: what all ranks own after a step, kept in memory for the case that one is lost
//! - [`started`]: what the environment says of who has started this process
//! - [`drill`]: faults on order
//! - [`device`]: what a step uses where the device is not the host
//! - [`memory_account`]: what a rank's memory is for
//! - [`together`]: a trainer that is started with a config, by mpirun, srun or torchrun: rank 0 hosts the coordinator
//! - [`train`]: the life of a trainer: session, generation, plans, reports, final files
//! - [`weights_file`]: final weights with tokenizer and config beside them
//! - [`generate`], [`inspect`], [`bench`], [`facts`], [`plan`]: the other commands; `ranks`: the processes that `bench` and `plan`
//!   start
//! - [`cli`]: the command line over all of them
//!
//! Data flows: coordinator → session → plans → [`step::Engine`] → reports → coordinator; at the end masters → files.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod cli;
pub mod device;
pub mod drill;
pub mod error;
pub mod facts;
pub mod fingerprint;
pub mod generate;
pub mod inspect;
pub mod memory_account;
pub mod model;
pub mod plan;
mod ranks;
pub mod sharding;
pub mod snapshot;
pub mod started;
pub mod step;
pub mod together;
pub mod train;
pub mod weights_file;
