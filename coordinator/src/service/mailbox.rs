//! What the services, and the process that runs the coordinator, say to the run's own thread.

use lockstep_proto::domain::{MemberStatus, RunEvent, RunStatus};
use lockstep_proto::encoded::Encoded;
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use crate::ledger::CallRow;
use crate::run::{Effect, Event, Peer, Refusal};
use crate::service::caller::Caller;

/// Messages of members that may wait; a full box holds the members' streams back.
const MEMBER_BOX: usize = 1024;

/// Takes an answer to whoever waits for it.
pub(crate) type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// Messages that may wait for one member. One that does not take them is cut off, so that nobody's memory grows with it.
pub(crate) const OUTGOING: usize = 256;

/// The way to one member. When it is dropped the stream is over, after what was said before.
pub(crate) struct Outgoing {
    messages: mpsc::Sender<Result<Encoded, Status>>,
    last_word: oneshot::Sender<Status>,
}

impl Outgoing {
    /// With it what the member's stream sends, and the last word for whoever reads from the member: both are over with it.
    pub(crate) fn new(messages: mpsc::Sender<Result<Encoded, Status>>) -> (Outgoing, oneshot::Receiver<Status>) {
        let (last_word, over) = oneshot::channel();
        (Outgoing { messages, last_word }, over)
    }

    /// Sends without waiting. False where too many messages wait for the member already; one that is gone misses nothing.
    pub(crate) fn send(&self, message: Encoded) -> bool {
        !matches!(
            self.messages.try_send(Ok(message)),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }

    /// Closes the stream with a sentence.
    pub(crate) fn close(self, sentence: Status) {
        // The member may be gone already; then nobody misses it.
        let _told = self.last_word.send(sentence);
    }
}

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

/// Where letters are put. Members' letters are held back when there are too many. Operators' letters are few by themselves: a
/// call waits for its answer, and only so many are served at a time.
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
