// What TVM's compiler writes: little-endian numbers; texts and lists as a count of 64 bits and what is in them.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "failure.h"

namespace pocketphi_runtime {

// Fails at the end of its bytes.
class Reader {
 public:
  Reader(const char* data, uint64_t size) : at_(data), left_(size) {}

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    auto size = number<uint64_t>();
    const char* data = take(size);
    return {data, data + size};
  }
  std::vector<int64_t> numbers() {
    auto count = number<uint64_t>();
    if (count > left_ / 8) refuse();
    std::vector<int64_t> values(count);
    if (count) std::memcpy(values.data(), take(8 * count), 8 * count);
    return values;
  }
  // A number of things that take a byte each at least.
  uint64_t count() {
    auto count = number<uint64_t>();
    if (count > left_) refuse();
    return count;
  }
  [[noreturn]] static void refuse() { throw Failure("the library is damaged: compile the model again"); }

 private:
  const char* take(uint64_t size) {
    if (size > left_) refuse();
    const char* data = at_;
    at_ += size;
    left_ -= size;
    return data;
  }

  const char* at_;
  uint64_t left_;
};

}  // namespace pocketphi_runtime
