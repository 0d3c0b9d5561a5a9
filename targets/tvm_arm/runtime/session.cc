#include "session.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "failure.h"

namespace pocketphi_runtime {
namespace {

constexpr char kMagic[] = "POCKETPHI TALK 1";
constexpr int64_t kMagicBytes = sizeof kMagic - 1, kSum = 8, kMost = int64_t{1} << 40, kPiece = 1 << 20;

int64_t whole(int64_t bytes) { return rounded_up(bytes, 8); }

uint64_t turned(uint64_t value, int by) { return value << by | value >> (64 - by); }

template <typename T>
T read_as(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// A new file beside the one that it becomes.
class Writing {
 public:
  explicit Writing(const std::string& path) : path_(path), part_(path + "." + std::to_string(getpid()) + ".part") {
    file_ = std::fopen(part_.c_str(), "wb");
    if (!file_) fail();
  }
  Writing(const Writing&) = delete;
  ~Writing() {
    if (file_) std::fclose(file_), std::remove(part_.c_str());
  }

  void add(const void* data, size_t size) {
    if (size && std::fwrite(data, 1, size, file_) != size) fail();
    sum_.update(data, size);
  }
  void fill(int64_t bytes) {
    const char zeros[8] = {};
    add(zeros, whole(bytes) - bytes);
  }
  void end() {
    uint64_t sum = sum_.digest();
    if (std::fwrite(&sum, 1, sizeof sum, file_) != sizeof sum || std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) fail();
    if (std::rename(part_.c_str(), path_.c_str()) != 0) fail();
    std::fclose(std::exchange(file_, nullptr));
  }

 private:
  [[noreturn]] void fail() const { throw Failure(path_ + ": cannot be written: " + std::strerror(errno)); }

  std::string path_, part_;
  std::FILE* file_;
  Xxh64 sum_;
};

}  // namespace

void Xxh64::take(const uint8_t* stripe) {
  for (int i = 0; i < 4; ++i) sums_[i] = turned(sums_[i] + read_as<uint64_t>(stripe + 8 * i) * kPrimes[1], 31) * kPrimes[0];
}

void Xxh64::update(const void* data, size_t size) {
  auto at = static_cast<const uint8_t*>(data);
  size_t used = size_ % sizeof rest_;
  size_ += size;
  if (used) {
    size_t more = std::min(size, sizeof rest_ - used);
    std::memcpy(rest_ + used, at, more);
    at += more, size -= more;
    if (used + more < sizeof rest_) return;
    take(rest_);
  }
  for (; size >= sizeof rest_; at += sizeof rest_, size -= sizeof rest_) take(at);
  if (size) std::memcpy(rest_, at, size);
}

uint64_t Xxh64::digest() const {
  uint64_t sum = kPrimes[4];
  if (size_ >= sizeof rest_) {
    sum = turned(sums_[0], 1) + turned(sums_[1], 7) + turned(sums_[2], 12) + turned(sums_[3], 18);
    for (uint64_t one : sums_) sum = (sum ^ turned(one * kPrimes[1], 31) * kPrimes[0]) * kPrimes[0] + kPrimes[3];
  }
  sum += size_;
  const uint8_t *at = rest_, *end = rest_ + size_ % sizeof rest_;
  for (; end - at >= 8; at += 8) {
    sum = turned(sum ^ turned(read_as<uint64_t>(at) * kPrimes[1], 31) * kPrimes[0], 27) * kPrimes[0] + kPrimes[3];
  }
  if (end - at >= 4) {
    sum = turned(sum ^ read_as<uint32_t>(at) * kPrimes[0], 23) * kPrimes[1] + kPrimes[2];
    at += 4;
  }
  for (; at < end; ++at) sum = turned(sum ^ *at * kPrimes[4], 11) * kPrimes[0];
  sum = (sum ^ sum >> 33) * kPrimes[1];
  sum = (sum ^ sum >> 29) * kPrimes[2];
  return sum ^ sum >> 32;
}

uint64_t xxh64(const void* data, size_t size) {
  Xxh64 sum;
  sum.update(data, size);
  return sum.digest();
}

void write_session(const std::string& path, const SessionHead& head, const std::vector<int32_t>& tokens, const std::string& note,
                   const std::vector<CachePiece>& pieces) {
  Writing file(path);
  file.add(kMagic, kMagicBytes);
  file.add(&head, sizeof head);
  int64_t bytes = head.tokens * static_cast<int64_t>(sizeof tokens[0]);
  file.add(tokens.data(), bytes);
  file.fill(bytes);
  file.add(note.data(), note.size());
  file.fill(head.note);
  for (const CachePiece& piece : pieces) {
    file.add(piece.numbers, head.rows * head.numbers);
    file.add(piece.scales, head.rows * head.scales);
  }
  file.end();
}

void Session::refuse(const char* why) const { throw Failure(path_ + ": " + why); }

Session::Session(const std::string& path) : path_(path), file_(Mapping::file(path)) {
  const char* data = file_.bytes();
  int64_t start = kMagicBytes + static_cast<int64_t>(sizeof head_);
  if (file_.size() < kMagicBytes || std::memcmp(data, kMagic, kMagicBytes - 1) != 0) refuse("is no session");
  if (data[kMagicBytes - 1] != kMagic[kMagicBytes - 1]) refuse("is a session of another version");
  if (file_.size() < start + kSum) refuse("is cut");
  std::memcpy(&head_, data + kMagicBytes, sizeof head_);
  for (int64_t count : {head_.tokens, head_.rows, head_.numbers, head_.scales, head_.note, head_.pieces}) {
    if (count < 0 || count > kMost) refuse("is damaged");
  }
  tokens_at_ = start;
  note_at_ = tokens_at_ + whole(head_.tokens * static_cast<int64_t>(sizeof(int32_t)));
  pieces_at_ = note_at_ + whole(head_.note);
  int64_t bytes = head_.numbers + head_.scales, end;
  if (__builtin_mul_overflow(bytes, head_.rows, &bytes) || __builtin_mul_overflow(bytes, head_.pieces, &bytes) ||
      __builtin_add_overflow(bytes, pieces_at_ + kSum, &end)) {
    refuse("is damaged");
  }
  if (end != file_.size()) refuse(end > file_.size() ? "is cut" : "is longer than it says");
}

void Session::check() const {
  Xxh64 sum;
  int64_t end = file_.size() - kSum;
  for (int64_t at = 0; at < end; at += kPiece) {
    int64_t bytes = std::min(kPiece, end - at);
    sum.update(file_.bytes() + at, bytes);
    file_.forget(at, bytes);
  }
  if (sum.digest() != read_as<uint64_t>(reinterpret_cast<const uint8_t*>(file_.bytes()) + end)) refuse("is damaged");
}

std::vector<int32_t> Session::tokens() const {
  std::vector<int32_t> found(head_.tokens);
  if (head_.tokens) std::memcpy(found.data(), file_.bytes() + tokens_at_, found.size() * sizeof found[0]);
  return found;
}

std::string Session::note() const { return std::string(file_.bytes() + note_at_, head_.note); }

void Session::restore(const std::vector<CachePiece>& pieces) const {
  const char* at = file_.bytes() + pieces_at_;
  int64_t numbers = head_.rows * head_.numbers, scales = head_.rows * head_.scales;
  for (const CachePiece& piece : pieces) {
    std::memcpy(piece.numbers, at, numbers);
    std::memcpy(piece.scales, at + numbers, scales);
    file_.forget(at - file_.bytes(), numbers + scales);
    at += numbers + scales;
  }
}

}  // namespace pocketphi_runtime
