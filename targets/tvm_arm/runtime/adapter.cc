// The file is described in adapter_file.py, which writes it.
#include "adapter.h"

#include <cstring>

#include "session.h"

namespace pocketphi_runtime {
namespace {

constexpr char kMagic[] = "POCKETPHI LORA 1";
constexpr int64_t kMagicBytes = sizeof kMagic - 1, kStart = kMagicBytes + 8, kLongestHeader = 1 << 24;
constexpr int64_t kAligned = 64, kStep = 4;
constexpr DataType kFloat32{DataType::kFloat, 32, 1};

}  // namespace

Adapter::Adapter(const Bundle& bundle) {
  static float nothing = 0;  // no kernel reads it
  for (const Adapted& one : bundle.adapted) {
    for (int64_t width : {one.columns, one.rows}) {
      factors_.push_back(std::make_shared<const Tensor>(&nothing, Shape{0, width}, kFloat32));
    }
  }
}

Adapter::Adapter(const Bundle& bundle, const std::string& path) : file_(Mapping::file(path)), mapped_(true) {
  auto refuse = [&](const char* why) { throw Failure(path + ": " + why); };
  const char* data = file_.bytes();
  uint64_t length = 0;
  if (file_.size() < kStart || std::memcmp(data, kMagic, kMagicBytes) != 0) refuse("is no adapter of a bundle");
  std::memcpy(&length, data + kMagicBytes, sizeof length);
  if (length > kLongestHeader || kStart + static_cast<int64_t>(length) > file_.size()) refuse("is cut");
  AdapterHeader header = AdapterHeader::parse(std::string(data + kStart, length), path);
  if (header.params_digest != bundle.params_digest || header.ranks.size() != bundle.adapted.size()) {
    refuse("was made for the weights of another bundle");
  }
  int64_t end = kStart + static_cast<int64_t>(length);
  for (size_t i = 0; i < header.ranks.size(); ++i) {
    int64_t rank = rounded_up(header.ranks[i], kStep);
    for (int64_t width : {bundle.adapted[i].columns, bundle.adapted[i].rows}) {
      int64_t at = rank ? rounded_up(end, kAligned) : end, size = tensor_bytes({rank, width}, kFloat32);
      if (at > file_.size() || size > file_.size() - at) refuse("is cut");
      factors_.push_back(file_.view(at, Shape{rank, width}, kFloat32));
      end = at + size;
    }
  }
  if (end != file_.size()) refuse("is longer than it says");
}

uint64_t Adapter::digest() const { return mapped_ ? xxh64(file_.bytes(), file_.size()) : 0; }

void Adapter::refuse_changed() const {
  if (mapped_) file_.refuse_changed();
}

std::string adapter_path(const Bundle& bundle, const std::string& name) {
  if (name.empty()) throw Failure("no name of an adapter: expected one, or NULL for none");
  if (bundle.adapted.empty()) throw Failure("the bundle was compiled without adapters");
  if (name.find('/') != std::string::npos) return name;
  return bundle.folder + "/adapters/" + name + ".tvm_adapter";
}

}  // namespace pocketphi_runtime
