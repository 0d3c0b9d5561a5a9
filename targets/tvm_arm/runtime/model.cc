#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <tuple>
#include <utility>

#include "cpu.h"
#include "draft_model.h"
#include "quota.h"

namespace pocketphi_runtime {
namespace {

constexpr char kPrefix[] = "prefix.session";
constexpr DataType kInt32{DataType::kInt, 32, 1}, kFloat32{DataType::kFloat, 32, 1};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

void refuse_other_machines(const Bundle& bundle) {
  if (bundle.arch != kArch || bundle.os != kOs) {
    throw Failure("the library was built for " + bundle.arch + " and " + bundle.os + "; this runtime is for " + kArch +
                  " and " + kOs);
  }
  std::vector<std::string> missing = missing_features(bundle.features);
  if (!missing.empty()) {
    throw Failure("this CPU lacks " + joined(missing) + ", which the library was built for: compile for this CPU");
  }
}

// The cores for so many threads, and how many it will be; 0 for as many as there are fast cores, or as a quota gives time for.
// They share the cores: a thread bound to one would wait there for whatever else runs, and everyone for it.
std::pair<int, std::vector<unsigned>> share(int wanted) {
  std::vector<unsigned> cores = fast_cores();
  int threads = wanted ? wanted : static_cast<int>(std::clamp<double>(cpu_quota(), 1, physical(cores)));
  if (threads > static_cast<int>(cores.size())) cores = all_cores();
  return {std::min(threads, static_cast<int>(cores.size())), cores};
}

std::unique_ptr<Machine> load_library(const Bundle& bundle) {
  auto machine = std::make_unique<Machine>(bundle.system_lib.empty() ? Library::open(bundle.folder + "/model.so")
                                                                     : Library::linked(bundle.system_lib));
  const Function* description = machine->find("description");
  if (!description) {
    throw Failure("the library does not say what it was built for, as those of older versions: compile the model again");
  }
  Value built = machine->call(*description, {});
  bundle.refuse_other_library(std::get<std::string>(built));
  return machine;
}

Mapping map_params(const Bundle& bundle, bool check) {
  std::string path = bundle.folder + "/model.params";
  Mapping params = Mapping::file(path, bundle.params_bytes);
  if (check && file_digest(path) != bundle.params_digest) {
    throw Failure(path + ": its SHA-256 is not the one in model.json: the file is damaged");
  }
  return params;
}

void refuse_infinite(const float* values, int64_t count) {
  constexpr int32_t kExponent = 0x7f800000;  // all ones: an infinity, or no number
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    largest = std::max(largest, bits & INT32_MAX);
  }
  if (largest >= kExponent) {
    throw Failure("a logit is no finite number: a value is too large for the cache, or model.params is damaged");
  }
}

}  // namespace

Step::Step(Machine& machine, const Entry& entry, const TensorRef& position, const Tensors& caches, const Tensors& params,
           const Tensors& factors)
    : machine_(machine), function_(machine.find(entry.name)) {
  if (!function_) throw Failure("the library has no function \"" + entry.name + "\", which model.json names");
  kept_.push_back(position);
  kept_.insert(kept_.end(), caches.begin(), caches.end());
  for (int64_t index : entry.params) kept_.push_back(params[index]);
  kept_.insert(kept_.end(), factors.begin(), factors.end());
  if (function_->arguments != static_cast<int64_t>(kept_.size()) + 1) {
    throw Failure("function \"" + entry.name + "\" takes " + std::to_string(function_->arguments) +
                  " tensors, model.json describes " + std::to_string(kept_.size() + 1));
  }
}

void Step::take(const Tensors& factors) { std::copy(factors.begin(), factors.end(), kept_.end() - factors.size()); }

void Step::operator()(const int32_t* tokens, int64_t count, int64_t rows, int64_t vocab, float* logits) const {
  std::vector<Value> arguments{std::make_shared<const Tensor>(const_cast<int32_t*>(tokens), Shape{count}, kInt32)};
  arguments.insert(arguments.end(), kept_.begin(), kept_.end());
  Value result = machine_.call(*function_, std::move(arguments));
  auto output = std::get_if<TensorRef>(&result);
  if (!output || (*output)->dtype() != kFloat32 || (*output)->shape() != Shape{rows, vocab}) {
    throw Failure("the library returned other than " + std::to_string(rows) + " × " + std::to_string(vocab) +
                  " float32 logits");
  }
  std::memcpy(logits, (*output)->data<float>(), rows * vocab * sizeof *logits);
  refuse_infinite(logits, rows * vocab);
}

