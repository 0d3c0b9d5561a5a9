// Ours: TVM's wheel ships its runtime's sources without this header. A queue of bytes between a socket and its reader.
#pragma once
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace tvm {
namespace support {
class RingBuffer {
 public:
  void Reserve(size_t size) { bytes_.reserve(size); }
  size_t bytes_available() const { return bytes_.size() - begin_; }

  void Write(const void* data, size_t size) {
    compact();
    const char* from = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  void Read(void* data, size_t size) {
    if (size > bytes_available()) throw std::runtime_error("fewer bytes than were asked for");
    std::memcpy(data, bytes_.data() + begin_, size);
    begin_ += size;
  }
  // `send(data, size)` takes at most `most` bytes and returns how many it took.
  template <typename Send>
  size_t ReadWithCallback(Send send, size_t most) {
    size_t size = most < bytes_available() ? most : bytes_available();
    size_t taken = send(bytes_.data() + begin_, size);
    begin_ += taken;
    return taken;
  }
  // `receive(data, size)` fills at most `most` bytes and returns how many it filled.
  template <typename Receive>
  size_t WriteWithCallback(Receive receive, size_t most) {
    compact();
    size_t end = bytes_.size();
    bytes_.resize(end + most);
    size_t filled = receive(bytes_.data() + end, most);
    bytes_.resize(end + filled);
    return filled;
  }

 private:
  void compact() {
    if (begin_ == bytes_.size()) {
      bytes_.clear();
      begin_ = 0;
    }
  }
  std::vector<char> bytes_;
  size_t begin_ = 0;
};
}  // namespace support
}  // namespace tvm
