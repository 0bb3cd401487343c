//! MPI itself: started once a process, asked for its version, ended when all went well; and how the processes that it
//! started become the ranks of a generation.

use std::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

use lockstep_collective::{Aborter, Collective, CollectiveError, HostMemory};
use lockstep_trainer::started::mpi_rank;
use lockstep_trainer::train::Mpi;
use mpi::ffi;
use nccl_host::Error;

use crate::communicator::{Communicator, Options, Peer, digest};
use crate::fault::{check, failed};
use crate::requests::Group;
use crate::wait::Wait;

/// The MPI that this program is linked with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Library;

impl Mpi for Library {
    fn version(&self) -> String {
        let mut text = [0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize];
        let mut length = 0;
        // SAFETY: the buffer has the length that MPI promises to keep to; the call is allowed before MPI_Init.
        let code = unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &mut length) };
        if check("MPI_Get_library_version", code, None).is_err() {
            return "an MPI that does not tell its version".to_owned();
        }
        let length = usize::try_from(length).unwrap_or(0).min(text.len());
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        let line = text.lines().next().unwrap_or_default();
        let words: Vec<&str> = line.split(',').next().unwrap_or_default().split_whitespace().collect();
        // A handle is a pointer in Open MPI, and a number of 32 bits in MPICH and all that share its binary interface.
        let interface = match size_of::<ffi::MPI_Comm>() {
            4 => "MPICH",
            _ => "Open MPI",
        };
        format!("{}, binary interface of {interface}", words.join(" "))
    }

    fn start(&self) -> Result<(), CollectiveError> {
        if mpi_rank().is_none() {
            // A run on another backend needs no MPI, and `connect` says what is missing.
            return Ok(());
        }
        let mut provided = 0;
        // SAFETY: a constant of MPI's.
        let wanted = unsafe { ffi::RSMPI_THREAD_SERIALIZED };
        // SAFETY: called once, before any other call but the version's; no arguments is allowed since MPI-2.
        let code = unsafe { ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), wanted, &mut provided) };
        check("MPI_Init_thread", code, None)?;
        if provided < wanted {
            return Err(failed(
                "MPI_Init_thread",
                format!(
                    "this MPI ({}) lets one thread only make calls (level {provided}), and MPI_THREAD_SERIALIZED is needed; use a build of it with thread support",
                    self.version()
                ),
            ));
        }
        Ok(())
    }

    fn place(&self) -> (u32, u32) {
        let (mut rank, mut size) = (0, 1);
        if is_started().is_ok_and(|started| started) {
            // SAFETY: MPI is started. It does not fail for its own communicator, and then nothing would be written.
            unsafe {
                let _ = ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank);
                let _ = ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size);
            }
        }
        (rank.unsigned_abs(), size.unsigned_abs())
    }

    fn connect(
        &self,
        rank: u32,
        size: u32,
        deadline: Duration,
        stall: Option<Duration>,
        aborter: &Aborter,
    ) -> Result<Box<dyn Collective>, CollectiveError> {
        let options = Options {
            stall,
            ..Options::default()
        };
        Ok(Box::new(Communicator::connect(rank, size, options, deadline, aborter)?))
    }

    fn finish(&self) -> Result<(), CollectiveError> {
        if !is_started()? {
            return Ok(());
        }
        // SAFETY: started, and finished once; communicators are gone.
        check("MPI_Finalize", unsafe { ffi::MPI_Finalize() }, None)
    }
}

fn is_started() -> Result<bool, CollectiveError> {
    let mut started = 0;
    // SAFETY: allowed at any time.
    check("MPI_Initialized", unsafe { ffi::MPI_Initialized(&mut started) }, None)?;
    Ok(started != 0)
}

/// What every process tells the others when they meet: its rank, the world's size, its process id, and its host.
const WORDS: usize = 4;