Model::Model(const std::string& folder, const Options& options)
    : bundle_(Bundle::read(folder, options.mode)),
      rows_(options.max_tokens ? options.max_tokens : bundle_.context),
      options_(options),
      drafts_(options.draft != Options::Draft::none, options.draft != Options::Draft::always) {
  refuse_other_machines(bundle_);
  if (rows_ > bundle_.context) {
    throw Failure("max_tokens " + std::to_string(rows_) + " is more than the model's context of " +
                  std::to_string(bundle_.context));
  }
  params_ = map_params(bundle_, options.check);
  machine_ = load_library(bundle_);  // from here on model.json is what the library was built for
  cache_ = Mapping::zeros(bundle_.cache_count * cache_bytes());
  adapter_ = std::make_unique<Adapter>(bundle_);
  if (options.prefix && options.mode == "saved") find_prefix();
  make_steps();
  if (Pool::current()) return;  // of the model that this one guesses for
  auto [threads, cores] = share(options.threads);
  pool_ = std::make_unique<Pool>(threads, cores);
}

Model::~Model() = default;

void Model::prefill(const int32_t* tokens, int64_t count, float* logits, bool every) {
  if (count < 1) throw Failure("a prefill of no tokens");
  if (!tokens) throw Failure("no tokens: the pointer is NULL");
  if (!logits) throw Failure("no room for logits: the pointer is NULL");
  int64_t past = length(), total = past + count;
  if (total > rows_) {
    throw Failure("the cache holds " + std::to_string(rows_) + " tokens: " + std::to_string(past) + " are in it, " +
                  std::to_string(count) + " more do not fit");
  }
  check_tokens(tokens, count);
  if (past == 0 && !every && begins_with_prefix(tokens, count)) {
    load(bundle_.folder + "/" + kPrefix);
    try {
      prefill(tokens + length(), count - length(), logits, false);
    } catch (...) {
      reset();
      throw;
    }
    return;
  }
  if (count == 1 && !every && known(tokens[0], logits)) return;
  forget_guess();
  if (every && !steps_.count("prefill_all")) throw Failure("the library has no function for every token's logits");
  params_.refuse_changed();
  adapter_->refuse_changed();
  seen_.resize(past);
  seen_.insert(seen_.end(), tokens, tokens + count);
  // LongRoPE: from here on every key is rotated with the long factors, and those in the cache were with the short ones
  bool again = bundle_.long_rope_after && past <= bundle_.long_rope_after && bundle_.long_rope_after < total;
  int64_t start = again || stale_ ? 0 : past;
  if (total - start == 1 && !every && decode_ahead(logits)) {
    length_ = total;
    return;
  }
  stale_ = start < past;
  run(start, total, past, logits, every);
  stale_ = false;
  length_ = total;
}

void Model::check_tokens(const int32_t* tokens, int64_t count) const {
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= bundle_.vocab) {
      throw Failure("token " + std::to_string(tokens[i]) + " is not within 0 to " + std::to_string(bundle_.vocab - 1));
    }
  }
}

// What a compile computed of the prompts that an app begins with. It belongs to the bundle itself, without an adapter.
void Model::find_prefix() {
  std::string path = bundle_.folder + "/" + kPrefix;
  if (access(path.c_str(), F_OK) != 0) return;
  Session session(path);
  if (session.head().bundle != bundle_.sessions_of) {
    throw Failure(path + ": is of another bundle: compile it again, or open it with \"prefix\": false");
  }
  prefix_ = session.tokens();
  check_tokens(prefix_.data(), static_cast<int64_t>(prefix_.size()));
}

// Whether it saves anything: LongRoPE rotates all keys anew in a text that grows beyond where its factors change.
bool Model::begins_with_prefix(const int32_t* tokens, int64_t count) const {
  auto held = static_cast<int64_t>(prefix_.size());
  bool again = bundle_.long_rope_after && held <= bundle_.long_rope_after && bundle_.long_rope_after < count;
  return held > 0 && held < count && !again && std::equal(prefix_.begin(), prefix_.end(), tokens) && adapter_->digest() == 0;
}

void Model::reset() {
  forget_guess();
  length_ = 0;
  stale_ = false;
  seen_.clear();
}

// LongRoPE's factors are chosen by how many tokens there are in all.
int64_t Model::limit(int64_t tokens) const {
  return tokens < bundle_.long_rope_after ? std::min(rows_, bundle_.long_rope_after) : rows_;
}

