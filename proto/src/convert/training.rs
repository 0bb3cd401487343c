//! Messages of the training service ⇄ domain types.

use super::{ConvertError, bytes_32, header, phases_in, phases_out, required};
use crate::domain::{
    BlockRun, Checkpoint, CoordinatorBody, Directive, DirectiveKind, FromCoordinator, FromMember, Generation, Header,
    JoinInfo, MemberBody, Part, PartPlace, Plan, Progress, Ready, Resume, Return, Standing, StepMetrics, StepReport,
    Validation, Written,
};
use crate::v1;

impl From<&FromMember> for v1::MemberMessage {
    fn from(message: &FromMember) -> Self {
        use v1::member_message::Body;
        let body = match &message.body {
            MemberBody::Join(info) => Body::Join(join_out(info)),
            MemberBody::CommId(id) => Body::CommId(v1::CommId { id: id.clone() }),
            MemberBody::Ready(ready) => Body::Ready(ready_out(ready)),
            MemberBody::Progress(progress) => Body::Progress(v1::Progress {
                step: progress.step,
                phase: progress.phase.clone(),
                counter: progress.counter,
                waits: progress.waits,
                longest_ms: progress.longest_ms,
            }),
            MemberBody::Report(report) => Body::Report(report_out(report)),
            MemberBody::Leaving(reason) => Body::Leaving(v1::Leaving { reason: reason.clone() }),
            MemberBody::Holds(part) => Body::Holds(v1::Holds {
                part: Some(part_out(part)),
            }),
            MemberBody::Stopped {
                step,
                cause,
                parts,
                checkpoint_is_bad,
                drifted,
                unusable,
            } => Body::Stopped(v1::Stopped {
                checkpoint_is_bad: *checkpoint_is_bad,
                drifted: *drifted,
                unusable: *unusable,
                step: *step,
                cause: cause.clone().unwrap_or_default(),
                parts: parts.iter().map(part_out).collect(),
            }),
            MemberBody::Wrote { step, written } => Body::Wrote(written_out(*step, written)),
            MemberBody::Finished { outcome, step } => Body::Finished(v1::Finished {
                outcome: Some(outcome.into()),
                step: *step,
            }),
            MemberBody::Return(returned) => Body::Returned(v1::Return {
                join: Some(join_out(&returned.info)),
                standing: match returned.standing {
                    Standing::Outside => v1::Standing::Outside,
                    Standing::Meeting => v1::Standing::Meeting,
                    Standing::Training => v1::Standing::Training,
                } as i32,
                ready: returned.ready.as_ref().map(ready_out),
                parts: returned.parts.iter().map(part_out).collect(),
            }),
        };
        v1::MemberMessage {
            header: Some((&message.header).into()),
            body: Some(body),
        }
    }
}

impl TryFrom<v1::MemberMessage> for FromMember {
    type Error = ConvertError;

    fn try_from(message: v1::MemberMessage) -> Result<Self, ConvertError> {
        use v1::member_message::Body;
        let header = header("MemberMessage", message.header)?;
        let body = match required("MemberMessage", "body", message.body)? {
            Body::Join(join) => MemberBody::Join(join_in(join)),
            Body::CommId(v1::CommId { id }) => MemberBody::CommId(id),
            Body::Ready(ready) => MemberBody::Ready(ready_in(ready)?),
            Body::Progress(v1::Progress {
                step,
                phase,
                counter,
                waits,
                longest_ms,
            }) => MemberBody::Progress(Progress {
                step,
                phase,
                counter,
                waits,
                longest_ms,
            }),
            Body::Report(report) => MemberBody::Report(report_in(&header, report)?),
            Body::Leaving(v1::Leaving { reason }) => MemberBody::Leaving(reason),
            Body::Holds(holds) => MemberBody::Holds(part_in(required("Holds", "part", holds.part)?)?),
            Body::Stopped(stopped) => MemberBody::Stopped {
                step: stopped.step,
                cause: Some(stopped.cause).filter(|cause| !cause.is_empty()),
                parts: stopped.parts.into_iter().map(part_in).collect::<Result<_, _>>()?,
                checkpoint_is_bad: stopped.checkpoint_is_bad,
                drifted: stopped.drifted,
                unusable: stopped.unusable,
            },
            Body::Wrote(wrote) => MemberBody::Wrote {
                step: wrote.step,
                written: written_in(wrote)?,
            },
            Body::Finished(finished) => MemberBody::Finished {
                outcome: required("Finished", "outcome", finished.outcome)?.try_into()?,
                step: finished.step,
            },
            Body::Returned(returned) => MemberBody::Return(Return {
                info: join_in(required("Return", "join", returned.join)?),
                standing: match v1::Standing::try_from(returned.standing) {
                    Ok(v1::Standing::Outside) => Standing::Outside,
                    Ok(v1::Standing::Meeting) => Standing::Meeting,
                    Ok(v1::Standing::Training) => Standing::Training,
                    Err(_) => {
                        return Err(ConvertError::Unknown {
                            message: "Return",
                            field: "standing",
                            value: i64::from(returned.standing),
                        });
                    }
                },
                ready: returned.ready.map(ready_in).transpose()?,
                parts: returned.parts.into_iter().map(part_in).collect::<Result<_, _>>()?,
            }),
        };
        Ok(FromMember { header, body })
    }
}

