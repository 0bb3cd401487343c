//! One rank's communicator of NCCL, and the only place that waits: until ranks have met, until a group is on its stream, until
//! the stream has come to a mark, until the end.
//!
//! Every wait looks at three things in each round: what NCCL says, the abort flag, and the clock. So an abort from another
//! thread is seen within one pause, and acted on by the thread that makes the calls. Nobody else holds the communicator.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nccl_host::Aborter;
use nccl_rs::{Communicator, Config, Group, State, UniqueId};

use crate::accelerator::Accelerator;
use crate::device::{Recorded, Stream};
use crate::error::CollectiveError;

/// A wait begins without pauses: most groups are on their stream by then.
const SPIN: Duration = Duration::from_micros(20);
/// The first pause, and the longest: an abort is seen after so long.
const PAUSES: [Duration; 2] = [Duration::from_micros(10), Duration::from_micros(50)];
/// How long a normal end may take before it becomes an abort: it waits for all ranks.
const FAREWELL: Duration = Duration::from_secs(30);

/// A group that was put on the stream.
struct Launched {
    call: &'static str,
    /// The ranks that it does not end without.
    peers: Vec<u32>,
    mark: Recorded,
    rounds: Rounds,
}

/// One rank's communicator, and what its waits need.
pub(super) struct Link {
    communicator: Communicator,
    accelerator: Arc<dyn Accelerator>,
    stream: nccl_rs::Stream,
    rank: u32,
    size: u32,
    aborter: Aborter,
    /// How long a wait may take; for ever if not given.
    stall: Option<Duration>,
    /// How long the ranks may take to meet. A peer is connected in its first group, which may take as long again.
    meeting: Duration,
    /// The ranks that a group has ended with.
    connected: Vec<bool>,
    /// Why there is no communicator any more.
    spent: Option<String>,
    /// Groups that have not ended, as far as anybody has looked: the first one is what a late wait waits for.
    launched: VecDeque<Launched>,
}

/// A wait's rounds.
struct Rounds {
    began: Instant,
    pause: Duration,
    /// How long it may take; for ever if not given.
    stall: Option<Duration>,
}

impl Rounds {
    fn begin(stall: Option<Duration>) -> Rounds {
        Rounds {
            began: Instant::now(),
            pause: PAUSES[0],
            stall,
        }
    }

    fn pause(&mut self) {
        if self.began.elapsed() < SPIN {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(self.pause);
            self.pause = (2 * self.pause).min(PAUSES[1]);
        }
    }

    fn is_late(&self) -> bool {
        self.stall.is_some_and(|stall| self.began.elapsed() > stall)
    }

