//! Waiting for the ranks of this host, and the errors of waits: whom they name.

use std::time::{Duration, Instant};

use super::{Communicator, SPIN};
use crate::call::{Call, CallKind};
use crate::control::Counter;
use crate::error::Error;
use crate::exchange::Ended;
use crate::goodbye::{Blame, Fault};
use crate::link::{Broken, End, SLICE};

impl Communicator {
    /// Waits for the counters of all peers.
    pub(super) fn wait(&mut self, counter: Counter, value: u64, call: Call) -> Result<(), Error> {
        let started = Instant::now();
        for rank in self.controls.peers() {
            if !self.spin(rank, counter, value)? {
                while !self.controls.reached(rank, counter, value) {
                    self.controls.sleep(rank, counter, value, SLICE)?;
                    self.aborter.check()?;
                    if !self.controls.reached(rank, counter, value) {
                        let lost = self.find_lost(counter, value);
                        lost.map_err(|error| match error {
                            // This rank was silent because it waits for somebody itself.
                            Error::Accused {
                                by,
                                fault: Fault::Silent,
                            } if self.late(counter, value).any(|late| late != by) => {
                                self.heard.set(None);
                                self.stalled(self.furthest_behind(counter, value), call, started)
                            }
                            error => error,
                        })?;
                        // Of several, one may be waiting for another, and says so when its own patience ends.
                        let several = self.late(counter, value).nth(1).is_some();
                        let patience = |stall: Duration| if several { stall + stall / 4 } else { stall };
                        if self.stall.is_some_and(|stall| started.elapsed() >= patience(stall)) {
                            return Err(self.stalled(self.furthest_behind(counter, value), call, started));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The peers whose counter has not reached `value`, and that have not left.
    fn late(&self, counter: Counter, value: u64) -> impl Iterator<Item = u32> + '_ {
        let is_here = |peer: u32| self.link(peer).is_some_and(|link| !link.has_ended());
        self.controls
            .peers()
            .filter(move |peer| is_here(*peer) && !self.controls.reached(*peer, counter, value))
    }

    /// The late peer that has done least: the others may be waiting for it.
    fn furthest_behind(&self, counter: Counter, value: u64) -> u32 {
        let late = self.late(counter, value);
        late.min_by_key(|peer| self.controls.progress(*peer))
            .unwrap_or(self.rank)
    }

    /// Whether the peer came while this rank spun.
    fn spin(&self, rank: u32, counter: Counter, value: u64) -> Result<bool, Error> {
        let started = Instant::now();
        loop {
            for _ in 0..32 {
                if self.controls.reached(rank, counter, value) {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= SPIN {
                return Ok(false);
            }
            self.aborter.check()?;
        }
    }

    /// An error when a peer is gone that has not reached `value`. (One that has may leave: it has given all it had to.)
    fn find_lost(&mut self, counter: Counter, value: u64) -> Result<(), Error> {
        let mut left = None;
        for rank in self.controls.peers() {
            let Some(link) = self.links[rank as usize].as_mut() else {
                continue;
            };
            let Some(end) = link.end()? else { continue };
            let pid = link.pid;
            // Looked at after the hang-up was seen, so this is the peer's last word.
            if self.controls.reached(rank, counter, value) {
                // But it may have given up a rank that this one still waits for.
                if let End::Goodbye { blame: Some(blame) } = end
                    && blame.accused != self.rank
                    && !self.controls.reached(blame.accused, counter, value)
                {
                    left = Some((rank, pid, Some(blame)));
                }
                continue;
            }
            match end {
                End::Silent => return Err(Error::PeerLost { rank, pid }),
                End::Goodbye { blame } => left = Some((rank, pid, blame)),
            }
        }
        left.map_or(Ok(()), |(rank, pid, blame)| Err(self.left(rank, pid, blame)))
    }

    /// The error for a peer that closed its end: the root of the matter, where the peer named it.
    pub(super) fn left(&self, rank: u32, pid: u32, blame: Option<Blame>) -> Error {
        let Some(blame) = blame else {
            return Error::PeerLeft { rank, pid };
        };
        self.heard.set(Some(blame));
        blame.heard_by(self.rank, self.pid(blame.accused))
    }

    /// The error for a link that failed outside a wait for counters.
    pub(super) fn broken(&mut self, rank: u32, broken: Broken, started: Instant) -> Error {
        match broken {
            Broken::Error(error) => return error,
            Broken::Late => return self.stalled(rank, Call::new(CallKind::Allocate, 0), started),
            Broken::Closed | Broken::Left(_) => {}
        }
        let Some(link) = self.links[rank as usize].as_mut() else {
            return Error::PeerLost { rank, pid: 0 };
        };
        let pid = link.pid;
        match link.end() {
            Ok(Some(End::Goodbye { blame })) => self.left(rank, pid, blame),
            Ok(_) => Error::PeerLost { rank, pid },
            Err(error) => error,
        }
    }

    /// The error for a peer elsewhere.
    pub(super) fn ended(&self, rank: u32, ended: Ended, call: Call, started: Instant) -> Error {
        let (pid, host) = match self.remotes.get(rank as usize).and_then(Option::as_ref) {
            Some(link) => (link.pid, link.host.clone()),
            None => (0, String::new()),
        };
        match ended {
            Ended::Closed => Error::ConnectionLost { rank, pid, host },
            Ended::Left(blame) => self.left(rank, pid, blame),
            Ended::Elsewhere(theirs) => Error::Mismatch {
                rank,
                theirs: Call(theirs).describe(),
                ours: call.describe(),
            },
            Ended::Silent => self.stalled(rank, call, started),
            Ended::Refused(why) => Error::Refused { rank: Some(rank), why },
        }
    }

    pub(super) fn stalled(&self, rank: u32, call: Call, started: Instant) -> Error {
        Error::Stalled {
            rank,
            pid: self.pid(rank),
            call: call.name().to_owned(),
            waited_ms: started.elapsed().as_millis() as u64,
        }
    }

    /// The process of a peer.
    pub(super) fn pid(&self, rank: u32) -> u32 {
        let remote = self.remotes.get(rank as usize).and_then(Option::as_ref);
        remote.map_or_else(|| self.link(rank).map_or(0, |link| link.pid), |link| link.pid)
    }
}
