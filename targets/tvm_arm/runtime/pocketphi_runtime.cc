// The C API around a model: handles, one line for each failure, nothing thrown.
#include "pocketphi_runtime.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "line.h"
#include "model.h"
#include "sampler.h"
#include "worker.h"

namespace {

using pocketphi_runtime::Failure;
using pocketphi_runtime::Model;
using pocketphi_runtime::copy_text;
using pocketphi_runtime::kLongestLine;
using pocketphi_runtime::one_line;

struct Session {
  std::unique_ptr<Model> model;  // of the worker's thread; null once it is closed
  const pid_t process = getpid();
  std::atomic<int32_t> vocab{0}, context{0}, length{0};
  std::atomic<int64_t> calls{0};
  std::mutex guard;
  char error[kLongestLine + 4] = "";  // under the guard. In memory of its own: it may say that there is no more
  pocketphi_runtime::Worker worker;  // last, so that it ends first
};

// Open models by their handles, which are numbers and no addresses: a closed one is never mistaken for a later one.
struct Sessions {
  std::mutex guard;
  std::map<uintptr_t, std::shared_ptr<Session>> open;
  uintptr_t last = 0;
};

Sessions& sessions() {
  static Sessions& all = *new Sessions;  // never destroyed: a model may be open when the program ends
  return all;
}

pocketphi* keep(std::shared_ptr<Session> session) {
  std::lock_guard<std::mutex> lock(sessions().guard);
  sessions().open.emplace(++sessions().last, std::move(session));
  return reinterpret_cast<pocketphi*>(sessions().last);
}

// Null for NULL, for a handle that is closed, and for one of a process that forked: its threads are not here.
std::shared_ptr<Session> find(const pocketphi* handle, bool forget = false) {
  std::lock_guard<std::mutex> lock(sessions().guard);
  auto found = sessions().open.find(reinterpret_cast<uintptr_t>(handle));
  if (found == sessions().open.end() || found->second->process != getpid()) return nullptr;
  std::shared_ptr<Session> session = found->second;
  if (forget) sessions().open.erase(found);
  return session;
}

// What an exception says, into `line`: one that is being handled. Throws nothing.
void tell(char* line, size_t size) noexcept try {
  throw;
} catch (const std::bad_alloc&) {
  copy_text("not enough memory", line, size);
} catch (const std::exception& error) {
  try {
    copy_text(one_line(error.what()), line, size);
  } catch (...) {
    copy_text("not enough memory to say what failed", line, size);
  }
} catch (...) {
  copy_text("unknown error", line, size);
}

// Run on the handle's thread; 0, or -1 with `error` set. Takes no memory, which may have run out.
template <typename Job>
int guarded(Session& session, Job job) {
  char problem[sizeof session.error] = "";
  auto whole = [&] {
    try {
      job();
    } catch (...) {
      tell(problem, sizeof problem);
    }
  };
  session.worker.run(std::ref(whole));
  if (!*problem) return 0;
  std::lock_guard<std::mutex> lock(session.guard);
  std::memcpy(session.error, problem, sizeof problem);
  return -1;
}

// 0, or -1: also where there is no such model.
template <typename Job>
int with_model(pocketphi* handle, Job job) try {
  auto session = find(handle);
  if (!session) return -1;
  return guarded(*session, [&] {
    if (!session->model) throw Failure("the model is closed");
    job(*session->model);
    session->length = static_cast<int32_t>(session->model->length());
    session->calls = session->model->calls();
    std::string lost = session->model->lost_draft();
    if (lost.empty()) return;
    std::lock_guard<std::mutex> lock(session->guard);
    copy_text(one_line(lost), session->error, sizeof session->error);
  });
} catch (...) {  // no memory for the error's text
  return -1;
}

int32_t number(const pocketphi* handle, std::atomic<int32_t> Session::*which) {
  auto session = find(handle);
  return session ? ((*session).*which).load() : 0;
}

}  // namespace

pocketphi* pocketphi_open(const char* bundle_folder, const char* options_json, char* error, size_t error_size) try {
  auto session = std::make_shared<Session>();
  int code = guarded(*session, [&] {
    if (!bundle_folder || !*bundle_folder) throw Failure("no bundle folder: expected its path");
    auto options = pocketphi_runtime::Options::parse(options_json ? options_json : "");
    session->model = std::make_unique<Model>(bundle_folder, options);
    session->vocab = static_cast<int32_t>(session->model->vocab());
    session->context = static_cast<int32_t>(session->model->rows());
  });
  if (code == 0) return keep(std::move(session));
  copy_text(session->error, error, error_size);
  return nullptr;
} catch (...) {
  copy_text("no memory or no thread for a model", error, error_size);
  return nullptr;
}