    fn waited_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Link {
    /// Meets the other ranks. The accelerator is this thread's device already.
    pub(super) fn meet(
        nccl: &nccl_rs::Nccl,
        id: &UniqueId,
        (rank, size): (u32, u32),
        (deadline, stall): (Duration, Option<Duration>),
        accelerator: Arc<dyn Accelerator>,
        aborter: &Aborter,
    ) -> Result<Link, CollectiveError> {
        let failed = |source| CollectiveError::Nccl {
            rank,
            call: "join",
            source,
        };
        let config = Config::new().non_blocking();
        let mut communicator = Communicator::init(nccl, size, id, rank, &config).map_err(failed)?;
        let mut rounds = Rounds::begin(Some(deadline));
        // On the ways out by `?` the drop aborts it, which is allowed in its beginning too.
        while communicator.async_state().map_err(failed)? == State::InProgress {
            aborter.check()?;
            if rounds.is_late() {
                return Err(CollectiveError::Transport(nccl_host::Error::Deadline {
                    rank,
                    missing: (0..size).filter(|other| *other != rank).collect(),
                    waited_ms: rounds.waited_ms(),
                    refused: None,
                }));
            }
            rounds.pause();
        }
        Ok(Link {
            communicator,
            stream: accelerator.native(Stream::Communication),
            accelerator,
            rank,
            size,
            aborter: aborter.clone(),
            stall,
            meeting: deadline,
            connected: (0..size).map(|other| other == rank).collect(),
            spent: None,
            launched: VecDeque::new(),
        })
    }

    pub(super) fn rank(&self) -> u32 {
        self.rank
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    pub(super) fn aborter(&self) -> &Aborter {
        &self.aborter
    }

    pub(super) fn accelerator(&self) -> &Arc<dyn Accelerator> {
        &self.accelerator
    }

    /// Every rank but this one.
    pub(super) fn others(&self) -> Vec<u32> {
        (0..self.size).filter(|rank| *rank != self.rank).collect()
    }

    /// Refuses what comes after an abort or a failure, and acts on an abort that came between calls.
    pub(super) fn usable(&mut self) -> Result<(), CollectiveError> {
        if let Some(reason) = &self.spent {
            return Err(nccl_host::Error::Aborted { reason: reason.clone() }.into());
        }
        if let Err(aborted) = self.aborter.check() {
            let aborted = CollectiveError::from(aborted);
            self.give_up(&aborted);
            return Err(aborted);
        }
        Ok(())
    }

    /// Runs `enqueue` as one group and waits until all of it is on the stream: from then on a mark covers it, and other work
    /// may follow it there. Its data may still be under way.
    pub(super) fn group(
        &mut self,
        call: &'static str,
        peers: Vec<u32>,
        enqueue: impl FnOnce(&mut Group<'_>, nccl_rs::Stream) -> Result<(), nccl_rs::Error>,
    ) -> Result<(), CollectiveError> {
        let rank = self.rank;
        let failed = |source| CollectiveError::Nccl { rank, call, source };
        let stream = self.stream;
        self.communicator
            .group(|group| enqueue(group, stream))
            .map_err(failed)?;
        self.forget_ended()?;
        let stall = self.stall_with(&peers);
        let mut rounds = Rounds::begin(stall);
        while self.communicator.async_state().map_err(failed)? == State::InProgress {
            self.look(call, &rounds, || (call, peers.clone(), false))?;
            rounds.pause();
        }
        let mark = self.accelerator.record(Stream::Communication)?.named("group");
        self.launched.push_back(Launched {
            call,
            peers,
            mark,
            rounds: Rounds::begin(stall),
        });
        self.forget_ended()
    }

    /// How long a wait for these peers may take: longer where one of them is not connected yet.
    fn stall_with(&self, peers: &[u32]) -> Option<Duration> {
        let is_new = |peer: &u32| !self.connected[*peer as usize];
        match peers.iter().any(is_new) {
            true => self.stall.map(|stall| stall.max(self.meeting)),
            false => self.stall,
        }
    }

    /// Waits until the communication stream has come to `mark`.
    pub(super) fn wait(&mut self, call: &'static str, mark: &Recorded) -> Result<(), CollectiveError> {
        let rank = self.rank;
        self.forget_ended()?;
        let first = self.launched.front();
        let mut rounds = Rounds::begin(first.map_or(self.stall, |first| first.rounds.stall));
        while !self.accelerator.is_done(mark)? {
            self.communicator
                .async_state()
                .map_err(|source| CollectiveError::Nccl { rank, call, source })?;
            self.forget_ended()?;
            let others = || self.others();
            self.look(call, &rounds, || match self.launched.front() {
                Some(first) => (first.call, first.peers.clone(), true),
                None => (call, others(), true),
            })?;
            rounds.pause();
        }
        Ok(())
    }

    /// Between calls: whether what was put on the stream goes on, or has failed or hangs there.
    pub(super) fn tend(&mut self) -> Result<(), CollectiveError> {
        const CALL: &str = "between calls";
        let rank = self.rank;
        self.communicator
            .async_state()
            .map_err(|source| CollectiveError::Nccl {
                rank,
                call: CALL,
                source,
            })?;
        self.forget_ended()?;
        let Some(first) = self.launched.front() else {
            return Ok(());
        };
        self.look(CALL, &first.rounds, || (first.call, first.peers.clone(), true))
    }

    /// Forgets the groups that have ended.
    fn forget_ended(&mut self) -> Result<(), CollectiveError> {
        while let Some(first) = self.launched.front() {
            if !self.accelerator.is_done(&first.mark)? {
                break;
            }
            for peer in &first.peers {
                self.connected[*peer as usize] = true;
            }
            self.launched.pop_front();
        }
        Ok(())
    }

    /// One round's look at the abort flag and the clock; `late` tells what is waited for: a call, its ranks, and whether it is
    /// on the stream.
    fn look(
        &self,
        call: &'static str,
        rounds: &Rounds,
        late: impl FnOnce() -> (&'static str, Vec<u32>, bool),
    ) -> Result<(), CollectiveError> {
        self.aborter.check()?;
        if !rounds.is_late() {
            return Ok(());
        }
        let (of, mut waited_for, begun) = late();
        if !begun {
            waited_for.push(self.rank);
            waited_for.sort_unstable();
        }
        Err(CollectiveError::Overdue {
            rank: self.rank,
            call: if begun { of } else { call },
            waited_for,
            begun,
            waited_ms: rounds.waited_ms(),
        })
    }

    /// Aborts, on this thread: what is under way stops, and memory that was being received holds anything.
    pub(super) fn give_up(&mut self, why: &CollectiveError) {
        if self.spent.is_none() {
            let reason = match why {
                CollectiveError::Transport(nccl_host::Error::Aborted { reason }) => reason.clone(),
                other => other.to_string(),
            };
            self.spent = Some(reason);
            // It is gone, whatever the library says to it, and the reason is worth more than that.
            let _ = self.communicator.abort();
        }
    }

    /// The normal end, where all is well; else an abort.
    pub(super) fn leave(&mut self) {
        if self.spent.is_some() {
            return;
        }
        let ended = match self.aborter.check() {
            Ok(()) => self.say_farewell(),
            Err(aborted) => Err(aborted.into()),
        };
        match ended {
            Ok(()) => self.spent = Some("this rank has left".to_owned()),
            Err(why) => self.give_up(&why),
        }
    }

    fn say_farewell(&mut self) -> Result<(), CollectiveError> {
        const CALL: &str = "leave";
        let rank = self.rank;
        let failed = |source| CollectiveError::Nccl {
            rank,
            call: CALL,
            source,
        };
        let stall = self.stall.map_or(FAREWELL, |stall| stall.min(FAREWELL));
        self.stall = Some(stall);
        let last = self.accelerator.record(Stream::Communication)?;
        self.wait(CALL, &last)?;
        self.communicator.finalize().map_err(failed)?;
        let mut rounds = Rounds::begin(self.stall);
        while self.communicator.async_state().map_err(failed)? == State::InProgress {
            self.look(CALL, &rounds, || (CALL, self.others(), true))?;
            rounds.pause();
        }
        self.communicator.destroy().map_err(failed)
    }

    /// Waits until the device is through with what it was given, for memory that is about to be freed; false if it did not get
    /// there in time.
    pub(super) fn is_idle_soon(&self) -> bool {
        let Ok(last) = self.accelerator.record(Stream::Communication) else {
            return false;
        };
        let mut rounds = Rounds::begin(Some(FAREWELL));
        loop {
            match self.accelerator.is_done(&last) {
                Ok(true) => return true,
                Ok(false) if !rounds.is_late() => rounds.pause(),
                _ => return false,
            }
        }
    }
}
