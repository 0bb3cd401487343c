//! Deliberate faults of the machine, the service and the trainers: the simulator must find each of them.

use std::sync::Arc;

use lockstep_proto::domain::CoordinatorBody;

use crate::run::Directive;

/// A deliberate fault, to prove that the simulator finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum Fault {
    /// Breaks invariant 5.
    CommitBeforeEveryHash,
    /// Breaks invariant 6.
    SendBeforeDurable,
    /// Breaks invariant 4.
    AlterPlanForOneMember,
    /// Breaks invariant 9.
    ForgetOneAbort,
    /// Breaks invariant 2.
    FallBackToAnOlderTerm,
    /// Breaks invariant 1.
    FormBeforeAllHaveStopped,
    /// Breaks invariant 12.
    SnapshotWithoutBuddies,
    /// Breaks invariant 11.
    ResumeFromWhatNobodyHolds,
    /// Breaks invariant 1.
    GoOnBeforeAllAreBack,
    /// Breaks invariant 1: what was said of an older generation counts.
    BelieveOlderGenerations,
    /// Breaks invariant 13.
    CommissionBeforeAllAreWritten,
    /// Breaks invariant 10: a rank goes away whose reports are still needed.
    HearFarewellsEarly,
    /// Breaks invariant 10: a heartbeat renews the lease of a device thread that hangs.
    RenewLeasesOfDeadThreads,
    /// Breaks invariant 17.
    ResumeFromAClosedBranch,
    /// Breaks invariant 15: as if no rewind needed what is older.
    FreeWhatARewindNeeds,
    /// Breaks invariant 18: plans are made as if operators had changed nothing.
    ForgetChanges,
    /// Breaks invariant 18: an order that is said again is carried out again.
    CarryOutTwice,
    /// Breaks invariant 20: what is decided holds as soon as a plan can be made of it.
    AdaptAtOnce,
    /// Breaks invariant 20: plans are issued before their batch is decided on.
    PlanBeforeTheDecision,
    /// Breaks invariant 17: an operator's rewind goes back one step further.
    GoBackTooFar,
    /// Breaks invariants 5 and 10: what ranks say of a branch that is closed counts.
    HearAClosedBranch,
    /// Breaks invariant 19: plans are issued behind the one that stops the run.
    PlanBehindTheStop,
    /// In the trainers. Breaks invariant 15.
    FreeSnapshotsTooEarly,
    /// In the trainers: what a coordinator of an earlier term said is obeyed.
    ObeyOlderTerms,
    /// In the service. Breaks invariant 6: what is told may be lost with the transaction.
    SendBeforeTheTransaction,
    /// In the service: a coordinator that was replaced can still write.
    WriteWithoutTheLock,
}

impl Fault {
    /// Spoils a decision.
    pub(in crate::run) fn distort(self, directives: &mut Vec<Directive>) {
        match self {
            Fault::SendBeforeDurable => {
                directives.sort_by_key(|directive| !matches!(directive, Directive::Send { .. }))
            }
            Fault::AlterPlanForOneMember => {
                if let Some(Directive::Send { body, .. }) = directives.last_mut()
                    && let CoordinatorBody::PlanWindow(plans) = Arc::make_mut(body)
                {
                    plans[0].learning_rate += 1.0;
                }
            }
            Fault::ForgetOneAbort => {
                let tells_the_end = |directive: &Directive| {
                    let Directive::Send { body, .. } = directive else {
                        return false;
                    };
                    matches!(**body, CoordinatorBody::Abort { .. } | CoordinatorBody::Release { .. })
                };
                if let Some(index) = directives.iter().position(tells_the_end) {
                    directives.remove(index);
                }
            }
            Fault::FallBackToAnOlderTerm => {
                if let Some(Directive::Send { stamp, .. }) = directives.last_mut() {
                    stamp.term = stamp.term.saturating_sub(1);
                }
            }
            // These are in the machine itself, where it looks at its own fault, or in the trainers.
            Fault::CommitBeforeEveryHash
            | Fault::FormBeforeAllHaveStopped
            | Fault::SnapshotWithoutBuddies
            | Fault::ResumeFromWhatNobodyHolds
            | Fault::GoOnBeforeAllAreBack
            | Fault::BelieveOlderGenerations
            | Fault::CommissionBeforeAllAreWritten
            | Fault::HearFarewellsEarly
            | Fault::RenewLeasesOfDeadThreads
            | Fault::ResumeFromAClosedBranch
            | Fault::FreeWhatARewindNeeds
            | Fault::ForgetChanges
            | Fault::CarryOutTwice
            | Fault::AdaptAtOnce
            | Fault::PlanBeforeTheDecision
            | Fault::GoBackTooFar
            | Fault::HearAClosedBranch
            | Fault::PlanBehindTheStop
            | Fault::FreeSnapshotsTooEarly
            | Fault::ObeyOlderTerms
            | Fault::SendBeforeTheTransaction
            | Fault::WriteWithoutTheLock => {}
        }
    }
}
