//! The table of one exchange on its device: results of passes, collected as words of 64 bits and read once.
//!
//! Data flows: [`Table::put`] notes a result and where its words will stand → [`Table::words`] joins all results on the
//! device → [`read`], or a copy of the caller's that waits for nothing, brings them to the host.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::OptimError;

/// Words of 64 bits on a device: float64 numbers by their bits, hashes and counts as they are.
#[derive(Debug)]
pub struct Table {
    device: Device,
    results: Vec<Tensor>,
    length: usize,
}

impl Table {
    /// A table of results on a device, still without words.
    pub fn new(device: Device) -> Table {
        Table {
            device,
            results: Vec::new(),
            length: 0,
        }
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Notes a result (float64 or int64, of any shape) and returns where its words will stand; nothing waits for it.
    pub fn put(&mut self, result: &Tensor) -> Result<Range<usize>, OptimError> {
        self.results.push(result.f_view([-1])?.f_view_dtype(Kind::Int64)?);
        let start = self.length;
        self.length += result.numel();
        Ok(start..self.length)
    }

    /// The words, int64 on the device.
    pub fn words(&self) -> Result<Tensor, OptimError> {
        match self.results.is_empty() {
            true => Ok(Tensor::f_zeros([0], (Kind::Int64, self.device))?),
            false => Ok(Tensor::f_cat(&self.results, 0)?),
        }
    }
}

/// Reads the 64-bit values of a tensor of any device: waits for it, and copies it once.
pub fn read(values: &Tensor) -> Result<Vec<u64>, OptimError> {
    let values = values.f_to_device(Device::Cpu)?.f_contiguous()?;
    let words: Vec<i64> = Vec::try_from(values.f_view([-1])?.f_view_dtype(Kind::Int64)?)?;
    Ok(words.into_iter().map(|word| word as u64).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_and_hashes_come_back_bit_for_bit_at_their_places() {
        let mut table = Table::new(Device::Cpu);
        assert!(table.is_empty() && read(&table.words().unwrap()).unwrap().is_empty());
        let numbers = [1.5f64, -0.0, f64::INFINITY];
        assert_eq!(table.put(&Tensor::from_slice(&numbers)).unwrap(), 0..3);
        let scalar = Tensor::from_slice(&[-2i64]).squeeze();
        assert_eq!(table.put(&scalar).unwrap(), 3..4);
        let [a, b, c] = numbers.map(f64::to_bits);
        assert_eq!(table.len(), 4);
        assert_eq!(read(&table.words().unwrap()).unwrap(), [a, b, c, u64::MAX - 1]);
    }
}
