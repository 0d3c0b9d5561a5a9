// Runs a bundle over the C API: the example to start from, and the process behind pocketphi's Python host.
//
//   pocketphi-runner BUNDLE [OPTIONS]                                   serve requests on stdin
//   pocketphi-runner BUNDLE [OPTIONS] --chat [--stop ID]... [--max N]   chat in token ids
//
// OPTIONS: JSON, see pocketphi_open. Bad input: one line on stderr, exit code 2.
//
// --chat: each line of stdin holds the token ids of a turn. Greedy ids are printed as they come, on one line, up to and
// without a stop id.
//
// Requests are lines of text. Every answer is a line, which `ok` lines follow with raw float32 logits in the machine's order:
//
//   (at start)          ready VOCAB CONTEXT MILLISECONDS PEAK_KIB
//   prefill ID ID …     ok VALUES MILLISECONDS PEAK_KIB LENGTH CALLS  VALUES = VOCAB, of the last token
//   prefill_all ID …    ok VALUES …                                   VALUES = tokens × VOCAB
//   decode ID           ok VALUES …
//   reset               ok 0 …
//   adapter [NAME]      ok 0 …                                        none without a name
//   draft [PATH]        ok 0 …                                        none without a path
//   save HEX PATH       ok 0 …                                        HEX: of the note's bytes, - for none; a path may have spaces
//   load PATH           note HEX, then ok 0 …
//   (a failure)         error TEXT                                    the process goes on, nothing was appended
//
// MILLISECONDS: of the call alone. PEAK_KIB: the process's peak resident memory. LENGTH: tokens in the cache. CALLS: of the
// library so far, each of which reads all weights once.
#if defined(__APPLE__)
#include <sys/resource.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "pocketphi_runtime.h"

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

long peak_kib() {
#if defined(__APPLE__)
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
#else  // Linux's ru_maxrss starts with what the parent had when it forked
  std::ifstream file("/proc/self/status");
  std::string word;
  long kib = 0;
  while (file >> word && word != "VmHWM:") {}
  file >> kib;
  return kib;
#endif
}

int refuse(const char *text) {
  std::fprintf(stderr, "%s\n", text);
  return 2;
}

// Token ids up to the end of the line. False for anything that is no id.
bool read_ids(std::istream &line, std::vector<int32_t> *ids) {
  for (std::string word; line >> word;) {
    char *end;
    long id = std::strtol(word.c_str(), &end, 10);
    if (*end || id < 0 || id > INT32_MAX) return false;
    ids->push_back(static_cast<int32_t>(id));
  }
  return !ids->empty();
}

// The line that answers a request. False for a failure.
bool done(pocketphi *model, Clock::time_point start, int code, size_t values = 0) {
  if (code) {
    std::printf("error %s\n", pocketphi_error(model));
    return false;
  }
  std::printf("ok %zu %.4f %ld %d %lld\n", values, since(start), peak_kib(), pocketphi_length(model),
              static_cast<long long>(pocketphi_calls(model)));
  return true;
}

std::string unhex(const std::string &digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes += static_cast<char>(std::strtol(digits.substr(i, 2).c_str(), nullptr, 16));
  }
  return bytes;
}

void load(pocketphi *model, Clock::time_point start, const std::string &path) {
  std::vector<char> note(1 << 20);
  int64_t size = pocketphi_load(model, path.c_str(), note.data(), note.size());
  if (size >= static_cast<int64_t>(note.size())) {
    note.resize(size + 1);
    size = pocketphi_load(model, path.c_str(), note.data(), note.size());
  }
  if (size >= 0) {
    std::printf("note ");
    for (int64_t i = 0; i < size; ++i) std::printf("%02x", static_cast<unsigned char>(note[i]));
    std::printf("\n");
  }
  done(model, start, size < 0 ? -1 : 0);
}

