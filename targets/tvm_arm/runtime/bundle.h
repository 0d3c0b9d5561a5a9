// A bundle on disk: model.json, read and checked, and model.params, mapped.
#pragma once
#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "failure.h"
#include "value.h"

namespace pocketphi_runtime {

struct Options {
  int threads = 0;
  std::string mode = "saved";
  int64_t max_tokens = 0;  // 0: the model's context
  bool check = false;
  enum class Draft { none, adaptive, always } draft = Draft::none;
  bool prefix = true;

  static Options parse(const std::string& json);
};

struct Param {
  std::string name;
  DataType dtype;
  Shape shape;
  int64_t offset, bytes;
};

// A function of the library. params: which of the bundle's, in order.
struct Entry {
  std::string name;
  std::vector<int64_t> params;
};

// A weight that may have an adapter.
struct Adapted {
  int64_t rows, columns;
};

// What an adapter's file says of itself. ranks: of each weight that may have some.
struct AdapterHeader {
  std::string params_digest;
  std::vector<int64_t> ranks;

  static AdapterHeader parse(const std::string& json, const std::string& path);
};

struct Bundle {
  std::string folder;
  std::string os, arch;
  std::vector<std::string> features;
  std::string system_lib;  // prefix of the library's symbols where it is linked into the app; "" where it is model.so
  int64_t vocab, context, chunk;
  std::string vocabulary;  // digest of the tokenizer's tokens and their numbers; "" where there is none
  int64_t long_rope_after;  // 0: none
  int64_t cache_count;
  Shape cache_shape;  // [heads, rows, elements of a row]
  int64_t cache_multiple = 1;  // of which its rows are
  DataType cache_dtype;
  std::map<std::string, Entry> functions;  // of the chosen mode, by role: prefill, decode, prefill_all
  std::vector<Param> params;
  int64_t params_bytes;
  std::string params_digest;
  std::vector<Adapted> adapted;

  std::string text;  // of model.json
  uint64_t sessions_of;  // XXH64 of the model.json that saved conversations belong to: this one, or one for another CPU

  static Bundle read(const std::string& folder, const std::string& mode);

  // Fails where model.json says other than `description`: what the library says that it was built for, JSON as well.
  void refuse_other_library(const std::string& description) const;
};

// An open file, and what it was when it was opened. Fails for anything but a regular file: a pipe would never end.
class File {
 public:
  explicit File(const std::string& path);
  File(const File&) = delete;
  ~File();

  // For a file of another size than is expected, in bytes.
  [[noreturn]] void refuse(uint64_t expected) const;

  std::string path;
  int number;
  struct stat status;
};

// Bytes in memory that a tensor may view: a file, read-only, or zeros that cost nothing until they are written.
class Mapping {
 public:
  static Mapping file(const std::string& path, int64_t bytes);
  static Mapping file(const std::string& path);
  static Mapping zeros(int64_t bytes);
  Mapping() = default;
  Mapping(Mapping&& other) noexcept { *this = std::move(other); }
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // Fails if the file was written to or cut since it was mapped: its weights are others now, or none.
  void refuse_changed() const;

  // Of a file: these bytes will not be read again soon, and need not count as memory of the process.
  void forget(int64_t offset, int64_t bytes) const;

  const char* bytes() const { return static_cast<const char*>(data_); }
  int64_t size() const { return bytes_; }
  TensorRef view(int64_t offset, const Shape& shape, DataType dtype) const;

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  std::unique_ptr<File> file_;
};

// SHA-256 of a file in hex, read in pieces, so that it does not stay in memory.
std::string file_digest(const std::string& path);

}  // namespace pocketphi_runtime
