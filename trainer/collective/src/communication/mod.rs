//! The communication thread: reductions go on while backward does, and gathers while the next forward does.
//!
//! - this file: [`Communication`], what the device thread holds, and [`Ready`], what gradient-ready hooks hold
//! - `queue`: the tasks, what has become of them, and who waits
//! - `work`: one task, on whichever thread does it
//!
//! Way of the data: a hook finds a bucket complete → [`Ready::bucket`] publishes it, marks the compute stream and puts the
//! reduction into the queue → the communication thread has its stream wait for the mark, reduces, marks its own stream →
//! [`Communication::wait_reduced`] has the compute stream wait for that. After the update [`Communication::gather`] puts the
//! gathers of all layers into the queue, in the order in which the next forward needs them, and
//! [`Communication::wait_gathered`] is the model's gate. Tasks are done in the order in which they were put in, which is the
//! same on every rank. Every other call waits until the queue is empty and is then made on the caller's own thread, where
//! the backend allows that: it saves two switches of threads.
//!
//! The thread sleeps whenever a peer is late, so it takes a core only for the additions and copies themselves.

mod queue;
mod work;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nccl_host::Aborter;

use crate::device::{Device, Recorded, Stream};
use crate::error::CollectiveError;
use crate::memory::Memory;
use crate::order::Publisher;
use crate::tree::LaneTree;
use crate::{BufferId, Collective, GatherRange, Transport, Wire};
use queue::{Queue, Task};

/// What is the same in every step.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The lanes of every rank.
    pub rank_lanes: Vec<Range<u32>>,
    /// Whether steps come with [`LaneTree::by_rank`], so that a rank has one partial and not those of its lanes' subtrees.
    pub by_rank: bool,
    /// Where partial i lies.
    pub partials: Vec<BufferId>,
    /// By bucket: its elements and their owners.
    pub owners: Vec<Vec<(Range<usize>, u32)>>,
    /// How partial sums are rounded.
    pub wire: Wire,
    /// The buffer of the working copies.
    pub working: Option<BufferId>,
    /// By layer, in forward order: its bytes and their owners.
    pub layers: Vec<Vec<GatherRange>>,
}

/// How long communication took in a step, and how long the device thread waited for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Reductions, on whichever thread.
    pub reducing: Duration,
    /// The device thread's waits for them.
    pub reduce_waits: Duration,
    /// Gathers, on whichever thread.
    pub gathering: Duration,
    /// The device thread's waits for them.
    pub gather_waits: Duration,
}

/// How tasks are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// On a thread of their own, as soon as they can be.
    Thread,
    /// By the device thread, when it needs their result.
    None,
}

struct Shared {
    queue: Queue,
    /// Held for the length of a task or a call.
    collective: Mutex<Box<dyn Collective>>,
    device: Arc<dyn Device>,
    program: Mutex<Arc<Program>>,
    /// Whether the backend has not heard of the program yet.
    is_new: AtomicBool,
    /// The lanes with work in the present step.
    tree: Mutex<Arc<LaneTree>>,
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves nothing half-done that a later call relies on: the communicator is aborted.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the communication thread that buckets are complete; for hooks, on whichever thread they run.
#[derive(Clone)]
pub struct Ready {
    publisher: Publisher,
    shared: Arc<Shared>,
}

impl Ready {
    /// This rank's partials of `bucket` are complete, by work that the compute stream has been given. Never waits. Buckets
    /// come in rising order.
    ///
    /// # Errors
    /// As [`Publisher::publish`]; the device refuses.
    pub fn bucket(&self, bucket: u32) -> Result<(), CollectiveError> {
        let ready = self.shared.device.record(Stream::Compute)?.named("ready");
        let tree = Arc::clone(&locked(&self.shared.tree));
        self.publisher.publish(bucket)?;
        self.shared.queue.put(Task::Reduce { bucket, tree, ready });
        Ok(())
    }
}

/// The device thread's end of the collectives of one rank in one generation.
pub struct Communication {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    overlap: Overlap,
    /// Whether every call must be made on the communication thread.
    bound: bool,
    rank: u32,
    size: u32,
    backend: &'static str,
    transports: Vec<Option<Transport>>,
    publisher: Publisher,
    aborter: Aborter,
    waits: Shares,
    /// Is told when the device thread begins and ends to wait for other ranks.
    told: Box<dyn Fn(bool) + Send>,
}

impl Communication {
    /// Connects by `connect` and starts the communication thread, where `overlap` or the backend asks for one; `connect` runs
    /// on the thread that will make the calls.
    ///
    /// # Errors
    /// Those of `connect`; the system has no thread to give.
    pub fn start(
        device: Arc<dyn Device>,
        overlap: Overlap,
        connect: impl FnOnce() -> Result<Box<dyn Collective>, CollectiveError> + Send + 'static,
    ) -> Result<Communication, CollectiveError> {
        let (made, is_made) = std::sync::mpsc::sync_channel::<Result<Communication, CollectiveError>>(1);
        let thread = std::thread::Builder::new()
            .name("communication".to_owned())
            .spawn(move || {
                let entered = device.enter().and_then(|()| connect());
                let communication = entered.map(|collective| Communication::over(device, overlap, collective));
                let shared = match &communication {
                    Ok(communication) if communication.needs_thread() => Some(Arc::clone(&communication.shared)),
                    _ => None,
                };
                // The maker waits for it, so it is there to take it.
                let _ = made.send(communication);
                if let Some(shared) = shared {
                    work::serve(&shared);
                }
            })
            .map_err(|source| CollectiveError::Library {
                library: "the system",
                call: "starting the communication thread",
                why: source.to_string(),
            })?;
        let ended = || CollectiveError::misuse("start", "the communication thread ended while it connected");
        let mut communication = is_made.recv().map_err(|_| ended())??;
        if communication.needs_thread() {
            communication.thread = Some(thread);
        }
        Ok(communication)
    }

