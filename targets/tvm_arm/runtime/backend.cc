// What kernels call by name: memory for a moment, and words for a failure. The pool has their loops.
#include "backend.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "line.h"
#include "raised.h"

namespace pocketphi_runtime {
namespace {

thread_local Reason reason;

// Memory that this thread's kernels asked for. It is kept: the next call asks for the same again.
struct Workspaces {
  struct Block {
    void* data;
    size_t bytes;
    bool used;
  };
  std::vector<Block> blocks;

  ~Workspaces() {
    for (Block& block : blocks) std::free(block.data);
  }

  void* take(size_t bytes) {
    Block* best = nullptr;  // the smallest that is large enough, else the largest
    for (Block& block : blocks) {
      if (block.used) continue;
      bool fits = block.bytes >= bytes, best_fits = best && best->bytes >= bytes;
      if (!best || (fits ? !best_fits || block.bytes < best->bytes : !best_fits && block.bytes > best->bytes)) best = &block;
    }
    if (!best) best = &blocks.emplace_back(Block{nullptr, 0, false});
    if (!best->data || best->bytes < bytes) {
      std::free(std::exchange(best->data, nullptr));
      best->bytes = 0;
      best->data = aligned(bytes);
      best->bytes = bytes;
    }
    best->used = true;
    return best->data;
  }

  void give_back(const void* data) {
    for (Block& block : blocks) {
      if (block.data == data) block.used = false;
    }
  }
};

thread_local Workspaces workspaces;

struct Linked {
  std::mutex guard;
  std::map<std::string, void*> symbols;
};

Linked& linked() {
  static Linked& all = *new Linked;  // filled while the program starts, in any order
  return all;
}

}  // namespace

void raise(const char* why) { copy_text(why, reason.text, sizeof reason.text); }

Reason take_raised() { return std::exchange(reason, Reason()); }

void* aligned(size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 64, bytes ? bytes : 1) != 0) throw std::bad_alloc();
  return data;
}

std::map<std::string, void*> linked_symbols() {
  std::lock_guard<std::mutex> lock(linked().guard);
  return linked().symbols;
}

const std::map<std::string, void*>& kernel_services() {
  static const std::map<std::string, void*> all = {
      {"TVMFFIErrorSetRaisedFromCStr", reinterpret_cast<void*>(TVMFFIErrorSetRaisedFromCStr)},
      {"TVMFFIErrorSetRaisedFromCStrParts", reinterpret_cast<void*>(TVMFFIErrorSetRaisedFromCStrParts)},
      {"TVMBackendAllocWorkspace", reinterpret_cast<void*>(TVMBackendAllocWorkspace)},
      {"TVMBackendFreeWorkspace", reinterpret_cast<void*>(TVMBackendFreeWorkspace)},
      {"TVMBackendParallelLaunch", reinterpret_cast<void*>(TVMBackendParallelLaunch)},
      {"TVMBackendParallelBarrier", reinterpret_cast<void*>(TVMBackendParallelBarrier)},
  };
  return all;
}

}  // namespace pocketphi_runtime

extern "C" void TVMFFIErrorSetRaisedFromCStr(const char*, const char* message) {
  pocketphi_runtime::raise(message ? message : "");
}

extern "C" void TVMFFIErrorSetRaisedFromCStrParts(const char*, const char** parts, int32_t count) {
  pocketphi_runtime::Reason whole;
  size_t length = 0;
  for (int32_t i = 0; i < count; ++i) {
    pocketphi_runtime::copy_text(parts[i] ? parts[i] : "", whole.text + length, sizeof whole.text - length);
    length = std::strlen(whole.text);
  }
  pocketphi_runtime::raise(whole.text);
}

extern "C" void* TVMBackendAllocWorkspace(int, int, uint64_t bytes, int, int) try {
  return pocketphi_runtime::workspaces.take(bytes);
} catch (const std::bad_alloc&) {
  pocketphi_runtime::raise("not enough memory");
  return nullptr;
}

extern "C" int TVMBackendFreeWorkspace(int, int, void* data) {
  pocketphi_runtime::workspaces.give_back(data);
  return 0;
}

// A library that is linked into the program names its symbols here before `main`.
extern "C" int TVMFFIEnvModRegisterSystemLibSymbol(const char* name, void* symbol) {
  std::lock_guard<std::mutex> lock(pocketphi_runtime::linked().guard);
  pocketphi_runtime::linked().symbols[name] = symbol;
  return 0;
}
