//! Messages of the control service ⇄ domain types.

use super::{ConvertError, bytes_32, header, phases_in, phases_out, required};
use crate::domain::{
    Alert, CommittedStep, Header, JoinInfo, MemberStatus, Overview, PastDecision, RunEnd, RunEvent, RunStatus,
    Validation,
};
use crate::v1;

impl From<&RunStatus> for v1::StatusReply {
    fn from(status: &RunStatus) -> Self {
        v1::StatusReply {
            header: Some((&status.header).into()),
            name: status.name.clone(),
            phase: status.phase.clone(),
            reason: status.reason.clone(),
            step: status.step,
            total_steps: status.total_steps,
            ranks: status.ranks,
            members: status.members,
            backend: status.backend.clone(),
            loss: status.loss,
            skipped_steps: status.skipped_steps,
            last_skip: status.last_skip.clone(),
            rewinds: status.rewinds,
            last_rewind: status.last_rewind.clone(),
            alerts: status.alerts.iter().map(Into::into).collect(),
            validation_loss: status.validation_loss,
            tokens_per_second: status.tokens_per_second,
            transports: status
                .transports
                .iter()
                .map(|(transport, pairs)| v1::TransportPairs {
                    transport: transport.clone(),
                    pairs: *pairs,
                })
                .collect(),
        }
    }
}

impl TryFrom<v1::StatusReply> for RunStatus {
    type Error = ConvertError;

    fn try_from(reply: v1::StatusReply) -> Result<Self, ConvertError> {
        Ok(RunStatus {
            header: header("StatusReply", reply.header)?,
            name: reply.name,
            phase: reply.phase,
            reason: reply.reason,
            step: reply.step,
            total_steps: reply.total_steps,
            ranks: reply.ranks,
            members: reply.members,
            backend: reply.backend,
            loss: reply.loss,
            skipped_steps: reply.skipped_steps,
            last_skip: reply.last_skip,
            rewinds: reply.rewinds,
            last_rewind: reply.last_rewind,
            alerts: reply.alerts.into_iter().map(Into::into).collect(),
            validation_loss: reply.validation_loss,
            tokens_per_second: reply.tokens_per_second,
            transports: reply
                .transports
                .into_iter()
                .map(|v1::TransportPairs { transport, pairs }| (transport, pairs))
                .collect(),
        })
    }
}

/// A run event with the header it is sent under.
impl From<(&Header, &RunEvent)> for v1::WatchEvent {
    fn from((header, event): (&Header, &RunEvent)) -> Self {
        use v1::watch_event::Body;
        let body = match event {
            RunEvent::State { phase, reason } => Body::State(v1::StateChange {
                phase: phase.clone(),
                reason: reason.clone(),
            }),
            RunEvent::Decided { reason } => Body::Decided(v1::Decided { reason: reason.clone() }),
            RunEvent::Step(step) => Body::Step(step_out(step)),
            RunEvent::Validation { step, validation } => Body::Validation(v1::StepValidation {
                step: *step,
                loss: validation.loss,
                tokens: validation.tokens,
            }),
            RunEvent::Ended(end) => Body::End(v1::RunEnd {
                outcome: Some((&end.outcome).into()),
                reason: end.reason.clone(),
                last_step: end.last_step,
            }),
        };
        v1::WatchEvent {
            header: Some(header.into()),
            body: Some(body),
        }
    }
}

impl TryFrom<v1::WatchEvent> for RunEvent {
    type Error = ConvertError;

    fn try_from(event: v1::WatchEvent) -> Result<Self, ConvertError> {
        use v1::watch_event::Body;
        header("WatchEvent", event.header)?;
        Ok(match required("WatchEvent", "body", event.body)? {
            Body::State(v1::StateChange { phase, reason }) => RunEvent::State { phase, reason },
            Body::Decided(v1::Decided { reason }) => RunEvent::Decided { reason },
            Body::Step(step) => RunEvent::Step(Box::new(step_in(step)?)),
            Body::Validation(v1::StepValidation { step, loss, tokens }) => RunEvent::Validation {
                step,
                validation: Validation { loss, tokens },
            },
            Body::End(end) => RunEvent::Ended(RunEnd {
                outcome: required("RunEnd", "outcome", end.outcome)?.try_into()?,
                reason: end.reason,
                last_step: end.last_step,
            }),
        })
    }
}

