//! The coordinator of a run.
//!
//! Way of data: [`plan`] says what every step does, [`changes`] what operators, [`adaptive`] what the noise of the gradient, and
//! [`branches`] what a rewind make of it; [`run`] decides, purely, what happens to the run; the service carries messages to it and from it; [`ledger`] makes
//! decisions durable before they are sent; [`files`] writes what people read; `dashboard` is the page of the run, `alerts` what
//! people are told without asking, `telemetry` the run as a trace for a collector. [`Health`] is for
//! probes, [`Lease`] for clusters that may start a second one. [`Coordinator::start`] puts these together, in the process of `lockstep run` or in a binary of
//! its own.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adaptive;
mod alerts;
pub mod branches;
pub mod changes;
mod dashboard;
pub mod files;
mod health;
mod lease;
pub mod ledger;
mod outbound;
pub mod plan;
pub mod run;
mod telemetry;

mod coordinator;
mod service;

pub use coordinator::{BegunRun, ControlHandle, Coordinator, CoordinatorOptions, Events, Running, StartError};
pub use dashboard::webhook::WebhookError;
pub use dashboard::{ExportError, export};
pub use health::Health;
pub use lease::{Keeper, Lease, LeaseError, LeaseOptions};
pub use telemetry::TelemetryError;
