// What the kernels are written in, for a GPU. A kernel is a sequence of phases: in each, every thread of a block runs the
// body, then all wait; what a later phase needs of an earlier one lies in SHARED memory. on_host.h gives the same words
// to a C++ compiler, so that the very source is tested without a GPU.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 256u
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define SHARED __shared__
#define BLOCK ((u64)blockIdx.x)
#define BLOCKS ((u64)gridDim.x)
#define FOR_EACH_THREAD(t) \
  {                        \
    const u32 t = threadIdx.x;
#define END_THREADS \
  }                 \
  __syncthreads();

static __device__ inline u32 bits_of(float value) { return __float_as_uint(value); }
static __device__ inline float float_of(u32 bits) { return __uint_as_float(bits); }
