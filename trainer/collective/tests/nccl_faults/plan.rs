//! What goes wrong in one world: a pure function of (seed, number).

use std::time::Duration;

use nccl_double::{Call, Stage};
use nccl_rs::Code;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::rounds::{Difference, STEPS};

/// How long a wait may take: long beside what a busy machine does to a thread, most of the time.
const STALL: Duration = Duration::from_millis(1500);
/// Rounds of a world; in the last one nothing is ordered any more, so that what was ordered can show.
pub(crate) const ROUNDS: u64 = 5;

/// What goes wrong, always at one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The next such call of NCCL's never ends.
    Hang(Call, Stage),
    /// It fails.
    Fail(Call, Stage, Code),
    /// Another thread aborts, so long after a call was begun.
    Abort(Duration),
    /// It drops its communicator in the middle of the others' calls.
    Leave,
    /// It makes another call than the others, or the same with other arguments.
    Differ(Difference),
    /// It does not come to the meeting.
    Absent,
}

/// One world and its fault.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) size: u32,
    /// Its row in the table.
    pub(crate) name: &'static str,
    pub(crate) fault: Fault,
    /// The guilty rank.
    pub(crate) rank: u32,
    /// The call before which it happens: round, and place in it.
    pub(crate) moment: (u64, usize),
    /// Elements of a buffer.
    pub(crate) elements: usize,
    /// Polls that find a beginning, and a group, in progress.
    pub(crate) polls: (u32, u32),
    /// How long a wait may take.
    pub(crate) stall: Duration,
}

const FAULTS: [&str; 17] = [
    "call hangs before its launch",
    "call hangs on its stream",
    "call is refused",
    "call fails before its launch",
    "call fails on its stream",
    "is aborted",
    "leaves early",
    "makes another call",
    "makes another buffer",
    "names another root",
    "gathers other ranges",
    "moves another number of elements",
    "skips a reduction",
    "beginning fails",
    "beginning hangs",
    "does not come",
    "end fails or hangs",
];

/// What moves something in the calls of a round.
const MOVING: [Call; 4] = [Call::AllGather, Call::Broadcast, Call::Send, Call::Recv];

impl Plan {
    pub(crate) fn new(seed: u64, number: u64, patience: u32) -> Plan {
        // Every kind comes once before any comes again.
        let name = FAULTS[(number % FAULTS.len() as u64) as usize];
        let seed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let random = &mut StdRng::seed_from_u64(seed);
        let size = random.random_range(2..=5);
        Plan {
            seed,
            size,
            name,
            fault: fault(name, random),
            rank: random.random_range(0..size),
            moment: (random.random_range(0..ROUNDS - 1), random.random_range(0..STEPS.len())),
            elements: random.random_range(10..600),
            polls: (random.random_range(0..4), random.random_range(0..4)),
            stall: patience * STALL,
        }
    }

    /// Whether ranks may not meet.
    pub(crate) fn is_early(&self) -> bool {
        matches!(
            self.fault,
            Fault::Absent | Fault::Hang(Call::Init, _) | Fault::Fail(Call::Init, ..)
        )
    }

    /// Whether it comes when all has been done.
    pub(crate) fn is_late(&self) -> bool {
        matches!(
            self.fault,
            Fault::Hang(Call::Finalize, _) | Fault::Fail(Call::Finalize, ..)
        )
    }

    /// How long the others' patience lasts, where nothing but that tells them. NCCL tells nobody of a rank that has failed.
    pub(crate) fn waits(&self) -> Duration {
        if self.is_late() { Duration::ZERO } else { self.stall }
    }
}

fn fault(name: &str, random: &mut StdRng) -> Fault {
    let call = MOVING[random.random_range(0..MOVING.len())];
    let codes = [Code::UnhandledCuda, Code::System, Code::Internal, Code::Remote];
    let code = codes[random.random_range(0..codes.len())];
    match name {
        "call hangs before its launch" => Fault::Hang(call, Stage::Launch),
        "call hangs on its stream" => Fault::Hang(call, Stage::Stream),
        "call is refused" => Fault::Fail(call, Stage::Call, code),
        "call fails before its launch" => Fault::Fail(call, Stage::Launch, code),
        "call fails on its stream" => Fault::Fail(call, Stage::Stream, code),
        "is aborted" => Fault::Abort(Duration::from_micros(random.random_range(0..3000))),
        "leaves early" => Fault::Leave,
        "makes another call" => Fault::Differ(Difference::Call),
        "makes another buffer" => Fault::Differ(Difference::Buffer),
        "names another root" => Fault::Differ(Difference::Root),
        "gathers other ranges" => Fault::Differ(Difference::Ranges),
        "moves another number of elements" => Fault::Differ(Difference::Count),
        "skips a reduction" => Fault::Differ(Difference::Skip),
        "beginning fails" => {
            let stage = [Stage::Call, Stage::Launch][random.random_range(0..2)];
            Fault::Fail(Call::Init, stage, code)
        }
        "beginning hangs" => Fault::Hang(Call::Init, Stage::Launch),
        "does not come" => Fault::Absent,
        "end fails or hangs" => match random.random_range(0..3) {
            0 => Fault::Hang(Call::Finalize, Stage::Launch),
            1 => Fault::Fail(Call::Finalize, Stage::Call, code),
            _ => Fault::Fail(Call::Finalize, Stage::Launch, code),
        },
        _ => unreachable!("{name} is in no list"),
    }
}
