// The model on TVM's virtual machine, and the C API around it. Long for one file: both halves share every name.
#include "pocketphi_runtime.h"

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/memory/memory_manager.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstring>
#include <memory>

#include "bundle.h"
#include "cpu.h"
#include "worker.h"

#include "src/runtime/threading_backend.h"

namespace pocketphi_runtime {
namespace {

using tvm::ffi::Any;
using tvm::ffi::AnyView;
using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::Tensor;

constexpr DLDataType kInt32{kDLInt, 32, 1};

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

Module load_library(const Bundle& bundle) {
  if (bundle.system_lib.empty()) return Module::LoadFromFile(bundle.folder + "/model.so");
  return Function::GetGlobalRequired("ffi.SystemLib")(bundle.system_lib).cast<Module>();
}

// A function of the library with everything that stays the same between calls: position, caches, parameters.
class Step {
 public:
  Step(const Module& vm, const Entry& entry, const Tensor& position, const std::vector<Tensor>& caches,
       const std::vector<Tensor>& params) {
    auto found = vm->GetFunction(entry.name);
    if (!found) throw Failure("the library has no function \"" + entry.name + "\", which model.json names");
    function_ = *found;
    kept_.push_back(position);
    kept_.insert(kept_.end(), caches.begin(), caches.end());
    for (int64_t index : entry.params) kept_.push_back(params[index]);
    int64_t arity = vm->GetFunction("get_function_arity").value()(entry.name).cast<int64_t>();
    if (arity != static_cast<int64_t>(kept_.size()) + 1) {
      throw Failure("function \"" + entry.name + "\" takes " + std::to_string(arity) + " tensors, model.json describes " +
                    std::to_string(kept_.size() + 1));
    }
  }

  // Logits float32[rows, vocab], of all tokens or of the last.
  void operator()(const int32_t* tokens, int64_t count, int64_t rows, int64_t vocab, float* logits) const {
    Tensor input = view(const_cast<int32_t*>(tokens), {count}, kInt32);
    std::vector<AnyView> arguments{input};
    arguments.insert(arguments.end(), kept_.begin(), kept_.end());
    Any result;
    function_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    Tensor output = result.cast<Tensor>();
    if (output.numel() != rows * vocab || output.dtype() != DLDataType{kDLFloat, 32, 1}) {
      throw Failure("the library returned other than " + std::to_string(rows) + " × " + std::to_string(vocab) +
                    " float32 logits");
    }
    std::memcpy(logits, output.data_ptr(), rows * vocab * sizeof *logits);
  }

 private:
  Function function_ = nullptr;
  std::vector<Tensor> kept_;
};

// The number of threads that work for the calling one; 0 for as many as there are fast cores. TVM would bind each of them to a
// core of its own, where it waits for whatever else runs there, and everyone for it: so they share the cores instead.
void use_threads(int wanted) {
  namespace threading = tvm::runtime::threading;
  std::vector<unsigned> cores = fast_cores();
  int threads = wanted ? wanted : physical(cores);
  if (threads > static_cast<int>(cores.size())) cores = all_cores();
  threads = std::min(threads, static_cast<int>(cores.size()));
  threading::SetMaxConcurrency(threads);
  threading::NumThreads();  // makes the pool, with as many workers
  threading::Configure(threading::ThreadGroup::kSpecifyThreadShareAllCore, threads, cores);
}

Mapping map_params(const Bundle& bundle, bool check) {
  std::string path = bundle.folder + "/model.params";
  Mapping params = Mapping::file(path, bundle.params_bytes);
  if (check && file_digest(path) != bundle.params_digest) {
    throw Failure(path + ": its SHA-256 is not the one in model.json: the file is damaged");
  }
  return params;
}

}  // namespace

// A model with its cache. Everything in it happens on one thread.
class Model {
 public:
  Model(const std::string& folder, const Options& options)
      : bundle_(Bundle::read(folder, options.mode)),
        rows_(options.max_tokens ? options.max_tokens : bundle_.context),
        params_(checked(bundle_, rows_, options)),
        cache_(Mapping::zeros(bundle_.cache_count * cache_bytes())) {
    use_threads(options.threads);
    Module library = load_library(bundle_);
    auto load = library->GetFunction("vm_load_executable");
    if (!load) {
      throw Failure(bundle_.system_lib.empty() ? "model.so: not a library that pocketphi built"
                                               : "no library \"" + bundle_.system_lib + "\" is linked into this program");
    }
    Module vm = (*load)().cast<Module>();
    vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooled);
    auto digest = vm->GetFunction("params_digest");
    if (!digest || std::string((*digest)().cast<tvm::ffi::String>()) != bundle_.params_digest) {
      throw Failure("model.so and model.json are of two builds: their parameters' digests differ");
    }
    make_steps(vm);
  }

