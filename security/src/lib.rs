//! Who may do what at a coordinator, and how callers prove who they are. No sockets and no decisions of a run.
//!
//! Way of data at the coordinator: paths in `[security]` → [`Keeper`], which reads certificate, key, authority and hashes
//! of tokens, and again whenever a file changes → what a caller shows (a token, a client certificate) becomes an
//! [`Identity`] → [`required`] says which role a call needs, [`Role::may`] whether the caller has it, [`Buckets`] whether it
//! calls too often. At a trainer or an operator: flags and environment → [`Credentials`] → an endpoint that trusts the
//! right authority, and a [`Bearer`] that shows the token.
//!
//! Secrets are in [`Token`], which never prints itself, and in key files, of which only the path is ever kept.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod certificates;
mod client;
mod keeper;
mod limits;
mod token;

pub use access::{Access, Identity, Role, required};
pub use certificates::{Validity, validity};
pub use client::{Bearer, Channel, CredentialArguments, CredentialError, Credentials};
pub use keeper::{Keeper, Keys, Paths, Reload, SecurityError};
pub use limits::{Bucket, Buckets};
pub use token::{Token, TokenError, Tokens, entry, is_name};
