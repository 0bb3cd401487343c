//! Ranks as threads over the double, each with a device of its own.
#![allow(dead_code, clippy::unwrap_used)] // each test program takes what it needs

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use accelerator_double::{HostAccelerator, double, nccl};
use lockstep_collective::{
    Aborter, Accelerator, Backend, BufferId, Collective, CollectiveError, LaneTree, Meeting, ReduceLanes, Wire, join,
    new_nccl_id,
};
use nccl_rs::UniqueId;

/// Longer than anything here takes; only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long ranks wait for one that hangs: long beside what anything else here takes. So worlds wait at the same time.
pub(crate) const STALL: Duration = Duration::from_secs(2);

/// Runs `play` for each case, all at once.
pub(crate) fn all_at_once<T: Copy + Send>(cases: impl IntoIterator<Item = T>, play: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            let play = &play;
            scope.spawn(move || play(case));
        }
    });
}

/// A reduction of one lane a rank; element r of `elements` is owned by rank r.
pub(crate) fn reduce(
    collective: &mut dyn Collective,
    buffer: BufferId,
    elements: &[Range<usize>],
) -> Result<(), CollectiveError> {
    let size = collective.size();
    let rank_lanes: Vec<Range<u32>> = (0..size).map(|rank| rank..rank + 1).collect();
    let owners: Vec<_> = elements.iter().cloned().zip(0..).collect();
    collective.publish(0)?;
    collective.reduce_lanes(&ReduceLanes {
        bucket: 0,
        owners: &owners,
        rank_lanes: &rank_lanes,
        tree: &LaneTree::full(size),
        buffers: &[buffer],
        wire: Wire::Float32,
    })
}

/// One world's id, in both of its forms.
pub(crate) struct World {
    pub(crate) id: Vec<u8>,
    pub(crate) unique: UniqueId,
}

impl World {
    pub(crate) fn new() -> World {
        let id = new_nccl_id(&nccl()).unwrap();
        let unique = UniqueId::from_bytes(&id).unwrap();
        World { id, unique }
    }

    /// Meets the others as `rank` of `size`; every wait may take `stall`, that for the others' coming too.
    pub(crate) fn meet(
        &self,
        place: (u32, u32),
        device: Arc<dyn Accelerator>,
        stall: Duration,
        aborter: &Aborter,
    ) -> Result<Box<dyn Collective>, CollectiveError> {
        self.meet_within(place, device, (stall, stall), aborter)
    }

    /// As [`World::meet`]; the others may take `deadline` to come.
    pub(crate) fn meet_within(
        &self,
        (rank, size): (u32, u32),
        device: Arc<dyn Accelerator>,
        (deadline, stall): (Duration, Duration),
        aborter: &Aborter,
    ) -> Result<Box<dyn Collective>, CollectiveError> {
        let meeting = Meeting {
            rank,
            size,
            deadline,
            stall: Some(stall),
            aborter: Some(aborter),
            accelerator: Some(device),
            nccl: Some(nccl()),
            ..Meeting::default()
        };
        join(Backend::Nccl, &self.id, meeting)
    }

    /// Runs `play` at every rank, on threads, and gives what they give, by rank.
    pub(crate) fn at_every_rank<T: Send>(
        &self,
        size: u32,
        stall: Duration,
        play: impl Fn(Box<dyn Collective>) -> T + Sync,
    ) -> Vec<T> {
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..size)
                .map(|rank| {
                    let play = &play;
                    scope.spawn(move || {
                        let device = HostAccelerator::new();
                        let met = self.meet((rank, size), device.clone(), stall, &Aborter::new());
                        let given = play(met.unwrap());
                        assert_eq!(device.offences(), 0, "something came before NCCL's success");
                        given
                    })
                })
                .collect();
            let joined = ranks.into_iter().map(|rank| rank.join());
            joined
                .map(|given| given.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    /// No communicator is left, and none was used after its end.
    pub(crate) fn assert_clean(&self, about: &str) {
        let left = (double().live(&self.unique), double().misuse(&self.unique));
        assert_eq!(left, (0, 0), "{about}: communicators left, and misused");
    }
}
