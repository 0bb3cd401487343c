//! The double itself, by NCCL's own names and without the binding between: what it refuses, and what it tells a recorder.
#![allow(clippy::unwrap_used)]

use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Mutex};

use nccl_double::names::{
    ncclBroadcast, ncclCommAbort, ncclCommCount, ncclCommDestroy, ncclCommGetAsyncError, ncclCommInitRankConfig,
    ncclGetLastError, ncclGetUniqueId, ncclGroupEnd, ncclGroupStart, ncclRecv, ncclSend,
};
use nccl_double::steering::{
    nccl_double_group_depth, nccl_double_live, nccl_double_misuse, nccl_double_pending, nccl_double_set_polls,
    nccl_double_strangers,
};
use nccl_double::{Call, Double};
use nccl_rs::raw::{self, CommHandle, Config, StreamHandle, UniqueId};

/// The tests share one last error and one count of strangers.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn new_id() -> UniqueId {
    let mut id = UniqueId { internal: [0; 128] };
    // SAFETY: a place for one id.
    assert_eq!(unsafe { ncclGetUniqueId(&raw mut id) }, raw::SUCCESS);
    id
}

fn begin(id: UniqueId, ranks: c_int, rank: c_int) -> (CommHandle, c_int) {
    let mut handle = std::ptr::null_mut();
    let mut config = Config::unset();
    config.blocking = 0;
    // SAFETY: places that live for the call.
    let answer = unsafe { ncclCommInitRankConfig(&raw mut handle, ranks, id, rank, &raw mut config) };
    (handle, answer)
}

fn poll(handle: CommHandle) -> (c_int, c_int) {
    let mut said = raw::SUCCESS;
    // SAFETY: a place for one number.
    let answer = unsafe { ncclCommGetAsyncError(handle, &raw mut said) };
    (answer, said)
}

fn count(handle: CommHandle) -> c_int {
    let mut ranks = 0;
    // SAFETY: a place for one number.
    unsafe { ncclCommCount(handle, &raw mut ranks) }
}

fn last_error() -> String {
    // SAFETY: the double's texts end with a zero byte and stay.
    unsafe { CStr::from_ptr(ncclGetLastError(std::ptr::null_mut())) }
        .to_string_lossy()
        .into_owned()
}

fn send(handle: CommHandle, memory: &mut [u8], peer: c_int, stream: StreamHandle) -> c_int {
    // SAFETY: the tests keep their memory until their communicators are gone.
    unsafe { ncclSend(memory.as_ptr().cast(), memory.len(), 1, peer, handle, stream) }
}

fn ready(handle: CommHandle) {
    while poll(handle).1 == raw::IN_PROGRESS {
        std::thread::yield_now();
    }
    assert_eq!(poll(handle), (raw::SUCCESS, raw::SUCCESS));
}

const TOO_EARLY: &str = "Attempt to use communicator before the previous operation returned ncclSuccess";

#[test]
fn any_use_in_progress_is_refused_with_the_words_of_nccl() {
    let _alone = ONE_AT_A_TIME.lock();
    let (handle, answer) = begin(new_id(), 2, 0);
    assert_eq!((answer, handle.is_null()), (raw::IN_PROGRESS, false));
    assert_eq!(count(handle), raw::INVALID_ARGUMENT);
    assert_eq!(last_error(), TOO_EARLY);
    assert_eq!(
        poll(handle),
        (raw::SUCCESS, raw::IN_PROGRESS),
        "a question does no harm"
    );
    let stream = std::ptr::without_provenance_mut(1);
    assert_eq!(send(handle, &mut [0; 4], 1, stream), raw::INVALID_ARGUMENT);
    assert_eq!(poll(handle), (raw::SUCCESS, raw::INVALID_ARGUMENT), "an operation does");
    assert_eq!(ncclCommAbort(handle), raw::SUCCESS);
    assert_eq!(nccl_double_group_depth(), 0);
}

#[test]
fn a_group_is_in_progress_until_its_polls_are_over_and_pending_until_success_was_seen() {
    let _alone = ONE_AT_A_TIME.lock();
    let id = new_id();
    // SAFETY: 128 bytes.
    unsafe { nccl_double_set_polls((&raw const id).cast(), 0, 3) };
    let (handle, _) = begin(id, 1, 0);
    ready(handle);
    let stream = std::ptr::without_provenance_mut(2);
    let (from, mut to) = ([7u8; 4], [0u8; 4]);
    // SAFETY: the memory outlives the communicator.
    let asked = unsafe {
        [
            ncclGroupStart(),
            ncclSend(from.as_ptr().cast(), 4, 1, 0, handle, stream),
            ncclRecv(to.as_mut_ptr().cast(), 4, 1, 0, handle, stream),
        ]
    };
    assert_eq!(asked, [raw::SUCCESS; 3], "inside, nothing has begun");
    assert_eq!(nccl_double_pending(stream), 2);
    assert_eq!(ncclGroupEnd(), raw::IN_PROGRESS);
    for _ in 0..3 {
        assert_eq!(poll(handle), (raw::SUCCESS, raw::IN_PROGRESS));
        assert_eq!(nccl_double_pending(stream), 2);
    }
    ready(handle);
    assert_eq!(nccl_double_pending(stream), 0);
    assert_eq!(ncclCommDestroy(handle), raw::SUCCESS);
    assert_eq!(to, from);
}

