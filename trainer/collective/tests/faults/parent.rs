//! The parent of a world: starts its ranks as processes, sees the fault and what every survivor says of it, has the
//! survivors meet again, and looks at what is left.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_collective::new_id;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::intruders::Intruder;
use crate::load::waited_for_a_core;
use crate::plan::{Act, Carrier, Fault, Plan};
use crate::proxy::{Mischief, Proxy};
use crate::rank::{LOOPBACK, from_hex, to_hex};

/// After this a rank that says nothing hangs.
const HANGS: Duration = Duration::from_secs(60);
/// How long a line may be on its way.
const HEARSAY: Duration = Duration::from_secs(2);
/// How long after the fault the last survivor must know, beside what it may wait and what it waited for a core.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) const ENVIRONMENT: &str = "LOCKSTEP_FAULTS_RANK";

/// Where an id has the address of rank 0: family, sixteen bytes, port.
const ROOT: usize = 4 + 16 + 8;

/// The port at which rank 0 listens, by the id.
pub(crate) fn root_port(id: &[u8]) -> u16 {
    u16::from_le_bytes([id[ROOT + 17], id[ROOT + 18]])
}

struct Rank {
    process: Child,
    stdin: ChildStdin,
}

/// What a rank said, without its mark, and when.
type Line = (u32, String, Instant);

struct World<'a> {
    plan: &'a Plan,
    ranks: Vec<Rank>,
    lines: Receiver<Line>,
    folder: tempfile::TempDir,
    /// When the plan's rank said that it begins.
    fault: Option<Instant>,
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.process.kill();
            let _ = rank.process.wait();
        }
    }
}

/// What a rank's part of a generation came to.
#[derive(Debug)]
struct Ended {
    /// Ranks that its error names, "own" for a trouble of its own, "ok" for none.
    named: String,
    said: String,
    at: Instant,
}

/// A world whose ranks waited too shortly, or took too long, for the machine that they were on; in words.
pub(crate) struct Impatient(pub(crate) String);

/// Plays one world. How long after the fault the last survivor knew; none where it did no harm.
pub(crate) fn play(plan: &Plan, number: u64, seed: u64) -> Result<Option<Duration>, Impatient> {
    let mut world = World::start(plan, number, seed);
    let everyone: Vec<u32> = (0..plan.size).collect();
    let gone = |rank: &u32| matches!(plan.fault, Fault::OfRank(at, Act::Kill | Act::Stop, _) if at == *rank);
    let survivors: Vec<u32> = everyone.iter().copied().filter(|rank| !gone(rank)).collect();

    let (mischief, proxies, intruder) = world.meet(1, &everyone);
    let ended = world.ends(&survivors);
    drop(intruder);
    let began = match &mischief {
        Some(mischief) => mischief.fired(),
        None => world.hear_of_fault(),
    };
    let starved = world.starved(&survivors);
    let slowest = judge(plan, &ended, began, starved)?;
    drop(proxies);

    // The same processes go on, without whoever is gone.
    let (_, _, _) = world.meet(2, &survivors);
    for (rank, ended) in world.ends(&survivors) {
        assert_eq!(ended.named, "ok", "rank {rank} in the next generation: {}", ended.said);
    }
    for rank in &survivors {
        world.tell(*rank, "quit");
    }
    world.leaves(&survivors);
    if let Fault::OfRank(rank, Act::Stop, _) = plan.fault {
        // It wakes in a generation that is over, and must find that out by itself.
        kill(
            Pid::from_raw(world.ranks[rank as usize].process.id() as i32),
            Signal::SIGCONT,
        )
        .unwrap();
        let ended = world.ends(&[rank]);
        assert_ne!(ended[&rank].named, "ok", "the stopped rank found nothing wrong");
        world.tell(rank, "quit");
        world.leaves(&[rank]);
    }
    Ok(slowest)
}

