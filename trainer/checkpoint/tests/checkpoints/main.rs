//! Checkpoints, from outside: written by one world and read by another, damaged in every way, killed in the middle of a
//! write, on a full disk, in an S3 store that fails and dawdles.
#![allow(clippy::unwrap_used)]

mod format;
mod full_disk;
mod kills;
mod mutilation;
mod retention;
mod round_trips;
mod s3;
mod s3_server;
mod scene;
