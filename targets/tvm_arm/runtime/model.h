// A bundle on the virtual machine, with its cache.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapter.h"
#include "bundle.h"
#include "drafts.h"
#include "pool.h"
#include "session.h"
#include "vm.h"

namespace pocketphi_runtime {

// A function of the library with everything that stays the same between calls: position, caches, parameters.
class Step {
 public:
  using Tensors = std::vector<TensorRef>;
  Step(Machine& machine, const Entry& entry, const TensorRef& position, const Tensors& caches, const Tensors& params,
       const Tensors& factors);

  // Calls get these factors of an adapter from now on, as many as before.
  void take(const Tensors& factors);

  // Logits float32[rows, vocab], of all tokens or of the last. Fails if one of them is no finite number.
  void operator()(const int32_t* tokens, int64_t count, int64_t rows, int64_t vocab, float* logits) const;

 private:
  Machine& machine_;
  const Function* function_;
  Tensors kept_;
};

class DraftModel;

// Everything in it happens on the thread that made it. One that is made there later shares its threads.
class Model {
 public:
  Model(const std::string& folder, const Options& options);
  ~Model();

  // Append tokens. logits: of each, or of the last. A failure appends nothing.
  void prefill(const int32_t* tokens, int64_t count, float* logits, bool every);
  void reset();

  // Forget all tokens but the first ones.
  void keep(int64_t tokens);

  // Let the bundle in a folder guess what comes next, none if null. A failure changes nothing.
  void draft(const char* folder);

  // Why a draft model was left, once; "" where none was.
  std::string lost_draft() { return std::exchange(lost_draft_, ""); }

  // Switch an adapter of the bundle on, none if null, and forget all tokens. A failure changes nothing.
  void adapt(const char* name);

  // Write the tokens, what the cache has of them, and a text to a file; read them again. A failure changes nothing.
  void save(const std::string& path, const std::string& note);
  std::string load(const std::string& path);

  int64_t vocab() const { return bundle_.vocab; }
  int64_t rows() const { return rows_; }
  int64_t limit(int64_t tokens) const;  // behind so many tokens, of all that can be appended without computing these again
  int64_t length() const { return length_; }
  const std::vector<int32_t>& seen() const { return seen_; }
  int64_t calls() const { return calls_; }  // of the library, since the model was opened
  int64_t bytes() const { return bundle_.params_bytes; }

 private:
  void check_tokens(const int32_t* tokens, int64_t count) const;
  Shape cache_shape() const;
  int64_t rows_of(int64_t tokens) const;
  int64_t cache_bytes() const;
  void make_steps();
  SessionHead session_head() const;
  std::vector<CachePiece> pieces(const SessionHead& head) const;
  void run(int64_t start, int64_t total, int64_t wanted, float* logits, bool every);
  void find_prefix();
  bool begins_with_prefix(const int32_t* tokens, int64_t count) const;
  bool known(int32_t token, float* logits);
  void forget_guess();
  std::vector<int32_t> guess(int64_t room);
  std::vector<int32_t> ask_draft(int64_t count, int64_t behind);
  bool decode_ahead(float* logits);

  Bundle bundle_;
  int64_t rows_;
  std::unique_ptr<Pool> pool_;
  Mapping params_, cache_;
  std::unique_ptr<Machine> machine_;
  int32_t position_[2] = {0, 0};  // of the first token, and how many there will be: int32[1], with LongRoPE int32[2]
  std::unique_ptr<Adapter> adapter_;
  std::map<std::string, Step> steps_;
  std::vector<int32_t> prefix_;  // tokens that the bundle has computed, none where it has not
  std::vector<int32_t> seen_;
  bool stale_ = false;  // a failure left rows in the cache that are not those of `seen_`
  int64_t length_ = 0, calls_ = 0;

  // With drafts, the cache may hold more than `length_` tokens: `ahead_`, which are guessed, with the logits after each but the
  // first `used_` of them, which came.
  Options options_;
  Drafts drafts_;
  std::unique_ptr<DraftModel> draft_;
  std::string lost_draft_;
  std::vector<int32_t> ahead_;
  std::vector<float> ahead_logits_;
  size_t used_ = 0;
};

}  // namespace pocketphi_runtime
