//! Who trained it, and what was decided: terms, generations, snapshots, directives, decisions, ends.

use lockstep_config::RunConfig;
use lockstep_data::rank_lanes;
use lockstep_proto::domain::{DirectiveKind, Generation, Outcome};

use super::{Proof, Tables, row, without_gaps};
use crate::branches::Branches;
use crate::changes::Changes;

pub(super) fn proofs(tables: &Tables, config: Option<&RunConfig>, changes: Option<&Changes>) -> Vec<Proof> {
    vec![
        rise(tables),
        worlds(tables, config),
        resumes(tables),
        stamps(tables),
        snapshots(tables),
        decisions(tables),
        ends(tables, changes),
    ]
}

fn rise(tables: &Tables) -> Proof {
    let mut proof = Proof::of("terms and generations only rise");
    without_gaps(&mut proof, "terms", 1, tables.terms.keys().copied());
    without_gaps(&mut proof, "generations", 1, tables.generations.keys().copied());
    let mut term = 0;
    for (key, generation) in &tables.generations {
        let stamp = generation.stamp;
        proof.holds(stamp.generation == *key, || {
            format!(
                "row {key} of the table generations holds the number {}",
                stamp.generation
            )
        });
        proof.holds(tables.terms.contains_key(&stamp.term), || {
            format!(
                "row {key} of the table generations is of term {}, which the table terms lacks",
                stamp.term
            )
        });
        proof.holds(stamp.term >= term, || {
            format!(
                "row {key} of the table generations is of term {}, and the one before is of term {term}",
                stamp.term
            )
        });
        term = term.max(stamp.term);
    }
    let (terms, generations) = (tables.terms.len(), tables.generations.len());
    proof.with(format!("terms 1 to {terms}, generations 1 to {generations}"))
}

fn worlds(tables: &Tables, config: Option<&RunConfig>) -> Proof {
    let mut proof = Proof::of("in every generation each lane has one rank, and each rank one member");
    let mut ranks = Vec::new();
    for (key, generation) in &tables.generations {
        let of = |what: String| format!("row {key} of the table generations {what}");
        ranks.push(generation.ranks().to_string());
        proof.holds(config.is_none_or(|config| config.run.lanes == generation.lanes), || {
            of(format!("has {} lanes, and the config has others", generation.lanes))
        });
        proof.holds(generation.ranks() > 0 && generation.ranks() <= generation.lanes, || {
            of(format!(
                "has {} ranks on {} lanes",
                generation.ranks(),
                generation.lanes
            ))
        });
        for (rank, place) in (0..).zip(&generation.members) {
            let dealt = rank_lanes(rank, generation.ranks(), generation.lanes);
            proof.holds(place.rank == rank && place.lanes == dealt, || {
                of(format!(
                    "gives {} rank {} and the lanes {:?}, which should be rank {rank} and the lanes {dealt:?}",
                    place.member, place.rank, place.lanes
                ))
            });
            let twice = generation
                .members
                .iter()
                .filter(|other| other.member == place.member)
                .count()
                > 1;
            proof.holds(!twice, || of(format!("has the member {} twice", place.member)));
        }
    }
    proof.with(match ranks.is_empty() {
        true => "no generation yet".to_owned(),
        false => format!("worlds of {} ranks", ranks.join(", ")),
    })
}

/// The last step that was committed when a generation was formed: what the generations before it committed, of the branch that
/// was the newest then.
fn committed_before(tables: &Tables, generation: &Generation) -> u64 {
    let number = generation.stamp.generation;
    let branch = tables.branches.at_generation(number).newest();
    tables.last_of(branch, |step| step.stamp.generation < number)
}

fn resumes(tables: &Tables) -> Proof {
    let mut proof = Proof::of("a generation resumes from a step that was committed when it was formed");
    let mut resumed = 0;
    for (key, generation) in &tables.generations {
        let of = |what: String| format!("row {key} of the table generations {what}");
        let committed = committed_before(tables, generation);
        proof.holds(generation.replay_through == committed, || {
            of(format!(
                "says that step {} was committed when it was formed, and the generations before it committed {committed}",
                generation.replay_through
            ))
        });
        let Some(resume) = &generation.resume else { continue };
        resumed += 1;
        proof.holds(resume.step <= committed, || {
            of(format!(
                "resumes from step {}, when {committed} was the last committed step",
                resume.step
            ))
        });
        proof.holds(
            tables
                .branches
                .at_generation(*key)
                .is_live(resume.step, resume.generation),
            || {
                of(format!(
                    "resumes from step {} of generation {}, which is of a branch that a rewind had closed",
                    resume.step, resume.generation
                ))
            },
        );
        let made_by = tables
            .generations
            .get(&resume.generation)
            .filter(|_| resume.generation < *key);
        if let Some(checkpoint) = resume.checkpoint {
            proof.holds(made_by.is_some() && checkpoint.step == resume.step, || {
                of(format!(
                    "resumes from the checkpoint of step {}, which no earlier generation can have written",
                    checkpoint.step
                ))
            });
            continue;
        }
        proof.holds(
            made_by.is_some_and(|made_by| made_by.ranks() as usize == resume.parts.len()),
            || {
                of(format!(
                    "resumes from {} parts of generation {}, which is not as many as an earlier generation of that number has ranks",
                    resume.parts.len(),
                    resume.generation
                ))
            },
        );
    }
    proof.with(format!("{resumed} of {} from a snapshot", tables.generations.len()))
}