void Model::keep(int64_t tokens) {
  // of those that stay, some keys are rotated otherwise, or the cache has later tokens in their place: all are computed again
  bool rotated = bundle_.long_rope_after && tokens <= bundle_.long_rope_after && bundle_.long_rope_after < length_;
  bool written_over = length_ > cache_shape()[1] && length_ - tokens > bundle_.chunk;
  forget_guess();
  stale_ = tokens > 0 && (stale_ || rotated || written_over);
  length_ = std::min(length_, tokens);
  seen_.resize(length_);
}

// Whether `token` was guessed: then its logits are here, and its keys and values in the cache.
bool Model::known(int32_t token, float* logits) {
  if (used_ == ahead_.size() || ahead_[used_] != token) return false;
  params_.refuse_changed();
  seen_.resize(length_);
  seen_.push_back(token);
  std::copy_n(&ahead_logits_[used_ * bundle_.vocab], bundle_.vocab, logits);
  ++used_;
  ++length_;
  if (used_ == ahead_.size()) forget_guess();
  return true;
}

void Model::forget_guess() {
  if (!ahead_.empty()) drafts_.learn(static_cast<int64_t>(used_), used_ < ahead_.size());
  ahead_.clear();
  used_ = 0;
}

// Run the last token of `seen_` with guesses behind it. False where there are none, or where they fail: a token that never comes
// may have logits that are no numbers.
bool Model::decode_ahead(float* logits) {
  if ((options_.draft == Options::Draft::none && !draft_) || !steps_.count("prefill_all")) return false;
  int64_t at = length_;
  std::vector<int32_t> guess = this->guess(std::min(limit(at), at + bundle_.chunk) - at - 1);
  auto begin = std::chrono::steady_clock::now();
  int64_t count = static_cast<int64_t>(guess.size());
  if (count == 0) {
    run(at, at + 1, at, logits, false);
  } else {
    std::vector<float> rows((count + 1) * bundle_.vocab);
    seen_.insert(seen_.end(), guess.begin(), guess.end());
    try {
      run(at, at + 1 + count, at, rows.data(), true);
    } catch (const Failure&) {
      seen_.resize(at + 1);
      return false;
    }
    seen_.resize(at + 1);
    std::copy_n(rows.begin(), bundle_.vocab, logits);
    ahead_logits_.assign(rows.begin() + bundle_.vocab, rows.end());
    ahead_ = std::move(guess);
  }
  std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  drafts_.took(count, time.count());
  return true;
}

// At most `room` tokens that may come after `seen_`.
std::vector<int32_t> Model::guess(int64_t room) {
  int64_t behind = draft_ ? draft_->behind(seen_) : 0;
  Guess made = drafts_.next(seen_, room, draft_ ? draft_->room(seen_) : 0, behind);
  return made.of_model ? ask_draft(made.of_model, behind) : made.tokens;
}

// A draft model that fails is left: what it would have said changes no result.
std::vector<int32_t> Model::ask_draft(int64_t count, int64_t behind) try {
  auto begin = std::chrono::steady_clock::now();
  std::vector<int32_t> made = draft_->guess(seen_, count);
  std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  if (behind <= Drafts::kMost + 1) drafts_.model_took(count, time.count());  // else most of it was for what it had not read
  return made;
} catch (const Failure& failure) {
  lost_draft_ = std::string("the draft model is not asked any more: ") + failure.what();
  draft_.reset();
  return {};
}

void Model::draft(const char* folder) {
  if (folder && !steps_.count("prefill_all")) throw Failure("the library has no function for every token's logits, by which guesses are checked");
  auto made = folder ? std::make_unique<DraftModel>(folder, options_, bundle_, rows_) : nullptr;
  draft_ = std::move(made);
  if (draft_) drafts_.meet(static_cast<double>(draft_->bytes()) / static_cast<double>(bundle_.params_bytes));
}

void Model::adapt(const char* name) {
  auto made = name ? std::make_unique<Adapter>(bundle_, adapter_path(bundle_, name)) : std::make_unique<Adapter>(bundle_);
  for (auto& [role, step] : steps_) step.take(made->factors());
  adapter_ = std::move(made);
  reset();
}

Shape Model::cache_shape() const {
  return {bundle_.cache_shape[0], rows_of(rows_), bundle_.cache_shape[2]};
}

// Of the cache, for a text of so many tokens: where a text can be longer, the kernels write over its oldest tokens.
int64_t Model::rows_of(int64_t tokens) const {
  return std::min(rounded_up(tokens, bundle_.cache_multiple), bundle_.cache_shape[1]);
}

int64_t Model::cache_bytes() const { return rounded_up(tensor_bytes(cache_shape(), bundle_.cache_dtype), 64); }

