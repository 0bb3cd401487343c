//! All ranks meet at rank 0, and every pair is measured.
//!
//! Each rank answers measurements on a port of its own and tells it to rank 0, over a connection that stays. Rank 0 then goes
//! through rounds in which no rank is in two pairs, says who measures whom, and hears the results. At the end every rank is told
//! the exit code of rank 0, so that all of them end alike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::finding::Finding;
use crate::pairs::echo::{measure, serve};
use crate::pairs::{Pair, Way};

/// A measurement of a bad way takes this long at most: connecting, and both transfers.
const ROUND: Duration = Duration::from_secs(120);
/// How long a connection of one pair may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// What ranks say to each other, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// To rank 0: who this is, on which port it answers, and what is wrong on its side.
    Here {
        rank: u32,
        size: u32,
        host: String,
        port: u16,
        findings: Vec<Finding>,
    },
    /// From rank 0: measure the way to who answers there.
    Measure(SocketAddr),
    /// To rank 0.
    Measured(Result<Way, String>),
    /// From rank 0: end with this exit code.
    End(u8),
}

/// A rank, of how many, and where they meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// This one.
    pub rank: u32,
    /// Of so many.
    pub size: u32,
    /// This host's name.
    pub host: String,
    /// The addresses of rank 0's meeting point.
    pub at: Vec<SocketAddr>,
    /// How long ranks may take to come.
    pub patience: Duration,
}

/// What rank 0 has when all is measured.
#[derive(Debug)]
pub struct Measured {
    /// Every pair of those that came.
    pub pairs: Vec<Pair>,
    /// Who did not come.
    pub missing: Vec<u32>,
    /// What is wrong on the side of the others; the place begins with the rank.
    pub findings: Vec<Finding>,
    others: Vec<Line>,
}

impl Measured {
    /// Lets the other ranks end, with this exit code.
    pub fn end(mut self, code: u8) {
        for line in &mut self.others {
            // One that has gone does not wait for it.
            let _ = line.say(&Word::End(code));
        }
    }
}

/// A connection on which words are said.
#[derive(Debug)]
struct Line {
    stream: BufReader<TcpStream>,
}

impl Line {
    fn over(stream: TcpStream, silence: Duration) -> std::io::Result<Line> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(Line {
            stream: BufReader::new(stream),
        })
    }

    fn say(&mut self, word: &Word) -> std::io::Result<()> {
        let mut text = serde_json::to_string(word)?;
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes())
    }

    fn hear(&mut self) -> std::io::Result<Word> {
        let mut text = String::new();
        // Whoever says more in one line is somebody else.
        let read = std::io::Read::take(&mut self.stream, 1 << 20).read_line(&mut text)?;
        match read {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&text)?),
        }
    }
}

/// Answers measurements from now on; the port.
fn answer(address: SocketAddr) -> std::io::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::new(address.ip(), 0))?;
    let port = listener.local_addr()?.port();
    std::thread::Builder::new()
        .name("lockstep-echo".to_owned())
        .spawn(move || serve(&listener))?;
    Ok(port)
}

/// Another rank than 0: does as it is told; the exit code that rank 0 says.
///
/// # Errors
/// One sentence without its full stop: rank 0 is not reached, or has gone.
pub fn follow(meeting: &Meeting, findings: Vec<Finding>) -> Result<u8, String> {
    let lost = |error: std::io::Error| format!("rank 0 has gone: {error}");
    let stream = reach(meeting)?;
    let local = stream.local_addr().map_err(lost)?;
    let port = answer(local).map_err(|error| format!("no port can be listened on: {error}"))?;
    // Rank 0 says nothing while others come and measure.
    let silence = meeting.patience + ROUND * meeting.size.max(1);
    let mut line = Line::over(stream, silence).map_err(lost)?;
    line.say(&Word::Here {
        rank: meeting.rank,
        size: meeting.size,
        host: meeting.host.clone(),
        port,
        findings,
    })
    .map_err(lost)?;
    loop {
        match line.hear().map_err(lost)? {
            Word::Measure(address) => line.say(&Word::Measured(measure(address, CONNECT))).map_err(lost)?,
            Word::End(code) => return Ok(code),
            Word::Here { .. } | Word::Measured(_) => return Err("rank 0 says what only other ranks may".to_owned()),
        }
    }
}

