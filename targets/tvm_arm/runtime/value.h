// What a register of the virtual machine holds.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "abi.h"

namespace pocketphi_runtime {

using Shape = std::vector<int64_t>;

inline int64_t rounded_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

struct Storage {
  std::shared_ptr<void> memory;
  int64_t bytes;
};

// A tensor as kernels see it. It stays where it was made, as the header points into it.
class Tensor {
 public:
  // memory: kept while the tensor lives; null for what somebody else keeps.
  Tensor(void* data, const Shape& shape, DataType dtype, std::shared_ptr<void> memory = nullptr)
      : shape_(shape), strides_(shape.size()), memory_(std::move(memory)) {
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides_[i] = stride;
    header_ = {data, {Device::kCpu, 0}, static_cast<int32_t>(shape.size()), dtype, shape_.data(), strides_.data(), 0};
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const TensorHeader& header() const { return header_; }
  const Shape& shape() const { return shape_; }
  DataType dtype() const { return header_.dtype; }
  template <typename T>
  T* data() const {
    return static_cast<T*>(header_.data);
  }

 private:
  Shape shape_, strides_;
  std::shared_ptr<void> memory_;
  TensorHeader header_;
};

using TensorRef = std::shared_ptr<const Tensor>;
using Value = std::variant<std::monostate, int64_t, DataType, std::string, Shape, Storage, TensorRef>;

// Fails where it takes more than 63 bits to count them.
int64_t tensor_bytes(const Shape& shape, DataType dtype);

}  // namespace pocketphi_runtime
