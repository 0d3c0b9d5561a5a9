// Reading model.json takes most of it: every value is checked, and a message names the place.
#include "bundle.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <locale>
#include <sstream>

#include "json.h"
#include "sampler.h"
#include "session.h"
#include "sha256.h"

namespace pocketphi_runtime {
namespace {

constexpr int64_t kLongest = int64_t{1} << 26;  // bytes of model.json

// A value of a JSON text, with the path by which messages name it: "model.json: cache.shape".
class Field {
 public:
  static Field parse(const std::string& text, const std::string& name) {
    Field root(std::make_shared<const Json>(Json::parse(text, name)), name);
    root.require(Json::Kind::object, "an object");
    return root;
  }

  [[noreturn]] void refuse(const char* expected) const { throw Failure(path_ + ": expected " + expected); }
  std::string text() const { return require(Json::Kind::text, "a text").text; }
  bool flag() const { return require(Json::Kind::flag, "true or false").flag; }
  int64_t number(int64_t low, int64_t high) const {
    int64_t value = require(Json::Kind::whole, "a whole number").whole;
    if (value < low || value > high) {
      throw Failure(path_ + ": " + std::to_string(value) + " is not within " + std::to_string(low) + " to " +
                    std::to_string(high));
    }
    return value;
  }
  int64_t size() const { return number(1, kLargest); }
  // A number with or without a fraction.
  double real(double low, double high) const {
    double value = static_cast<double>(value_->whole);
    if (value_->kind == Json::Kind::fraction) {
      std::istringstream digits(value_->text);
      digits.imbue(std::locale::classic());  // whatever the app's language writes
      digits >> value;
    } else if (value_->kind != Json::Kind::whole) {
      refuse("a number");
    }
    if (!(value >= low && value <= high)) {
      throw Failure(path_ + ": " + value_->written() + " is not within " + plain(low) + " to " + plain(high));
    }
    return value;
  }
  uint64_t hex() const {
    std::string digits = text();
    if (digits.size() != 16 || digits.find_first_not_of("0123456789abcdef") != std::string::npos) refuse("16 hex digits");
    return std::stoull(digits, nullptr, 16);
  }
  bool is_text() const { return value_->kind == Json::Kind::text; }

  bool has(const std::string& key) const {
    const Json* found = require(Json::Kind::object, "an object").find(key);
    return found && found->kind != Json::Kind::null;
  }
  Field operator[](const std::string& key) const {
    if (!has(key)) throw Failure(path_ + ": no \"" + key + "\"");
    return member(key);
  }
  std::vector<Field> list() const {
    std::vector<Field> values;
    for (const Json& item : require(Json::Kind::list, "a list").items) {
      values.push_back(part(item, "[" + std::to_string(values.size()) + "]"));
    }
    return values;
  }
  const std::vector<std::string>& keys() const { return require(Json::Kind::object, "an object").keys; }
  Shape shape() const {
    Shape sizes;
    for (const Field& value : list()) sizes.push_back(value.size());
    return sizes;
  }
  // The name of a kind of number and its bits: float16, uint8.
  DataType dtype() const {
    static const std::map<std::string, DataType::Code> codes = {
        {"int", DataType::kInt}, {"uint", DataType::kUInt}, {"float", DataType::kFloat}};
    std::string name = text();
    for (int bits : {8, 16, 32, 64}) {
      std::string digits = std::to_string(bits);
      if (name.size() <= digits.size() || name.substr(name.size() - digits.size()) != digits) continue;
      auto found = codes.find(name.substr(0, name.size() - digits.size()));
      if (found != codes.end()) return {found->second, static_cast<uint8_t>(bits), 1};
    }
    throw Failure(path_ + ": \"" + name + "\" is no type of number");
  }

