//! Sums over blocks of tensors in float64, and block hashes: [`BlockArithmetic`], and its form in plain tensor code.
//!
//! Data flows: flat values in blocks → the terms of each block in a table `[rows, 2ᵏ]`, zeros behind them → the right half
//! of the columns is added to the left one until one column is left → one value a block, on the device.
//!
//! The order of additions follows from the block's length alone: chunks of [`CHUNK`] elements by halves, then the chunks'
//! sums by halves. Library sums do not promise an order, so there are none here.

use tch::{Device, Kind, Tensor};

use crate::OptimError;

/// Elements that one row of a table holds at most.
const CHUNK: usize = 65_536;
/// Elements of a table at most: 32 MiB of float64.
const TABLE: usize = 4 << 20;

/// Sums over neighbouring blocks of `block` elements of flat contiguous tensors; the last block may be shorter. Results
/// are one value a block, on the tensors' device; nothing waits for them. The kind of values is float32 or bf16.
///
/// Every implementation fixes its order of additions by the block's length alone. Two implementations may differ in the
/// last bits of sums, so one is chosen for a run; hashes are the same in all of them.
pub trait BlockArithmetic {
    /// Σ aᵢ·bᵢ, float64.
    fn dots(&self, a: &Tensor, b: &Tensor, block: usize) -> Result<Tensor, OptimError>;

    /// Σ (aᵢ − bᵢ)², float64.
    fn square_distances(&self, a: &Tensor, b: &Tensor, block: usize) -> Result<Tensor, OptimError>;

    /// The number of values that are not finite, int64.
    fn not_finite(&self, x: &Tensor, block: usize) -> Result<Tensor, OptimError>;

    /// Σ wordᵢ·(2i+1) mod 2⁶⁴ over the bits of float32 values (32-bit words) or bf16 values (16-bit words), i from 0 in each
    /// block; int64 with the bits of the hash.
    fn hashes(&self, x: &Tensor, block: usize) -> Result<Tensor, OptimError>;
}

/// Sums by halves in plain tensor code: works on every device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Halving;

impl BlockArithmetic for Halving {
    fn dots(&self, a: &Tensor, b: &Tensor, block: usize) -> Result<Tensor, OptimError> {
        let (a, b) = (flat(a)?, flat(b)?);
        Blocks::of(&a, block).sums(Kind::Double, |terms, place| {
            terms.f_copy_(&place.of(&a)?)?;
            let _ = terms.f_mul_(&place.of(&b)?)?;
            Ok(())
        })
    }

    fn square_distances(&self, a: &Tensor, b: &Tensor, block: usize) -> Result<Tensor, OptimError> {
        let (a, b) = (flat(a)?, flat(b)?);
        Blocks::of(&a, block).sums(Kind::Double, |terms, place| {
            terms.f_copy_(&place.of(&a)?)?;
            let _ = terms.f_sub_(&place.of(&b)?)?;
            let _ = terms.f_square_()?;
            Ok(())
        })
    }

    fn not_finite(&self, x: &Tensor, block: usize) -> Result<Tensor, OptimError> {
        let x = flat(x)?;
        Blocks::of(&x, block).sums(Kind::Int64, |terms, place| {
            Ok(terms.f_copy_(&place.of(&x)?.f_isfinite()?.f_logical_not()?)?)
        })
    }

    fn hashes(&self, x: &Tensor, block: usize) -> Result<Tensor, OptimError> {
        let (kind, mask) = match x.kind() {
            Kind::BFloat16 => (Kind::Int16, 0xffff_i64),
            _ => (Kind::Int, 0xffff_ffff),
        };
        let words = flat(x)?.f_view_dtype(kind)?;
        Blocks::of(&words, block).sums(Kind::Int64, |terms, place| {
            terms.f_copy_(&place.of(&words)?)?;
            // The bits were copied as signed numbers.
            let _ = terms.f_bitwise_and_(mask)?;
            // Products stay below 2⁶³; only their sum wraps, as it is meant to.
            let _ = terms.f_mul_(&place.odd_numbers(words.device())?)?;
            Ok(())
        })
    }
}

/// Σ of the elements, by halves: a float64 scalar on the values' device.
pub fn sum(values: &Tensor) -> Result<Tensor, OptimError> {
    let values = flat(values)?;
    let sums = Blocks::of(&values, values.numel().max(1))
        .sums(Kind::Double, |terms, place| Ok(terms.f_copy_(&place.of(&values)?)?))?;
    match values.numel() {
        0 => Ok(Tensor::f_zeros([0i64; 0], (Kind::Double, values.device()))?),
        _ => Ok(sums.f_select(0, 0)?),
    }
}

fn flat(x: &Tensor) -> Result<Tensor, OptimError> {
    Ok(x.f_detach()?.f_view([-1])?)
}

/// Neighbouring blocks of flat values; the last one may be shorter.
#[derive(Clone, Copy)]
struct Blocks {
    count: usize,
    block: usize,
    device: Device,
}

