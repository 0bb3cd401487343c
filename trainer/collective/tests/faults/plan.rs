//! What goes wrong in one world: a pure function of (seed, number, backend), so that the parent and every rank's process
//! know it without being told.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How payload passes in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Memory,
    Tcp,
}

/// The calls of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Publish,
    Reduce,
    Gather,
    Slots,
    Broadcast,
    Allocate,
    Barrier,
}

pub(crate) const STEPS: [Step; 7] = [
    Step::Publish,
    Step::Reduce,
    Step::Gather,
    Step::Slots,
    Step::Broadcast,
    Step::Allocate,
    Step::Barrier,
];

/// What a rank does to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Kill,
    Stop,
    /// Drops its communicator in the middle of the others' calls.
    Leave,
    /// Has its calls aborted from another thread.
    Abort,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So long after it was told to meet.
    Meeting(Duration),
    /// So long after it has begun the first such step of this round; before it begins, where that is zero.
    Call(u64, Step, Duration),
}

/// Which connection a proxy treats badly: the first of this purpose between these ranks, in this direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) connecting: u32,
    pub(crate) listening: u32,
    /// Whether it is the connection over which a rank tells rank 0 where it is.
    pub(crate) card: bool,
    pub(crate) towards_listener: bool,
}

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Both ends are closed in order after so many bytes.
    Close(u64),
    /// Both ends are reset after so many bytes.
    Reset(u64),
    /// After so many bytes nothing passes any more, in either direction, and nothing is closed.
    Stall(u64),
    /// Of this frame a part passes, then both ends are closed.
    Truncate(u64),
    /// A bit of a handshake's frame changes: the frame, and where in it.
    FlipHandshake(u64, u64),
    /// A bit changes in this frame, or the next one that has such a part.
    Flip(u64, Part),
    /// This frame comes twice.
    Repeat(u64),
    /// This frame and the next one change places.
    Swap(u64),
}

/// A part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Head,
    Payload,
    Tag,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    OfRank(u32, Act, Moment),
    /// A rank has another secret.
    WrongKey(u32),
    /// A rank of a generation that is over keeps coming.
    Stale,
    /// Strangers connect and are silent, or talk nonsense.
    Crowd,
    /// A rank may open only so many more descriptors, from before the meeting or from the second allocation on.
    Descriptors(u32, Step, u64),
    /// A rank may map no more memory.
    Memory(u32),
    /// All ranks ask for more memory than any machine has.
    NoSuchMemory,
    OfWire(Target, Trouble),
}

/// One world and its fault.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) carrier: Carrier,
    pub(crate) size: u32,
    /// Its row in the table.
    pub(crate) name: &'static str,
    pub(crate) fault: Fault,
    /// Rounds after which the ranks stop of themselves: where the fault may do no harm.
    pub(crate) rounds: Option<u64>,
    /// Elements of the gradient buffer.
    pub(crate) elements: usize,
    pub(crate) deadline: Duration,
    pub(crate) stall: Duration,
    /// How many times longer than they should need to ranks wait.
    pub(crate) patience: u32,
}

/// Longer than anything takes, also on a machine that is very busy.
pub(crate) const LONG: Duration = Duration::from_secs(50);
/// How long ranks may take to meet where one may not come.
const MEETING: Duration = Duration::from_millis(1500);
/// Both ends of a connection are sure of each other after at most so many bytes.
pub(crate) const LONGEST_HANDSHAKE: u64 = 140;
/// How long a call may wait where a rank may be stopped.
const STALL: Duration = Duration::from_millis(400);

const OF_RANKS: [&str; 19] = [
    "killed while meeting",
    "killed in publish",
    "killed in reduce_lanes",
    "killed in all_gather_v",
    "killed in exchange_slots",
    "killed in broadcast",
    "killed in allocate",
    "killed in barrier",
    "stopped while meeting",
    "stopped in a call",
    "stopped in allocate",
    "leaves early",
    "is aborted",
    "has a wrong key",
    "a stale peer keeps coming",
    "no descriptors in the meeting",
    "no descriptors in allocate",
    "no memory on one rank",
    "no memory on any rank",
];