    fn over(device: Arc<dyn Device>, overlap: Overlap, collective: Box<dyn Collective>) -> Communication {
        let shared = Shared {
            queue: Queue::default(),
            device,
            program: Mutex::default(),
            is_new: AtomicBool::new(false),
            tree: Mutex::new(Arc::new(LaneTree::full(1))),
            collective: Mutex::new(collective),
        };
        let collective = locked(&shared.collective);
        let (bound, rank, size) = (collective.is_bound_to_thread(), collective.rank(), collective.size());
        let (backend, transports) = (collective.backend_name(), collective.transports());
        let (publisher, aborter) = (collective.publisher(), collective.aborter());
        drop(collective);
        Communication {
            shared: Arc::new(shared),
            thread: None,
            // One rank has nobody to wait for.
            overlap: if size == 1 { Overlap::None } else { overlap },
            bound,
            rank,
            size,
            backend,
            transports,
            publisher,
            aborter,
            waits: Shares::default(),
            told: Box::new(|_| {}),
        }
    }

    fn needs_thread(&self) -> bool {
        self.bound || self.overlap == Overlap::Thread
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The backend's name in `status`.
    pub fn backend_name(&self) -> &'static str {
        self.backend
    }

    /// `told` is called on the device thread whenever it begins (`true`) and ends to wait for other ranks.
    pub fn tell_waits(&mut self, told: Box<dyn Fn(bool) + Send>) {
        self.told = told;
    }

    /// How this rank reaches every rank, by rank; none for itself.
    pub fn transports(&self) -> &[Option<Transport>] {
        &self.transports
    }

    /// The aborter of the communicator.
    pub fn aborter(&self) -> &Aborter {
        &self.aborter
    }

