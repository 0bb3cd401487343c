//! Which checkpoints the machine relies on.

use lockstep_proto::domain::{Checkpoint, Written};

use crate::run::tests::{NOW, everybody_reports, facts, train};
use crate::run::{Directive, Event, Run};

/// The only rank makes `step` and writes its part; the checkpoints that are said to be known when the manifest is commissioned,
/// and the name of this one.
fn write(run: &mut Run, step: u64) -> (Vec<u64>, Checkpoint) {
    let stamp = run.stamp();
    everybody_reports(run, 1, step);
    let written = Written {
        words: Vec::new(),
        hash: [1; 32],
        bytes: 1,
        runs: Vec::new(),
    };
    let event = Event::Wrote {
        peer: 0,
        stamp,
        step,
        written: Ok(Box::new(written)),
    };
    let decision = run.step(event, NOW);
    let commission = decision.directives.iter().find_map(|directive| match directive {
        Directive::Commit(commission) => Some(commission),
        _ => None,
    });
    let commission = commission.unwrap();
    let known = commission.known.iter().map(|checkpoint| checkpoint.step).collect();
    (known, commission.checkpoint)
}

#[test]
fn a_checkpoint_whose_commit_was_not_acknowledged_is_not_relied_on_when_others_are_deleted() {
    let mut run = train(facts(1, 8, 5000));
    let mut told = Vec::new();
    for (step, result) in [(1, Ok(())), (2, Err("no answer".to_owned())), (3, Ok(())), (4, Ok(()))] {
        let (known, checkpoint) = write(&mut run, step);
        told.push(known);
        run.step(Event::Commissioned { checkpoint, result }, NOW);
    }
    assert_eq!(told, [vec![], vec![1], vec![1], vec![1, 3]]);
}