const OF_WIRES: [&str; 13] = [
    "connection closed in the meeting",
    "connection closed",
    "connection reset",
    "connection stalled",
    "connection stalled in the meeting",
    "frame truncated",
    "bit flipped in a handshake",
    "bit flipped in a head",
    "bit flipped in a payload",
    "bit flipped in a tag",
    "frame repeated",
    "frames swapped",
    "strangers crowd in",
];

impl Plan {
    pub(crate) fn new(seed: u64, number: u64, carrier: Carrier, patience: u32) -> Plan {
        let kinds: Vec<&'static str> = match carrier {
            Carrier::Memory => OF_RANKS.to_vec(),
            Carrier::Tcp => OF_WIRES.into_iter().chain(OF_RANKS).collect(),
        };
        // Every kind comes once before any comes again.
        let name = kinds[(number % kinds.len() as u64) as usize];
        let seed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let random = &mut StdRng::seed_from_u64(seed);
        let size = random.random_range(2..=5);
        let fault = fault(name, size, carrier, random);
        // A connection that breaks in its handshake is made anew.
        let is_early = matches!(fault, Fault::OfWire(..)) && (name.ends_with("meeting") || name.ends_with("handshake"));
        let may_not_meet = matches!(
            fault,
            Fault::OfRank(_, _, Moment::Meeting(_)) | Fault::WrongKey(_) | Fault::Descriptors(_, Step::Barrier, _)
        ) || is_early;
        let may_be_silent = matches!(
            fault,
            Fault::OfRank(_, Act::Stop, _) | Fault::OfWire(_, Trouble::Stall(_) | Trouble::Swap(_))
        );
        let may_do_no_harm = matches!(fault, Fault::Stale | Fault::Crowd | Fault::Descriptors(..)) || is_early;
        Plan {
            seed,
            carrier,
            size,
            name,
            fault,
            rounds: may_do_no_harm.then_some(6),
            elements: if may_be_silent || matches!(fault, Fault::Memory(_)) {
                random.random_range(100..5000)
            } else {
                [random.random_range(100..3000), random.random_range(50_000..200_000)][random.random_range(0..2)]
            },
            deadline: if may_not_meet { patience * MEETING } else { LONG },
            stall: if may_be_silent { patience * STALL } else { LONG },
            patience,
        }
    }

    /// The ranks that an error may name: the guilty one, or the ends of the guilty connection.
    pub(crate) fn guilty(&self) -> Vec<u32> {
        match self.fault {
            Fault::OfRank(rank, ..) | Fault::WrongKey(rank) | Fault::Descriptors(rank, ..) | Fault::Memory(rank) => {
                vec![rank]
            }
            Fault::OfWire(target, _) => vec![target.connecting, target.listening],
            Fault::Stale | Fault::Crowd | Fault::NoSuchMemory => Vec::new(),
        }
    }

    /// Whether some wait in it is short.
    pub(crate) fn is_hasty(&self) -> bool {
        self.deadline != LONG || self.stall != LONG
    }

    /// How long after the fault the last survivor's patience may end, where nothing but that tells it.
    pub(crate) fn waits(&self) -> Duration {
        match self.fault {
            _ if self.deadline != LONG => self.deadline + self.patience * STALL,
            _ if self.stall != LONG => self.stall,
            _ => Duration::ZERO,
        }
    }
}

