// out = the nearest bf16 of each value, ties to even. A NaN stays one: rounding must not carry it into an infinity.

KERNEL round_to_bf16(u16* out, const float* values, u64 count) {
  FOR_EACH_THREAD(t)
  for (u64 i = BLOCK * THREADS + t; i < count; i += BLOCKS * THREADS) {
    const u32 bits = bits_of(values[i]);
    const u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const u32 quiet = bits | 0x00400000u;
    out[i] = (u16)(((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16);
  }
  END_THREADS
}
