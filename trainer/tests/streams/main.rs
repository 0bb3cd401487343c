//! The real engine's streams and events, proven: two ranks make steps over NCCL's double, every read and write of flat memory
//! is told by libtorch's operators and by the double, and a checker proves all of them ordered. Without any kind of edge it
//! names two accesses that nothing orders.
#![allow(clippy::unwrap_used, missing_docs)]

mod ranks;
mod watched;

use lockstep_device_recorder::check;

use ranks::{Play, plain, watched as run};
use watched::NO_FAULT;

#[test]
fn with_every_edge_all_accesses_of_whole_steps_are_ordered() {
    let seed = rand::random::<u64>() >> 1;
    println!("seed {seed}");
    let play = Play::random(seed);
    let (left, log) = run(&play, NO_FAULT);
    println!("{} lines", log.entries.len());
    if std::env::var("SHOW").is_ok() {
        println!("{log}");
    }
    let proof = check(&log).unwrap_or_else(|report| panic!("{play:?}: {report}"));
    println!("{play:?}: {proof:?}");
    assert_eq!(left, plain(&play));
}