/// Some rows of terms: which elements they are made of.
struct Place {
    /// The first element.
    first: usize,
    rows: usize,
    columns: usize,
    /// Index of the first element in its block.
    within: usize,
    /// Whether rows are neighbours in one block, rather than blocks of their own.
    one_block: bool,
}

impl Place {
    /// The elements of flat `values`, `[rows, columns]`.
    fn of(&self, values: &Tensor) -> Result<Tensor, OptimError> {
        let (rows, columns) = (self.rows as i64, self.columns as i64);
        Ok(values
            .f_narrow(0, self.first as i64, rows * columns)?
            .f_view([rows, columns])?)
    }

    /// 2i + 1 for each element's index i in its block, int64, `[rows or 1, columns]`.
    fn odd_numbers(&self, device: Device) -> Result<Tensor, OptimError> {
        let (start, columns) = (2 * self.within as i64 + 1, self.columns as i64);
        let rows = if self.one_block { self.rows as i64 } else { 1 };
        let end = start + 2 * rows * columns;
        Ok(Tensor::f_arange_start_step(start, end, 2, (Kind::Int64, device))?.f_view([rows, columns])?)
    }
}

impl Blocks {
    fn of(values: &Tensor, block: usize) -> Blocks {
        Blocks {
            count: values.numel(),
            block,
            device: values.device(),
        }
    }

    /// One sum a block of the terms that `fill` writes into a table of `kind`.
    fn sums(
        self,
        kind: Kind,
        fill: impl Fn(&mut Tensor, &Place) -> Result<(), OptimError>,
    ) -> Result<Tensor, OptimError> {
        if self.block <= CHUNK {
            let all = Run {
                first: 0,
                length: self.count,
                columns: self.block,
                one_block: false,
            };
            return self.rows(all, kind, &fill);
        }
        let out = Tensor::f_empty([self.count.div_ceil(self.block) as i64], (kind, self.device))?;
        for (index, first) in (0..self.count).step_by(self.block).enumerate() {
            let block = Run {
                first,
                length: self.block.min(self.count - first),
                columns: CHUNK,
                one_block: true,
            };
            let chunks = self.rows(block, kind, &fill)?;
            let width = chunks.numel().next_power_of_two() as i64;
            let table = Tensor::f_zeros([1, width], (kind, self.device))?;
            table.f_narrow(1, 0, chunks.numel() as i64)?.f_copy_(&chunks)?;
            out.f_narrow(0, index as i64, 1)?.f_copy_(&halve(&table)?)?;
        }
        Ok(out)
    }

    /// One sum for each row of a run, table by table.
    fn rows(
        self,
        run: Run,
        kind: Kind,
        fill: &impl Fn(&mut Tensor, &Place) -> Result<(), OptimError>,
    ) -> Result<Tensor, OptimError> {
        let Run { length, columns, .. } = run;
        let width = columns.next_power_of_two();
        let count = length.div_ceil(columns);
        let out = Tensor::f_empty([count as i64], (kind, self.device))?;
        let most = (TABLE / width).max(1);
        for row in (0..count).step_by(most) {
            let rows = most.min(count - row);
            let whole = rows.min(length / columns - row);
            let size = [rows as i64, width as i64];
            let table = match whole == rows && columns == width {
                true => Tensor::f_empty(size, (kind, self.device))?,
                false => Tensor::f_zeros(size, (kind, self.device))?,
            };
            let fill_rows = |at: usize, rows: usize, columns: usize| {
                let place = run.place(row + at, rows, columns);
                let mut terms = table
                    .f_narrow(0, at as i64, rows as i64)?
                    .f_narrow(1, 0, columns as i64)?;
                fill(&mut terms, &place)
            };
            if whole > 0 {
                fill_rows(0, whole, columns)?;
            }
            if whole < rows {
                fill_rows(whole, 1, length - (row + whole) * columns)?;
            }
            out.f_narrow(0, row as i64, rows as i64)?.f_copy_(&halve(&table)?)?;
        }
        Ok(out)
    }
}

/// Elements that follow each other, taken in rows of `columns`; the last row may be shorter.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    length: usize,
    columns: usize,
    /// Whether all rows are of one block.
    one_block: bool,
}

impl Run {
    /// `rows` rows from row `row` on, of which only the first `columns` columns are taken.
    fn place(self, row: usize, rows: usize, columns: usize) -> Place {
        Place {
            first: self.first + row * self.columns,
            rows,
            columns,
            within: if self.one_block { row * self.columns } else { 0 },
            one_block: self.one_block,
        }
    }
}

