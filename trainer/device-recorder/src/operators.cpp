// Tells what every operator of libtorch reads and writes, as it begins, on the thread that calls it. An argument that the
// operator's schema marks as written is written; one that it hands on as a view is not touched by that; all others are read.

#include <cstdint>
#include <memory>

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>

namespace {
using Touch = void (*)(const char* name, uintptr_t first, size_t bytes, int writes);

bool (*is_wanted)() = nullptr;
Touch touch = nullptr;

void tell(const char* name, const at::Tensor& tensor, bool writes) {
  if (!tensor.defined() || !tensor.has_storage() || tensor.numel() == 0) return;
  int64_t last = 0;
  for (int64_t dimension = 0; dimension < tensor.dim(); ++dimension) {
    last += (tensor.size(dimension) - 1) * tensor.stride(dimension);
  }
  touch(name, reinterpret_cast<uintptr_t>(tensor.const_data_ptr()), (last + 1) * tensor.element_size(), writes ? 1 : 0);
}

std::unique_ptr<at::ObserverContext> begins(const at::RecordFunction& function) {
  if (!is_wanted()) return nullptr;
  const auto schema = function.operator_schema();
  if (!schema) return nullptr;
  const char* name = function.name();
  const auto inputs = function.inputs();
  const auto& arguments = schema->arguments();
  for (size_t place = 0; place < inputs.size() && place < arguments.size(); ++place) {
    const auto* alias = arguments[place].alias_info();
    const bool writes = alias != nullptr && alias->isWrite();
    if (alias != nullptr && !writes) continue;
    const auto& input = inputs[place];
    if (input.isTensor()) {
      tell(name, input.toTensor(), writes);
    } else if (input.isTensorList()) {
      for (const at::Tensor& tensor : input.toTensorVector()) tell(name, tensor, writes);
    }
  }
  return nullptr;
}
}  // namespace

extern "C" {
// Tells of every operator from now on, for the life of the process, while `wanted` says so. Called once.
void lockstep_recorder_observe_operators(bool (*wanted)(), Touch tell_touch) {
  is_wanted = wanted;
  touch = tell_touch;
  at::addGlobalCallback(
      at::RecordFunctionCallback(begins).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
}
}
