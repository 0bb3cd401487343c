// Streams, events, allocations and settings of an accelerator, through libc10's device-generic interface only: the guard
// that is registered for CUDA answers, be it libtorch_cuda's or one that records. So nothing of CUDA is needed to compile
// or to link this, and what runs without a GPU in a test is what runs with one. Codes and texts of errors: guarded.h.
//
// `device` is the index of a CUDA device, `stream` is c10::Stream's id.

#include <cstring>
#include <string>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <c10/core/AutogradState.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "guarded.h"

namespace {
using lockstep::guarded;
using Call = int (*)(void* context);

const c10::impl::DeviceGuardImplInterface* guard() { return c10::impl::getDeviceGuardImpl(c10::kCUDA); }

c10::Device cuda(int8_t device) { return c10::Device(c10::kCUDA, device); }

c10::Stream stream_of(int8_t device, int64_t id) { return c10::Stream(c10::Stream::UNSAFE, cuda(device), id); }
}  // namespace

extern "C" {

// Devices and streams.

// 0 when no guard is registered: libtorch_cuda is not there.
int lockstep_device_guard_registered() { return c10::impl::hasDeviceGuardImpl(c10::kCUDA) ? 1 : 0; }

int lockstep_device_count(int64_t* out) {
  return guarded([&] { *out = guard()->deviceCount(); });
}

int lockstep_device_set(int8_t device) {
  return guarded([&] { guard()->setDevice(cuda(device)); });
}

int lockstep_device_initialise() {
  return guarded([&] { at::globalContext().lazyInitDevice(c10::kCUDA); });
}

int lockstep_device_synchronise(int8_t device) {
  return guarded([&] { guard()->synchronizeDevice(device); });
}

int lockstep_stream_default(int8_t device, int64_t* out) {
  return guarded([&] { *out = guard()->getDefaultStream(cuda(device)).id(); });
}

int lockstep_stream_current(int8_t device, int64_t* out) {
  return guarded([&] { *out = guard()->getStream(cuda(device)).id(); });
}

// A stream of the global pool, which is non-blocking: only events order it. 32 a pool, then the first comes again.
int lockstep_stream_from_pool(int8_t device, int high_priority, int64_t* out) {
  return guarded([&] { *out = guard()->getStreamFromGlobalPool(cuda(device), high_priority != 0).id(); });
}

int lockstep_stream_native(int8_t device, int64_t stream, void** out) {
  return guarded([&] { *out = stream_of(device, stream).native_handle(); });
}

// Runs `call` with `stream` as the current one and without a graph; `call` keeps its own error and panic.
int lockstep_stream_run(int8_t device, int64_t stream, Call call, void* context) {
  return guarded([&] {
    c10::StreamGuard current(stream_of(device, stream));
    c10::AutoGradMode off(false);
    call(context);
  });
}

// Events. The caller sees to it that one is recorded by one thread at a time, and not while another waits for it.

int lockstep_event_new(int timing, c10::Event** out) {
  return guarded([&] {
    *out = new c10::Event(c10::kCUDA, timing != 0 ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT);
  });
}

void lockstep_event_free(c10::Event* event) { delete event; }

void* lockstep_event_native(const c10::Event* event) { return event->eventId(); }

int lockstep_event_record(c10::Event* event, int8_t device, int64_t stream) {
  return guarded([&] { event->record(stream_of(device, stream)); });
}

int lockstep_event_block(const c10::Event* event, int8_t device, int64_t stream) {
  return guarded([&] { event->block(stream_of(device, stream)); });
}

int lockstep_event_query(const c10::Event* event, int* out) {
  return guarded([&] { *out = event->query() ? 1 : 0; });
}

int lockstep_event_synchronise(const c10::Event* event) {
  return guarded([&] { event->synchronize(); });
}

int lockstep_event_elapsed(const c10::Event* from, const c10::Event* to, double* milliseconds) {
  return guarded([&] { *milliseconds = from->elapsedTime(*to); });
}

// Work on the current stream, and memory.

int lockstep_add_out(at::Tensor* out, const at::Tensor* left, const at::Tensor* right) {
  return guarded([&] {
    c10::AutoGradMode off(false);
    at::add_out(*out, *left, *right);
  });
}

int lockstep_copy(at::Tensor* to, const at::Tensor* from) {
  return guarded([&] {
    c10::AutoGradMode off(false);
    to->copy_(*from, /*non_blocking=*/true);
  });
}

int lockstep_pinned(const int64_t* sizes, int64_t dimensions, int8_t kind, at::Tensor** out) {
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).pinned_memory(true);
    *out = new at::Tensor(at::empty(at::IntArrayRef(sizes, static_cast<size_t>(dimensions)), options).zero_());
  });
}