int pocketphi_prefill(pocketphi* handle, const int32_t* tokens, int32_t count, float* logits) {
  return with_model(handle, [&](Model& model) { model.prefill(tokens, count, logits, false); });
}

int pocketphi_prefill_all(pocketphi* handle, const int32_t* tokens, int32_t count, float* logits) {
  return with_model(handle, [&](Model& model) { model.prefill(tokens, count, logits, true); });
}

int pocketphi_decode(pocketphi* handle, int32_t token, float* logits) {
  return with_model(handle, [&](Model& model) { model.prefill(&token, 1, logits, false); });
}

int64_t pocketphi_generate(pocketphi* handle, const int32_t* tokens, int32_t count, const char* options_json,
                           pocketphi_token each, void* data) {
  using pocketphi_runtime::Generation;
  using pocketphi_runtime::Sampler;
  std::unique_ptr<Sampler> sampler;
  std::vector<float> logits;
  Generation how;
  int32_t token = 0;
  bool full = false;
  // Append tokens and choose the next one.
  auto next = [&](const int32_t* added, int32_t length) {
    return with_model(handle, [&](Model& model) {
      if (!sampler) {
        how = Generation::parse(options_json ? options_json : "");
        sampler = std::make_unique<Sampler>(how);
        logits.resize(model.vocab());
      }
      model.prefill(added, length, logits.data(), false);
      token = sampler->choose(logits, model.seen());
      full = model.length() >= model.rows();
    });
  };
  int code = next(tokens, count);
  for (int64_t made = 0; code == 0;) {
    if (std::find(how.stop.begin(), how.stop.end(), token) != how.stop.end()) return made;
    ++made;
    if ((each && each(token, data)) || full || made == how.limit) return made;
    int32_t last = token;
    code = next(&last, 1);
  }
  return -1;
}

int pocketphi_save(pocketphi* handle, const char* path, const char* note) {
  return with_model(handle, [&](Model& model) {
    if (!path || !*path) throw Failure("no file: expected its path");
    model.save(path, note ? note : "");
  });
}

int64_t pocketphi_load(pocketphi* handle, const char* path, char* note, size_t note_size) {
  int64_t bytes = -1;
  int code = with_model(handle, [&](Model& model) {
    if (!path || !*path) throw Failure("no file: expected its path");
    std::string text = model.load(path);
    bytes = static_cast<int64_t>(text.size());
    copy_text(text, note, note_size);
  });
  return code == 0 ? bytes : -1;
}

void pocketphi_reset(pocketphi* handle) {
  with_model(handle, [](Model& model) { model.reset(); });
}

int pocketphi_adapter(pocketphi* handle, const char* name) {
  return with_model(handle, [&](Model& model) { model.adapt(name); });
}

int pocketphi_draft(pocketphi* handle, const char* bundle_folder) {
  return with_model(handle, [&](Model& model) {
    if (bundle_folder && !*bundle_folder) throw Failure("no bundle folder: expected its path, or NULL for none");
    model.draft(bundle_folder);
  });
}

int32_t pocketphi_vocab(const pocketphi* handle) { return number(handle, &Session::vocab); }
int32_t pocketphi_context(const pocketphi* handle) { return number(handle, &Session::context); }
int32_t pocketphi_length(const pocketphi* handle) { return number(handle, &Session::length); }

int64_t pocketphi_calls(const pocketphi* handle) {
  auto session = find(handle);
  return session ? session->calls.load() : 0;
}

const char* pocketphi_error(const pocketphi* handle) try {
  thread_local std::string said;  // a copy: another thread's call may fail meanwhile
  auto session = find(handle);
  if (!session) return "no such model: it was closed, or not opened by this process";
  std::lock_guard<std::mutex> lock(session->guard);
  said = session->error;
  return said.c_str();
} catch (...) {
  return "no memory for the error's text";
}

void pocketphi_close(pocketphi* handle) try {
  auto session = find(handle, true);
  if (session) guarded(*session, [&] { session->model.reset(); });
} catch (...) {  // no memory for an error's text
}
