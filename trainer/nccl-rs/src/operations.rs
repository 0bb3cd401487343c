//! The operations of a group, one for each function of NCCL that moves data. Each checks what it was given, then asks the
//! library: ranks exist, sizes fit an address space, buffers are long enough.

use std::ffi::c_int;

use crate::buffer::{DataType, DevicePointer, Reduction, Stream};
use crate::error::Error;
use crate::group::Group;

impl Group<'_> {
    /// Sends `count` elements to rank `peer` (`ncclSend`). The peer's receive needs the same count and type, and comes in
    /// the same order among those from this rank. Zero elements are an operation too, on both sides or on none.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, gradient: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.send(gradient, 1024, DataType::Bfloat16, 3, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchRank`], [`Error::CountOverflow`], [`Error::BufferTooSmall`], and what NCCL says: here and in the
    /// other operations.
    pub fn send(
        &mut self,
        buffer: DevicePointer,
        count: usize,
        kind: DataType,
        peer: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclSend";
        self.kept(|group| {
            let address = buffer.check(CALL, "send", bytes_of(CALL, count, kind, 1)?)?;
            let peer = group.rank(CALL, peer)?;
            let (function, handle) = (group.nccl().api.send, group.handle());
            // SAFETY: the handle is live; the memory is as long as the operation reads, and stays good by the contract
            // of `DevicePointer`, as the stream does by that of `Stream`.
            group.answered(CALL, unsafe {
                function(address, count, kind as c_int, peer, handle, stream.handle())
            })
        })
    }

    /// Receives `count` elements from rank `peer` (`ncclRecv`).
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, scratch: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.recv(scratch, 1024, DataType::Bfloat16, 0, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn recv(
        &mut self,
        buffer: DevicePointer,
        count: usize,
        kind: DataType,
        peer: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclRecv";
        self.kept(|group| {
            let address = buffer.check(CALL, "receive", bytes_of(CALL, count, kind, 1)?)?;
            let peer = group.rank(CALL, peer)?;
            let (function, handle) = (group.nccl().api.recv, group.handle());
            // SAFETY: as in `send`, and it writes.
            group.answered(CALL, unsafe {
                function(address, count, kind as c_int, peer, handle, stream.handle())
            })
        })
    }

    /// Gives `count` elements of rank `root` to all (`ncclBroadcast`). In place where both buffers are one.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, parameters: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.broadcast(parameters, parameters, 4096, DataType::Uint8, 2, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn broadcast(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclBroadcast";
        self.kept(|group| {
            let bytes = bytes_of(CALL, count, kind, 1)?;
            let read = if group.is_rank(root) { bytes } else { 0 };
            let from = from.check(CALL, "send", read)?;
            let to = to.check(CALL, "receive", bytes)?;
            let root = group.rank(CALL, root)?;
            let (function, handle) = (group.nccl().api.broadcast, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(from, to, count, kind as c_int, root, handle, stream.handle())
            })
        })
    }

    /// Reduces `count` elements of all ranks to rank `root` (`ncclReduce`); the others' `to` is not touched.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Reduction, Stream};
    /// # fn example(group: &mut Group<'_>, x: DevicePointer, y: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.reduce(x, y, 1024, DataType::Float32, Reduction::Sum, 0, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    #[expect(clippy::too_many_arguments, reason = "NCCL's own arguments")]
    pub fn reduce(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        reduction: Reduction,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclReduce";
        self.kept(|group| {
            let bytes = bytes_of(CALL, count, kind, 1)?;
            let written = if group.is_rank(root) { bytes } else { 0 };
            let from = from.check(CALL, "send", bytes)?;
            let to = to.check(CALL, "receive", written)?;
            let root = group.rank(CALL, root)?;
            let (function, handle) = (group.nccl().api.reduce, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(
                    from,
                    to,
                    count,
                    kind as c_int,
                    reduction as c_int,
                    root,
                    handle,
                    stream.handle(),
                )
            })
        })
    }

    /// Reduces `count` elements of all ranks, for all (`ncclAllReduce`). In place where both buffers are one.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Reduction, Stream};
    /// # fn example(group: &mut Group<'_>, x: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.all_reduce(x, x, 1024, DataType::Float32, Reduction::Max, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn all_reduce(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        reduction: Reduction,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclAllReduce";
        self.kept(|group| {
            let bytes = bytes_of(CALL, count, kind, 1)?;
            let from = from.check(CALL, "send", bytes)?;
            let to = to.check(CALL, "receive", bytes)?;
            let (function, handle) = (group.nccl().api.all_reduce, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(
                    from,
                    to,
                    count,
                    kind as c_int,
                    reduction as c_int,
                    handle,
                    stream.handle(),
                )
            })
        })
    }

    /// Reduces `ranks` blocks of `count` elements and gives block `r` to rank `r` (`ncclReduceScatter`). In place where
    /// `to` is this rank's block of `from`.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Reduction, Stream};
    /// # fn example(group: &mut Group<'_>, all: DevicePointer, mine: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.reduce_scatter(all, mine, 256, DataType::Float32, Reduction::Average, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn reduce_scatter(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        reduction: Reduction,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclReduceScatter";
        self.kept(|group| {
            let from = from.check(CALL, "send", bytes_of(CALL, count, kind, group.ranks())?)?;
            let to = to.check(CALL, "receive", bytes_of(CALL, count, kind, 1)?)?;
            let (function, handle) = (group.nccl().api.reduce_scatter, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(
                    from,
                    to,
                    count,
                    kind as c_int,
                    reduction as c_int,
                    handle,
                    stream.handle(),
                )
            })
        })
    }

    /// Gives everybody the `count` elements of every rank, in the order of ranks (`ncclAllGather`). In place where `from`
    /// is this rank's block of `to`.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, mine: DevicePointer, all: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.all_gather(mine, all, 256, DataType::Uint8, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn all_gather(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclAllGather";
        self.kept(|group| {
            let from = from.check(CALL, "send", bytes_of(CALL, count, kind, 1)?)?;
            let to = to.check(CALL, "receive", bytes_of(CALL, count, kind, group.ranks())?)?;
            let (function, handle) = (group.nccl().api.all_gather, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(from, to, count, kind as c_int, handle, stream.handle())
            })
        })
    }

    /// Block `r` of this rank goes to rank `r`, whose block for this rank comes back (`ncclAlltoAll`); `count` elements
    /// each.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, x: DevicePointer, y: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.all_to_all(x, y, 256, DataType::Uint8, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn all_to_all(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclAlltoAll";
        self.kept(|group| {
            let bytes = bytes_of(CALL, count, kind, group.ranks())?;
            let from = from.check(CALL, "send", bytes)?;
            let to = to.check(CALL, "receive", bytes)?;
            let (function, handle) = (group.nccl().api.all_to_all, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(from, to, count, kind as c_int, handle, stream.handle())
            })
        })
    }

    /// Gives rank `root` the `count` elements of every rank, in the order of ranks (`ncclGather`); the others' `to` is not
    /// touched.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, mine: DevicePointer, all: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.gather(mine, all, 256, DataType::Uint8, 0, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn gather(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclGather";
        self.kept(|group| {
            let all = bytes_of(CALL, count, kind, group.ranks())?;
            let written = if group.is_rank(root) { all } else { 0 };
            let from = from.check(CALL, "send", bytes_of(CALL, count, kind, 1)?)?;
            let to = to.check(CALL, "receive", written)?;
            let root = group.rank(CALL, root)?;
            let (function, handle) = (group.nccl().api.gather, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(from, to, count, kind as c_int, root, handle, stream.handle())
            })
        })
    }

    /// Gives block `r` of rank `root` to rank `r` (`ncclScatter`); `count` elements each. The others' `from` is not read.
    ///
    /// ```no_run
    /// # use nccl_rs::{DataType, DevicePointer, Error, Group, Stream};
    /// # fn example(group: &mut Group<'_>, all: DevicePointer, mine: DevicePointer, stream: Stream) -> Result<(), Error> {
    /// group.scatter(all, mine, 256, DataType::Uint8, 0, stream)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Group::send`].
    pub fn scatter(
        &mut self,
        from: DevicePointer,
        to: DevicePointer,
        count: usize,
        kind: DataType,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        const CALL: &str = "ncclScatter";
        self.kept(|group| {
            let all = bytes_of(CALL, count, kind, group.ranks())?;
            let read = if group.is_rank(root) { all } else { 0 };
            let from = from.check(CALL, "send", read)?;
            let to = to.check(CALL, "receive", bytes_of(CALL, count, kind, 1)?)?;
            let root = group.rank(CALL, root)?;
            let (function, handle) = (group.nccl().api.scatter, group.handle());
            // SAFETY: as in `send`.
            group.answered(CALL, unsafe {
                function(from, to, count, kind as c_int, root, handle, stream.handle())
            })
        })
    }
}

/// Bytes of `blocks` blocks of `count` elements. NCCL multiplies without a look.
fn bytes_of(call: &'static str, count: usize, kind: DataType, blocks: usize) -> Result<usize, Error> {
    count
        .checked_mul(kind.bytes())
        .and_then(|bytes| bytes.checked_mul(blocks))
        .filter(|bytes| *bytes <= isize::MAX.cast_unsigned())
        .ok_or(Error::CountOverflow {
            call,
            count,
            bytes: kind.bytes(),
            blocks,
        })
}
