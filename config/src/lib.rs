//! The config of a run: what a person writes, checked and resolved.
//!
//! Way of data: TOML text and `--set key=value` words ([`overrides`]) become one TOML table; [`fields`] takes
//! typed, range-checked values out of it and refuses the keys that nobody took, naming the nearest known one;
//! [`sections`] holds the resulting types. [`RunConfig::to_toml`] goes the other way and writes every value as
//! resolved, so that `parse(to_toml(c)) == c`. Nothing here reads a file but [`RunConfig::read`].
//!
//! Beside it is what every program must read alike of the job that it is part of: [`place`] says which rank of how many a process
//! is, [`hosts_of_hostfile`] and [`first_host_of_slurm`] on which hosts they are, [`this_machine`] whose process numbers count.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod fields;
mod gpu;
mod hosts;
mod machine;
mod overrides;
pub mod place;
mod read;
mod sections;
mod write;

pub use error::ConfigError;
pub use gpu::{GPU_DEFAULTS, GPU_ENVIRONMENT, LOCAL_RANK, prepare_for_gpu};
pub use hosts::{first_host_of_slurm, hosts_of_hostfile};
pub use machine::this_machine;
pub use sections::*;
