//! One task of the communication thread, from its mark to the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::queue::{Done, Next, Task};
use super::{Shared, locked};
use crate::ReduceLanes;
use crate::device::Stream;
use crate::error::CollectiveError;

/// How long a thread that alone may act on an abort leaves it unseen while it has nothing to do.
const BETWEEN_CALLS: Duration = Duration::from_millis(20);

/// Does tasks until the queue is closed.
pub(super) fn serve(shared: &Shared) {
    let bound = locked(&shared.collective).is_bound_to_thread();
    let patience = bound.then_some(BETWEEN_CALLS);
    loop {
        match shared.queue.next(patience) {
            Next::Task(task) => shared.queue.finish(run(shared, task)),
            Next::Nothing => {
                let tended = locked(&shared.collective).tend();
                if tended.is_err() {
                    shared.queue.finish(tended.map(|()| Done::Called));
                }
            }
            Next::Closed => break,
        }
    }
    if bound {
        locked(&shared.collective).leave();
    }
}

/// Does the next task, if there is one, and says whether there was.
pub(super) fn one(shared: &Shared) -> Result<bool, CollectiveError> {
    let Some(task) = shared.queue.try_next() else {
        return Ok(false);
    };
    match run(shared, task) {
        Ok(done) => {
            shared.queue.finish(Ok(done));
            Ok(true)
        }
        Err(failure) => Err(failure),
    }
}

fn run(shared: &Shared, task: Task) -> Result<Done, CollectiveError> {
    match task {
        Task::Reduce { bucket, tree, ready } => {
            let program = Arc::clone(&locked(&shared.program));
            let owners = program.owners.get(bucket as usize).ok_or_else(|| {
                CollectiveError::misuse("reduce_lanes", format!("bucket {bucket} is not in the program"))
            })?;
            if shared.is_new.swap(false, Ordering::Acquire) {
                locked(&shared.collective).reserve(&program)?;
            }
            shared.device.wait(Stream::Communication, &ready)?;
            let began = Instant::now();
            locked(&shared.collective).reduce_lanes(&ReduceLanes {
                bucket,
                owners,
                rank_lanes: &program.rank_lanes,
                tree: &tree,
                buffers: &program.partials,
                wire: program.wire,
            })?;
            let done = shared.device.record(Stream::Communication)?.named("done");
            Ok(Done::Reduced(bucket, done, began.elapsed()))
        }
        Task::Gather { layer, used } => {
            let program = Arc::clone(&locked(&shared.program));
            let (Some(working), Some(ranges)) = (program.working, program.layers.get(layer)) else {
                return Err(CollectiveError::misuse(
                    "all_gather_v",
                    format!("layer {layer} is not in the program"),
                ));
            };
            shared.device.wait(Stream::Communication, &used)?;
            let began = Instant::now();
            locked(&shared.collective).all_gather_v(working, ranges)?;
            let done = shared.device.record(Stream::Communication)?.named("gathered");
            Ok(Done::Gathered(done, began.elapsed()))
        }
        Task::Call(call) => {
            call(locked(&shared.collective).as_mut());
            Ok(Done::Called)
        }
    }
}
