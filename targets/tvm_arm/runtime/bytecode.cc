#include "bytecode.h"

#include <map>
#include <utility>

#include "reader.h"

namespace pocketphi_runtime {
namespace {

constexpr uint64_t kMagic = 0xD225DE2F4214151E;
constexpr char kVersion[] = "0.14";
constexpr int64_t kVoid = int64_t{1} << 54, kMachine = kVoid + 1;  // registers with a meaning of their own

[[noreturn]] void refuse(const std::string& what) {
  throw Failure("the library holds " + what + ", which this runtime does not know: compile the model again");
}

Function read_function(Reader& reader) {
  enum Kind { kNamed, kCode };
  int32_t kind = reader.number<int32_t>();
  Function function;
  function.name = reader.text();
  function.start = reader.number<int64_t>();
  function.end = reader.number<int64_t>();
  function.arguments = reader.number<int64_t>();
  function.registers = reader.number<int64_t>();
  for (uint64_t names = reader.count(); names > 0; --names) reader.text();
  if (kind != kNamed && kind != kCode) refuse("a function of kind " + std::to_string(kind));
  function.has_code = kind == kCode;
  return function;
}

Value read_constant(Reader& reader) {
  enum Kind { kInt = 1, kDataType = 5, kText = 65, kShape = 69 };
  switch (int32_t kind = reader.number<int32_t>()) {
    case kInt: return reader.number<int64_t>();
    case kText: return reader.text();
    case kShape: return reader.numbers();
    case kDataType: {
      auto code = reader.number<uint8_t>();
      auto bits = reader.number<uint8_t>();
      return DataType{code, bits, reader.number<uint16_t>()};
    }
    default: refuse("a constant of kind " + std::to_string(kind));
  }
}

// Instructions from words of 64 bits.
class Decoder {
 public:
  Decoder(Bytecode& code, const std::vector<int64_t>& words) : code_(code), words_(words) {}

  Instruction instruction(int64_t at) {
    enum Operation { kCall = 1, kReturn = 2 };
    int64_t operation = word(at);
    if (operation == kReturn) return {Instruction::kReturn, Instruction::kNowhere, operands({word(at + 1)}), 1};
    if (operation != kCall) refuse("an instruction of kind " + std::to_string(operation));
    int64_t result = word(at + 1), function = word(at + 2), count = word(at + 3);
    if (function < 0 || function >= static_cast<int64_t>(code_.functions.size())) Reader::refuse();
    std::vector<int64_t> found;
    for (int64_t i = 0; i < count; ++i) found.push_back(word(at + 4 + i));
    return {function, result >= kVoid ? Instruction::kNowhere : result, operands(found), found.size()};
  }

 private:
  int64_t word(int64_t at) const {
    if (at < 0 || at >= static_cast<int64_t>(words_.size())) Reader::refuse();
    return words_[at];
  }

  // The kind in the upper 8 bits, the value in the others.
  size_t operands(const std::vector<int64_t>& found) {
    enum Kind { kRegister, kImmediate, kConstant };
    size_t first = code_.operands.size();
    for (int64_t word : found) {
      int64_t kind = word >> 56 & 0xff, value = static_cast<int64_t>(static_cast<uint64_t>(word) << 8) >> 8;
      if (kind == kImmediate) code_.operands.push_back(immediate(value));
      else if (kind == kConstant) code_.operands.push_back(-1 - value);
      else if (kind != kRegister) refuse("an operand of kind " + std::to_string(kind));
      else code_.operands.push_back(value == kVoid || value == kMachine ? nothing_ : value);
      if (kind == kConstant && (value < 0 || value >= static_cast<int64_t>(code_.constants.size()))) Reader::refuse();
    }
    return first;
  }

  int64_t immediate(int64_t value) {
    auto [found, is_new] = immediates_.emplace(value, 0);
    if (is_new) found->second = constant(value);
    return found->second;
  }

  int64_t constant(Value value) {
    code_.constants.push_back(std::move(value));
    return -static_cast<int64_t>(code_.constants.size());
  }

  Bytecode& code_;
  const std::vector<int64_t>& words_;
  std::map<int64_t, int64_t> immediates_;
  int64_t nothing_ = constant({});
};

void check_code(const Bytecode& code, const Function& function) {
  int64_t count = static_cast<int64_t>(code.instructions.size());
  if (function.start < 0 || function.end > count || function.start >= function.end) Reader::refuse();
  if (function.registers < function.arguments || function.arguments < 0 || function.registers > INT32_MAX) Reader::refuse();
  for (int64_t i = function.start; i < function.end; ++i) {
    const Instruction& instruction = code.instructions[i];
    if (instruction.result < Instruction::kNowhere || instruction.result >= function.registers) Reader::refuse();
    for (size_t n = 0; n < instruction.count; ++n) {
      if (code.operands[instruction.first + n] >= function.registers) Reader::refuse();
    }
  }
  if (code.instructions[function.end - 1].function != Instruction::kReturn) Reader::refuse();
}

}  // namespace

Bytecode Bytecode::read(const std::string& bytes) {
  Reader reader(bytes.data(), bytes.size());
  if (reader.number<uint64_t>() != kMagic) refuse("code of another kind");
  if (std::string version = reader.text(); version != kVersion) refuse("code of TVM's version " + version);
  Bytecode code;
  for (uint64_t count = reader.count(); count > 0; --count) code.functions.push_back(read_function(reader));
  if (reader.count()) refuse("memory that is not the CPU's");
  for (uint64_t count = reader.count(); count > 0; --count) code.constants.push_back(read_constant(reader));
  std::vector<int64_t> starts = reader.numbers(), words = reader.numbers();
  Decoder decoder(code, words);
  for (int64_t start : starts) code.instructions.push_back(decoder.instruction(start));
  for (const Function& function : code.functions) {
    if (function.has_code) check_code(code, function);
  }
  return code;
}

}  // namespace pocketphi_runtime
