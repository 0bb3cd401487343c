//! One rank's process. It does what its parent says line by line, plays rounds, does to itself what the plan wants, and
//! reports. Lines of ours begin with `@`: the test harness prints others.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, Backend, CollectiveError, Listener, Meeting, Root, Transport, join};
use nccl_host::Error;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::unistd::getpid;

use crate::leftovers::{Holdings, own_socket_names, socket_names};
use crate::plan::{Act, Carrier, Fault, LONG, Moment, Plan, Step};
use crate::rounds::{MUCH, Rounds};

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Rounds of the generation after the fault.
const AFTERWARDS: u64 = 3;
/// How long a failed communicator is kept.
const LINGER: Duration = Duration::from_millis(20);

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(digits: &str) -> Vec<u8> {
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn say(line: &str) {
    // One write a line: the parent's reader sees whole lines even when this process is stopped right after.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn act(act: Act) {
    say("fault");
    match act {
        Act::Kill => raise(Signal::SIGKILL).unwrap(),
        Act::Stop => nix::sys::signal::kill(getpid(), Signal::SIGSTOP).unwrap(),
        Act::Leave | Act::Abort => {}
    }
}

/// The life of a rank's process.
pub(crate) fn live(plan: &Plan) {
    let before = Holdings::now();
    let mut names = BTreeSet::new();
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    loop {
        let line = lines.next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["meet", generation, rank, size] => {
                let (generation, rank, size) = (
                    generation.parse().unwrap(),
                    rank.parse().unwrap(),
                    size.parse().unwrap(),
                );
                // Only the first generation has a fault.
                let fault = (generation == 1).then_some(plan.fault);
                let doors = Doors::open(plan, generation, rank);
                let go = lines.next().unwrap();
                let (id, front) = go.strip_prefix("go ").unwrap().split_once(' ').unwrap();
                let world = World {
                    plan,
                    fault,
                    rank,
                    size,
                };
                let ended = world.play(from_hex(id), front.parse().ok(), doors, &mut names);
                report(ended);
            }
            _ => break,
        }
    }
    // A thread that has ended is in the list for a moment more.
    let until = Instant::now() + Duration::from_secs(2);
    let mut after = Holdings::now();
    while after != before && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
        after = Holdings::now();
    }
    let left: Vec<String> = names.intersection(&socket_names()).cloned().collect();
    if after == before && left.is_empty() {
        say("clean");
    } else {
        say(&format!(
            "left {before:?} became {after:?}, and the sockets {left:?} are still there"
        ));
    }
}

fn report(ended: Result<(), CollectiveError>) {
    let Err(error) = ended else {
        return say("ended ok -");
    };
    let named: Vec<u32> = match &error {
        CollectiveError::Transport(error) => error.named_ranks(),
        _ => Vec::new(),
    };
    let own = matches!(
        error,
        CollectiveError::Transport(Error::NoMemory { .. } | Error::System { .. } | Error::Aborted { .. })
    );
    let named: Vec<String> = named.iter().map(u32::to_string).collect();
    let named = if own { "own".to_owned() } else { named.join(",") };
    say(&format!("ended {named}. {error}"));
}

/// Where this rank is to be reached, before the meeting.
enum Doors {
    None,
    Root(Root),
    Other(TcpListener),
}

impl Doors {
    fn open(plan: &Plan, generation: u64, rank: u32) -> Doors {
        match (plan.carrier, rank) {
            (Carrier::Memory, _) => {
                say("listening 0 -");
                Doors::None
            }
            (Carrier::Tcp, 0) => {
                let root = Root::open(&[generation as u8; 32], generation, LOOPBACK).unwrap();
                let id = to_hex(&root.id().to_bytes());
                say(&format!(
                    "listening {} {id}",
                    crate::parent::root_port(&root.id().to_bytes())
                ));
                Doors::Root(root)
            }
            (Carrier::Tcp, _) => {
                let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
                say(&format!("listening {} -", listener.local_addr().unwrap().port()));
                Doors::Other(listener)
            }
        }
    }
}

/// One generation, as this rank lives it.
struct World<'a> {
    plan: &'a Plan,
    fault: Option<Fault>,
    rank: u32,
    size: u32,
}