/// Connects to rank 0, which may come later.
fn reach(meeting: &Meeting) -> Result<TcpStream, String> {
    let start = Instant::now();
    let mut last = "it has no address".to_owned();
    while start.elapsed() < meeting.patience {
        for address in &meeting.at {
            match TcpStream::connect_timeout(address, CONNECT) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!(
        "rank 0 is not reached within {} s ({last})",
        meeting.patience.as_secs()
    ))
}

/// A rank that has come, as rank 0 knows it.
struct Seat {
    host: String,
    line: Line,
    /// Where it answers.
    answers: SocketAddr,
    /// What is wrong on its side.
    findings: Vec<Finding>,
}

/// Rank 0: waits for the others, and has every pair measured.
///
/// # Errors
/// One sentence without its full stop: nobody can listen at the meeting point, or ranks contradict each other.
pub fn lead(meeting: &Meeting) -> Result<Measured, String> {
    let listener = listen(&meeting.at)?;
    let mut seats = gather(&listener, meeting)?;
    let missing = (1..meeting.size).filter(|rank| !seats.contains_key(rank)).collect();
    let mut ranks: Vec<u32> = std::iter::once(0).chain(seats.keys().copied()).collect();
    ranks.sort_unstable();
    let name = |seats: &BTreeMap<u32, Seat>, rank: u32| match seats.get(&rank) {
        Some(seat) => format!("rank {rank} ({})", seat.host),
        None => format!("rank {rank} ({})", meeting.host),
    };
    let mut pairs = Vec::new();
    for round in rounds(&ranks) {
        let mut told = Vec::new();
        for (from, to) in round {
            let address = seats[&to].answers;
            let sent = match seats.get_mut(&from) {
                Some(seat) => seat
                    .line
                    .say(&Word::Measure(address))
                    .map_err(|error| gone(from, &error)),
                None => Ok(()),
            };
            told.push((from, to, address, sent));
        }
        // Rank 0's own measurement runs while the others measure.
        let own = told
            .iter()
            .find(|(from, ..)| *from == 0)
            .map(|(_, _, address, _)| measure(*address, CONNECT));
        for (from, to, _, sent) in told {
            let way = match (seats.get_mut(&from), sent) {
                (_, Err(reason)) => Err(reason),
                (None, Ok(())) => own.clone().unwrap_or_else(|| Err("rank 0 measured nothing".to_owned())),
                (Some(seat), Ok(())) => match seat.line.hear() {
                    Ok(Word::Measured(way)) => way,
                    Ok(_) => Err(format!("rank {from} says something else than a result")),
                    Err(error) => Err(gone(from, &error)),
                },
            };
            pairs.push(Pair {
                from: name(&seats, from),
                to: name(&seats, to),
                way,
            });
        }
    }
    let findings = seats.iter_mut().flat_map(|(rank, seat)| {
        let whose = format!("rank {rank} ({})", seat.host);
        let findings = std::mem::take(&mut seat.findings).into_iter();
        findings.map(move |finding| Finding {
            place: format!("{whose}: {}", finding.place),
            ..finding
        })
    });
    Ok(Measured {
        pairs,
        missing,
        findings: findings.collect(),
        others: seats.into_values().map(|seat| seat.line).collect(),
    })
}

fn gone(rank: u32, error: &std::io::Error) -> String {
    format!("rank {rank} has gone: {error}")
}

fn listen(at: &[SocketAddr]) -> Result<TcpListener, String> {
    let mut last = "it has no address".to_owned();
    for address in at {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(format!(
        "rank 0 cannot listen at the meeting point ({last}); it has to be an address of rank 0's host"
    ))
}

/// Hears who is there, until all are or their time is up.
fn gather(listener: &TcpListener, meeting: &Meeting) -> Result<BTreeMap<u32, Seat>, String> {
    let failed = |error: std::io::Error| format!("the meeting point fails: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    let start = Instant::now();
    let mut seats: BTreeMap<u32, Seat> = BTreeMap::new();
    while seats.len() + 1 < meeting.size as usize && start.elapsed() < meeting.patience {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        // Who is no rank is left alone.
        let Ok((rank, size, seat)) = seat(stream) else {
            continue;
        };
        if size != meeting.size || rank == 0 || rank >= size {
            return Err(format!(
                "a process on {} says that it is rank {rank} of {size}, and rank 0 was told of {}; start all of them by one mpirun or srun",
                seat.host, meeting.size
            ));
        }
        if let Some(other) = seats.insert(rank, seat) {
            return Err(format!(
                "two processes say that they are rank {rank}; the first one is on {}",
                other.host
            ));
        }
    }
    Ok(seats)
}

fn seat(stream: TcpStream) -> std::io::Result<(u32, u32, Seat)> {
    stream.set_nonblocking(false)?;
    let peer = stream.peer_addr()?;
    let mut line = Line::over(stream, CONNECT)?;
    let Word::Here {
        rank,
        size,
        host,
        port: theirs,
        findings,
    } = line.hear()?
    else {
        return Err(ErrorKind::InvalidData.into());
    };
    line.stream.get_ref().set_read_timeout(Some(ROUND))?;
    let seat = Seat {
        host,
        line,
        answers: SocketAddr::new(peer.ip(), theirs),
        findings,
    };
    Ok((rank, size, seat))
}

/// Every pair once, in rounds in which no rank is twice: all but one go round a table. The lower rank measures.
fn rounds(ranks: &[u32]) -> Vec<Vec<(u32, u32)>> {
    let mut table: Vec<Option<u32>> = ranks.iter().copied().map(Some).collect();
    if table.len() % 2 == 1 {
        table.push(None);
    }
    let seats = table.len();
    let mut rounds = Vec::new();
    for _ in 1..seats {
        let round = (0..seats / 2).filter_map(|at| {
            let (one, other) = (table[at]?, table[seats - 1 - at]?);
            Some((one.min(other), one.max(other)))
        });
        let mut round: Vec<_> = round.collect();
        round.sort_unstable();
        rounds.push(round);
        table[1..].rotate_right(1);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_comes_once_and_no_rank_twice_in_a_round() {
        for size in 1..12u32 {
            let ranks: Vec<u32> = (0..size).collect();
            let mut seen = BTreeSet::new();
            for round in rounds(&ranks) {
                let in_round: BTreeSet<u32> = round.iter().flat_map(|(one, other)| [*one, *other]).collect();
                assert_eq!(in_round.len(), 2 * round.len(), "{size} ranks: {round:?}");
                for pair in round {
                    assert!(pair.0 < pair.1 && seen.insert(pair), "{size} ranks: {pair:?}");
                }
            }
            assert_eq!(seen.len() as u32, size * (size - 1) / 2, "{size} ranks");
        }
    }

    fn meeting(rank: u32, size: u32, at: SocketAddr, patience: u64) -> Meeting {
        Meeting {
            rank,
            size,
            host: format!("host-{rank}"),
            at: vec![at],
            patience: Duration::from_secs(patience),
        }
    }

    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn found(rank: u32) -> Finding {
        Finding::new(crate::Id::DiskSlow, "disk", format!("found by {rank}"), "mend it")
    }

    #[test]
    fn three_ranks_meet_and_all_end_with_the_code_of_rank_0() {
        let at = free_address();
        let others: Vec<_> = (1..3)
            .map(|rank| std::thread::spawn(move || follow(&meeting(rank, 3, at, 30), vec![found(rank)])))
            .collect();
        let measured = lead(&meeting(0, 3, at, 30)).unwrap();
        assert_eq!(measured.missing, [0u32; 0]);
        let mut names: Vec<_> = measured
            .pairs
            .iter()
            .map(|pair| format!("{} {}", pair.from, pair.to))
            .collect();
        names.sort();
        let expected = [
            "rank 0 (host-0) rank 1 (host-1)",
            "rank 0 (host-0) rank 2 (host-2)",
            "rank 1 (host-1) rank 2 (host-2)",
        ];
        assert_eq!(names, expected);
        assert!(
            measured.pairs.iter().all(|pair| pair.way.is_ok()),
            "{:?}",
            measured.pairs
        );
        let found: Vec<_> = measured
            .findings
            .iter()
            .map(|finding| (&*finding.place, &*finding.what))
            .collect();
        let expected = [
            ("rank 1 (host-1): disk", "found by 1"),
            ("rank 2 (host-2): disk", "found by 2"),
        ];
        assert_eq!(found, expected);
        measured.end(7);
        for other in others {
            assert_eq!(other.join().unwrap(), Ok(7));
        }
    }

    #[test]
    fn who_does_not_come_is_named_and_who_claims_another_place_is_refused() {
        let at = free_address();
        assert_eq!(lead(&meeting(0, 2, at, 0)).unwrap().missing, [1]);
        let other = std::thread::spawn(move || follow(&meeting(1, 3, at, 10), Vec::new()));
        let refused = lead(&meeting(0, 2, at, 10)).unwrap_err();
        assert!(refused.contains("rank 1 of 3"), "{refused}");
        assert!(other.join().unwrap().unwrap_err().contains("rank 0 has gone"));
    }
}
