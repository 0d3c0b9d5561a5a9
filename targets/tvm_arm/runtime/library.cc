#include "library.h"

#include <dlfcn.h>

#include "backend.h"
#include "failure.h"
#include "reader.h"

namespace pocketphi_runtime {
namespace {

constexpr char kBinary[] = "__tvm_ffi__library_bin", kKernel[] = "__tvm_ffi_", kExecutable[] = "relax.VMExecutable";

// Parts of the library: which are other modules', by their kinds, and their bytes. Tree: who imports whom.
std::string executable_in(Reader reader) {
  size_t modules = reader.numbers().size();  // one more than there are
  reader.numbers();
  for (size_t i = 0; i + 1 < modules; ++i) {
    std::string kind = reader.text();
    if (kind == "_lib") continue;  // the kernels' place
    std::string bytes = reader.text();
    if (kind == kExecutable) return bytes;
  }
  throw Failure("model.so: not a library that pocketphi built");
}

}  // namespace

Library Library::open(const std::string& path) {
  Library library;
  library.name_ = "model.so";
  library.handle_.reset(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), [](void* handle) {
    if (handle) dlclose(handle);
  });
  if (!library.handle_) {
    const char* reason = dlerror();
    throw Failure(reason ? reason : path + ": cannot be loaded");
  }
  for (const auto& [name, function] : kernel_services()) {
    if (void* pointer = library.symbol("__" + name)) *static_cast<void**>(pointer) = function;
  }
  if (!library.symbol(kBinary)) throw Failure("model.so: not a library that pocketphi built");
  return library;
}

Library Library::linked(const std::string& prefix) {
  Library library;
  library.prefix_ = prefix;
  if (!library.symbol(prefix + kBinary)) throw Failure("no library \"" + prefix + "\" is linked into this program");
  return library;
}

Kernel Library::kernel(const std::string& name) const {
  void* found = symbol(kKernel + prefix_ + name);
  return reinterpret_cast<Kernel>(found ? found : symbol(kKernel + name));
}

std::string Library::bytecode() const {
  const char* data = static_cast<const char*>(symbol(prefix_ + kBinary));
  uint64_t size = Reader(data, sizeof size).number<uint64_t>();
  return executable_in(Reader(data + sizeof size, size));
}

void* Library::symbol(const std::string& name) const {
  if (handle_) return dlsym(handle_.get(), name.c_str());
  auto symbols = linked_symbols();
  auto found = symbols.find(name);
  return found == symbols.end() ? nullptr : found->second;
}

}  // namespace pocketphi_runtime