fn written_out(step: u64, written: &Result<Box<Written>, String>) -> v1::Wrote {
    let written = match written {
        Ok(written) => written,
        Err(failure) => {
            return v1::Wrote {
                step,
                failure: failure.clone(),
                ..v1::Wrote::default()
            };
        }
    };
    let run = |run: &BlockRun| v1::BlockRun {
        tensor: run.tensor.clone(),
        array: run.array.clone(),
        start: run.elements.start,
        end: run.elements.end,
        offset: run.offset,
        hashes: run.hashes.as_flattened().to_vec(),
    };
    let word = |(name, bits): &(String, u64)| v1::Word {
        name: name.clone(),
        bits: *bits,
    };
    v1::Wrote {
        step,
        failure: String::new(),
        words: written.words.iter().map(word).collect(),
        hash: written.hash.to_vec(),
        bytes: written.bytes,
        runs: written.runs.iter().map(run).collect(),
    }
}

fn written_in(wrote: v1::Wrote) -> Result<Result<Box<Written>, String>, ConvertError> {
    if !wrote.failure.is_empty() {
        return Ok(Err(wrote.failure));
    }
    let run = |run: v1::BlockRun| {
        let (hashes, rest) = run.hashes.as_chunks::<32>();
        // Reports a length that is not a multiple of a hash's.
        let hashes = match rest {
            [] => hashes.to_vec(),
            rest => vec![bytes_32("BlockRun", "hashes", rest)?],
        };
        Ok(BlockRun {
            tensor: run.tensor,
            array: run.array,
            elements: run.start..run.end,
            offset: run.offset,
            hashes,
        })
    };
    Ok(Ok(Box::new(Written {
        words: wrote.words.into_iter().map(|word| (word.name, word.bits)).collect(),
        hash: bytes_32("Wrote", "hash", &wrote.hash)?,
        bytes: wrote.bytes,
        runs: wrote.runs.into_iter().map(run).collect::<Result<_, _>>()?,
    })))
}

fn join_out(info: &JoinInfo) -> v1::Join {
    v1::Join {
        member: info.member.clone(),
        pid: info.pid,
        host: info.host.clone(),
        build: info.build.clone(),
        config_hash: info.config_hash.clone(),
        data_hash: info.data_hash.clone(),
        fingerprint: info.fingerprint.clone(),
        devices: info.devices.clone(),
        parts_address: info.parts_address.clone(),
    }
}

fn join_in(join: v1::Join) -> JoinInfo {
    JoinInfo {
        member: join.member,
        pid: join.pid,
        host: join.host,
        build: join.build,
        config_hash: join.config_hash,
        data_hash: join.data_hash,
        fingerprint: join.fingerprint,
        devices: join.devices,
        parts_address: join.parts_address,
    }
}

fn ready_out(ready: &Ready) -> v1::Ready {
    v1::Ready {
        parameter_hash: ready.hash.to_vec(),
        transports: ready.transports.clone(),
    }
}

fn ready_in(ready: v1::Ready) -> Result<Ready, ConvertError> {
    Ok(Ready {
        hash: bytes_32("Ready", "parameter_hash", &ready.parameter_hash)?,
        transports: ready.transports,
    })
}

fn report_out(report: &StepReport) -> v1::StepReport {
    v1::StepReport {
        rank: report.rank,
        step: report.step,
        parameter_hash: report.parameter_hash.to_vec(),
        metrics: report.metrics.as_ref().map(|metrics| v1::StepMetrics {
            loss: metrics.loss,
            tokens: metrics.tokens,
            grad_norm: metrics.grad_norm,
            update_norm: metrics.update_norm,
            learning_rate: metrics.learning_rate,
            effective_learning_rate: metrics.effective_learning_rate,
            step_ms: metrics.step_ms,
            phases: phases_out(&metrics.phases),
            polar_factors: metrics.polar_factors,
            model_value: metrics.model_value,
            dual_norm: metrics.dual_norm,
            lower_bound: metrics.lower_bound,
            gradient_variance: metrics.gradient_variance,
            gradient_square: metrics.gradient_square,
            orthogonality: metrics.orthogonality.as_ref().map(Into::into),
            skipped: metrics.skipped.clone(),
        }),
        validation: report.validation.map(|validation| v1::Validation {
            loss: validation.loss,
            tokens: validation.tokens,
        }),
        peak_memory_mib: report.peak_memory_mib,
    }
}

