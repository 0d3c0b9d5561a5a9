// Runs a model x → y0 with ONNX Runtime's shared library, on one thread.
//
//   ort_matmul LIBRARY MODEL COLUMNS ROWS M X Y COUNT     X float32 [M, COLUMNS], a file; writes Y float32 [M, ROWS]
//
// The wheel has the library without its header. The C API is a table of functions whose order never changes
// (onnxruntime_c_api.h, struct OrtApi): those that are needed here, by their number.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace {

struct ApiBase {
  void *const *(*get)(uint32_t version);
  const char *(*version)();
};

void *const *api;

// Call function `number` of the table; end with its message where it returns a status.
template <typename... Arguments>
void call(int number, Arguments... arguments) {
  if (void *status = reinterpret_cast<void *(*)(Arguments...)>(api[number])(arguments...)) {
    std::fprintf(stderr, "%s\n", reinterpret_cast<const char *(*)(void *)>(api[2])(status));  // GetErrorMessage
    std::exit(1);
  }
}

enum { kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateSessionOptions = 10, kSetIntraOpNumThreads = 24 };
enum { kCreateTensorWithData = 49, kCreateCpuMemoryInfo = 69 };

void *tensor(void *memory, std::vector<float> &data, std::vector<int64_t> shape) {
  void *made = nullptr;
  const int kFloat = 1;
  call(kCreateTensorWithData, memory, static_cast<void *>(data.data()), data.size() * sizeof(float),
       static_cast<const int64_t *>(shape.data()), shape.size(), kFloat, &made);
  return made;
}

}  // namespace

int main(int, char **argv) {
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  auto base = reinterpret_cast<const ApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))();
  api = base->get(16);
  void *env = nullptr, *options = nullptr, *session = nullptr, *memory = nullptr;
  const int kErrors = 3, kDeviceAllocator = 0, kCpu = 0;
  call(kCreateEnv, kErrors, "matmul", &env);
  call(kCreateSessionOptions, &options);
  call(kSetIntraOpNumThreads, options, 1);
  call(kCreateSession, env, static_cast<const char *>(argv[2]), static_cast<const void *>(options), &session);
  call(kCreateCpuMemoryInfo, kDeviceAllocator, kCpu, &memory);
  int64_t columns = std::atoll(argv[3]), rows = std::atoll(argv[4]), m = std::atoll(argv[5]);
  std::vector<float> x(m * columns), y(m * rows);
  std::ifstream(argv[6], std::ios::binary).read(reinterpret_cast<char *>(x.data()), x.size() * sizeof(float));
  const void *inputs[] = {tensor(memory, x, {m, columns})};
  void *outputs[] = {tensor(memory, y, {m, rows})};
  const char *input_names[] = {"x"}, *output_names[] = {"y0"};
  for (int i = 0; i < std::atoi(argv[8]); ++i) {
    call(kRun, session, static_cast<const void *>(nullptr), static_cast<const char *const *>(input_names),
         static_cast<const void *const *>(inputs), size_t{1}, static_cast<const char *const *>(output_names), size_t{1},
         static_cast<void **>(outputs));
  }
  std::ofstream(argv[7], std::ios::binary).write(reinterpret_cast<char *>(y.data()), y.size() * sizeof(float));
  std::_Exit(0);  // the library's own threads and statics stay as they are
}