fn step_out(step: &CommittedStep) -> v1::CommittedStep {
    v1::CommittedStep {
        step: step.step,
        total_steps: step.total_steps,
        samples: step.samples,
        tokens: step.tokens,
        loss: step.loss,
        learning_rate: step.learning_rate,
        effective_learning_rate: step.effective_learning_rate,
        batch: step.batch,
        grad_norm: step.grad_norm,
        update_norm: step.update_norm,
        tokens_per_second: step.tokens_per_second,
        step_ms: step.step_ms,
        phases: phases_out(&step.phases),
        generation: step.generation,
        ranks: step.ranks,
        parameter_hash: step.parameter_hash.to_vec(),
        polar_factors: step.polar_factors,
        model_value: step.model_value,
        dual_norm: step.dual_norm,
        lower_bound: step.lower_bound,
        gradient_variance: step.gradient_variance,
        gradient_square: step.gradient_square,
        noise_scale: step.noise_scale,
        orthogonality: step.orthogonality.as_ref().map(Into::into),
        skipped: step.skipped.clone(),
    }
}

fn step_in(step: v1::CommittedStep) -> Result<CommittedStep, ConvertError> {
    Ok(CommittedStep {
        step: step.step,
        total_steps: step.total_steps,
        samples: step.samples,
        tokens: step.tokens,
        loss: step.loss,
        learning_rate: step.learning_rate,
        effective_learning_rate: step.effective_learning_rate,
        batch: step.batch,
        grad_norm: step.grad_norm,
        update_norm: step.update_norm,
        tokens_per_second: step.tokens_per_second,
        step_ms: step.step_ms,
        phases: phases_in(step.phases),
        generation: step.generation,
        ranks: step.ranks,
        parameter_hash: bytes_32("CommittedStep", "parameter_hash", &step.parameter_hash)?,
        polar_factors: step.polar_factors,
        model_value: step.model_value,
        dual_norm: step.dual_norm,
        lower_bound: step.lower_bound,
        gradient_variance: step.gradient_variance,
        gradient_square: step.gradient_square,
        noise_scale: step.noise_scale,
        orthogonality: step.orthogonality.map(Into::into),
        skipped: step.skipped,
    })
}

impl From<&MemberStatus> for v1::MemberStatus {
    fn from(status: &MemberStatus) -> Self {
        let (rank, lanes) = status
            .place
            .clone()
            .map_or((None, 0..0), |(rank, lanes)| (Some(rank), lanes));
        v1::MemberStatus {
            member: status.info.member.clone(),
            pid: status.info.pid,
            host: status.info.host.clone(),
            build: status.info.build.clone(),
            devices: status.info.devices.clone(),
            rank,
            lanes_begin: lanes.start,
            lanes_end: lanes.end,
            reported_step: status.reported_step,
            phase: status.phase.clone(),
            transports: status.transports.clone(),
            waits: status.waits,
        }
    }
}

impl From<v1::MemberStatus> for MemberStatus {
    /// The hashes of the member's config, data and fingerprint are not part of the answer and stay empty.
    fn from(status: v1::MemberStatus) -> Self {
        MemberStatus {
            place: status.rank.map(|rank| (rank, status.lanes_begin..status.lanes_end)),
            info: JoinInfo {
                member: status.member,
                pid: status.pid,
                host: status.host,
                build: status.build,
                devices: status.devices,
                ..JoinInfo::default()
            },
            reported_step: status.reported_step,
            phase: status.phase,
            transports: status.transports,
            waits: status.waits,
        }
    }
}

impl From<&Alert> for v1::Alert {
    fn from(alert: &Alert) -> Self {
        v1::Alert {
            kind: alert.kind.clone(),
            about: alert.about.clone(),
            since: alert.since,
            until: alert.until,
            sentence: alert.sentence.clone(),
        }
    }
}

impl From<v1::Alert> for Alert {
    fn from(alert: v1::Alert) -> Self {
        Alert {
            kind: alert.kind,
            about: alert.about,
            since: alert.since,
            until: alert.until,
            sentence: alert.sentence,
        }
    }
}

impl From<&Overview> for v1::OverviewReply {
    fn from(overview: &Overview) -> Self {
        let decision = |decision: &PastDecision| v1::PastDecision {
            at: decision.at,
            reason: decision.reason.clone(),
        };
        v1::OverviewReply {
            header: Some((&overview.status.header).into()),
            status: Some((&overview.status).into()),
            members: overview.members.iter().map(Into::into).collect(),
            losses: overview.losses.clone(),
            last: overview.last.as_ref().map(step_out),
            decisions: overview.decisions.iter().map(decision).collect(),
            alerts: overview.alerts.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::OverviewReply> for Overview {
    type Error = ConvertError;

    fn try_from(reply: v1::OverviewReply) -> Result<Self, ConvertError> {
        let decision = |v1::PastDecision { at, reason }| PastDecision { at, reason };
        Ok(Overview {
            status: required("OverviewReply", "status", reply.status)?.try_into()?,
            members: reply.members.into_iter().map(Into::into).collect(),
            losses: reply.losses,
            last: reply.last.map(step_in).transpose()?,
            decisions: reply.decisions.into_iter().map(decision).collect(),
            alerts: reply.alerts.into_iter().map(Into::into).collect(),
        })
    }
}
