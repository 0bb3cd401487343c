// For tests: a driver with CUDA's C names over the kernels compiled as C++. Device memory is host memory, a launch runs
// block after block before it returns. A module is any image that names one of the files.
#include "../src/kernels/on_host.h"

#include "../src/kernels/block_hash.cu"
#include "../src/kernels/block_sums.cu"
#include "../src/kernels/round_to_bf16.cu"
#include "../src/kernels/tree_add.cu"

namespace {
template <typename T>
T argument(void** arguments, int index) {
  T value;
  std::memcpy(&value, arguments[index], sizeof value);
  return value;
}

#define ARGUMENT(type, index) argument<type>(a, index)

struct Entry {
  const char* name;
  void (*call)(void** a);
};

const Entry entries[] = {
    {"tree_add",
     [](void** a) {
       tree_add(ARGUMENT(float*, 0), ARGUMENT(const float*, 1), ARGUMENT(const float*, 2), ARGUMENT(u64, 3));
     }},
    {"tree_add_bf16",
     [](void** a) {
       tree_add_bf16(ARGUMENT(float*, 0), ARGUMENT(const float*, 1), ARGUMENT(const u16*, 2), ARGUMENT(u64, 3));
     }},
    {"block_square_sums",
     [](void** a) {
       block_square_sums(ARGUMENT(const float*, 0), ARGUMENT(const u64*, 1), ARGUMENT(double*, 2), ARGUMENT(u64*, 3));
     }},
    {"block_dots",
     [](void** a) {
       block_dots(ARGUMENT(const float*, 0), ARGUMENT(const float*, 1), ARGUMENT(const u64*, 2), ARGUMENT(double*, 3));
     }},
    {"block_hashes",
     [](void** a) { block_hashes(ARGUMENT(const float*, 0), ARGUMENT(const u64*, 1), ARGUMENT(u64*, 2)); }},
    {"round_to_bf16",
     [](void** a) { round_to_bf16(ARGUMENT(u16*, 0), ARGUMENT(const float*, 1), ARGUMENT(u64, 2)); }},
};

enum { success = 0, invalid_value = 1, invalid_image = 200, not_found = 500 };
char a_module;
}  // namespace

extern "C" {
int cuInit(unsigned) { return success; }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return success;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == not_found ? "named symbol not found" : code == invalid_image ? "device kernel image is invalid" : "?";
  return success;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? success : 101;
}
int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "a GPU made of C++", length);
  return success;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : attribute == 16 ? 3 : -1;
  return success;
}
int cuModuleLoadData(void** module, const void* image) {
  if (std::strncmp(static_cast<const char*>(image), "kernels", 7) != 0) return invalid_image;
  *module = &a_module;
  return success;
}
int cuModuleUnload(void* module) { return module == &a_module ? success : invalid_value; }
int cuModuleGetFunction(void** function, void*, const char* name) {
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) != 0) continue;
    *function = const_cast<Entry*>(&entry);
    return success;
  }
  return not_found;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned,
                   void*, void** arguments, void**) {
  if (x == 0 || y != 1 || z != 1 || threads != THREADS) return invalid_value;
  blocks_of_this_thread = x;
  for (unsigned block = 0; block < x; ++block) {
    block_of_this_thread = block;
    static_cast<const Entry*>(function)->call(arguments);
  }
  return success;
}
}