#[test]
fn handles_after_their_end_are_counted_and_nothing_happens() {
    let _alone = ONE_AT_A_TIME.lock();
    let id = new_id();
    let at = (&raw const id).cast();
    let (handle, _) = begin(id, 1, 0);
    ready(handle);
    assert_eq!(ncclCommAbort(handle), raw::SUCCESS);
    for answer in [
        count(handle),
        poll(handle).0,
        ncclCommAbort(handle),
        ncclCommDestroy(handle),
        send(handle, &mut [0; 4], 0, std::ptr::without_provenance_mut(3)),
    ] {
        assert_eq!(answer, raw::INVALID_ARGUMENT);
    }
    // SAFETY: 128 bytes.
    assert_eq!(unsafe { (nccl_double_misuse(at), nccl_double_live(at)) }, (5, 0));
    let before = nccl_double_strangers();
    assert_eq!(count(std::ptr::without_provenance_mut(64)), raw::INVALID_ARGUMENT);
    assert_eq!(nccl_double_strangers(), before + 1);
}

#[test]
fn null_and_empty_groups_are_answered_as_by_nccl() {
    let _alone = ONE_AT_A_TIME.lock();
    let null = std::ptr::null_mut();
    assert_eq!(
        (ncclCommAbort(null), ncclCommDestroy(null)),
        (raw::SUCCESS, raw::SUCCESS)
    );
    assert_eq!((ncclGroupStart(), ncclGroupEnd()), (raw::SUCCESS, raw::SUCCESS));
    assert_eq!(ncclGroupEnd(), raw::INVALID_USAGE);
    assert_eq!(send(null, &mut [0; 4], 0, std::ptr::null_mut()), raw::INVALID_ARGUMENT);
    assert_eq!(last_error(), "Send : comm argument is NULL");
}

#[test]
fn a_destroy_in_a_wrong_state_leaves_the_thread_inside_of_a_group_as_nccl_does() {
    let _alone = ONE_AT_A_TIME.lock();
    let (handle, _) = begin(new_id(), 2, 0);
    assert_eq!(ncclCommDestroy(handle), raw::INVALID_ARGUMENT);
    assert_eq!(nccl_double_group_depth(), 1);
    assert_eq!(ncclGroupEnd(), raw::SUCCESS);
    assert_eq!(ncclCommAbort(handle), raw::SUCCESS);
}

#[test]
fn a_recorder_is_told_what_each_operation_reads_and_writes_when_it_gets_on_its_stream() {
    let _alone = ONE_AT_A_TIME.lock();
    // The cdylib has its own state, so this one goes through it and the binding.
    let double = Double::open().unwrap();
    let nccl = nccl_rs::Nccl::open(Double::path().unwrap()).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    double.set_stream_hook(move |operation| {
        log.lock().unwrap().push((
            operation.stream.addr(),
            operation.call,
            (operation.rank, operation.other),
            (operation.read.addr(), operation.read_bytes),
            (operation.written.addr(), operation.written_bytes),
        ));
    });
    let id = nccl.unique_id().unwrap();
    double.set_polls(&id, 0, 0);
    let config = nccl_rs::Config::new().non_blocking();
    let mut communicator = nccl_rs::Communicator::init(&nccl, 1, &id, 0, &config).unwrap();
    communicator.wait_while(|| true).unwrap();
    let mut memory = [1u8, 2, 3, 4];
    let address: *mut c_void = memory.as_mut_ptr().cast();
    // SAFETY: the memory outlives the communicator, and the double looks behind no stream.
    let (all, stream) = unsafe {
        (
            nccl_rs::DevicePointer::new(address, 4),
            nccl_rs::Stream::from_raw(std::ptr::without_provenance_mut(4)),
        )
    };
    let bytes = nccl_rs::DataType::Uint8;
    let (left, right) = (all.slice(0..2).unwrap(), all.slice(2..4).unwrap());
    communicator
        .group(|group| {
            group.send(left, 2, bytes, 0, stream)?;
            group.recv(right, 2, bytes, 0, stream)
        })
        .unwrap();
    communicator.wait_while(|| true).unwrap();
    let at = address.addr();
    assert_eq!(
        *seen.lock().unwrap(),
        [
            (4, Call::Send, (0, 0), (at, 2), (0, 0)),
            (4, Call::Recv, (0, 0), (0, 0), (at + 2, 2)),
        ]
    );
    communicator.destroy().unwrap();
    drop(communicator);
    assert_eq!(memory, [1, 2, 1, 2]);
}

#[test]
fn an_operation_needs_memory_where_it_reads_or_writes() {
    let _alone = ONE_AT_A_TIME.lock();
    let (handle, _) = begin(new_id(), 1, 0);
    ready(handle);
    let null = std::ptr::null_mut();
    // SAFETY: it is refused before any memory is touched.
    let answer = unsafe { ncclBroadcast(null, null, 4, 1, 0, handle, null) };
    assert_eq!(answer, raw::INVALID_ARGUMENT);
    assert_eq!(ncclCommAbort(handle), raw::SUCCESS);
}
