// Ours: TVM's wheel ships its runtime's sources without this header. It serves tensors as text, which no model here holds.
#pragma once
#include <tvm/ffi/error.h>
#include <tvm/support/io.h>

namespace tvm {
namespace support {

class NoBase64 : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit NoBase64(Stream*) {}
  size_t Read(void*, size_t) override { refuse(); }
  size_t Write(const void*, size_t) override { refuse(); }
  void InitPosition() {}
  void Finish() {}

 private:
  [[noreturn]] static void refuse() { TVM_FFI_THROW(InternalError) << "tensors as text are not part of this runtime"; }
};
using Base64InStream = NoBase64;
using Base64OutStream = NoBase64;

}  // namespace support
}  // namespace tvm