  void prefill(const int32_t* tokens, int64_t count, float* logits, bool every) {
    if (count < 1) throw Failure("a prefill of no tokens");
    for (int64_t i = 0; i < count; ++i) {
      if (tokens[i] < 0 || tokens[i] >= bundle_.vocab) {
        throw Failure("token " + std::to_string(tokens[i]) + " is not within 0 to " + std::to_string(bundle_.vocab - 1));
      }
    }
    int64_t past = length(), total = past + count;
    if (total > rows_) {
      throw Failure("the cache holds " + std::to_string(rows_) + " tokens: " + std::to_string(past) + " are in it, " +
                    std::to_string(count) + " more do not fit");
    }
    if (every && !steps_.count("prefill_all")) throw Failure("the library has no function for every token's logits");
    seen_.resize(past);
    seen_.insert(seen_.end(), tokens, tokens + count);
    // LongRoPE: from here on every key is rotated with the long factors, and those in the cache were with the short ones
    bool again = bundle_.long_rope_after && past <= bundle_.long_rope_after && bundle_.long_rope_after < total;
    run(again ? 0 : past, total, past, logits, every);
    length_ = total;
  }

  void reset() {
    length_ = 0;
    seen_.clear();
  }

  int64_t vocab() const { return bundle_.vocab; }
  int64_t rows() const { return rows_; }
  int64_t length() const { return length_; }

 private:
  static constexpr int kPooled = tvm::runtime::memory::kPooled;

  static Mapping checked(const Bundle& bundle, int64_t rows, const Options& options) {
    refuse_other_machines(bundle);
    if (rows > bundle.context) {
      throw Failure("max_tokens " + std::to_string(rows) + " is more than the model's context of " +
                    std::to_string(bundle.context));
    }
    return map_params(bundle, options.check);
  }

  std::vector<int64_t> cache_shape() const {
    int64_t multiple = bundle_.cache_multiple, rows = (rows_ + multiple - 1) / multiple * multiple;
    return {bundle_.cache_shape[0], rows, bundle_.cache_shape[2]};
  }
  int64_t cache_bytes() const { return (tensor_bytes(cache_shape(), bundle_.cache_dtype) + 63) / 64 * 64; }

  void make_steps(const Module& vm) {
    std::vector<Tensor> caches, params;
    for (int64_t i = 0; i < bundle_.cache_count; ++i) {
      caches.push_back(cache_.view(i * cache_bytes(), cache_shape(), bundle_.cache_dtype));
    }
    for (const Param& param : bundle_.params) params.push_back(params_.view(param.offset, param.shape, param.dtype));
    Tensor position = view(position_, {bundle_.long_rope_after ? 2 : 1}, kInt32);
    for (const auto& [role, entry] : bundle_.functions) {
      steps_.emplace(role, Step(vm, entry, position, caches, params));
    }
  }

