//! Who gets in: every call of the served services and every role, certificates, tokens, browsers, and what somebody sends who
//! means harm. A real coordinator listens on a loopback port each time.
#![allow(clippy::unwrap_used)]

mod calls;
mod hostile;
#[path = "../../../proto/tests/random/mod.rs"]
mod random;
mod stage;
mod tls;
mod tokens;
