// The C runtime where memory ends: at every allocation of an open, a prefill and a decode in turn, for once or for good.
// A call fails with a line of text, and once there is memory again all is as it was. Argument: a bundle. Prints `ok`.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "pocketphi_runtime.h"

static std::atomic<long> left{0};  // allocations until one fails; 0: none does
static std::atomic<bool> for_good{false};

static bool fails() {
  long seen = left.load();
  while (seen > 1 && !left.compare_exchange_weak(seen, seen - 1)) {
  }
  if (seen == 1 && !for_good) left = 0;
  return seen == 1;
}

void* operator new(size_t size) {
  void* memory = fails() ? nullptr : std::malloc(size ? size : 1);
  return memory ? memory : throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

extern "C" int __real_posix_memalign(void** memory, size_t alignment, size_t size);
extern "C" int __wrap_posix_memalign(void** memory, size_t alignment, size_t size) {
  return fails() ? ENOMEM : __real_posix_memalign(memory, alignment, size);
}
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*body)(void*), void* argument) {
  static auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return fails() ? EAGAIN : real(thread, how, body, argument);
}

#define CHECK(condition) \
  if (!(condition)) std::printf("allocation %ld, %s: %s\n", at, for_good ? "for good" : "once", #condition), std::exit(1)

static const int32_t prompt[] = {1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
static char error[300];
static std::vector<float> row, right;

static int talk(pocketphi* model) {
  int code = pocketphi_prefill(model, prompt, 10, row.data());
  return code ? code : pocketphi_decode(model, 7, row.data());
}

static pocketphi* opened(const char* folder) {
  std::strcpy(error, "");
  return pocketphi_open(folder, "{\"threads\": 3}", error, sizeof error);
}

int main(int, char** argv) {
  long at = 0, failed = 0;
  pocketphi* model = opened(argv[1]);
  CHECK(model);
  row.resize(pocketphi_vocab(model));
  CHECK(talk(model) == 0);
  right = row;
  for (bool good : {false, true}) {
    for_good = good;
    for (at = 1;; at += 1 + at / 100) {  // of the thousands that an open makes, fewer
      left = at;
      pocketphi* other = opened(argv[1]);
      bool over = left.exchange(0) > 1;
      CHECK(other || *error);
      if (other) {
        CHECK(talk(other) == 0 && row == right);
        pocketphi_close(other);
      }
      if (over) break;
    }
    for (at = 1;; ++at) {
      pocketphi_reset(model);
      left = at;
      int code = talk(model);
      bool over = left.exchange(0) > 1;
      if (code) {
        ++failed;
        CHECK(*pocketphi_error(model));
        CHECK(pocketphi_length(model) == 0 || pocketphi_length(model) == 10);
        pocketphi_reset(model);
        CHECK(talk(model) == 0);
      }
      CHECK(row == right);
      if (over) break;
    }
  }
  CHECK(failed > 20);
  left = 1;
  pocketphi_close(model);
  left = 0;
  std::puts("ok");
}