void answer(pocketphi *model, const std::string &text) {
  std::istringstream line(text);
  std::string verb;
  line >> verb;
  std::vector<int32_t> ids;
  bool all = verb == "prefill_all";
  if (verb == "adapter" || verb == "draft" || verb == "save" || verb == "load") {
    std::string note, name;
    if (verb == "save") line >> note;
    line >> std::ws;
    std::getline(line, name);
    Clock::time_point start = Clock::now();
    if (verb == "adapter") done(model, start, pocketphi_adapter(model, name.empty() ? nullptr : name.c_str()));
    else if (verb == "draft") done(model, start, pocketphi_draft(model, name.empty() ? nullptr : name.c_str()));
    else if (verb == "save") done(model, start, pocketphi_save(model, name.c_str(), unhex(note).c_str()));
    else load(model, start, name);
    return;
  }
  bool known = all || verb == "prefill" || verb == "decode";
  if (verb != "reset" && (!known || !read_ids(line, &ids) || (verb == "decode" && ids.size() > 1))) {
    std::printf("error expected: prefill ID…, prefill_all ID…, decode ID, reset, adapter NAME, draft PATH, save HEX PATH or load PATH\n");
    return;
  }
  size_t rows = verb == "reset" ? 0 : all ? std::min<size_t>(ids.size(), pocketphi_context(model)) : 1;  // more are refused
  std::vector<float> logits(rows * static_cast<size_t>(pocketphi_vocab(model)));
  int count = static_cast<int>(ids.size()), code = 0;
  Clock::time_point start = Clock::now();
  if (all) code = pocketphi_prefill_all(model, ids.data(), count, logits.data());
  else if (verb == "prefill") code = pocketphi_prefill(model, ids.data(), count, logits.data());
  else if (verb == "decode") code = pocketphi_decode(model, ids[0], logits.data());
  else pocketphi_reset(model);
  if (!done(model, start, code, logits.size())) return;
  std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
}

// Print greedy ids after `prompt`, until one of `stops` or `most` of them. False: see pocketphi_error.
bool reply(pocketphi *model, const std::vector<int32_t> &prompt, const std::vector<int32_t> &stops, long most) {
  std::vector<float> logits(pocketphi_vocab(model));
  int code = pocketphi_prefill(model, prompt.data(), static_cast<int>(prompt.size()), logits.data());
  for (long i = 0; code == 0 && i < most; ++i) {
    auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (std::find(stops.begin(), stops.end(), best) != stops.end()) break;
    std::printf("%s%d", i ? " " : "", best);
    std::fflush(stdout);
    if (i + 1 < most) code = pocketphi_decode(model, best, logits.data());
  }
  std::printf("\n");
  std::fflush(stdout);
  return code == 0;
}

int chat(pocketphi *model, const std::vector<int32_t> &stops, long most) {
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::vector<int32_t> ids;
    if (!read_ids(line, &ids)) return refuse("expected a line of token ids");
    if (!reply(model, ids, stops, most)) return refuse(pocketphi_error(model));
  }
  return 0;
}

void serve(pocketphi *model, double milliseconds) {
  std::printf("ready %d %d %.4f %ld\n", pocketphi_vocab(model), pocketphi_context(model), milliseconds, peak_kib());
  std::fflush(stdout);
  for (std::string text; std::getline(std::cin, text);) {
    answer(model, text);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char **argv) {
  std::vector<std::string> places;
  std::vector<int32_t> stops;
  bool chatting = false;
  long most = 256;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--chat")) chatting = true;
    else if (!std::strcmp(argv[i], "--stop") && i + 1 < argc) stops.push_back(std::atoi(argv[++i]));
    else if (!std::strcmp(argv[i], "--max") && i + 1 < argc) most = std::atol(argv[++i]);
    else places.push_back(argv[i]);
  }
  if (places.empty() || places.size() > 2) return refuse("usage: pocketphi-runner BUNDLE [OPTIONS] [--chat [--stop ID]... [--max N]]");
  char error[1024];
  Clock::time_point start = Clock::now();
  pocketphi *model = pocketphi_open(places[0].c_str(), places.size() > 1 ? places[1].c_str() : "", error, sizeof error);
  if (!model) return refuse(error);
  int code = 0;
  if (chatting) code = chat(model, stops, most);
  else serve(model, since(start));
  pocketphi_close(model);
  return code;
}