/// Adds the columns of `table` `[rows, 2ᵏ]`, which is used up, by halves: `[rows]`.
fn halve(table: &Tensor) -> Result<Tensor, OptimError> {
    let mut width = table.size2()?.1;
    while width > 1 {
        width /= 2;
        let (left, right) = (table.f_narrow(1, 0, width)?, table.f_narrow(1, width, width)?);
        let _ = left.f_add_out(&left, &right)?;
    }
    Ok(table.f_select(1, 0)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lockstep_kernels::real::bf16;
    use lockstep_kernels::sums::{block_hash, block_hash_of_bf16, dot, square_sum};

    use super::*;

    fn numbers(count: usize, seed: i64) -> (Tensor, Vec<f32>) {
        let values: Vec<f32> = (0..count)
            .map(|i| ((i as i64 * 7919 + seed * 104_729) % 20_011 - 10_000) as f32 / 4096.0)
            .collect();
        (Tensor::from_slice(&values), values)
    }

    fn doubles(sums: &Tensor) -> Vec<f64> {
        assert_eq!(sums.kind(), Kind::Double);
        Vec::try_from(sums).unwrap()
    }

    /// Lengths and blocks around every border: of a block, a chunk, a table.
    const CASES: [(usize, usize); 9] = [
        (1, 1),
        (37, 65_536),
        (65_536, 65_536),
        (140_001, 65_536),
        (4_300_000, 65_536),
        (960, 96),
        (200_000, 200_000),
        (300_000, 150_000),
        (131_072 * 2, 131_072),
    ];

    #[test]
    fn sums_are_those_of_the_host_and_hashes_have_its_bits() {
        for (count, block) in CASES {
            let ((a, host_a), (b, host_b)) = (numbers(count, 1), numbers(count, 2));
            let dots = doubles(&Halving.dots(&a, &b, block).unwrap());
            let apart = doubles(&Halving.square_distances(&a, &b, block).unwrap());
            let squares = doubles(&Halving.dots(&a, &a, block).unwrap());
            let hashes: Vec<i64> = Vec::try_from(Halving.hashes(&a, block).unwrap()).unwrap();
            assert_eq!(hashes.len(), count.div_ceil(block));
            for (index, (a, b)) in host_a.chunks(block).zip(host_b.chunks(block)).enumerate() {
                let size = square_sum(a).0 + square_sum(b).0;
                assert!((dots[index] - dot(a, b)).abs() <= 1e-13 * size, "{count}, {block}");
                assert!((squares[index] - square_sum(a).0).abs() <= 1e-13 * size);
                let expected = squares[index] + square_sum(b).0 - 2.0 * dot(a, b);
                assert!((apart[index] - expected).abs() <= 1e-12 * size, "{count}, {block}");
                assert_eq!(hashes[index] as u64, block_hash(a), "{count}, {block}, block {index}");
            }
            let rounded: Vec<bf16> = host_a.iter().map(|value| bf16::from_f32(*value)).collect();
            let hashes: Vec<i64> = Vec::try_from(Halving.hashes(&a.to_kind(Kind::BFloat16), block).unwrap()).unwrap();
            let expected: Vec<u64> = rounded.chunks(block).map(block_hash_of_bf16).collect();
            assert_eq!(
                hashes.iter().map(|hash| *hash as u64).collect::<Vec<_>>(),
                expected,
                "{count}, {block}"
            );
        }
    }

    #[test]
    fn a_block_has_the_same_bits_wherever_the_others_are() {
        let ((a, _), (b, _)) = (numbers(4_300_000, 3), numbers(4_300_000, 4));
        let all = Halving.dots(&a, &b, CHUNK).unwrap();
        for first in [0, 1, 5, 63, 64, 65] {
            let rest = |x: &Tensor| x.narrow(0, first * CHUNK as i64, 4_300_000 - first * CHUNK as i64);
            let some = Halving.dots(&rest(&a), &rest(&b), CHUNK).unwrap();
            assert!(
                all.narrow(0, first, some.size()[0]).equal(&some),
                "from block {first} on"
            );
        }
    }

    #[test]
    fn values_that_are_not_finite_are_counted_in_their_block() {
        let (mut x, _) = numbers(150_000, 5);
        for (at, value) in [(0, f64::NAN), (65_535, f64::INFINITY), (149_999, f64::NEG_INFINITY)] {
            let _ = x.narrow(0, at, 1).fill_(value);
        }
        let _ = x.narrow(0, 70_000, 1).fill_(3e38);
        let counts: Vec<i64> = Vec::try_from(Halving.not_finite(&x, CHUNK).unwrap()).unwrap();
        assert_eq!(counts, [2, 0, 1]);
        let _ = x.zero_();
        let counts: Vec<i64> = Vec::try_from(Halving.not_finite(&x, CHUNK).unwrap()).unwrap();
        assert_eq!(counts, [0, 0, 0]);
    }

    #[test]
    fn bf16_operands_are_taken_exactly_and_an_empty_sum_is_zero() {
        let (a, host) = numbers(1000, 6);
        let narrow = a.to_kind(Kind::BFloat16);
        let rounded: Vec<f32> = Vec::try_from(narrow.to_kind(Kind::Float)).unwrap();
        let got = doubles(&Halving.dots(&a, &narrow, 1000).unwrap())[0];
        let expected: f64 = host
            .iter()
            .zip(&rounded)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum();
        assert!((got / expected - 1.0).abs() < 1e-13);
        assert_eq!(sum(&a.narrow(0, 0, 0)).unwrap().double_value(&[]), 0.0);
        let total: f64 = host.iter().map(|x| f64::from(*x)).sum();
        assert!((sum(&a).unwrap().double_value(&[]) - total).abs() < 1e-9);
    }
}
