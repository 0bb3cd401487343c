//! A reduction on the device: partials travel in one group of sends and receives, then the owner adds them in tree order on
//! the communication stream.
//!
//! Bytes, not numbers, travel: NCCL never adds. With [`crate::Wire::Bf16`] partials are narrowed before, and additions read
//! them as they came.

use std::ops::Range;

use nccl_rs::{DataType, DevicePointer};

use super::headers::outside;
use super::landing::{Landing, Lies, merged};
use super::link::Link;
use super::sums::Place;
use crate::accelerator::{DeviceMemory, Operand};
use crate::device::{Recorded, Stream};
use crate::error::CollectiveError;
use crate::reduce::Reduction;
use crate::{BufferId, ReduceLanes};

const CALL: &str = "reduce_lanes";

/// Scratch on the device, which grows to the largest reduction.
#[derive(Default)]
pub(super) struct Scratch {
    memory: Option<DeviceMemory>,
    /// Smaller ones, which the stream may still use.
    retired: Vec<(DeviceMemory, Recorded)>,
}

impl Scratch {
    /// At least `bytes` bytes.
    pub(super) fn of(&mut self, link: &Link, bytes: usize) -> Result<Option<DevicePointer>, CollectiveError> {
        let has = self.memory.as_ref().map_or(0, |memory| memory.pointer().bytes());
        if bytes > has {
            let accelerator = link.accelerator();
            if let Some(old) = self.memory.take() {
                self.retired.push((old, accelerator.record(Stream::Communication)?));
            }
            self.memory = Some(accelerator.allocate("partials of other ranks", bytes)?);
        }
        self.free_retired(link)?;
        Ok(self.memory.as_ref().map(DeviceMemory::pointer))
    }

    fn free_retired(&mut self, link: &Link) -> Result<(), CollectiveError> {
        let mut kept = Vec::new();
        for (memory, mark) in self.retired.drain(..) {
            if !link.accelerator().is_done(&mark)? {
                kept.push((memory, mark));
            }
        }
        self.retired = kept;
        Ok(())
    }
}

/// One reduction's memory.
struct Memory<'a> {
    buffers: &'a [DeviceMemory],
    result: BufferId,
    scratch: Option<DevicePointer>,
    landing: &'a Landing,
}

impl Memory<'_> {
    /// Float32 elements of one of this rank's buffers.
    fn floats(&self, buffer: BufferId, elements: &Range<usize>) -> Result<DevicePointer, CollectiveError> {
        self.buffers
            .get(buffer.0)
            .and_then(|memory| memory.pointer().slice(4 * elements.start..4 * elements.end))
            .ok_or_else(outside)
    }

    fn scratch(&self, bytes: Range<usize>) -> Result<DevicePointer, CollectiveError> {
        self.scratch
            .and_then(|scratch| scratch.slice(bytes))
            .ok_or_else(outside)
    }

    /// Owned elements of a part.
    fn part(&self, part: usize, elements: &Range<usize>, offset: usize) -> Result<Operand, CollectiveError> {
        match self.landing.lies[part] {
            Lies::Here(buffer) => Ok(Operand::Float32(self.floats(buffer, elements)?)),
            Lies::Arrives => Ok(Operand::Float32(self.floats(self.result, elements)?)),
            Lies::Scratch { start, width } => {
                let first = start + width * offset;
                let memory = self.scratch(first..first + width * elements.len())?;
                Ok(match width {
                    2 => Operand::Bf16(memory),
                    _ => Operand::Float32(memory),
                })
            }
        }
    }

    fn operand(&self, place: Place, elements: &Range<usize>, offset: usize) -> Result<Operand, CollectiveError> {
        match place {
            Place::Result => Ok(Operand::Float32(self.floats(self.result, elements)?)),
            Place::Part(part) => self.part(part, elements, offset),
            Place::Inner(number) => {
                let start = self.landing.inner(number).start;
                Ok(Operand::Float32(self.scratch(start..start + 4 * elements.len())?))
            }
        }
    }
}

/// Does a reduction that was checked. When it returns, all of it is on the communication stream.
pub(super) fn reduce(
    link: &mut Link,
    scratch: &mut Scratch,
    buffers: &[DeviceMemory],
    request: &ReduceLanes<'_>,
) -> Result<(), CollectiveError> {
    let owners = merged(request.owners);
    let request = &ReduceLanes {
        owners: &owners,
        ..*request
    };
    let length = |buffer: BufferId| buffers.get(buffer.0).map(|memory| memory.pointer().bytes());
    let reduction = Reduction::plan_over(request, link.rank(), link.size(), length)?;
    let landing = Landing::plan(request, &reduction, link.rank())?;
    let memory = Memory {
        buffers,
        result: request.buffers[0],
        scratch: scratch.of(link, landing.bytes)?,
        landing: &landing,
    };
    move_partials(link, &memory, request)?;
    add(link, &memory)
}

/// The group of sends and receives. Empty ranges and this rank's own are in neither list, on both sides.
fn move_partials(link: &mut Link, memory: &Memory<'_>, request: &ReduceLanes<'_>) -> Result<(), CollectiveError> {
    let landing = memory.landing;
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for (send, narrowed) in landing.transfers.sends.iter().zip(&landing.sends) {
        let floats = memory.floats(request.buffers[send.partial], &send.elements)?;
        let from = match narrowed {
            None => floats,
            Some(start) => {
                let halves = memory.scratch(*start..start + 2 * send.elements.len())?;
                link.accelerator().narrow(halves, floats, Stream::Communication)?;
                halves
            }
        };
        sends.push((send.peer, from));
    }
    for receive in &landing.transfers.receives {
        let part = landing.part_of(receive).ok_or_else(outside)?;
        let offset = landing.offset_of(&receive.elements).ok_or_else(outside)?;
        let (Operand::Float32(to) | Operand::Bf16(to)) = memory.part(part, &receive.elements, offset)?;
        receives.push((receive.peer, to));
    }
    if sends.is_empty() && receives.is_empty() {
        return Ok(());
    }
    link.group(CALL, landing.peers(), |group, stream| {
        for (peer, from) in sends {
            group.send(from, from.bytes(), DataType::Uint8, peer, stream)?;
        }
        for (peer, to) in receives {
            group.recv(to, to.bytes(), DataType::Uint8, peer, stream)?;
        }
        Ok(())
    })
}

/// The owner's additions.
fn add(link: &Link, memory: &Memory<'_>) -> Result<(), CollectiveError> {
    let landing = memory.landing;
    for (elements, offset) in &landing.owned {
        for step in &landing.steps.list {
            let Operand::Float32(sum) = memory.operand(step.sum, elements, *offset)? else {
                return Err(outside());
            };
            link.accelerator().add(
                sum,
                memory.operand(step.left, elements, *offset)?,
                memory.operand(step.right, elements, *offset)?,
                step.round,
                Stream::Communication,
            )?;
        }
    }
    Ok(())
}