  // Fails where this is other than `built`, which may lack some of the outermost names.
  void require_same(const Field& built, bool outermost = true) const {
    if (built.value_->kind == Json::Kind::list) {
      std::vector<Field> mine = this->list(), wanted = built.list();
      if (mine.size() != wanted.size()) differ(std::to_string(wanted.size()) + " of them");
      for (size_t i = 0; i < mine.size(); ++i) mine[i].require_same(wanted[i], false);
    } else if (built.value_->kind == Json::Kind::object) {
      const std::vector<std::string>& wanted = built.keys();
      if (!outermost && keys().size() != wanted.size()) differ(std::to_string(wanted.size()) + " entries");
      for (const std::string& key : wanted) {
        if (has(key) || built.has(key)) (*this)[key].require_same(built.member(key), false);
      }
    } else if (value_->kind != built.value_->kind || value_->written() != built.value_->written()) {
      differ(built.value_->written());
    }
  }

  static constexpr int64_t kLargest = int64_t{1} << 40;

 private:
  Field(std::shared_ptr<const Json> value, std::string path) : value_(std::move(value)), path_(std::move(path)) {}

  const Json& require(Json::Kind kind, const char* expected) const {
    if (value_->kind != kind) refuse(expected);
    return *value_;
  }
  Field part(const Json& item, const std::string& name) const { return {{value_, &item}, path_ + name}; }
  Field member(const std::string& key) const {
    return part(*value_->find(key), (path_.back() == 'n' ? ": " : ".") + key);
  }
  static std::string plain(double value) {
    std::ostringstream written;
    written.imbue(std::locale::classic());
    written << value;
    return written.str();
  }
  [[noreturn]] void differ(const std::string& built) const {
    throw Failure(path_ + ": the library was built for " + built + ": model.json was changed, or is of another build");
  }

