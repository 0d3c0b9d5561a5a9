#include "library.h"

#include <dlfcn.h>
#include <unistd.h>
#if !defined(__APPLE__)
#include <elf.h>
#endif

#include <cstring>

#include "backend.h"
#include "bundle.h"
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

// Fails for a file that is cut: dlopen would map what is not there, and the system would end the process.
void refuse_cut([[maybe_unused]] const File& file) {
#if !defined(__APPLE__)
  Elf64_Ehdr header;
  bool whole = pread(file.number, &header, sizeof header, 0) == sizeof header;
  if (!whole || std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64) return;
  uint64_t end = header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize;  // the table of sections is last
  if (end > static_cast<uint64_t>(file.status.st_size)) file.refuse(end);
#endif
}

}  // namespace

Library Library::open(const std::string& path) {
  refuse_cut(File(path));
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
