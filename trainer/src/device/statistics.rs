//! The memory of a rank's device: how much the run takes, warnings, and what to do when there is none left.

use std::sync::Arc;

use lockstep_autograd::device::{AllocatorStatistics, CollectiveDevice};

use crate::device::compute::Compute;
use crate::error::TrainerError;
use crate::memory_account::{MemoryAccount, mib};

/// What is known of the memory of a rank's device. Where that is the host there is nothing to say.
pub struct DeviceMemory {
    gpu: Option<Arc<CollectiveDevice>>,
    account: MemoryAccount,
    last: Option<AllocatorStatistics>,
}

impl DeviceMemory {
    /// Of a rank that computes there, under an account.
    pub fn new(compute: &Compute, account: MemoryAccount) -> DeviceMemory {
        DeviceMemory {
            gpu: match compute {
                Compute::Gpu(gpu) => Some(Arc::clone(gpu)),
                Compute::Host | Compute::HostTensors | Compute::HostTensorsOver(_) => None,
            },
            account,
            last: None,
        }
    }

    /// Asks the allocator after step `step`, and warns where memory is so short that the device had to stop for it.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn watch(&mut self, step: u64) -> Result<(), TrainerError> {
        let Some(gpu) = &self.gpu else {
            return Ok(());
        };
        let now = gpu.cuda().allocator_statistics()?;
        if let Some(warning) = shortage(self.last.as_ref(), &now, step) {
            tracing::warn!("{warning}");
        }
        self.last = Some(now);
        Ok(())
    }

    /// The most that libtorch has taken from the device so far.
    pub fn peak_mib(&self) -> Option<u64> {
        self.last.map(|statistics| statistics.reserved_peak >> 20)
    }

    /// An error of a step or of its preparation; where memory ran out, with the account and what can be changed.
    pub fn explain(&self, error: TrainerError) -> TrainerError {
        let Some(gpu) = self.gpu.as_ref().filter(|_| error.is_out_of_memory()) else {
            return error;
        };
        let card = match gpu.cuda().memory() {
            Ok(memory) => format!(
                "; of the GPU's {} there are {} free",
                mib(memory.total as usize),
                mib(memory.free as usize)
            ),
            Err(_) => String::new(),
        };
        TrainerError::OutOfMemory(sentence(&error.to_string(), &self.account, &card))
    }
}

/// A warning where, since the last step but not in the first one, allocations went through only after cached memory was
/// freed.
fn shortage(last: Option<&AllocatorStatistics>, now: &AllocatorStatistics, step: u64) -> Option<String> {
    let retries = now.retries - last?.retries.min(now.retries);
    (retries > 0).then(|| {
        format!(
            "step {step}: {retries} allocations went through only after cached memory was freed, which stops the GPU: its memory is nearly full; lower batch.micro_batch or data.sequence_length, or take more ranks"
        )
    })
}

fn sentence(error: &str, account: &MemoryAccount, card: &str) -> String {
    format!(
        "the GPU's memory is full: {}; this rank needs {account}, and activations on top{card}. Lower batch.micro_batch or data.sequence_length, or take more ranks: masters and state are divided among them",
        error.trim_end_matches(['.', '\n'])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: AllocatorStatistics = AllocatorStatistics {
        allocated: 0,
        allocated_peak: 0,
        reserved: 0,
        reserved_peak: 0,
        out_of_memory: 0,
        retries: 0,
    };

    #[test]
    fn a_retry_after_the_first_step_is_a_warning() {
        let retried = AllocatorStatistics { retries: 3, ..NONE };
        assert_eq!(shortage(None, &retried, 1), None, "the first step finds its memory");
        assert_eq!(shortage(Some(&retried), &retried, 2), None);
        let warning = shortage(Some(&NONE), &retried, 2).unwrap();
        assert!(warning.starts_with("step 2: 3 allocations"), "{warning}");
    }

    #[test]
    fn memory_that_ran_out_is_told_with_the_account_and_what_to_do() {
        let account = MemoryAccount {
            working_copies: 3 << 20,
            gradients: 4 << 20,
            gradient_buffers: 2,
            state: 5 << 20,
            nccl_scratch: 6 << 20,
        };
        let said = sentence("CUDA out of memory. Tried to allocate 2.00 GiB.", &account, "; free");
        for part in [
            "2.00 GiB; this",
            "3.0 MiB",
            "2 × 4.0 MiB",
            "5.0 MiB",
            "NCCL's scratch 6.0 MiB",
            "batch.micro_batch",
            "; free. Lower",
        ] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        let memory = DeviceMemory::new(&Compute::Host, account);
        let other = memory.explain(TrainerError::Broken("CUDA out of memory".to_owned()));
        assert!(matches!(other, TrainerError::Broken(_)), "the host has no such memory");
    }
}