  std::shared_ptr<const Json> value_;
  std::string path_;
};

// Pieces of a file, from its beginning to its end.
template <typename Use>
void read_pieces(const File& file, Use use) {
  std::vector<char> piece(1 << 20);
  for (ssize_t count; (count = read(file.number, piece.data(), piece.size())) != 0;) {
    if (count > 0) use(piece.data(), static_cast<size_t>(count));
    else if (errno != EINTR) throw Failure(file.path + ": " + std::strerror(errno));
  }
}

// When a file was last written to, in nanoseconds.
int64_t written(const struct stat& status) {
#if defined(__APPLE__)
  const timespec& time = status.st_mtimespec;
#else
  const timespec& time = status.st_mtim;
#endif
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

std::string read_text(const std::string& path) {
  File file(path);
  if (file.status.st_size > kLongest) throw Failure(path + ": " + std::to_string(file.status.st_size) + " bytes are too many");
  std::string text;
  read_pieces(file, [&](const char* data, size_t count) { text.append(data, count); });
  return text;
}

Param read_param(const Field& value) {
  Param param{value["name"].text(), value["dtype"].dtype(), value["shape"].shape(), 0, 0};
  param.offset = value["offset"].number(0, Field::kLargest);
  param.bytes = tensor_bytes(param.shape, param.dtype);
  if (param.offset % 64) throw Failure("model.json: " + param.name + ": its offset is not a multiple of 64");
  return param;
}

// A function by its name alone, with all parameters, or {"name": …, "params": [indices]}.
Entry read_entry(const Field& entries, const char* role, int64_t param_count) {
  Field found = entries[role];
  Entry entry;
  if (found.is_text()) {
    entry.name = found.text();
    for (int64_t i = 0; i < param_count; ++i) entry.params.push_back(i);
    return entry;
  }
  entry.name = found["name"].text();
  for (const Field& index : found["params"].list()) entry.params.push_back(index.number(0, param_count - 1));
  return entry;
}

void read_model(Bundle* b, const Field& model, const std::string& mode) {
  b->vocab = model["vocab"].size();
  if (model.has("vocabulary")) b->vocabulary = model["vocabulary"].text();
  b->context = model["context"].size();
  b->chunk = model["chunk"].size();
  b->long_rope_after = model.has("long_rope_after") ? model["long_rope_after"].size() : 0;
  Field cache = model["cache"];
  b->cache_count = cache["count"].number(0, 1 << 20);
  if (cache.has("multiple")) b->cache_multiple = cache["multiple"].number(1, 1 << 20);
  if (!model["functions"].has(mode)) throw Failure("mode \"" + mode + "\": the library was built without it");
  Field entries = model["functions"][mode];
  Field shape = cache["shape"][mode];
  b->cache_shape = shape.shape();
  if (b->cache_shape.size() != 3) shape.refuse("[heads, rows, elements of a row]");
  b->cache_dtype = cache["dtype"][mode].dtype();
  int64_t count = static_cast<int64_t>(b->params.size());
  for (const char* role : {"prefill", "decode"}) b->functions[role] = read_entry(entries, role, count);
  if (entries.has("prefill_all")) b->functions["prefill_all"] = read_entry(entries, "prefill_all", count);
}

}  // namespace

AdapterHeader AdapterHeader::parse(const std::string& json, const std::string& path) {
  constexpr int64_t kMostRank = 2048;
  Field header = Field::parse(json, path);
  AdapterHeader made{header["params_digest"].text(), {}};
  for (const Field& rank : header["ranks"].list()) made.ranks.push_back(rank.number(0, kMostRank));
  return made;
}

Options Options::parse(const std::string& text) {
  Options options;
  if (text.empty()) return options;
  Field root = Field::parse(text, "options");
  for (const std::string& key : root.keys()) {
    Field value = root[key];
    if (key == "threads") {
      options.threads = static_cast<int>(value.number(0, 1024));
    } else if (key == "mode") {
      options.mode = value.text();
    } else if (key == "max_tokens") {
      options.max_tokens = value.size();
    } else if (key == "check") {
      options.check = value.flag();
    } else if (key == "draft") {
      static const std::map<std::string, Draft> ways = {
          {"none", Draft::none}, {"auto", Draft::adaptive}, {"always", Draft::always}};
      auto found = ways.find(value.text());
      if (found == ways.end()) value.refuse("\"none\", \"auto\" or \"always\"");
      options.draft = found->second;
    } else if (key == "prefix") {
      options.prefix = value.flag();
    } else {
      throw Failure("options: no option \"" + key + "\"; there are threads, mode, max_tokens, check, draft and prefix");
    }
  }
  return options;
}

Generation Generation::parse(const std::string& text) {
  Generation how;
  if (text.empty()) return how;
  Field root = Field::parse(text, "options");
  for (const std::string& key : root.keys()) {
    Field value = root[key];
    if (key == "limit") {
      how.limit = value.number(0, INT32_MAX);
    } else if (key == "temperature") {
      how.temperature = value.real(0, 1000);
    } else if (key == "top_k") {
      how.top_k = value.number(0, INT32_MAX);
    } else if (key == "top_p") {
      how.top_p = value.real(0, 1);
    } else if (key == "repetition_penalty") {
      how.repetition_penalty = value.real(0.01, 100);
    } else if (key == "seed") {
      how.seed = static_cast<uint64_t>(value.number(0, INT64_MAX));
    } else if (key == "stop") {
      for (const Field& token : value.list()) how.stop.push_back(token.number(0, INT32_MAX));
    } else {
      throw Failure("options: no option \"" + key +
                    "\"; there are limit, temperature, top_k, top_p, repetition_penalty, seed and stop");
    }
  }
  return how;
}

Bundle Bundle::read(const std::string& folder, const std::string& mode) {
  std::string text = read_text(folder + "/model.json");
  Field model = Field::parse(text, folder + "/model.json");
  int64_t format = model["format"].number(0, 1 << 30);
  if (format != 1) {
    throw Failure("model.json: format " + std::to_string(format) + "; this runtime reads format 1: update it");
  }
  Bundle b;
  b.sessions_of = model.has("sessions_of") ? model["sessions_of"].hex() : xxh64(text.data(), text.size());
  b.text = std::move(text);
  b.folder = folder;
  b.os = model["target"]["os"].text();
  b.arch = model["target"]["arch"].text();
  for (const Field& name : model["target"]["features"].list()) b.features.push_back(name.text());
  if (model.has("system_lib")) b.system_lib = model["system_lib"].text();
  b.params_bytes = model["params_bytes"].number(0, Field::kLargest);
  b.params_digest = model["params_digest"].text();
  for (const Field& value : model["params"].list()) {
    b.params.push_back(read_param(value));
    if (b.params.back().offset + b.params.back().bytes > b.params_bytes) {
      throw Failure("model.json: " + b.params.back().name + " ends beyond params_bytes");
    }
  }
  if (model.has("adapters")) {
    for (const Field& one : model["adapters"].list()) b.adapted.push_back({one["rows"].size(), one["columns"].size()});
  }
  read_model(&b, model, mode);
  return b;
}

void Bundle::refuse_other_library(const std::string& description) const {
  Field built = Field::parse(description, "the library's description");
  if (built["params_digest"].text() != params_digest) {
    throw Failure("model.so and model.json are of two builds: their parameters' digests differ");
  }
  Field::parse(text, "model.json").require_same(built);
}

File::File(const std::string& path) : path(path), number(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), status{} {
  if (number < 0 || fstat(number, &status) != 0) throw Failure(path + ": " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) {
    close(number);
    throw Failure(path + ": expected a file");
  }
}

void File::refuse(uint64_t expected) const {
  throw Failure(path + ": " + std::to_string(status.st_size) + " bytes, expected " + std::to_string(expected) +
                ": the copy is not complete, or of another model");
}

File::~File() {
  if (number >= 0) close(number);
}

Mapping Mapping::file(const std::string& path, int64_t bytes) {
  File file(path);
  if (file.status.st_size != bytes) file.refuse(bytes);
  return Mapping::file(path);
}

Mapping Mapping::file(const std::string& path) {
  Mapping mapping;
  mapping.file_ = std::make_unique<File>(path);
  const File& file = *mapping.file_;
  int64_t bytes = file.status.st_size;
  void* data = bytes ? mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.number, 0) : nullptr;
  if (data == MAP_FAILED) throw Failure(path + ": cannot be mapped: " + std::strerror(errno));
  mapping.data_ = data;
  mapping.bytes_ = bytes;
  return mapping;
}

Mapping Mapping::zeros(int64_t bytes) {
  Mapping mapping;
  void* data = bytes ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0) : nullptr;
  if (data == MAP_FAILED) throw Failure("no memory for a K/V cache of " + std::to_string(bytes) + " bytes: ask for fewer max_tokens");
  mapping.data_ = data;
  mapping.bytes_ = bytes;
  return mapping;
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(file_, other.file_);
  return *this;
}

