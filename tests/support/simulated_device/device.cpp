// A device of ordinary memory for PyTorch: real tensors that must not mix with tensors of the CPU, counters of what
// an accelerator would wait for, and float64 that may be refused. Every operation runs on the CPU.
// After shared/simdev/sim.cpp, which was given to this project.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>

namespace {
constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

std::map<std::string, int64_t> counted;
std::mutex counting;
bool has_float64 = true;
thread_local int inside = 0;  // an operation that runs on the CPU copies its operands: these copies do not count

void count(const std::string& name) {
  if (inside) return;
  std::lock_guard<std::mutex> guard(counting);
  counted[name]++;
}

struct Inside {
  Inside() { inside++; }
  ~Inside() { inside--; }
};

bool is_here(const at::Tensor& tensor) { return tensor.device().type() == KIND; }

// ---- memory ----
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {place, place, &c10::free_cpu, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

void grow(c10::StorageImpl* storage, size_t bytes) {
  auto fresh = memory.allocate(bytes);
  if (fresh.get() && storage->data()) memcpy(fresh.get(), storage->data(), std::min(bytes, (size_t)storage->nbytes()));
  storage->set_data_ptr_noswap(std::move(fresh));
  storage->set_nbytes(bytes);
}

// ---- what PyTorch asks of a device: it has one, and one stream ----
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = KIND;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Generator : at::CPUGeneratorImpl {
  explicit Generator(uint64_t seed) : at::CPUGeneratorImpl(seed) {
    device_ = DEVICE;
    key_set_ = KEYS;
  }
};

struct Hooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::make_generator<Generator>(0);
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(0); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    grow(storage.unsafeGetStorageImpl(), bytes);
  }
};

// ---- tensors ----
void check(at::ScalarType type) {
  TORCH_CHECK_TYPE(
      has_float64 || type != at::kDouble,
      "Cannot convert a SIM Tensor to float64 dtype as the SIM framework doesn't support float64.");
}

at::Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  auto type = c10::dtype_or_default(dtype);
  check(type);
  return at::detail::empty_generic(size, &memory, KEYS, type, format);
}

at::Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  auto type = c10::dtype_or_default(dtype);
  check(type);
  return at::detail::empty_strided_generic(size, strides, &memory, KEYS, type);
}

// The same memory as a tensor of the CPU.
at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  char* start = tensor.numel() ? static_cast<char*>(tensor.storage().mutable_data()) : nullptr;
  if (start) start += tensor.storage_offset() * tensor.element_size();
  auto keep = tensor;
  return at::from_blob(start, tensor.sizes(), tensor.strides(), [keep](void*) {}, at::TensorOptions().dtype(tensor.dtype()));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (is_here(from) && !is_here(to)) count("sync: copy to the CPU");
  if (!is_here(from) && is_here(to)) count("copy from the CPU");
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  if (to.numel()) as_cpu(to).copy_(as_cpu(from).expand_as(to));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  count("sync: item");
  return at::_local_scalar_dense(as_cpu(tensor));
}

at::Tensor& set_storage(
    at::Tensor& tensor, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef strides) {
  return at::native::set_storage_cpu_(tensor, storage, offset, size, strides);
}

const at::Tensor& resize(const at::Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  size_t bytes = at::detail::computeStorageNbytesContiguous(size, tensor.element_size(), tensor.storage_offset());
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) grow(storage, bytes);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

// ---- every other operation: checked as an accelerator would, then run on the CPU ----
// Operations whose result has a size or a value that Python waits for.
const std::set<std::string> WAITS = {"aten::nonzero", "aten::_unique2",     "aten::unique_dim",
                                     "aten::equal",   "aten::masked_select", "aten::is_nonzero"};
// Operations that take indices from the CPU: they copy them at each call.
const std::set<std::string> INDEXED = {"aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put_",
                                       "aten::index_put",    "aten::_index_put_impl_"};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto name = op.schema().name();
  if (!op.schema().overload_name().empty()) name += "." + op.schema().overload_name();
  std::vector<at::Tensor> operands;
  for (size_t at = stack->size() - op.schema().arguments().size(); at < stack->size(); ++at) {
    const auto& value = (*stack)[at];
    if (value.isTensor()) operands.push_back(value.toTensor());
    else if (value.isTensorList()) for (const at::Tensor& each : value.toTensorVector()) operands.push_back(each);
    else if (value.isOptionalTensorList())
      for (const auto& each : value.toOptionalTensorList().vec()) if (each) operands.push_back(*each);
  }
  bool here = false, on_cpu = false;
  for (const auto& each : operands) {
    if (!each.defined()) continue;
    here |= is_here(each);
    on_cpu |= each.device().is_cpu() && each.dim() > 0;  // a number may be on the CPU
  }
  if (WAITS.count(name)) count("sync: " + name);
  if (INDEXED.count(name))
    for (size_t at = 1; at < operands.size(); ++at)
      if (operands[at].scalar_type() == at::kBool && name == "aten::index.Tensor") count("sync: index by a mask");
  if (here && on_cpu) {
    bool may = INDEXED.count(name) && is_here(operands[0]);
    if (may) count("index on the CPU");
    TORCH_CHECK(
        may, "Expected all tensors to be on the same device, but found at least two devices, sim:0 and cpu! (", name, ")");
  }
  Inside now;
  at::native::cpu_fallback(op, stack);
}

// A convolution needs a backend of its own: no fallback is asked for it.
at::Tensor there(const at::Tensor& made) { return made.defined() ? made.to(DEVICE) : made; }

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups) {
  TORCH_CHECK(is_here(input) && is_here(weight), "Expected all tensors of a convolution to be on sim:0");
  Inside now;
  std::optional<at::Tensor> added;
  if (bias && bias->defined()) added = as_cpu(*bias);
  return there(at::convolution(
      as_cpu(input), as_cpu(weight), added, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> needed) {
  Inside now;
  int64_t channels = gradient.size(1);
  auto [one, two, three] = at::convolution_backward(
      as_cpu(gradient), as_cpu(input), as_cpu(weight), c10::IntArrayRef(&channels, 1), stride, padding, dilation,
      transposed, output_padding, groups, needed);
  return {there(one), there(two), there(three)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_", at::native::set_cpu_);
  m.impl("resize_", resize);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
}

// Let `tensor` have the place and values of `other` and stay the same object, as `tensor.data = other` does between the
// CPU and CUDA; for other devices PyTorch refuses it.
void become(const at::Tensor& tensor, const at::Tensor& other) {
  tensor.unsafeGetTensorImpl()->shallow_copy_from(other.getIntrusivePtr());
  if (auto* meta = torch::autograd::impl::get_autograd_meta(tensor)) meta->grad_accumulator_.reset();
}
}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("register", [] {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  });
  m.def("counts", [] {
    std::lock_guard<std::mutex> guard(counting);
    return counted;
  });
  m.def("forget_counts", [] {
    std::lock_guard<std::mutex> guard(counting);
    counted.clear();
  });
  m.def("allow_float64", [](bool allowed) { has_float64 = allowed; });
  m.def("become", &become);
}
