// Sums of blocks in float64, one value a block: element i of a block goes to partial sum i mod 256, in order, and the
// partial sums are added as a balanced tree. So the bits depend on the block alone, not on the grid. A product of two
// float32 is exact in float64: contraction cannot change it.
//
// `blocks` holds two numbers a block: its first element and how many it has.

KERNEL block_square_sums(const float* values, const u64* blocks, double* sums, u64* not_finite) {
  SHARED double partial[THREADS];
  SHARED u64 bad[THREADS];
  FOR_EACH_THREAD(t)
  const float* block = values + blocks[2 * BLOCK];
  const u64 count = blocks[2 * BLOCK + 1];
  double sum = 0.0;
  u64 found = 0;
  for (u64 i = t; i < count; i += THREADS) {
    const double value = (double)block[i];
    sum += value * value;
    found += (bits_of(block[i]) & 0x7f800000u) == 0x7f800000u ? 1 : 0;
  }
  partial[t] = sum;
  bad[t] = found;
  END_THREADS
  for (u32 width = THREADS / 2; width > 0; width /= 2) {
    FOR_EACH_THREAD(t)
    if (t < width) {
      partial[t] += partial[t + width];
      bad[t] += bad[t + width];
    }
    END_THREADS
  }
  FOR_EACH_THREAD(t)
  if (t == 0) {
    sums[BLOCK] = partial[0];
    not_finite[BLOCK] = bad[0];
  }
  END_THREADS
}

// Both sides have the same layout.
KERNEL block_dots(const float* left, const float* right, const u64* blocks, double* sums) {
  SHARED double partial[THREADS];
  FOR_EACH_THREAD(t)
  const u64 start = blocks[2 * BLOCK];
  const u64 count = blocks[2 * BLOCK + 1];
  double sum = 0.0;
  for (u64 i = t; i < count; i += THREADS) sum += (double)left[start + i] * (double)right[start + i];
  partial[t] = sum;
  END_THREADS
  for (u32 width = THREADS / 2; width > 0; width /= 2) {
    FOR_EACH_THREAD(t)
    if (t < width) partial[t] += partial[t + width];
    END_THREADS
  }
  FOR_EACH_THREAD(t)
  if (t == 0) sums[BLOCK] = partial[0];
  END_THREADS
}
