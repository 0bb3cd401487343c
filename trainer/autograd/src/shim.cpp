// What tch lacks, and nothing more: a gradient slot on a leaf, a hook that fires when a leaf's gradient has been
// accumulated, functions whose backward is a Rust closure, tensors over memory that Rust owns, a count of what tensors take,
// and the switch for subnormal numbers.
//
// Codes and texts of errors: guarded.h. Rust callbacks return non-zero when they failed (they have kept their own error);
// only a std::runtime_error leaves a hook or a node, since libtorch ends the process on anything else.

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include "guarded.h"

namespace {
using lockstep::guarded;

// On failure `why` is a text of the context, valid until the next call.
using Ready = int (*)(void* context, const char** why);
using Drop = void (*)(void* context);
// gradients: n_out tensors or null, borrowed; inputs: n_in places, each filled with an owned tensor or left null.
using Backward = int (*)(void* context, at::Tensor** gradients, at::Tensor** inputs);

struct ReadyHook : torch::autograd::PostAccumulateGradHook {
  ReadyHook(Ready call, Drop drop, void* context) : call(call), drop(drop), context(context) {}
  ~ReadyHook() override { drop(context); }
  void operator()(const at::Tensor&) override {
    const char* why = "";
    if (call(context, &why) != 0) throw std::runtime_error(std::string("a gradient-ready hook failed: ") + why);
  }
  Ready call;
  Drop drop;
  void* context;
};

struct RustNode : torch::autograd::Node {
  ~RustNode() override { release(); }
  std::string name() const override { return label; }
  void release_variables() override { release(); }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    if (context == nullptr) throw std::runtime_error(label + ": backward was already run through this node");
    std::vector<at::Tensor*> in(gradients.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = gradients[i].defined() ? &gradients[i] : nullptr;
    std::vector<at::Tensor*> out(num_outputs(), nullptr);
    int code = backward(context, in.data(), out.data());
    torch::autograd::variable_list result(out.size());
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] == nullptr) continue;
      result[i] = std::move(*out[i]);
      delete out[i];
    }
    if (code != 0) throw std::runtime_error(label + ": the Rust backward failed");
    return result;
  }
  void release() {
    if (context != nullptr) drop(context);
    context = nullptr;
  }
  std::string label;
  Backward backward = nullptr;
  Drop drop = nullptr;
  void* context = nullptr;
};

// Counts what tensors of a thread, and of its backward passes, take of the host's memory.
struct TensorBytes : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device device) override {
    if (!device.is_cpu()) return;
    int64_t now = allocated.fetch_add(bytes) + bytes;
    int64_t most = largest.load();
    while (now > most && !largest.compare_exchange_weak(most, now)) {
    }
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::atomic<int64_t> allocated{0};
  std::atomic<int64_t> largest{0};
};
}  // namespace

extern "C" {

const char* lockstep_last_error() { return lockstep::last_error.c_str(); }

// The accelerator's own number of the last error with code 3.
int lockstep_last_accelerator_code() { return lockstep::last_accelerator_code; }

// Of the headers this was compiled with (libtorch itself), and of the libraries that are loaded (products).
const char* lockstep_library_versions() {
  static const std::string text =
      std::string("libtorch ") + TORCH_VERSION + "; " + at::get_mkl_version() + "; " + at::get_mkldnn_version();
  return text.c_str();
}

// Whether this thread, and those that it starts, take subnormal numbers for zero; -1 where the processor cannot.
int lockstep_subnormals_are_zero(int zero) { return at::Context::setFlushDenormal(zero != 0) ? 0 : -1; }

// Counts tensors of this thread from now on; `out` is to be given back to lockstep_stop_counting, on the same thread.
int lockstep_count_tensor_bytes(void** out) {
  return guarded([&] {
    auto counter = std::make_shared<TensorBytes>();
    *out = new c10::DebugInfoGuard(c10::DebugInfoKind::PROFILER_STATE, counter);
  });
}

void lockstep_stop_counting(void* guard) { delete static_cast<c10::DebugInfoGuard*>(guard); }

// The largest number of bytes since the last call on this thread; -1 where nothing counts.
int64_t lockstep_most_tensor_bytes() {
  auto* counter =
      dynamic_cast<TensorBytes*>(c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE));
  return counter == nullptr ? -1 : counter->largest.exchange(counter->allocated.load());
}

int lockstep_set_gradient(at::Tensor* leaf, at::Tensor* slot) {
  return guarded([&] { leaf->mutable_grad() = *slot; });
}

int lockstep_set_hook(at::Tensor* leaf, Ready call, Drop drop, void* context) {
  auto hook = std::make_unique<ReadyHook>(call, drop, context);
  return guarded([&] { torch::autograd::impl::set_post_acc_grad_hooks(*leaf, std::move(hook)); });
}

int lockstep_set_gradient_kind_float(at::Tensor* leaf) {
  return guarded([&] { leaf->set_grad_dtype(at::kFloat); });
}

// A tensor over `data`, which lies on `device` (-1: the host, else the index of a CUDA device).
int lockstep_over_memory(void* data, const int64_t* sizes, int64_t dimensions, int8_t kind, int8_t device, Drop drop,
                         void* context, at::Tensor** out) {
  return guarded([&] {
    c10::Device where = device < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, device);
    *out = new at::Tensor(at::from_blob(
        data, at::IntArrayRef(sizes, static_cast<size_t>(dimensions)), [drop, context](void*) { drop(context); },
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).device(where), where));
  });
}

// Makes `outputs` results of a function of `inputs`. Owns `context` from here on, also when it fails.
int lockstep_custom(const char* label, at::Tensor** inputs, int64_t n_in, at::Tensor** outputs, int64_t n_out,
                    Backward backward, Drop drop, void* context) {
  auto node = c10::make_intrusive<RustNode>();
  node->label = label;
  node->backward = backward;
  node->drop = drop;
  node->context = context;
  return guarded([&] {
    torch::autograd::edge_list edges;
    for (int64_t i = 0; i < n_in; ++i) {
      edges.push_back(inputs[i]->requires_grad() ? torch::autograd::impl::gradient_edge(*inputs[i])
                                                 : torch::autograd::Edge());
    }
    node->set_next_edges(std::move(edges));
    for (int64_t i = 0; i < n_out; ++i) torch::autograd::set_history(*outputs[i], node);
  });
}

}  // extern "C"
