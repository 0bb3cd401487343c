//! The data itself, moved when the kernels of all sides run.

use crate::operation::{Call, Operation};
use crate::reduce::reduced;

/// Copies a pair's bytes.
pub(crate) fn pair(send: &Operation, receive: &Operation) {
    write(receive.receive, &read(send.send, send.block()));
}

/// Carries out a collective, whose operations are given in the order of ranks. All is read before anything is written, so
/// buffers may be in place.
pub(crate) fn collective(operations: &[Operation]) {
    let ranks = operations.len();
    let first = &operations[0];
    let (one, root) = (first.block(), first.other as usize);
    let of_each = |bytes: usize| -> Vec<Vec<u8>> { operations.iter().map(|each| read(each.send, bytes)).collect() };
    let block = |input: &[u8], rank: usize| input[rank * one..(rank + 1) * one].to_vec();
    let outputs: Vec<Option<Vec<u8>>> = match first.call {
        Call::Broadcast => vec![Some(read(operations[root].send, one)); ranks],
        Call::Reduce | Call::AllReduce => {
            let result = reduced(first.kind, first.reduction, &of_each(one));
            let here = |rank: usize| first.call == Call::AllReduce || rank == root;
            (0..ranks).map(|rank| result.clone().filter(|_| here(rank))).collect()
        }
        Call::ReduceScatter => {
            let result = reduced(first.kind, first.reduction, &of_each(one * ranks));
            (0..ranks)
                .map(|rank| result.as_ref().map(|result| block(result, rank)))
                .collect()
        }
        Call::AllGather => vec![Some(of_each(one).concat()); ranks],
        Call::AllToAll => {
            let inputs = of_each(one * ranks);
            (0..ranks)
                .map(|rank| Some(inputs.iter().flat_map(|input| block(input, rank)).collect()))
                .collect()
        }
        Call::Gather => {
            let all = of_each(one).concat();
            (0..ranks).map(|rank| (rank == root).then(|| all.clone())).collect()
        }
        Call::Scatter => {
            let all = read(operations[root].send, one * ranks);
            (0..ranks).map(|rank| Some(block(&all, rank))).collect()
        }
        Call::Init | Call::Send | Call::Recv | Call::Split | Call::Finalize => vec![None; ranks],
    };
    for (operation, output) in operations.iter().zip(&outputs) {
        if let Some(output) = output {
            write(operation.receive, output);
        }
    }
}

/// What an abort leaves in memory that was being received.
pub(crate) fn spoil(address: usize, bytes: usize) {
    write(address, &vec![0xa5; bytes]);
}

fn read(address: usize, bytes: usize) -> Vec<u8> {
    let mut copy = vec![0; bytes];
    if bytes > 0 {
        // SAFETY: the caller of NCCL promises that the memory is as long as its operation reads and stays good, and
        // unwritten, until the operation's end on the stream, which is not before this.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::with_exposed_provenance::<u8>(address),
                copy.as_mut_ptr(),
                bytes,
            );
        }
    }
    copy
}

fn write(address: usize, bytes: &[u8]) {
    if !bytes.is_empty() {
        // SAFETY: as in `read`, for what the operation writes.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                std::ptr::with_exposed_provenance_mut::<u8>(address),
                bytes.len(),
            );
        }
    }
}