/// Whether the errors are those that the fault must give, in time. `starved`: how long all survivors waited for a core.
fn judge(
    plan: &Plan,
    all: &BTreeMap<u32, Ended>,
    began: Option<Instant>,
    starved: Duration,
) -> Result<Option<Duration>, Impatient> {
    let guilty = plan.guilty();
    let harmless = all.values().all(|ended| ended.named == "ok");
    if harmless && plan.rounds.is_some() {
        return Ok(None);
    }
    // Where ranks wait for a short time only, a busy machine can make an innocent one late.
    let wrong = |what: String| match plan.is_hasty() {
        true => Impatient(format!("{what}: {all:?}")),
        false => panic!("{what}: {all:?}"),
    };
    let began = began.ok_or_else(|| wrong("nothing was done, and yet".to_owned()))?;
    for (rank, ended) in all {
        let may_be_own = guilty == [*rank] || plan.fault == Fault::NoSuchMemory;
        let must_be_own = may_be_own && matches!(plan.fault, Fault::Descriptors(..) | Fault::Memory(_));
        let right = match ended.named.as_str() {
            "ok" => matches!(plan.fault, Fault::OfRank(at, Act::Leave, _) if at == *rank),
            "own" => may_be_own,
            // The guilty rank of a world may see it in its own way.
            named => {
                may_be_own && !must_be_own
                    || named
                        .split(',')
                        .filter_map(|named| named.parse().ok())
                        .any(|named: u32| named != *rank && guilty.contains(&named))
            }
        };
        if !right {
            return Err(wrong(format!(
                "rank {rank} names {:?}, guilty is {guilty:?}",
                ended.named
            )));
        }
    }
    let times = all.values().map(|ended| ended.at.saturating_duration_since(began));
    let slowest = times.max().unwrap_or_default();
    if slowest > plan.waits() + AT_ONCE + starved {
        return Err(Impatient(format!(
            "it took {slowest:?} until all knew, who had waited {starved:?} for a core: {all:?}"
        )));
    }
    Ok(Some(slowest))
}