  // Tokens `start` to `total` in chunks. Logits of those from `wanted` on, or of the last.
  void run(int64_t start, int64_t total, int64_t wanted, float* logits, bool every) {
    position_[1] = static_cast<int32_t>(total);
    std::vector<float> rows(every ? std::min(bundle_.chunk, total - start) * bundle_.vocab : 0);
    for (int64_t at = start; at < total;) {
      int64_t count = std::min(bundle_.chunk, total - at);
      position_[0] = static_cast<int32_t>(at);
      const char* role = every ? "prefill_all" : count > 1 ? "prefill" : "decode";
      steps_.at(role)(seen_.data() + at, count, every ? count : 1, bundle_.vocab, every ? rows.data() : logits);
      for (int64_t i = every ? std::max(at, wanted) : total; i < at + count; ++i) {
        std::copy_n(&rows[(i - at) * bundle_.vocab], bundle_.vocab, logits + (i - wanted) * bundle_.vocab);
      }
      at += count;
    }
    if (total - start > 1) {  // what a chunk needs beside the model is not kept while tokens come one by one
      tvm::runtime::memory::MemoryManager::GetAllocator({kDLCPU, 0}, tvm::runtime::memory::kPooled)->Clear();
    }
  }

  Bundle bundle_;
  int64_t rows_;
  Mapping params_, cache_;
  int32_t position_[2] = {0, 0};  // of the first token, and how many there will be: int32[1], with LongRoPE int32[2]
  std::map<std::string, Step> steps_;
  std::vector<int32_t> seen_;
  std::atomic<int64_t> length_{0};
};

}  // namespace pocketphi_runtime

using pocketphi_runtime::Model;

struct pocketphi {
  std::unique_ptr<Model> model;
  std::string error;
  pocketphi_runtime::Worker worker;  // last, so that it ends first
};

namespace {

std::string one_line(const std::string& text) {
  std::string line;
  for (unsigned char c : text) {
    if (!std::isspace(c)) line += static_cast<char>(c);
    else if (!line.empty() && line.back() != ' ') line += ' ';
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.empty() ? "unknown error" : line;
}

// Run on the handle's thread; 0, or -1 with `error` set.
template <typename Job>
int guarded(pocketphi* handle, Job job) {
  int code = -1;
  handle->worker.run([&] {
    try {
      job();
      code = 0;
    } catch (const tvm::ffi::Error& error) {
      handle->error = one_line(error.message());
    } catch (const std::exception& error) {
      handle->error = one_line(error.what());
    } catch (...) {
      handle->error = "unknown error";
    }
  });
  return code;
}

}  // namespace

pocketphi* pocketphi_open(const char* bundle_folder, const char* options_json, char* error, size_t error_size) try {
  auto handle = std::make_unique<pocketphi>();
  int code = guarded(handle.get(), [&] {
    auto options = pocketphi_runtime::Options::parse(options_json ? options_json : "");
    handle->model = std::make_unique<Model>(bundle_folder ? bundle_folder : "", options);
  });
  if (code == 0) return handle.release();
  if (error && error_size) {
    size_t length = std::min(error_size - 1, handle->error.size());
    std::memcpy(error, handle->error.data(), length);
    error[length] = 0;
  }
  return nullptr;
} catch (...) {  // no memory, or no thread
  if (error && error_size) std::strncpy(error, "no memory or no thread for a model", error_size - 1)[error_size - 1] = 0;
  return nullptr;
}

int pocketphi_prefill(pocketphi* handle, const int32_t* tokens, int32_t count, float* logits) {
  return guarded(handle, [&] { handle->model->prefill(tokens, count, logits, false); });
}

int pocketphi_prefill_all(pocketphi* handle, const int32_t* tokens, int32_t count, float* logits) {
  return guarded(handle, [&] { handle->model->prefill(tokens, count, logits, true); });
}

int pocketphi_decode(pocketphi* handle, int32_t token, float* logits) {
  return guarded(handle, [&] { handle->model->prefill(&token, 1, logits, false); });
}

void pocketphi_reset(pocketphi* handle) {
  guarded(handle, [&] { handle->model->reset(); });
}

int32_t pocketphi_vocab(const pocketphi* handle) { return static_cast<int32_t>(handle->model->vocab()); }
int32_t pocketphi_context(const pocketphi* handle) { return static_cast<int32_t>(handle->model->rows()); }
int32_t pocketphi_length(const pocketphi* handle) { return static_cast<int32_t>(handle->model->length()); }
const char* pocketphi_error(const pocketphi* handle) { return handle->error.c_str(); }

void pocketphi_close(pocketphi* handle) {
  if (!handle) return;
  guarded(handle, [&] { handle->model.reset(); });
  delete handle;
}
