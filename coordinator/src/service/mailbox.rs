//! What the services, and the process that runs the coordinator, say to the run's own thread.

use lockstep_proto::domain::{MemberStatus, RunEvent, RunStatus};
use lockstep_proto::v1;
use tokio::sync::{broadcast, mpsc};
use tonic::Status;

use crate::ledger::CallRow;
use crate::run::{Effect, Event, Peer, Refusal};
use crate::service::caller::Caller;

/// Messages of members that may wait; a full box holds the members' streams back.
const MEMBER_BOX: usize = 1024;

/// Takes an answer to whoever waits for it.
pub(crate) type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// What goes to one member.
pub(crate) type Outgoing = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

/// One thing for the run's thread.
pub(crate) enum Letter {
    /// A member's stream was opened.
    Attach(Peer, Outgoing),
    /// Something happened to the run.
    Event(Event),
    /// A command of somebody, answered with what was decided.
    Command(Event, Caller, Reply<Result<(String, Option<Effect>), Refusal>>),
    /// A call that must be durable and leads to no decision.
    Called(CallRow),
    /// A question.
    Status(Reply<RunStatus>),
    /// A question.
    Members(Reply<Vec<MemberStatus>>),
    /// Present state and all events from now on.
    Watch(Reply<(RunEvent, broadcast::Receiver<RunEvent>)>),
}

/// Where letters are put. Members' letters are held back when there are too many; commands and questions are not.
#[derive(Clone)]
pub(crate) struct Mailbox {
    pub(crate) members: mpsc::Sender<Letter>,
    pub(crate) operators: mpsc::UnboundedSender<Letter>,
}

/// Where the run's thread takes them out.
pub(crate) struct Letters {
    members: mpsc::Receiver<Letter>,
    operators: mpsc::UnboundedReceiver<Letter>,
}

pub(crate) fn mailbox() -> (Mailbox, Letters) {
    let (members, from_members) = mpsc::channel(MEMBER_BOX);
    let (operators, from_operators) = mpsc::unbounded_channel();
    (
        Mailbox { members, operators },
        Letters {
            members: from_members,
            operators: from_operators,
        },
    )
}

impl Letters {
    /// The next letter, operators' first.
    pub(crate) async fn next(&mut self) -> Option<Letter> {
        tokio::select! {
            biased;
            Some(letter) = self.operators.recv() => Some(letter),
            Some(letter) = self.members.recv() => Some(letter),
            else => None,
        }
    }

    /// A letter that is there already.
    pub(crate) fn ready(&mut self) -> Option<Letter> {
        self.operators.try_recv().or_else(|_| self.members.try_recv()).ok()
    }
}