fn report_in(header: &Header, report: v1::StepReport) -> Result<StepReport, ConvertError> {
    Ok(StepReport {
        stamp: header.stamp,
        rank: report.rank,
        step: report.step,
        parameter_hash: bytes_32("StepReport", "parameter_hash", &report.parameter_hash)?,
        metrics: report.metrics.map(|metrics| StepMetrics {
            loss: metrics.loss,
            tokens: metrics.tokens,
            grad_norm: metrics.grad_norm,
            update_norm: metrics.update_norm,
            learning_rate: metrics.learning_rate,
            effective_learning_rate: metrics.effective_learning_rate,
            step_ms: metrics.step_ms,
            phases: phases_in(metrics.phases),
            polar_factors: metrics.polar_factors,
            model_value: metrics.model_value,
            dual_norm: metrics.dual_norm,
            lower_bound: metrics.lower_bound,
            gradient_variance: metrics.gradient_variance,
            gradient_square: metrics.gradient_square,
            orthogonality: metrics.orthogonality.map(Into::into),
            skipped: metrics.skipped,
        }),
        validation: report.validation.map(|validation| Validation {
            loss: validation.loss,
            tokens: validation.tokens,
        }),
        peak_memory_mib: report.peak_memory_mib,
    })
}

impl From<&FromCoordinator> for v1::CoordinatorMessage {
    fn from(message: &FromCoordinator) -> Self {
        use v1::coordinator_message::Body;
        let body = match &message.body {
            CoordinatorBody::Welcome { config_toml } => Body::Welcome(v1::Welcome {
                config_toml: config_toml.clone(),
            }),
            CoordinatorBody::Generation(generation) => Body::Generation(v1::Generation {
                members: generation.members.iter().map(Into::into).collect(),
                lanes: generation.lanes,
                resume: generation.resume.as_ref().map(resume_out),
                replay_through: generation.replay_through,
                secret: generation.secret.to_vec(),
            }),
            CoordinatorBody::CommId(id) => Body::CommId(v1::CommId { id: id.clone() }),
            CoordinatorBody::PlanWindow(plans) => Body::PlanWindow(v1::PlanWindow {
                plans: plans.iter().map(plan_out).collect(),
            }),
            CoordinatorBody::Directive(directive) => Body::Directive(v1::Directive {
                sequence: directive.sequence,
                kind: match directive.kind {
                    DirectiveKind::None => v1::DirectiveKind::None,
                    DirectiveKind::Resume => v1::DirectiveKind::Resume,
                    DirectiveKind::Pause => v1::DirectiveKind::Pause,
                    DirectiveKind::Stop => v1::DirectiveKind::Stop,
                    DirectiveKind::Regroup => v1::DirectiveKind::Regroup,
                } as i32,
            }),
            CoordinatorBody::Abort { reason } => Body::Abort(v1::Abort { reason: reason.clone() }),
            CoordinatorBody::SnapshotStands { step, free_before } => Body::SnapshotStands(v1::SnapshotStands {
                step: *step,
                free_before: *free_before,
            }),
            CoordinatorBody::Release { outcome, reason } => Body::Release(v1::Release {
                outcome: Some(outcome.into()),
                reason: reason.clone(),
            }),
            CoordinatorBody::Acknowledged { step, finished } => Body::Acknowledged(v1::Acknowledged {
                step: *step,
                finished: *finished,
            }),
        };
        v1::CoordinatorMessage {
            header: Some((&message.header).into()),
            body: Some(body),
        }
    }
}

impl TryFrom<v1::CoordinatorMessage> for FromCoordinator {
    type Error = ConvertError;

