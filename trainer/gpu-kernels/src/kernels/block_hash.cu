// The hash of blocks: the sum of word(i) * (2 i + 1) modulo 2^64 over the float32 bits of a block, as the host has it.
// Whole numbers: no order of additions changes it.
//
// `blocks` holds two numbers a block: its first element and how many it has.

KERNEL block_hashes(const float* values, const u64* blocks, u64* hashes) {
  SHARED u64 partial[THREADS];
  FOR_EACH_THREAD(t)
  const float* block = values + blocks[2 * BLOCK];
  const u64 count = blocks[2 * BLOCK + 1];
  u64 sum = 0;
  for (u64 i = t; i < count; i += THREADS) sum += (u64)bits_of(block[i]) * (2 * i + 1);
  partial[t] = sum;
  END_THREADS
  for (u32 width = THREADS / 2; width > 0; width /= 2) {
    FOR_EACH_THREAD(t)
    if (t < width) partial[t] += partial[t + width];
    END_THREADS
  }
  FOR_EACH_THREAD(t)
  if (t == 0) hashes[BLOCK] = partial[0];
  END_THREADS
}
