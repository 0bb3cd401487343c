//! The communication thread: what it orders on the device, in which order it does what, and how it ends.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use lockstep_collective::communication::{Communication, Overlap, Program};
use lockstep_collective::{
    Aborter, Backend, BufferId, Collective, CollectiveError, Device, GatherRange, HostDevice, HostMemory, LaneTree,
    Publisher, Recorded, ReduceLanes, Stream, Transport, Wire, connect, new_id,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a device was asked for, with the number of each mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Record(Stream, u64),
    Wait(Stream, u64),
}

#[derive(Default)]
struct RecordingDevice {
    asked: Mutex<Vec<Asked>>,
}

impl RecordingDevice {
    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Device for RecordingDevice {
    fn enter(&self) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn record(&self, stream: Stream) -> Result<Recorded, CollectiveError> {
        let mut asked = self.asked.lock().unwrap();
        let number = asked.len() as u64;
        asked.push(Asked::Record(stream, number));
        Ok(Recorded::new(Arc::new(number)))
    }

    fn wait(&self, stream: Stream, recorded: &Recorded) -> Result<(), CollectiveError> {
        let number = *recorded.mark().unwrap().downcast_ref::<u64>().unwrap();
        self.asked.lock().unwrap().push(Asked::Wait(stream, number));
        Ok(())
    }
}

/// One lane and one element a rank, two buckets, three layers.
fn program(size: u32) -> Program {
    let owners = |bucket: usize| -> Vec<(Range<usize>, u32)> {
        (0..size)
            .map(|rank| {
                let place = 2 * rank as usize + bucket;
                (place..place + 1, rank)
            })
            .collect()
    };
    let layers = (0..3usize).map(|layer| vec![(8 * layer..8 * layer + 8, layer as u32 % size)]);
    Program {
        rank_lanes: (0..size).map(|rank| rank..rank + 1).collect(),
        partials: vec![BufferId::from_index(0)],
        owners: vec![owners(0), owners(1)],
        wire: Wire::Float32,
        working: Some(BufferId::from_index(1)),
        layers: layers.collect(),
        ..Program::default()
    }
}

/// A rank over shared memory, its buffers made.
fn start(id: &[u8], rank: u32, size: u32, overlap: Overlap, device: Arc<dyn Device>) -> Communication {
    let id = id.to_vec();
    let join = move || connect(Backend::Host, &id, rank, size, PATIENCE, &Aborter::new());
    let mut communication = Communication::start(device, overlap, join).unwrap();
    communication.allocate("partials", 64).unwrap();
    communication.allocate("working", 64).unwrap();
    communication.set_program(program(size));
    communication
}

/// A step without any computing.
fn step(communication: &mut Communication) -> Result<(), CollectiveError> {
    communication.begin_step(LaneTree::full(communication.size()));
    let ready = communication.ready();
    ready.bucket(0)?;
    ready.bucket(1)?;
    communication.wait_reduced(0)?;
    communication.wait_reduced(1)?;
    communication.exchange_slots(&mut [0], &[0])?;
    communication.gather()?;
    (0..3).try_for_each(|layer| communication.wait_gathered(layer))
}

#[test]
fn every_stream_waits_for_the_marks_that_order_what_it_does() {
    for overlap in [Overlap::Thread, Overlap::None] {
        let id = new_id(&[4; 32], 1).unwrap();
        let device = Arc::new(RecordingDevice::default());
        let other = thread::spawn({
            let id = id.clone();
            move || {
                let mut communication = start(&id, 1, 2, Overlap::Thread, Arc::new(HostDevice));
                (0..2).for_each(|_| step(&mut communication).unwrap());
            }
        });
        let mut communication = start(&id, 0, 2, overlap, Arc::clone(&device) as Arc<dyn Device>);
        for _ in 0..2 {
            step(&mut communication).unwrap();
            let asked = device.take();
            let place = |what: Asked| asked.iter().position(|asked| *asked == what).unwrap();
            let records = |stream: Stream| -> Vec<u64> {
                asked
                    .iter()
                    .filter_map(|asked| match asked {
                        Asked::Record(of, number) if *of == stream => Some(*number),
                        _ => None,
                    })
                    .collect()
            };
            // Two buckets are ready and the working copies used once; two are reduced and three layers gathered.
            let (compute, communicated) = (records(Stream::Compute), records(Stream::Communication));
            assert_eq!((compute.len(), communicated.len()), (3, 5), "{overlap:?}: {asked:?}");
            for (ready, done) in compute[..2].iter().zip(&communicated) {
                let began = place(Asked::Wait(Stream::Communication, *ready));
                let ended = place(Asked::Record(Stream::Communication, *done));
                assert!(began < ended, "a reduction waits for what fills its bucket: {asked:?}");
                assert!(ended < place(Asked::Wait(Stream::Compute, *done)), "{asked:?}");
            }
            let used = compute[2];
            let waits = asked
                .iter()
                .filter(|asked| **asked == Asked::Wait(Stream::Communication, used));
            assert_eq!(waits.count(), 3, "every gather waits for the last use: {asked:?}");
            for gathered in &communicated[2..] {
                assert!(place(Asked::Wait(Stream::Compute, *gathered)) > place(Asked::Record(Stream::Compute, used)));
            }
        }
        drop(communication);
        other.join().unwrap();
    }
}

#[test]
fn a_failure_is_told_once_as_it_is_and_then_in_words() {
    let id = new_id(&[4; 32], 1).unwrap();
    let other = thread::spawn({
        let id = id.clone();
        move || drop(start(&id, 1, 2, Overlap::Thread, Arc::new(HostDevice)))
    });
    let mut communication = start(&id, 0, 2, Overlap::Thread, Arc::new(HostDevice));
    other.join().unwrap();
    let first = step(&mut communication).unwrap_err();
    assert!(first.to_string().contains("rank 1"), "{first}");
    assert!(!first.is_aborted(), "{first}");
    for error in [
        communication.barrier().unwrap_err(),
        step(&mut communication).unwrap_err(),
    ] {
        assert!(error.is_aborted() && error.to_string().contains("rank 1"), "{error}");
    }
}

#[test]
fn a_wait_for_something_that_nobody_has_put_in_is_a_misuse_and_does_not_hang() {
    for overlap in [Overlap::Thread, Overlap::None] {
        let id = new_id(&[4; 32], 1).unwrap();
        let mut communication = start(&id, 0, 1, overlap, Arc::new(HostDevice));
        communication.begin_step(LaneTree::full(1));
        for error in [
            communication.wait_reduced(0).unwrap_err(),
            communication.wait_gathered(0).unwrap_err(),
        ] {
            assert!(matches!(error, CollectiveError::Misuse { .. }), "{error}");
        }
        // Nothing is spent by that.
        step(&mut communication).unwrap();
    }
}

#[test]
fn a_rank_that_ends_in_the_middle_of_a_reduction_leaves_no_thread() {
    let id = new_id(&[4; 32], 1).unwrap();
    let ranks = [0, 1].map(|rank| {
        let id = id.clone();
        thread::spawn(move || {
            let communication = start(&id, rank, 2, Overlap::Thread, Arc::new(HostDevice));
            if rank == 0 {
                // Rank 1 never publishes, so the thread waits for it until this is dropped.
                communication.ready().bucket(0).unwrap();
                thread::sleep(Duration::from_millis(30));
            } else {
                thread::sleep(Duration::from_millis(60));
            }
        })
    });
    // Dropping joins the thread; it would hang here.
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

/// A backend that notes on which thread it is called, and says that this must be one.
struct Bound {
    inner: Box<dyn Collective>,
    threads: Arc<Mutex<Vec<ThreadId>>>,
}

impl Bound {
    fn called(&mut self) -> &mut dyn Collective {
        self.threads.lock().unwrap().push(thread::current().id());
        &mut *self.inner
    }
}

impl Collective for Bound {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }
    fn size(&self) -> u32 {
        self.inner.size()
    }
    fn backend_name(&self) -> &'static str {
        "bound"
    }
    fn allocate(&mut self, name: &str, bytes: usize) -> Result<BufferId, CollectiveError> {
        self.called().allocate(name, bytes)
    }
    fn buffer(&self, id: BufferId) -> &HostMemory {
        self.inner.buffer(id)
    }
    fn buffer_mut(&mut self, id: BufferId) -> &mut HostMemory {
        self.inner.buffer_mut(id)
    }
    fn publisher(&self) -> Publisher {
        self.inner.publisher()
    }
    fn reduce_lanes(&mut self, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
        self.called().reduce_lanes(request)
    }
    fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        self.called().all_gather_v(buffer, ranges)
    }
    fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        self.called().exchange_slots(table, owner_of_slot)
    }
    fn broadcast(&mut self, buffer: BufferId, bytes: Range<usize>, root: u32) -> Result<(), CollectiveError> {
        self.called().broadcast(buffer, bytes, root)
    }
    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.called().barrier()
    }
    fn aborter(&self) -> Aborter {
        self.inner.aborter()
    }
    fn is_bound_to_thread(&self) -> bool {
        true
    }
    fn transports(&self) -> Vec<Option<Transport>> {
        self.inner.transports()
    }
}