Mapping::~Mapping() {
  if (data_) munmap(data_, bytes_);
}

void Mapping::refuse_changed() const {
  struct stat now;
  if (fstat(file_->number, &now) != 0 || now.st_size != bytes_ || written(now) != written(file_->status)) {
    throw Failure(file_->path + ": it was changed while the model is open: close the model and open it again");
  }
}

void Mapping::forget(int64_t offset, int64_t bytes) const {
  int64_t page = sysconf(_SC_PAGESIZE), start = offset / page * page;
  madvise(static_cast<char*>(data_) + start, offset + bytes - start, MADV_DONTNEED);
}

TensorRef Mapping::view(int64_t offset, const Shape& shape, DataType dtype) const {
  return std::make_shared<const Tensor>(static_cast<char*>(data_) + offset, shape, dtype);
}

int64_t tensor_bytes(const Shape& shape, DataType dtype) {
  int64_t bits = int64_t{dtype.bits} * dtype.lanes;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) throw Failure("model.json: a tensor larger than memory can be");
  }
  return (bits + 7) / 8;
}

std::string file_digest(const std::string& path) {
  Sha256 hash;
  read_pieces(File(path), [&](const char* data, size_t count) { hash.update(reinterpret_cast<const uint8_t*>(data), count); });
  return hash.hex();
}

}  // namespace pocketphi_runtime