// out: bytes allocated now and at most, bytes reserved now and at most, allocations that failed, allocations that were
// retried after freeing what was cached.
int lockstep_allocator_statistics(int8_t device, int64_t* out) {
  return guarded([&] {
    auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(device);
    const int64_t numbers[6] = {stats.allocated_bytes[0].current, stats.allocated_bytes[0].peak,
                                stats.reserved_bytes[0].current,  stats.reserved_bytes[0].peak,
                                stats.num_ooms,                   stats.num_alloc_retries};
    std::memcpy(out, numbers, sizeof(numbers));
  });
}

int lockstep_allocator_reset_peaks(int8_t device) {
  return guarded([&] { c10::getDeviceAllocator(c10::kCUDA)->resetPeakStats(device); });
}

int lockstep_device_memory(int8_t device, uint64_t* free_bytes, uint64_t* total_bytes) {
  return guarded([&] {
    auto [free, total] = c10::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(device);
    *free_bytes = free;
    *total_bytes = total;
  });
}

// Settings that decide bits. products: 0 cuBLAS, 1 cuBLASLt; attention: 0 flash, 1 memory-efficient, 2 math.

int lockstep_settings_apply(int products, int attention) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    // Otherwise every `empty` is filled, which costs a pass over memory and changes no result of ours.
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(true);
    context.setBenchmarkCuDNN(false);
    // The legacy setters: the new setFloat32Precision leaves the legacy flags on, and reading them then throws.
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    context.setAllowFP16ReductionCuBLAS(false);
    context.setAllowBF16ReductionCuBLAS(false);
    context.setAllowFP16AccumulationCuBLAS(false);
    context.setAllowFP16BF16ReductionMathSDP(false);
    context.setSDPUseFlash(attention == 0);
    context.setSDPUseMemEfficient(attention == 1);
    context.setSDPUseMath(attention == 2);
    context.setSDPUseCuDNN(false);
    context.setSDPUseFA3(false);
    context.setBlasPreferredBackend(products == 0 ? at::BlasBackend::Cublas : at::BlasBackend::Cublaslt);
  });
}

// Every setting as libtorch reports it, one "name=value" a line; the text lives until the next call on this thread.
int lockstep_settings_read(const char** out) {
  static thread_local std::string text;
  return guarded([&] {
    auto& context = at::globalContext();
    text.clear();
    auto add = [&](const char* name, const std::string& value) { text += std::string(name) + "=" + value + "\n"; };
    auto flag = [&](const char* name, bool value) { add(name, value ? "true" : "false"); };
    auto reduction = [&](const char* name, at::CuBLASReductionOption value) {
      add(name, value == at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK         ? "reduced"
                : value == at::CuBLASReductionOption::DisallowReducedPrecisionAllowSplitK ? "full, split-k"
                                                                                          : "full");
    };
    flag("deterministic_algorithms", context.deterministicAlgorithms());
    flag("deterministic_algorithms_warn_only", context.deterministicAlgorithmsWarnOnly());
    flag("deterministic_fill_uninitialized_memory", context.deterministicFillUninitializedMemory());
    flag("deterministic_cudnn", context.deterministicCuDNN());
    flag("benchmark_cudnn", context.benchmarkCuDNN());
    flag("tf32_cublas", context.allowTF32CuBLAS());
    flag("tf32_cudnn", context.allowTF32CuDNN());
    add("float32_precision_cuda_matmul",
        at::precision2str(context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL)));
    reduction("fp16_reduction_cublas", context.allowFP16ReductionCuBLAS());
    reduction("bf16_reduction_cublas", context.allowBF16ReductionCuBLAS());
    flag("fp16_accumulation_cublas", context.allowFP16AccumulationCuBLAS());
    flag("fp16_bf16_reduction_math_attention", context.allowFP16BF16ReductionMathSDP());
    flag("attention_flash", context.userEnabledFlashSDP());
    flag("attention_memory_efficient", context.userEnabledMemEfficientSDP());
    flag("attention_math", context.userEnabledMathSDP());
    flag("attention_cudnn", context.userEnabledCuDNNSDP());
    flag("attention_flash_3", context.userEnabledFA3SDP());
    auto products = context.blasPreferredBackend();
    add("products", products == at::BlasBackend::Cublas     ? "cublas"
                    : products == at::BlasBackend::Cublaslt ? "cublaslt"
                                                            : at::BlasBackendToString(products));
    *out = text.c_str();
  });
}

}  // extern "C"
