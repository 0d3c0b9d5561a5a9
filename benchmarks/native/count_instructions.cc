// A plugin of qemu-user: counts how often the guest executes each block of instructions.
//
//   qemu-aarch64 -plugin libcount_instructions.so,out=FILE PROGRAM …
//
// At the end FILE has a line for each block: how often, its address, the bytes of its instructions in hexadecimal. A block ends
// with a jump, or where qemu wants no longer ones.
//
// Debian ships qemu without its plugin header: these are the few declarations of qemu-plugin.h that are needed here. The
// interface is C, and stable within its version.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>

extern "C" {
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb *, qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
uint64_t qemu_plugin_tb_vaddr(const qemu_plugin_tb *);
size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb *);
qemu_plugin_insn *qemu_plugin_tb_get_insn(const qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const qemu_plugin_insn *);
}

namespace {

struct Block {
  uint64_t executed = 0, address;
  std::string bytes;
};

std::deque<Block> blocks;  // never moved: qemu's code holds addresses of `executed`
std::string out;

void translated(qemu_plugin_id_t, qemu_plugin_tb *tb) {
  blocks.emplace_back();
  Block &block = blocks.back();
  block.address = qemu_plugin_tb_vaddr(tb);
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
    qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
    auto *data = static_cast<const unsigned char *>(qemu_plugin_insn_data(instruction));
    for (size_t j = 0; j < qemu_plugin_insn_size(instruction); ++j) {
      char text[3];
      std::snprintf(text, sizeof text, "%02x", data[j]);
      block.bytes += text;
    }
  }
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block.executed, 1);
}

void ended(qemu_plugin_id_t, void *) {
  FILE *file = std::fopen(out.c_str(), "w");
  if (!file) return;
  for (const Block &block : blocks) {
    if (block.executed) {
      std::fprintf(file, "%ju %jx %s\n", uintmax_t{block.executed}, uintmax_t{block.address}, block.bytes.c_str());
    }
  }
  std::fclose(file);
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *, int argc, char **argv) {
  for (int i = 0; i < argc; ++i) {
    if (!std::strncmp(argv[i], "out=", 4)) out = argv[i] + 4;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, nullptr);
  return 0;
}
}
