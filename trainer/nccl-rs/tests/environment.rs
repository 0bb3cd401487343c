//! A variable of the environment that would override the binding's own wish. One test only: it changes the process.
#![allow(clippy::unwrap_used)]

mod world;

use nccl_rs::{Communicator, Config, Error};
use world::{DOUBLE, nccl};

#[test]
fn a_non_blocking_beginning_is_refused_where_the_environment_overrides_it() {
    let id = nccl().unique_id().unwrap();
    // SAFETY: this program has one test, and no other thread of it reads the environment.
    unsafe { std::env::set_var("NCCL_COMM_BLOCKING", "1") };
    let refusal = Communicator::init(&nccl(), 1, &id, 0, &Config::new().non_blocking()).unwrap_err();
    assert_eq!(refusal, Error::BlockingFromEnvironment { value: "1".into() });
    assert!(refusal.to_string().contains("unset it"), "{refusal}");
    assert_eq!(DOUBLE.live(&id), 0);
    assert!(Communicator::init(&nccl(), 1, &id, 0, &Config::new().blocking()).is_ok());
}
