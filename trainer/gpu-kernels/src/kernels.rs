//! The kernels, compiled and loaded: one method each, with the arguments that it takes.
//!
//! Addresses are of device memory; every method only gives work to the stream. Blocks of tensors come as a table in device
//! memory: two numbers a block, its first element and how many it has (at most [`LARGEST_BLOCK`]).
//!
//! [`LARGEST_BLOCK`]: crate::sources::LARGEST_BLOCK

use std::ffi::c_void;
use std::sync::Arc;

use crate::driver::{Driver, Kernel};
use crate::sources::{BLOCK_HASH, BLOCK_SUMS, ROUND_TO_BF16, SOURCES, Source, THREADS, TREE_ADD};
use crate::{Architecture, KernelError, Nvrtc};

/// The most blocks of an element-wise kernel, which then runs over its range several times: enough for any device.
const MOST_BLOCKS: usize = 8192;

/// All kernels, in the context that was current when they were loaded.
pub struct Kernels {
    tree_add: Kernel,
    tree_add_bf16: Kernel,
    square_sums: Kernel,
    dots: Kernel,
    hashes: Kernel,
    round_to_bf16: Kernel,
}

impl Kernels {
    /// Compiles for device `index` and loads into the current context: a fifth of a second or so.
    pub fn compile(nvrtc: &Nvrtc, driver: &Arc<Driver>, index: usize) -> Result<Kernels, KernelError> {
        let (major, minor) = driver.facts(index)?.capability;
        let architecture = Architecture::of_capability(major, minor)?;
        let images = SOURCES
            .iter()
            .map(|source| Ok((*source, nvrtc.compile(source, architecture)?)))
            .collect::<Result<Vec<_>, KernelError>>()?;
        Kernels::from_images(driver, |source| {
            images
                .iter()
                .find(|(compiled, _)| compiled == source)
                .map_or(&[][..], |(_, image)| image)
        })
    }

    /// Loads code that was compiled before.
    pub fn from_images<'a>(driver: &Arc<Driver>, image: impl Fn(&Source) -> &'a [u8]) -> Result<Kernels, KernelError> {
        let tree = driver.module(image(&TREE_ADD))?;
        let sums = driver.module(image(&BLOCK_SUMS))?;
        let hash = driver.module(image(&BLOCK_HASH))?;
        let round = driver.module(image(&ROUND_TO_BF16))?;
        Ok(Kernels {
            tree_add: tree.kernel(TREE_ADD.functions[0])?,
            tree_add_bf16: tree.kernel(TREE_ADD.functions[1])?,
            square_sums: sums.kernel(BLOCK_SUMS.functions[0])?,
            dots: sums.kernel(BLOCK_SUMS.functions[1])?,
            hashes: hash.kernel(BLOCK_HASH.functions[0])?,
            round_to_bf16: round.kernel(ROUND_TO_BF16.functions[0])?,
        })
    }

    /// out = left + right over `count` float32; `out` may be `left` or `right`.
    ///
    /// # Safety
    /// The addresses hold `count` elements each in the kernels' context until the stream has done the work.
    pub unsafe fn tree_add(
        &self,
        stream: *mut c_void,
        out: u64,
        left: u64,
        right: u64,
        count: usize,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.tree_add
                .launch(blocks_for(count), stream, &[out, left, right, count as u64])
        }
    }

    /// out = left + right over `count` elements, the right side bf16; `out` may be `left`.
    ///
    /// # Safety
    /// As [`tree_add`](Self::tree_add).
    pub unsafe fn tree_add_bf16(
        &self,
        stream: *mut c_void,
        out: u64,
        left: u64,
        right: u64,
        count: usize,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.tree_add_bf16
                .launch(blocks_for(count), stream, &[out, left, right, count as u64])
        }
    }

    /// For each of `blocks` blocks: sums (float64) gets Σ xᵢ², `not_finite` (u64) the number of infinities and NaNs.
    ///
    /// # Safety
    /// `table` holds `blocks` blocks that lie in `values`; `sums` and `not_finite` have room for as many numbers; all in
    /// the kernels' context until the stream has done the work.
    pub unsafe fn square_sums(
        &self,
        stream: *mut c_void,
        values: u64,
        table: u64,
        blocks: usize,
        sums: u64,
        not_finite: u64,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.square_sums
                .launch(blocks, stream, &[values, table, sums, not_finite])
        }
    }

    /// For each of `blocks` blocks: sums (float64) gets Σ xᵢ·yᵢ of two buffers of one layout.
    ///
    /// # Safety
    /// As [`square_sums`](Self::square_sums), for both buffers.
    pub unsafe fn dots(
        &self,
        stream: *mut c_void,
        left: u64,
        right: u64,
        table: u64,
        blocks: usize,
        sums: u64,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe { self.dots.launch(blocks, stream, &[left, right, table, sums]) }
    }

    /// For each of `blocks` blocks: `hashes` (u64) gets its part of the parameter hash.
    ///
    /// # Safety
    /// As [`square_sums`](Self::square_sums).
    pub unsafe fn hashes(
        &self,
        stream: *mut c_void,
        values: u64,
        table: u64,
        blocks: usize,
        hashes: u64,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe { self.hashes.launch(blocks, stream, &[values, table, hashes]) }
    }

    /// out (bf16) = the nearest of `count` float32 values, ties to even.
    ///
    /// # Safety
    /// As [`tree_add`](Self::tree_add).
    pub unsafe fn round_to_bf16(
        &self,
        stream: *mut c_void,
        out: u64,
        values: u64,
        count: usize,
    ) -> Result<(), KernelError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.round_to_bf16
                .launch(blocks_for(count), stream, &[out, values, count as u64])
        }
    }
}

/// Blocks of an element-wise kernel over `count` elements.
fn blocks_for(count: usize) -> usize {
    count.div_ceil(THREADS as usize).min(MOST_BLOCKS)
}