impl World<'_> {
    fn play(
        &self,
        mut id: Vec<u8>,
        front: Option<SocketAddr>,
        doors: Doors,
        names: &mut BTreeSet<String>,
    ) -> Result<(), CollectiveError> {
        let aborter = Aborter::new();
        let mut limits = Limits::default();
        match self.fault {
            Some(Fault::OfRank(rank, what, Moment::Meeting(after))) if rank == self.rank => {
                later(after, move || act(what))
            }
            Some(Fault::WrongKey(rank)) if rank == self.rank => {
                *id.last_mut().unwrap() ^= 1;
                say("fault");
            }
            Some(Fault::Descriptors(rank, Step::Barrier, spare)) if rank == self.rank => {
                say("fault");
                limits.spare_descriptors(spare);
            }
            _ => {}
        }
        let (root, listener) = match doors {
            Doors::None => (None, None),
            Doors::Root(root) => (Some(root), None),
            Doors::Other(listener) => (None, Some(Listener::new(listener, front.unwrap())?)),
        };
        let of_fault = self.fault.is_some();
        let meeting = Meeting {
            rank: self.rank,
            size: self.size,
            deadline: if of_fault { self.plan.deadline } else { LONG },
            stall: Some(if of_fault { self.plan.stall } else { LONG }),
            root,
            listener,
            only_tcp: self.plan.carrier == Carrier::Tcp,
            aborter: Some(&aborter),
            ..Meeting::default()
        };
        let collective = join(Backend::Host, &id, meeting)?;
        drop(limits);
        let expected = match self.plan.carrier {
            Carrier::Memory => Transport::SharedMemory,
            Carrier::Tcp => Transport::Tcp,
        };
        assert!(
            collective
                .transports()
                .into_iter()
                .flatten()
                .all(|transport| transport == expected)
        );
        names.extend(own_socket_names());
        self.rounds(Rounds::new(self.plan, collective)?, &aborter)
    }

    fn rounds(&self, rounds: Rounds, aborter: &Aborter) -> Result<(), CollectiveError> {
        let mut rounds = if self.fault.is_some() { rounds } else { rounds.frugal() };
        let last = if self.fault.is_some() {
            self.plan.rounds
        } else {
            Some(AFTERWARDS)
        };
        let mut done = false;
        let mut helper = None;
        let mut limits = Limits::default();
        for round in 0..last.unwrap_or(u64::MAX) {
            let played = rounds.play(round, |step| match self.fault {
                Some(Fault::OfRank(rank, what, Moment::Call(at, which, after)))
                    if (rank, at, which) == (self.rank, round, step) && !done =>
                {
                    done = true;
                    match what {
                        Act::Abort => {
                            let aborter = aborter.clone();
                            helper = Some(thread::spawn(move || {
                                thread::sleep(after);
                                act(what);
                                aborter.abort("the test wants it");
                            }));
                        }
                        Act::Leave => act(what),
                        _ if after.is_zero() => act(what),
                        _ => later(after, move || act(what)),
                    }
                    what != Act::Leave
                }
                Some(Fault::Descriptors(rank, Step::Allocate, spare))
                    if (rank, step, round) == (self.rank, Step::Allocate, 1) =>
                {
                    say("fault");
                    limits.spare_descriptors(spare);
                    true
                }
                Some(Fault::Memory(rank)) if (rank, step, round) == (self.rank, Step::Allocate, 1) => {
                    say("fault");
                    limits.spare_memory(MUCH as u64 / 4);
                    true
                }
                Some(Fault::NoSuchMemory) if step == Step::Allocate => {
                    say("fault");
                    true
                }
                _ => true,
            });
            if played.is_err() {
                // What failed stays for a moment, as in a program that reports first: its peers must not depend on its end.
                thread::sleep(LINGER);
            }
            if played.is_err()
                && let Some(helper) = helper.take()
            {
                helper.join().unwrap();
            }
            if !played? {
                break;
            }
        }
        Ok(())
    }
}

fn later(after: Duration, what: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        thread::sleep(after);
        what();
    });
}

/// Limits of this process, which end with this value.
#[derive(Default)]
struct Limits(Vec<(Resource, u64, u64)>);

impl Limits {
    fn lower(&mut self, resource: Resource, to: u64) {
        let (soft, hard) = getrlimit(resource).unwrap();
        self.0.push((resource, soft, hard));
        setrlimit(resource, to.min(soft), hard).unwrap();
    }

    /// So many more descriptors can be opened.
    fn spare_descriptors(&mut self, spare: u64) {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut used: BTreeSet<u64> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        // The descriptor that read the folder.
        used.retain(|number| std::path::Path::new(&format!("/proc/self/fd/{number}")).exists());
        // The limit is on numbers, the lowest free one is taken.
        let mut free = (0..).filter(|number| !used.contains(number));
        self.lower(Resource::RLIMIT_NOFILE, free.nth(spare as usize).unwrap_or(0));
    }

    /// So many more bytes can be mapped.
    fn spare_memory(&mut self, spare: u64) {
        let pages: u64 = std::fs::read_to_string("/proc/self/statm")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        self.lower(Resource::RLIMIT_AS, pages * 4096 + spare);
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (resource, soft, hard) in self.0.drain(..).rev() {
            setrlimit(resource, soft, hard).unwrap();
        }
    }
}
