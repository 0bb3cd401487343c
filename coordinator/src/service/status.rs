//! Refusals as rich gRPC errors: `google.rpc.Status` with `ErrorInfo` for programs and `PreconditionFailure` for
//! people who want to know what to change.

use lockstep_proto::ConvertError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::run::Refusal;

const DOMAIN: &str = "lockstep";

/// The machine's refusal.
pub(super) fn refused(refusal: &Refusal) -> Status {
    let subject = [("subject".to_owned(), refusal.subject.clone())];
    let mut details = ErrorDetails::with_error_info(refusal.kind, DOMAIN, subject);
    details.add_precondition_failure_violation(refusal.kind, &refusal.subject, &refusal.reason);
    Status::with_error_details(Code::FailedPrecondition, &refusal.reason, details)
}

/// A message that cannot be understood.
pub(super) fn misunderstood(error: &ConvertError) -> Status {
    match error {
        ConvertError::ProtocolVersion { ours, theirs } => {
            let values = [
                ("ours".to_owned(), ours.to_string()),
                ("theirs".to_owned(), theirs.to_string()),
            ];
            let mut details = ErrorDetails::with_error_info("PROTOCOL_VERSION", DOMAIN, values);
            details.add_precondition_failure_violation("PROTOCOL_VERSION", "header", error.to_string());
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
        }
        _ => Status::invalid_argument(error.to_string()),
    }
}

/// A message for another run.
pub(super) fn other_run(theirs: &str, ours: &str) -> Status {
    let reason = format!("this coordinator serves the run {ours}, and the message is for the run {theirs}");
    refused(&Refusal {
        kind: "OTHER_RUN",
        subject: "header.run_id".to_owned(),
        reason,
    })
}

/// A member that has heard from a newer coordinator.
pub(super) fn older_term(theirs: u64, ours: u64) -> Status {
    let reason = format!(
        "this coordinator has term {ours}, and the member has heard from one of term {theirs}: a newer coordinator \
         serves the run"
    );
    refused(&Refusal {
        kind: "OLDER_TERM",
        subject: "header.term".to_owned(),
        reason,
    })
}

/// The run's thread is gone.
pub(super) fn over() -> Status {
    Status::unavailable("the run is over and its coordinator is going away")
}
