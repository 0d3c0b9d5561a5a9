// The functions of a compiled model as TVM's compiler writes them: calls of kernels and built-in functions, one after the other.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "value.h"

namespace pocketphi_runtime {

// Either code of its own, instructions `start` to `end`, or a name: a kernel's or a built-in function's.
struct Function {
  std::string name;
  bool has_code;
  int64_t start, end, arguments, registers;
};

// A call, or a return of its one operand. Operands lie in `Bytecode::operands`: registers from 0 on, constants from -1 down.
struct Instruction {
  static constexpr int64_t kReturn = -1, kNowhere = -1;
  int64_t function, result;
  size_t first, count;
};

// Whole once it was read: every number in it names something that is there, and code ends with a return.
struct Bytecode {
  std::vector<Function> functions;
  std::vector<Value> constants;
  std::vector<Instruction> instructions;
  std::vector<int64_t> operands;

  // Fails for what another version of TVM wrote, and for what our lowering never makes: branches, constant tensors.
  static Bytecode read(const std::string& bytes);
};

}  // namespace pocketphi_runtime
