// A conversation in a file: its tokens, what the cache has of them, and a text of the app's.
//
//   "POCKETPHI TALK 1"                                  16 bytes
//   bundle, adapter                                     XXH64 of model.json, and of the adapter's file or 0
//   tokens, rows, numbers, scales, note, pieces         counts; bytes of a token's numbers and scales for a head; bytes of the note
//   the tokens, int32; the note                         each filled up to 8 bytes
//   for each piece of the cache: rows × numbers bytes, then rows × scales bytes
//   XXH64 of all of this
//
// Numbers are of 64 bits, the lower bytes first, as on all machines that a library is made for.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bundle.h"

namespace pocketphi_runtime {

// XXH64 (Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), seed 0.
class Xxh64 {
 public:
  void update(const void* data, size_t size);
  uint64_t digest() const;

 private:
  void take(const uint8_t* stripe);

  static constexpr uint64_t kPrimes[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                                         0x27D4EB2F165667C5};
  uint64_t sums_[4] = {kPrimes[0] + kPrimes[1], kPrimes[1], 0, 0 - kPrimes[0]};
  uint8_t rest_[32] = {};
  uint64_t size_ = 0;
};

uint64_t xxh64(const void* data, size_t size);

// Where a part of a cache lies: the numbers of a head's rows one after the other, and their scales.
struct CachePiece {
  char* numbers;
  char* scales;
};

struct SessionHead {
  uint64_t bundle, adapter;
  int64_t tokens, rows, numbers, scales, note, pieces;
};

// Write a session; a file of this name is replaced once the new one is whole. Fails with a line that names the file.
void write_session(const std::string& path, const SessionHead& head, const std::vector<int32_t>& tokens, const std::string& note,
                   const std::vector<CachePiece>& pieces);

// A session in a file, as long as it says.
class Session {
 public:
  explicit Session(const std::string& path);

  // Fails if the sum is another one. Reads all of the file.
  void check() const;

  const SessionHead& head() const { return head_; }
  std::vector<int32_t> tokens() const;
  std::string note() const;

  // Into a cache that has a piece for each of the session's.
  void restore(const std::vector<CachePiece>& pieces) const;

 private:
  [[noreturn]] void refuse(const char* why) const;

  std::string path_;
  Mapping file_;
  SessionHead head_;
  int64_t tokens_at_, note_at_, pieces_at_;
};

}  // namespace pocketphi_runtime