fn stamps(tables: &Tables) -> Proof {
    let mut proof = Proof::of("each step was committed by a generation of its time, by all of its ranks");
    let mut before = None;
    for (key, step) in &tables.committed {
        let of = |what: String| format!("{} of the table committed {what}", row(*key));
        let number = step.stamp.generation;
        match tables.generations.get(&number) {
            None => proof.broken(of(format!(
                "is of generation {number}, which the table generations lacks"
            ))),
            Some(generation) => {
                proof.holds(generation.ranks() == step.ranks, || {
                    of(format!(
                        "has {} ranks, and generation {number} has {}",
                        step.ranks,
                        generation.ranks()
                    ))
                });
                proof.holds(
                    step.stamp.term >= generation.stamp.term && tables.terms.contains_key(&step.stamp.term),
                    || {
                        of(format!(
                            "is of term {}, and its generation of {}",
                            step.stamp.term, generation.stamp.term
                        ))
                    },
                );
            }
        }
        proof.holds(before.is_none_or(|before| before <= step.stamp), || {
            of(format!(
                "is of an earlier term or generation ({}, {number}) than the step before",
                step.stamp.term
            ))
        });
        before = before.max(Some(step.stamp));
    }
    proof.with(format!("{} steps", tables.committed.len()))
}

fn snapshots(tables: &Tables) -> Proof {
    let mut proof = Proof::of("snapshots are whole, and of committed steps");
    for (key, parts) in &tables.snapshots {
        let of = |what: String| format!("{} of the table snapshots {what}", row(*key));
        let (_, number) = Branches::of_key(*key);
        let committed = tables.committed.get(key);
        proof.holds(committed.is_some(), || {
            of("is of a step that is not committed".to_owned())
        });
        let Some(first) = parts.first() else {
            proof.broken(of("has no parts".to_owned()));
            continue;
        };
        let world = tables.generations.get(&first.generation).map_or(0, Generation::ranks);
        let is_whole = parts.len() as u64 == u64::from(world)
            && (0..)
                .zip(parts)
                .all(|(number, part)| part.part == number && part.generation == first.generation);
        proof.holds(is_whole, || {
            of(format!(
                "has {} parts, and generation {}, which made them, has {world} ranks",
                parts.len(),
                first.generation
            ))
        });
        proof.holds(parts.iter().all(|part| part.step == number), || {
            of("has a part of another step".to_owned())
        });
        proof.holds(
            committed.is_none_or(|step| step.stamp.generation <= first.generation),
            || {
                of(format!(
                    "was made by generation {}, before the one that committed the step",
                    first.generation
                ))
            },
        );
    }
    proof.with(format!("{} snapshots", tables.snapshots.len()))
}

fn decisions(tables: &Tables) -> Proof {
    let mut proof = Proof::of("decisions and directives are whole and in order, each with its reason");
    without_gaps(&mut proof, "decisions", 0, tables.decisions.keys().copied());
    without_gaps(&mut proof, "directives", 1, tables.urgent.keys().copied());
    let mut term = 0;
    for (key, decision) in &tables.decisions {
        let of = |what: String| format!("row {key} of the table decisions {what}");
        proof.holds(!decision.reason.is_empty(), || of("has no reason".to_owned()));
        proof.holds(tables.terms.contains_key(&decision.term), || {
            of(format!("is of term {}, which the table terms lacks", decision.term))
        });
        proof.holds(decision.term >= term, || {
            of(format!(
                "is of term {}, and the one before is of term {term}",
                decision.term
            ))
        });
        term = term.max(decision.term);
    }
    for (key, urgent) in &tables.urgent {
        proof.holds(urgent.sequence == *key && urgent.kind != DirectiveKind::None, || {
            format!(
                "row {key} of the table directives holds number {}, {:?}",
                urgent.sequence, urgent.kind
            )
        });
    }
    let (decisions, directives) = (tables.decisions.len(), tables.urgent.len());
    proof.with(format!("{decisions} decisions, {directives} directives"))
}

fn ends(tables: &Tables, changes: Option<&Changes>) -> Proof {
    let mut proof = Proof::of("a term's end names the step that was the last one then");
    for (term, end) in &tables.ends {
        let of = |what: String| format!("row {term} of the table ends {what}");
        proof.holds(tables.terms.contains_key(term), || {
            of("is of a term that the table terms lacks".to_owned())
        });
        let rewinds = tables.rewinds.values().filter(|rewind| rewind.term <= *term);
        let last = tables.last_of(rewinds.count() as u64, |step| step.stamp.term <= *term);
        proof.holds(end.last_step == last, || {
            of(format!(
                "names step {}, and the last one that was committed then is {last}",
                end.last_step
            ))
        });
        let total = changes.map(|changes| changes.newest().total_steps());
        proof.holds(
            end.outcome != Outcome::Completed || total.is_none_or(|total| total == last),
            || of(format!("says that the run is complete, and {last} steps were made")),
        );
    }
    proof.with(format!("{} of {} terms ended", tables.ends.len(), tables.terms.len()))
}