fn fault(name: &str, size: u32, carrier: Carrier, random: &mut StdRng) -> Fault {
    let rank = random.random_range(0..size);
    let micros = |random: &mut StdRng, most: u64| Duration::from_micros(random.random_range(0..=most));
    // Half of them exactly between two calls.
    let soon = |random: &mut StdRng| match random.random_bool(0.5) {
        true => Duration::ZERO,
        false => micros(random, 3000),
    };
    let round = random.random_range(0..6);
    let of_rank = |act, moment| Fault::OfRank(rank, act, moment);
    let killed_in = |step, random: &mut StdRng| of_rank(Act::Kill, Moment::Call(round, step, soon(random)));
    match name {
        "killed while meeting" => of_rank(Act::Kill, Moment::Meeting(micros(random, 8000))),
        "killed in publish" => killed_in(Step::Publish, random),
        "killed in reduce_lanes" => killed_in(Step::Reduce, random),
        "killed in all_gather_v" => killed_in(Step::Gather, random),
        "killed in exchange_slots" => killed_in(Step::Slots, random),
        "killed in broadcast" => killed_in(Step::Broadcast, random),
        "killed in allocate" => killed_in(Step::Allocate, random),
        "killed in barrier" => killed_in(Step::Barrier, random),
        "stopped while meeting" => of_rank(Act::Stop, Moment::Meeting(micros(random, 8000))),
        "stopped in allocate" => of_rank(Act::Stop, Moment::Call(round, Step::Allocate, micros(random, 300))),
        "stopped in a call" => {
            let step = STEPS[random.random_range(0..STEPS.len())];
            of_rank(Act::Stop, Moment::Call(round, step, soon(random)))
        }
        "leaves early" | "is aborted" => {
            let act = if name == "is aborted" { Act::Abort } else { Act::Leave };
            let step = STEPS[random.random_range(0..STEPS.len())];
            of_rank(act, Moment::Call(round, step, soon(random)))
        }
        "has a wrong key" => Fault::WrongKey(rank),
        "a stale peer keeps coming" => Fault::Stale,
        "strangers crowd in" => Fault::Crowd,
        "no descriptors in the meeting" => {
            let most = if carrier == Carrier::Tcp { 8 } else { 6 };
            Fault::Descriptors(rank, Step::Barrier, random.random_range(0..=most))
        }
        "no descriptors in allocate" => Fault::Descriptors(rank, Step::Allocate, random.random_range(0..=1)),
        "no memory on one rank" => Fault::Memory(rank),
        "no memory on any rank" => Fault::NoSuchMemory,
        _ => Fault::OfWire(target(name, size, random), trouble(name, random)),
    }
}

fn target(name: &str, size: u32, random: &mut StdRng) -> Target {
    let connecting = random.random_range(1..size);
    let in_meeting = name.ends_with("meeting") || name.ends_with("handshake");
    let card = in_meeting && random.random_bool(0.5);
    Target {
        connecting,
        listening: if card { 0 } else { random.random_range(0..connecting) },
        card,
        towards_listener: random.random_bool(0.5),
    }
}

fn trouble(name: &str, random: &mut StdRng) -> Trouble {
    // The bytes of handshakes and cards; then anywhere in the first rounds. (What breaks in a handshake is made anew.)
    let early = random.random_range(0..LONGEST_HANDSHAKE);
    let late = random.random_range(LONGEST_HANDSHAKE..150_000);
    let frame = random.random_range(1..60);
    match name {
        "connection closed in the meeting" => Trouble::Close(early),
        "connection closed" => Trouble::Close(late),
        "connection reset" => Trouble::Reset(late),
        "connection stalled" => Trouble::Stall(late),
        "connection stalled in the meeting" => Trouble::Stall(early),
        "frame truncated" => Trouble::Truncate(frame),
        "bit flipped in a handshake" => Trouble::FlipHandshake(random.random_range(0..2), random.random()),
        "bit flipped in a head" => Trouble::Flip(frame, Part::Head),
        "bit flipped in a payload" => Trouble::Flip(frame, Part::Payload),
        "bit flipped in a tag" => Trouble::Flip(frame, Part::Tag),
        "frame repeated" => Trouble::Repeat(frame),
        "frames swapped" => Trouble::Swap(frame),
        _ => unreachable!("{name} is in no list"),
    }
}
