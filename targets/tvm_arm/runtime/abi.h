// What a compiled kernel and its caller know of each other: C structures of DLPack, of TVM's function interface, and of the loops
// that a kernel shares out. TVM keeps them stable; a test compares them with the headers in its wheel.
#pragma once
#include <cstdint>

namespace pocketphi_runtime {

// DLDataType
struct DataType {
  enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2 };
  uint8_t code, bits;
  uint16_t lanes;

  bool operator==(const DataType& other) const { return code == other.code && bits == other.bits && lanes == other.lanes; }
  bool operator!=(const DataType& other) const { return !(*this == other); }
};

// DLDevice
struct Device {
  static constexpr int32_t kCpu = 1;
  int32_t type, id;
};

// DLTensor
struct TensorHeader {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

// TVMFFIAny
struct Argument {
  enum Type : int32_t { kNone = 0, kInt = 1, kTensor = 7 };
  int32_t type;
  uint32_t padding;
  union {
    int64_t number;
    const void* pointer;
  };
};

// TVMFFISafeCallType. 0, or another number after it said why: see raised.h.
using Kernel = int (*)(void* self, const Argument* arguments, int32_t count, Argument* result);

// TVMParallelGroupEnv
struct LoopGroup {
  void* sync;
  int32_t parts;
};

// FTVMParallelLambda: one part of a loop.
using LoopBody = int (*)(int part, LoopGroup* group, void* data);

}  // namespace pocketphi_runtime