    /// What tells that buckets are complete.
    pub fn ready(&self) -> Ready {
        Ready {
            publisher: self.publisher.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// As [`Collective::allocate`]; the memory stays for as long as its value lives.
    ///
    /// # Errors
    /// As there.
    pub fn allocate(&mut self, name: &str, bytes: usize) -> Result<(BufferId, Memory), CollectiveError> {
        let name = name.to_owned();
        self.call(move |collective| {
            let id = collective.allocate(&name, bytes)?;
            Ok((id, collective.memory(id)))
        })
    }

    /// Says what every step does. Between steps only.
    pub fn set_program(&mut self, program: Program) {
        *locked(&self.shared.program) = Arc::new(program);
        self.shared.is_new.store(true, Ordering::Release);
    }

    /// Begins a step with the lanes that have work in it. Gathers of the step before may still go on.
    pub fn begin_step(&mut self, tree: LaneTree) {
        *locked(&self.shared.tree) = Arc::new(tree);
        self.shared.queue.begin_round();
    }

    /// Waits until `bucket` is reduced; from then on the compute stream sees the sums, and may write the partials again after
    /// the next full collective.
    ///
    /// # Errors
    /// What went wrong in it or before it.
    pub fn wait_reduced(&mut self, bucket: u32) -> Result<(), CollectiveError> {
        let began = Instant::now();
        let done = self.wait_for(|progress| progress.reduced.get(bucket as usize).cloned().flatten())?;
        self.shared.device.wait(Stream::Compute, &done)?;
        self.waits.reduce_waits += began.elapsed();
        Ok(())
    }

    /// Gathers every layer, in forward order, once the work that the compute stream has been given so far is done: the last
    /// use of the working copies, and the owners' new ones.
    ///
    /// # Errors
    /// The device refuses.
    pub fn gather(&mut self) -> Result<(), CollectiveError> {
        let used = self.shared.device.record(Stream::Compute)?.named("used");
        let layers = locked(&self.shared.program).layers.len();
        self.shared.queue.begin_gathers();
        for layer in 0..layers {
            self.shared.queue.put(Task::Gather {
                layer,
                used: used.clone(),
            });
        }
        Ok(())
    }

    /// Waits until the working copies of `layer` are those of the last [`Communication::gather`].
    ///
    /// # Errors
    /// What went wrong in it or before it.
    pub fn wait_gathered(&mut self, layer: usize) -> Result<(), CollectiveError> {
        let began = Instant::now();
        let done = self.wait_for(|progress| progress.gathered.get(layer).cloned())?;
        self.shared.device.wait(Stream::Compute, &done)?;
        self.waits.gather_waits += began.elapsed();
        Ok(())
    }

    /// As [`Collective::exchange_slots`].
    ///
    /// # Errors
    /// As there.
    pub fn exchange_slots(&mut self, table: &mut [u64], owner_of_slot: &[u32]) -> Result<(), CollectiveError> {
        if !self.bound {
            self.drain()?;
            (self.told)(true);
            let exchanged = locked(&self.shared.collective).exchange_slots(table, owner_of_slot);
            (self.told)(false);
            return exchanged;
        }
        let (mut words, owners) = (table.to_vec(), owner_of_slot.to_vec());
        let words = self.call(move |collective| collective.exchange_slots(&mut words, &owners).map(|()| words))?;
        table.copy_from_slice(&words);
        Ok(())
    }

    /// As [`Collective::all_gather_v`], at once: after the work that the compute stream has been given, and before what it is
    /// given later.
    ///
    /// # Errors
    /// As there; the device refuses.
    pub fn all_gather_v(&mut self, buffer: BufferId, ranges: &[GatherRange]) -> Result<(), CollectiveError> {
        let device = Arc::clone(&self.shared.device);
        let before = device.record(Stream::Compute)?.named("before a call");
        let ranges = ranges.to_vec();
        let after = self.call(move |collective| {
            device.wait(Stream::Communication, &before)?;
            collective.all_gather_v(buffer, &ranges)?;
            Ok(device.record(Stream::Communication)?.named("after a call"))
        })?;
        self.shared.device.wait(Stream::Compute, &after)
    }

    /// As [`Collective::barrier`].
    ///
    /// # Errors
    /// As there.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.call(|collective| collective.barrier())
    }

    /// How long communication took since the last call of this, and how much of it was waited for.
    pub fn take_shares(&mut self) -> Shares {
        let (reducing, gathering) = self.shared.queue.take_times();
        Shares {
            reducing,
            gathering,
            ..std::mem::take(&mut self.waits)
        }
    }

    /// Makes a call when the queue is empty, on the thread that may.
    fn call<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut dyn Collective) -> Result<T, CollectiveError> + Send + 'static,
    ) -> Result<T, CollectiveError> {
        self.drain()?;
        (self.told)(true);
        let answer = self.make(call);
        (self.told)(false);
        answer
    }

    fn make<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut dyn Collective) -> Result<T, CollectiveError> + Send + 'static,
    ) -> Result<T, CollectiveError> {
        if !self.bound {
            return call(locked(&self.shared.collective).as_mut());
        }
        let (answer, is_answered) = std::sync::mpsc::sync_channel(1);
        self.shared.queue.put(Task::Call(Box::new(move |collective| {
            // The caller waits for it, so it is there to take it.
            let _ = answer.send(call(collective));
        })));
        is_answered
            .recv()
            .map_err(|_| CollectiveError::misuse("call", "the communication thread has ended"))?
    }

    /// Waits until nothing is left to do.
    fn drain(&mut self) -> Result<(), CollectiveError> {
        (self.told)(true);
        let drained = match self.needs_thread() {
            true => self.shared.queue.wait_idle(),
            false => loop {
                match work::one(&self.shared) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                }
            },
        };
        (self.told)(false);
        drained
    }

    /// Waits until `found` finds something in what has been done.
    fn wait_for(&mut self, found: impl Fn(&queue::Progress) -> Option<Recorded>) -> Result<Recorded, CollectiveError> {
        (self.told)(true);
        let recorded = self.look_until(found);
        (self.told)(false);
        recorded
    }

    fn look_until(&self, found: impl Fn(&queue::Progress) -> Option<Recorded>) -> Result<Recorded, CollectiveError> {
        if self.needs_thread() {
            return self.shared.queue.wait_for(found);
        }
        loop {
            if let Some(recorded) = self.shared.queue.look(&found) {
                return Ok(recorded);
            }
            if !work::one(&self.shared)? {
                return Err(CollectiveError::misuse(
                    "wait",
                    "it waits for a bucket or a layer that nobody has put in",
                ));
            }
        }
    }
}

impl Drop for Communication {
    /// Ends the thread. What it is in the middle of is aborted: nobody is left to use the result.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            if self.shared.queue.close() {
                self.aborter.abort("this rank has ended its part of the generation");
            }
            // A panic in it has nobody left to tell.
            let _ = thread.join();
        }
    }
}
