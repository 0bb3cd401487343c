// One node of the lane tree: out = left + right, one IEEE addition an element. `out` may be `left` or `right`.

KERNEL tree_add(float* out, const float* left, const float* right, u64 count) {
  FOR_EACH_THREAD(t)
  for (u64 i = BLOCK * THREADS + t; i < count; i += BLOCKS * THREADS) out[i] = left[i] + right[i];
  END_THREADS
}

// The right side in bf16, which is a float32 exactly.
KERNEL tree_add_bf16(float* out, const float* left, const u16* right, u64 count) {
  FOR_EACH_THREAD(t)
  for (u64 i = BLOCK * THREADS + t; i < count; i += BLOCKS * THREADS) {
    out[i] = left[i] + float_of((u32)right[i] << 16);
  }
  END_THREADS
}