    fn try_from(message: v1::CoordinatorMessage) -> Result<Self, ConvertError> {
        use v1::coordinator_message::Body;
        let header = header("CoordinatorMessage", message.header)?;
        let body = match required("CoordinatorMessage", "body", message.body)? {
            Body::Welcome(v1::Welcome { config_toml }) => CoordinatorBody::Welcome { config_toml },
            Body::Generation(generation) => CoordinatorBody::Generation(Generation {
                stamp: header.stamp,
                members: generation
                    .members
                    .into_iter()
                    .map(TryInto::try_into)
                    .collect::<Result<_, _>>()?,
                lanes: generation.lanes,
                resume: generation.resume.map(resume_in).transpose()?,
                replay_through: generation.replay_through,
                secret: bytes_32("Generation", "secret", &generation.secret)?,
            }),
            Body::CommId(v1::CommId { id }) => CoordinatorBody::CommId(id),
            Body::PlanWindow(window) => CoordinatorBody::PlanWindow(window.plans.into_iter().map(plan_in).collect()),
            Body::Directive(directive) => CoordinatorBody::Directive(Directive {
                sequence: directive.sequence,
                kind: match v1::DirectiveKind::try_from(directive.kind) {
                    Ok(v1::DirectiveKind::None) => DirectiveKind::None,
                    Ok(v1::DirectiveKind::Resume) => DirectiveKind::Resume,
                    Ok(v1::DirectiveKind::Pause) => DirectiveKind::Pause,
                    Ok(v1::DirectiveKind::Stop) => DirectiveKind::Stop,
                    Ok(v1::DirectiveKind::Regroup) => DirectiveKind::Regroup,
                    Err(_) => {
                        let value = i64::from(directive.kind);
                        return Err(ConvertError::Unknown {
                            message: "Directive",
                            field: "kind",
                            value,
                        });
                    }
                },
            }),
            Body::Abort(v1::Abort { reason }) => CoordinatorBody::Abort { reason },
            Body::SnapshotStands(v1::SnapshotStands { step, free_before }) => {
                CoordinatorBody::SnapshotStands { step, free_before }
            }
            Body::Release(release) => CoordinatorBody::Release {
                outcome: required("Release", "outcome", release.outcome)?.try_into()?,
                reason: release.reason,
            },
            Body::Acknowledged(v1::Acknowledged { step, finished }) => CoordinatorBody::Acknowledged { step, finished },
        };
        Ok(FromCoordinator { header, body })
    }
}

fn plan_out(plan: &Plan) -> v1::Plan {
    v1::Plan {
        step: plan.step,
        learning_rate: plan.learning_rate,
        micro_batches: plan.micro_batches,
        first_sample: plan.first_sample,
        samples: plan.samples,
        validate: plan.validate,
        last: plan.last,
        version: plan.version,
        checkpoint: plan.checkpoint,
        momentum: plan.momentum,
        weight_decay: plan.weight_decay,
        stop: plan.stop,
    }
}

fn plan_in(plan: v1::Plan) -> Plan {
    Plan {
        step: plan.step,
        learning_rate: plan.learning_rate,
        micro_batches: plan.micro_batches,
        first_sample: plan.first_sample,
        samples: plan.samples,
        validate: plan.validate,
        last: plan.last,
        version: plan.version,
        checkpoint: plan.checkpoint,
        momentum: plan.momentum,
        weight_decay: plan.weight_decay,
        stop: plan.stop,
    }
}

fn part_out(part: &Part) -> v1::Part {
    v1::Part {
        step: part.step,
        generation: part.generation,
        part: part.part,
        hash: part.hash.to_vec(),
    }
}

fn part_in(part: v1::Part) -> Result<Part, ConvertError> {
    Ok(Part {
        step: part.step,
        generation: part.generation,
        part: part.part,
        hash: bytes_32("Part", "hash", &part.hash)?,
    })
}

fn resume_out(resume: &Resume) -> v1::Resume {
    let place = |place: &PartPlace| v1::PartPlace {
        hash: place.hash.to_vec(),
        addresses: place.addresses.clone(),
    };
    v1::Resume {
        step: resume.step,
        generation: resume.generation,
        parts: resume.parts.iter().map(place).collect(),
        checkpoint: resume.checkpoint.map(|checkpoint| v1::Checkpoint {
            term: checkpoint.term,
            generation: checkpoint.generation,
            step: checkpoint.step,
        }),
        secret: resume.secret.to_vec(),
    }
}

fn resume_in(resume: v1::Resume) -> Result<Resume, ConvertError> {
    let place = |place: v1::PartPlace| {
        Ok(PartPlace {
            hash: bytes_32("PartPlace", "hash", &place.hash)?,
            addresses: place.addresses,
        })
    };
    Ok(Resume {
        step: resume.step,
        generation: resume.generation,
        parts: resume.parts.into_iter().map(place).collect::<Result<_, _>>()?,
        checkpoint: resume.checkpoint.map(|checkpoint| Checkpoint {
            term: checkpoint.term,
            generation: checkpoint.generation,
            step: checkpoint.step,
        }),
        secret: bytes_32("Resume", "secret", &resume.secret)?,
    })
}