#[test]
fn a_backend_that_is_bound_to_a_thread_is_connected_and_called_on_one_thread_only() {
    for overlap in [Overlap::Thread, Overlap::None] {
        let id = new_id(&[4; 32], 1).unwrap();
        let ranks = [0, 1].map(|rank| {
            let id = id.clone();
            thread::spawn(move || {
                let threads = Arc::new(Mutex::new(Vec::new()));
                let noted = Arc::clone(&threads);
                let join = move || -> Result<Box<dyn Collective>, CollectiveError> {
                    noted.lock().unwrap().push(thread::current().id());
                    let inner = connect(Backend::Host, &id, rank, 2, PATIENCE, &Aborter::new())?;
                    Ok(Box::new(Bound { inner, threads: noted }))
                };
                let mut communication = Communication::start(Arc::new(HostDevice), overlap, join).unwrap();
                communication.allocate("partials", 64).unwrap();
                communication.allocate("working", 64).unwrap();
                communication.set_program(program(2));
                step(&mut communication).unwrap();
                let mut table = [u64::from(rank), u64::from(rank)];
                communication.exchange_slots(&mut table, &[0, 1]).unwrap();
                assert_eq!(table, [0, 1]);
                communication.barrier().unwrap();
                let threads = threads.lock().unwrap();
                assert!(threads.len() > 8, "connecting and all calls are noted");
                assert!(
                    threads
                        .iter()
                        .all(|id| *id == threads[0] && *id != thread::current().id())
                );
            })
        });
        ranks.into_iter().for_each(|rank| rank.join().unwrap());
    }
}