impl Communicator {
    /// Joins all processes that MPI started, in the order of their ranks in the generation. `deadline` is counted from now.
    ///
    /// # Errors
    /// The process was not started by MPI; MPI started another number of processes, or they disagree about their ranks; not
    /// all come in time; abort.
    pub fn connect(
        rank: u32,
        size: u32,
        options: Options,
        deadline: Duration,
        aborter: &Aborter,
    ) -> Result<Communicator, CollectiveError> {
        if !is_started()? {
            return Err(failed(
                "MPI_Init_thread",
                "this process was not started by mpirun; use `lockstep run CONFIG --backend mpi`, or `mpirun -n N lockstep-trainer-mpi train --coordinator URL`",
            ));
        }
        // SAFETY: constants of MPI's.
        let (world, returns) = unsafe { (ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
        // SAFETY: both handles are MPI's own.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(world, returns) };
        check("MPI_Comm_set_errhandler", code, None)?;
        let mut processes = 0;
        // SAFETY: the handle is MPI's own.
        let code = unsafe { ffi::MPI_Comm_size(world, &mut processes) };
        check("MPI_Comm_size", code, None)?;
        if processes != size as c_int {
            return Err(failed(
                "MPI_Comm_size",
                format!(
                    "MPI started {processes} processes, and the generation has {size} ranks; start as many as that"
                ),
            ));
        }

        let meeting = Meeting {
            rank,
            size,
            started: Instant::now(),
            deadline,
            aborter,
        };
        let mut places = vec![None; size as usize];
        for (process, said) in (0..).zip(meeting.hear_all(world)?) {
            let [claimed, of, pid, host] = said;
            let place = places
                .get_mut(claimed as usize)
                .filter(|place| place.is_none() && of == u64::from(size));
            let Some(place) = place else {
                return Err(failed(
                    "MPI_Iallgather",
                    format!(
                        "process {pid} says that it is rank {claimed} of {of}, which is no free place in a world of {size}; all processes of one mpirun must be members of one run"
                    ),
                ));
            };
            let peer = Peer {
                pid: pid as u32,
                is_near: host == own_host(),
            };
            *place = Some((process, peer));
        }
        let (places, peers): (Vec<c_int>, Vec<Peer>) = places.into_iter().flatten().unzip();
        let group = Group {
            handle: meeting.duplicate(world)?,
            places: places.into(),
        };
        // SAFETY: the communicator was just made.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(group.handle, returns) };
        check("MPI_Comm_set_errhandler", code, None)?;
        Communicator::new(group, rank, peers, options, aborter)
    }
}

/// A digest of this host's name. Hosts of one name would only be taken for one.
fn own_host() -> u64 {
    let name = nix::unistd::gethostname().unwrap_or_default();
    digest(name.as_encoded_bytes().iter().map(|byte| u64::from(*byte)))
}

/// A rank that meets the others.
struct Meeting<'a> {
    rank: u32,
    size: u32,
    started: Instant,
    deadline: Duration,
    aborter: &'a Aborter,
}

impl Meeting<'_> {
    /// Tells every process this one's rank, size and process id, and hears theirs, by MPI's rank.
    fn hear_all(&self, world: ffi::MPI_Comm) -> Result<Vec<[u64; WORDS]>, CollectiveError> {
        let all = WORDS * self.size as usize;
        let mut memory = HostMemory::anonymous((all + WORDS) * size_of::<u64>())?;
        let [rank, size, pid] = [self.rank, self.size, std::process::id()].map(u64::from);
        let words = [rank, size, pid, own_host()];
        memory.words_mut(all..all + WORDS).copy_from_slice(&words);
        let theirs = memory.words_mut(0..all).as_mut_ptr();
        let own = memory.words_mut(all..all + WORDS).as_ptr();
        // SAFETY: constants of MPI's.
        let (mut request, word) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT64_T) };
        // SAFETY: the memory has room for all processes, and is given away below unless the operation is done.
        let code = unsafe {
            ffi::MPI_Iallgather(
                own.cast(),
                WORDS as c_int,
                word,
                theirs.cast(),
                WORDS as c_int,
                word,
                world,
                &mut request,
            )
        };
        if let Err(error) = self.complete("MPI_Iallgather", code, &mut request) {
            std::mem::forget(memory.hold());
            return Err(error);
        }
        let words = memory.words_mut(0..all).chunks_exact(WORDS);
        Ok(words.filter_map(|words| words.first_chunk().copied()).collect())
    }

    /// A communicator of our own, whose messages meet no others. MPI_Comm_split would give it our order too, but it waits
    /// without a way out for a rank that has met everyone and failed then.
    fn duplicate(&self, world: ffi::MPI_Comm) -> Result<ffi::MPI_Comm, CollectiveError> {
        // SAFETY: constants of MPI's.
        let (mut request, none) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_COMM_NULL) };
        // On the heap, for MPI writes it when it is done: for good if that is never seen.
        let handle = Box::leak(Box::new(none));
        // SAFETY: the handle is never freed.
        let code = unsafe { ffi::MPI_Comm_idup(world, handle, &mut request) };
        self.complete("MPI_Comm_idup", code, &mut request)?;
        Ok(*handle)
    }

    /// Tests until an operation is done.
    fn complete(&self, call: &'static str, code: c_int, request: &mut ffi::MPI_Request) -> Result<(), CollectiveError> {
        check(call, code, None)?;
        let mut wait = Wait::new();
        loop {
            let mut done = 0;
            // SAFETY: the request is under way; the status is not wanted.
            let code = unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            check(call, code, None)?;
            if done != 0 {
                return Ok(());
            }
            self.aborter.check()?;
            if self.started.elapsed() >= self.deadline {
                return Err(Error::Deadline {
                    rank: self.rank,
                    missing: "all processes that MPI started".to_owned(),
                    waited_ms: self.started.elapsed().as_millis() as u64,
                    refused: None,
                }
                .into());
            }
            wait.pause();
        }
    }
}
