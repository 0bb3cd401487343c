//! The training service: one stream a member. Inbound messages become events; a stream that ends becomes
//! `MemberLost`, whatever ended it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use lockstep_proto::domain::{CoordinatorBody, FromCoordinator, FromMember, Header, Stamp};
use lockstep_proto::v1;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::ledger::event_of_member;
use crate::run::{Event, Peer};
use crate::service::attach::Outbox;
use crate::service::mailbox::{Letter, Mailbox, OUTGOING, Outgoing};
use crate::service::status::{misunderstood, older_term, other_run, over};

/// Carries members' streams.
pub(super) struct TrainingService {
    pub(super) mailbox: Mailbox,
    pub(super) run_id: String,
    pub(super) term: u64,
    pub(super) config_toml: String,
    pub(super) next_peer: Arc<AtomicU64>,
}

impl TrainingService {
    /// A member's stream is open: what it says becomes events, and what is said to it comes out of the outbox.
    pub(super) async fn attach(&self, mut incoming: Streaming<v1::MemberMessage>) -> Result<Outbox, Status> {
        let peer = self.next_peer.fetch_add(1, atomic::Ordering::Relaxed);
        let (messages, stream) = mpsc::channel(OUTGOING);
        let header = Header {
            run_id: self.run_id.clone(),
            stamp: Stamp {
                term: self.term,
                generation: 0,
            },
        };
        let welcome = FromCoordinator {
            header,
            body: CoordinatorBody::Welcome {
                config_toml: self.config_toml.clone(),
            },
        };
        messages.send(Ok((&welcome).into())).await.map_err(|_| over())?;
        let (outgoing, mut ended) = Outgoing::new(messages.clone());
        self.mailbox
            .members
            .send(Letter::Attach(peer, outgoing))
            .await
            .map_err(|_| over())?;
        let (mailbox, run_id, term) = (self.mailbox.clone(), self.run_id.clone(), self.term);
        tokio::spawn(async move {
            let last_word = loop {
                let message = tokio::select! {
                    biased;
                    word = &mut ended => break word.ok(),
                    message = incoming.message() => message,
                };
                let Ok(Some(message)) = message else { break None };
                let event = match understand(message, peer, &run_id, term) {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(status) => break Some(status),
                };
                if mailbox.members.send(Letter::Event(event)).await.is_err() {
                    break ended.await.ok();
                }
            };
            // Refused only where the run's thread has ended, and with it the run.
            let _told = mailbox.members.send(Letter::Event(Event::MemberLost { peer })).await;
            if let Some(status) = last_word {
                // Behind all that still waits for the member. It may be gone already; then nobody misses the answer.
                let _told = messages.send(Err(status)).await;
            }
        });
        Ok(Outbox::new(stream))
    }
}

/// The event that a message means; none for one of an older term. A member that has heard of a newer term is refused.
fn understand(message: v1::MemberMessage, peer: Peer, run_id: &str, term: u64) -> Result<Option<Event>, Status> {
    let FromMember { header, body } = message.try_into().map_err(|error| misunderstood(&error))?;
    if header.run_id != run_id {
        return Err(other_run(&header.run_id, run_id));
    }
    match header.stamp.term.cmp(&term) {
        Ordering::Less => return Ok(None),
        Ordering::Greater => return Err(older_term(header.stamp.term, term)),
        Ordering::Equal => {}
    }
    Ok(Some(event_of_member(peer, header.stamp, body)))
}