// A head's numbers lie before its scales; without these, an element is a number.
SessionHead Model::session_head() const {
  int64_t row = tensor_bytes({bundle_.cache_shape[2]}, bundle_.cache_dtype), numbers = row;
  if (bundle_.cache_dtype.code == DataType::kInt) numbers = row - static_cast<int64_t>(sizeof(float));
  if (bundle_.cache_dtype.code == DataType::kUInt) numbers = row / 17 * 16;  // halves of bytes, and a byte for 32 of them
  int64_t rows = rows_of(length_), count = bundle_.cache_count * bundle_.cache_shape[0];
  return {bundle_.sessions_of, adapter_->digest(), length_, rows, numbers, row - numbers, 0, count};
}

std::vector<CachePiece> Model::pieces(const SessionHead& head) const {
  int64_t rows = cache_shape()[1];
  std::vector<CachePiece> found;
  for (int64_t i = 0; i < bundle_.cache_count; ++i) {
    char* at = cache_.view(i * cache_bytes(), cache_shape(), bundle_.cache_dtype)->data<char>();
    for (int64_t piece = 0; piece < bundle_.cache_shape[0]; ++piece, at += rows * (head.numbers + head.scales)) {
      found.push_back({at, at + rows * head.numbers});
    }
  }
  return found;
}

void Model::save(const std::string& path, const std::string& note) {
  if (stale_) throw Failure("the cache is not whole since a call failed: append a token, or forget all");
  SessionHead head = session_head();
  head.note = static_cast<int64_t>(note.size());
  write_session(path, head, {seen_.begin(), seen_.begin() + length_}, note, pieces(head));
}

std::string Model::load(const std::string& path) {
  Session session(path);
  session.check();
  const SessionHead &head = session.head(), mine = session_head();
  auto refuse = [&](const std::string& why) { throw Failure(path + ": " + why); };
  if (head.bundle != mine.bundle) refuse("is a session of another bundle");
  if (head.adapter != mine.adapter) refuse("is a session with another adapter: switch to that first");
  if (std::tie(head.numbers, head.scales, head.pieces) != std::tie(mine.numbers, mine.scales, mine.pieces)) {
    refuse("is a session of another mode");
  }
  int64_t rows = cache_shape()[1];
  // where a window's rows go around, they lie as the number of all of them says
  if (head.tokens > rows_ || head.rows > rows || (head.tokens > head.rows && head.rows != rows)) {
    refuse("has " + std::to_string(head.tokens) + " tokens, for which the cache has no room: open the model with more max_tokens");
  }
  std::vector<int32_t> tokens = session.tokens();
  check_tokens(tokens.data(), head.tokens);
  std::string note = session.note();
  reset();
  session.restore(pieces(head));
  seen_ = std::move(tokens);
  length_ = head.tokens;
  return note;
}

void Model::make_steps() {
  std::vector<TensorRef> caches, params;
  for (int64_t i = 0; i < bundle_.cache_count; ++i) {
    caches.push_back(cache_.view(i * cache_bytes(), cache_shape(), bundle_.cache_dtype));
  }
  for (const Param& param : bundle_.params) params.push_back(params_.view(param.offset, param.shape, param.dtype));
  auto position = std::make_shared<const Tensor>(position_, Shape{bundle_.long_rope_after ? 2 : 1}, kInt32);
  for (const auto& [role, entry] : bundle_.functions) {
    steps_.emplace(role, Step(*machine_, entry, position, caches, params, adapter_->factors()));
  }
}

// Tokens `start` to `total` in chunks. Logits of those from `wanted` on, or of the last.
void Model::run(int64_t start, int64_t total, int64_t wanted, float* logits, bool every) {
  position_[1] = static_cast<int32_t>(total);
  std::vector<float> rows(every ? std::min(bundle_.chunk, total - start) * bundle_.vocab : 0);
  for (int64_t at = start; at < total;) {
    int64_t count = std::min(bundle_.chunk, total - at);
    position_[0] = static_cast<int32_t>(at);
    const char* role = every ? "prefill_all" : count > 1 ? "prefill" : "decode";
    ++calls_;
    steps_.at(role)(seen_.data() + at, count, every ? count : 1, bundle_.vocab, every ? rows.data() : logits);
    for (int64_t i = every ? std::max(at, wanted) : total; i < at + count; ++i) {
      std::copy_n(&rows[(i - at) * bundle_.vocab], bundle_.vocab, logits + (i - wanted) * bundle_.vocab);
    }
    at += count;
  }
  if (total - start > 1 + Drafts::kMost) {  // what a chunk needs beside the model is not kept while tokens come one by one
    machine_->memory.release();
  }
}

}  // namespace pocketphi_runtime