impl<'a> World<'a> {
    fn start(plan: &'a Plan, number: u64, seed: u64) -> World<'a> {
        let (sender, lines) = mpsc::channel();
        let folder = tempfile::tempdir().unwrap();
        let mut world = World {
            plan,
            ranks: Vec::new(),
            lines,
            folder,
            fault: None,
        };
        for place in 0..plan.size {
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture", "one_rank_of_a_world"])
                .env(
                    ENVIRONMENT,
                    format!("{seed} {number} {:?} {}", plan.carrier, plan.patience),
                )
                .env("TMPDIR", world.folder.path())
                .current_dir(world.folder.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
            world.ranks.push(Rank { process, stdin });
            let sender = sender.clone();
            // Ends with the process.
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Some(line) = line.strip_prefix('@') {
                        let _ = sender.send((place, line.to_owned(), Instant::now()));
                    }
                }
            });
        }
        world
    }

    fn tell(&mut self, place: u32, line: &str) {
        writeln!(self.ranks[place as usize].stdin, "{line}").unwrap();
    }

    /// When the plan's rank began; its word may come after those of ranks that it has hit.
    fn hear_of_fault(&mut self) -> Option<Instant> {
        let until = Instant::now() + HEARSAY;
        while self.fault.is_none() && !matches!(self.plan.fault, Fault::Stale | Fault::Crowd) {
            let left = until.saturating_duration_since(Instant::now());
            let (_, line, at) = self.lines.recv_timeout(left).ok()?;
            self.fault = (line == "fault").then_some(at);
        }
        self.fault
    }

    /// The next line of ours that some rank says.
    fn hear(&mut self, waits_for: &str) -> Line {
        loop {
            let heard = self.lines.recv_timeout(HANGS);
            let (place, line, at) =
                heard.unwrap_or_else(|_| panic!("nobody said anything while waiting for {waits_for}"));
            match line.as_str() {
                "fault" => self.fault = Some(self.fault.unwrap_or(at)),
                _ => return (place, line, at),
            }
        }
    }

    /// One word of each of these ranks that begins so.
    fn collect(&mut self, places: &[u32], word: &str) -> BTreeMap<u32, (String, Instant)> {
        let mut heard = BTreeMap::new();
        while heard.len() < places.len() {
            let missing: Vec<_> = places.iter().filter(|place| !heard.contains_key(*place)).collect();
            let (place, line, at) = self.hear(&format!("{word:?} of {missing:?}; heard {heard:?}"));
            let Some(rest) = line.strip_prefix(word) else {
                panic!("rank {place} said {line:?} where {word:?} was expected")
            };
            if places.contains(&place) {
                heard.insert(place, (rest.trim().to_owned(), at));
            }
        }
        heard
    }

    /// Has these processes meet, in this order of rank; with the fault's surroundings in the first generation.
    fn meet(
        &mut self,
        generation: u64,
        places: &[u32],
    ) -> (Option<std::sync::Arc<Mischief>>, Vec<Proxy>, Option<Intruder>) {
        for (rank, place) in places.iter().enumerate() {
            self.tell(*place, &format!("meet {generation} {rank} {}", places.len()));
        }
        let doors = self.collect(places, "listening");
        let ports: Vec<u16> = places
            .iter()
            .map(|place| doors[place].0.split(' ').next().unwrap().parse().unwrap())
            .collect();
        let mut fronts: Vec<SocketAddr> = ports.iter().map(|port| SocketAddr::new(LOOPBACK, *port)).collect();
        let (mut mischief, mut proxies) = (None, Vec::new());
        if let (1, Fault::OfWire(target, trouble)) = (generation, self.plan.fault) {
            let shared = Mischief::new(target, trouble);
            proxies = (0..)
                .zip(&ports)
                .map(|(rank, port)| Proxy::before(rank, *port, &shared))
                .collect();
            fronts = proxies.iter().map(|proxy| proxy.front).collect();
            mischief = Some(shared);
        }
        let id = match self.plan.carrier {
            Carrier::Memory => new_id(&[generation as u8; 32], generation).unwrap(),
            Carrier::Tcp => {
                let mut id = from_hex(doors[&places[0]].0.split(' ').nth(1).unwrap());
                id[ROOT + 17..ROOT + 19].copy_from_slice(&fronts[0].port().to_le_bytes());
                id
            }
        };
        let intruder = match (generation, self.plan.fault) {
            (1, Fault::Stale) => Some(Intruder::stale(&id, self.plan.carrier, places.len() as u32)),
            (1, Fault::Crowd) => Some(Intruder::crowd(fronts.clone(), places.len() as u32, self.plan.seed)),
            _ => None,
        };
        for (place, front) in places.iter().zip(&fronts) {
            self.tell(*place, &format!("go {} {front}", to_hex(&id)));
        }
        (mischief, proxies, intruder)
    }

    fn ends(&mut self, places: &[u32]) -> BTreeMap<u32, Ended> {
        let ended = self.collect(places, "ended").into_iter().map(|(place, (rest, at))| {
            let (named, said) = rest.split_once(' ').unwrap();
            let named = named.trim_end_matches('.').to_owned();
            (
                place,
                Ended {
                    named,
                    said: said.to_owned(),
                    at,
                },
            )
        });
        ended.collect()
    }

    /// How long the threads of these ranks were ready to run and had no core, in all. Those that have ended do not count.
    fn starved(&self, places: &[u32]) -> Duration {
        let processes = places.iter().map(|place| self.ranks[*place as usize].process.id());
        processes
            .flat_map(|process| std::fs::read_dir(format!("/proc/{process}/task")).unwrap())
            .map(|thread| waited_for_a_core(thread.unwrap().path().join("schedstat")))
            .sum()
    }

    /// These ranks end, and have left nothing behind.
    fn leaves(&mut self, places: &[u32]) {
        for (place, line) in self.collect(places, "") {
            assert_eq!(line.0, "clean", "rank {place}");
            assert!(self.ranks[place as usize].process.wait().unwrap().success());
        }
        let files: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().collect();
        assert!(files.is_empty(), "files are left: {files:?}");
    }
}
