// The pool under ThreadSanitizer: each part of each loop runs once, and a thread that cannot run is not waited for.
#include "pool.h"

#include <dirent.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"
#include "cpu.h"
#include "raised.h"

using pocketphi_runtime::LoopGroup;
using pocketphi_runtime::Pool;

#define CHECK(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::exit(1)

struct Loop {
  std::vector<int> runs;  // of each part
  std::vector<std::thread::id> by;
  int parts = 0, failing = -1;
};

int count_part(int part, LoopGroup* group, void* data) {
  auto& loop = *static_cast<Loop*>(data);
  if (part == 0) loop.parts = group->parts;
  ++loop.runs[part];
  loop.by[part] = std::this_thread::get_id();
  if (part != loop.failing) return 0;
  pocketphi_runtime::raise(("part " + std::to_string(part)).c_str());
  return -1;
}

// A loop in a loop runs where it is called, as one part.
int nested(int, LoopGroup*, void*) {
  Loop inner{std::vector<int>(64), std::vector<std::thread::id>(64)};
  return TVMBackendParallelLaunch(count_part, &inner, 0) != 0 || inner.parts != 1 || inner.runs[0] != 1;
}

Loop run() {
  Loop loop{std::vector<int>(64), std::vector<std::thread::id>(64)};
  CHECK(TVMBackendParallelLaunch(count_part, &loop, 0) == 0);
  for (int part = 0; part < 64; ++part) CHECK(loop.runs[part] == (part < loop.parts));
  return loop;
}

std::set<int> threads() {
  std::set<int> found;
  DIR* tasks = opendir("/proc/self/task");
  while (dirent* entry = readdir(tasks)) {
    if (int id = std::atoi(entry->d_name)) found.insert(id);
  }
  closedir(tasks);
  return found;
}

sem_t held, release;

void hold(int) {
  sem_post(&held);
  while (sem_wait(&release) != 0) {}
}

char state_of(int id) {
  std::string stat;
  std::getline(std::ifstream("/proc/self/task/" + std::to_string(id) + "/stat"), stat);
  return stat[stat.rfind(')') + 2];
}

int main() {
  alarm(100);  // for what would wait for ever
  CHECK(run().parts == 1);  // without a pool
  std::thread([] {}).join();  // the sanitizer starts one of its own beside the first
  const std::set<int> before = threads();
  {
    Pool pool(3, pocketphi_runtime::all_cores());
    CHECK(pool.threads() == 3);
    for (int i = 0; i < 20000; ++i) CHECK(run().parts == 6);
    CHECK(TVMBackendParallelLaunch(nested, nullptr, 0) == 0);
    Loop loop{std::vector<int>(64), std::vector<std::thread::id>(64), 0, 5};
    CHECK(TVMBackendParallelLaunch(count_part, &loop, 0) == -1);
    CHECK(std::string(pocketphi_runtime::take_raised().text) == "part 5");
    CHECK(run().parts == 6);  // a failure is of one loop

    signal(SIGUSR1, hold);
    sem_init(&held, 0, 0);
    sem_init(&release, 0, 0);
    std::set<int> ids = threads();
    for (int id : before) ids.erase(id);
    CHECK(ids.size() == 2);
    for (int id : ids) {
      while (state_of(id) != 'S') usleep(1000);  // with nothing to do a helper sleeps
      syscall(SYS_tgkill, getpid(), id, SIGUSR1);
      sem_wait(&held);
    }
    for (int i = 0; i < 100; ++i) {
      Loop alone = run();
      for (int part = 0; part < 6; ++part) CHECK(alone.by[part] == std::this_thread::get_id());
    }
    sem_post(&release);
    sem_post(&release);
    for (int i = 0; i < 1000; ++i) run();
  }
  CHECK(run().parts == 1);
  while (threads() != before) usleep(1000);  // joined threads leave the list a moment later
  for (int i = 0; i < 50; ++i) Pool(4, pocketphi_runtime::all_cores());  // ends before its threads began
  std::puts("ok");
}
