// The words of on_device.h for a C++ compiler: a block's threads run one after the other, phase by phase.
#include <cstring>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256u
#define KERNEL static void
#define SHARED
#define BLOCK block_of_this_thread
#define BLOCKS blocks_of_this_thread
#define FOR_EACH_THREAD(t) for (u32 t = 0; t < THREADS; ++t) {
#define END_THREADS }

static thread_local u64 block_of_this_thread;
static thread_local u64 blocks_of_this_thread;

static inline u32 bits_of(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
