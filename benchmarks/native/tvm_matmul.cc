// Products by one of our kernels, without TVM's runtime: what the kernel asks of it (memory, and to run a loop in parallel) is
// done here, on one thread.
//
//   tvm_matmul LIBRARY COLUMNS ROWS M X Y COUNT PART…     X float32 [M, COLUMNS] and parts of the matrix, files; writes Y
#include <dlfcn.h>
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

int launch(FTVMParallelLambda body, void *data, int tasks) {
  TVMParallelGroupEnv environment{nullptr, tasks > 0 ? tasks : 1};
  for (int i = 0; i < environment.num_task; ++i) {
    if (int code = body(i, &environment, data)) return code;
  }
  return 0;
}

void *allocate(int, int, uint64_t bytes, int, int) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }

int release(int, int, void *data) {
  std::free(data);
  return 0;
}

void complain(const char *kind, const char *message) { std::fprintf(stderr, "%s: %s\n", kind, message); }

void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) std::fprintf(stderr, "no %s in the library\n", name), std::exit(2);
  return found;
}

// A tensor in memory of its own, filled from a file where there is one.
class Array {
 public:
  Array(std::vector<int64_t> shape, DLDataType type, const std::string &path = "") : shape_(std::move(shape)) {
    bytes_ = type.bits / 8;
    for (int64_t size : shape_) bytes_ *= size;
    data_ = std::aligned_alloc(64, (bytes_ + 63) / 64 * 64);
    std::memset(data_, 0, bytes_);
    if (!path.empty()) std::ifstream(path, std::ios::binary).read(static_cast<char *>(data_), bytes_);
    tensor_ = {data_, {kDLCPU, 0}, static_cast<int>(shape_.size()), type, shape_.data(), nullptr, 0};
  }

  TVMFFIAny argument() {
    TVMFFIAny value{};
    value.type_index = kTVMFFIDLTensorPtr;
    value.v_ptr = &tensor_;
    return value;
  }

  void write(const std::string &path) const {
    std::ofstream(path, std::ios::binary).write(static_cast<char *>(data_), bytes_);
  }

 private:
  std::vector<int64_t> shape_;
  size_t bytes_;
  void *data_;
  DLTensor tensor_;
};

int64_t file_size(const std::string &path) { return std::ifstream(path, std::ios::binary | std::ios::ate).tellg(); }

}  // namespace

int main(int argc, char **argv) {
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  *static_cast<decltype(&launch) *>(symbol(library, "__TVMBackendParallelLaunch")) = launch;
  *static_cast<decltype(&allocate) *>(symbol(library, "__TVMBackendAllocWorkspace")) = allocate;
  *static_cast<decltype(&release) *>(symbol(library, "__TVMBackendFreeWorkspace")) = release;
  *static_cast<decltype(&complain) *>(symbol(library, "__TVMFFIErrorSetRaisedFromCStr")) = complain;
  auto product = reinterpret_cast<TVMFFISafeCallType>(symbol(library, "__tvm_ffi_product"));

  const DLDataType kFloat{kDLFloat, 32, 1}, kHalf{kDLFloat, 16, 1}, kByte{kDLUInt, 8, 1};
  int64_t columns = std::atoll(argv[2]), rows = std::atoll(argv[3]), m = std::atoll(argv[4]);
  std::deque<Array> arrays;
  arrays.emplace_back(std::vector<int64_t>{m, columns}, kFloat, argv[5]);
  for (int i = 8; i < argc; ++i) {  // int4 values, then float16 scales
    bool scale = i == 9;
    arrays.emplace_back(std::vector<int64_t>{file_size(argv[i]) / (scale ? 2 : 1)}, scale ? kHalf : kByte, argv[i]);
  }
  arrays.emplace_back(std::vector<int64_t>{m, rows}, kFloat);
  std::vector<TVMFFIAny> arguments;
  for (Array &array : arrays) arguments.push_back(array.argument());
  for (int i = 0; i < std::atoi(argv[7]); ++i) {
    TVMFFIAny result{};
    if (product(nullptr, arguments.data(), static_cast<int32_t>(arguments.size()), &result)) return 1;
  }
  arrays.back().write(argv[6]);
  return 0;
}
