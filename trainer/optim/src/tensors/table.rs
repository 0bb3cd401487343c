//! The table of one exchange on its device: words of 64 bits that passes fill in and that are read once.

use tch::{Device, Kind, Tensor};

use crate::OptimError;

/// Words of 64 bits on a device: float64 numbers by their bits, hashes and counts as they are.
pub struct Table {
    words: Tensor,
}

impl Table {
    /// `length` zeros on a device.
    pub fn new(length: usize, device: Device) -> Result<Table, OptimError> {
        Ok(Table {
            words: Tensor::f_zeros([length as i64], (Kind::Int64, device))?,
        })
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.words.numel()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes every word zero.
    pub fn clear(&mut self) -> Result<(), OptimError> {
        let _ = self.words.f_zero_()?;
        Ok(())
    }

    /// Puts values of the table's device, float64 or int64, at word `at` and after; nothing waits for them.
    pub fn put(&mut self, at: usize, values: &Tensor) -> Result<(), OptimError> {
        let words = values.f_view([-1])?.f_view_dtype(Kind::Int64)?;
        self.words
            .f_narrow(0, at as i64, words.numel() as i64)?
            .f_copy_(&words)?;
        Ok(())
    }

    /// The words as a tensor, for those who copy them elsewhere without waiting.
    pub fn words(&self) -> &Tensor {
        &self.words
    }

    /// Waits for everything that was put and reads the words.
    pub fn read(&self) -> Result<Vec<u64>, OptimError> {
        read(&self.words)
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
    fn numbers_and_hashes_come_back_bit_for_bit() {
        let mut table = Table::new(6, Device::Cpu).unwrap();
        let numbers = [1.5f64, -0.0, f64::INFINITY];
        table.put(1, &Tensor::from_slice(&numbers)).unwrap();
        table.put(4, &Tensor::from_slice(&[-2i64]).squeeze()).unwrap();
        let [a, b, c] = numbers.map(f64::to_bits);
        assert_eq!(table.read().unwrap(), [0, a, b, c, u64::MAX - 1, 0]);
        assert!(table.put(5, &Tensor::from_slice(&numbers)).is_err(), "does not fit");
        table.clear().unwrap();
        assert_eq!(table.read().unwrap(), [0; 6]);
    }
}
