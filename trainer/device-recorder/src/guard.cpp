// A device guard for CUDA that computes nothing: it passes what it is told to Rust, which keeps the log. Registered in
// the place of libtorch_cuda's, it lets a test see every stream and event that a program uses.

#include <cstdint>

#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct Callbacks {
  int8_t (*device)();
  void (*set_device)(int8_t device);
  int64_t (*stream)(int8_t device);
  void (*set_stream)(int8_t device, int64_t stream);
  int64_t (*stream_from_pool)();
  void (*record)(void** event, int64_t stream);
  void (*block)(void* event, int64_t stream);
  int (*query)(void* event);
  void (*synchronise)(void* event);
  int (*query_stream)(int64_t stream);
  void (*synchronise_stream)(int64_t stream);
  void (*synchronise_device)(int8_t device);
  double (*elapsed)(void* from, void* to);
};

constexpr int8_t devices = 2;

// A stream's number in the log: those of the second device come behind the pool's 32 of the first.
int64_t number(const c10::Stream& stream) { return stream.id() + 64 * stream.device_index(); }

struct RecordingGuard final : c10::impl::DeviceGuardImplInterface {
  explicit RecordingGuard(Callbacks callbacks) : to(callbacks) {}

  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device before = getDevice();
    to.set_device(device.index());
    return before;
  }
  c10::Device getDevice() const override { return c10::Device(c10::kCUDA, to.device()); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < devices, "the recorder has no device ", device.index());
    to.set_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { to.set_device(device.index()); }
  c10::DeviceIndex deviceCount() const noexcept override { return devices; }

  c10::Stream getStream(c10::Device device) const override { return of(device, to.stream(device.index())); }
  c10::Stream getDefaultStream(c10::Device device) const override { return of(device, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return of(device, to.stream_from_pool());
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    c10::Stream before = getStream(stream.device());
    to.set_stream(stream.device_index(), stream.id());
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(static_cast<uintptr_t>(0x1000 + number(stream)));
  }
  bool queryStream(const c10::Stream& stream) const override { return to.query_stream(number(stream)) != 0; }
  void synchronizeStream(const c10::Stream& stream) const override { to.synchronise_stream(number(stream)); }
  void synchronizeDevice(const c10::DeviceIndex device) const override { to.synchronise_device(device); }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    to.record(event, number(stream));
  }
  void block(void* event, const c10::Stream& stream) const override { to.block(event, number(stream)); }
  bool queryEvent(void* event) const override { return to.query(event) != 0; }
  void synchronizeEvent(void* event) const override { to.synchronise(event); }
  double elapsedTime(void* from, void* until, const c10::DeviceIndex) const override { return to.elapsed(from, until); }

 private:
  static c10::Stream of(c10::Device device, int64_t id) { return c10::Stream(c10::Stream::UNSAFE, device, id); }
  Callbacks to;
};
}  // namespace

extern "C" {
// Registers the guard, for the life of the process; 1 if another one is registered for CUDA already.
int lockstep_recorder_register(const Callbacks* callbacks) {
  if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) return 1;
  // Never freed: libtorch asks for it until the process ends.
  c10::impl::DeviceGuardImplRegistrar registrar(c10::kCUDA, new RecordingGuard(*callbacks));
  return 0;
}
}
