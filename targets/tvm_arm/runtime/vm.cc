#include "vm.h"

#include <cstdlib>
#include <utility>

#include "backend.h"
#include "failure.h"
#include "raised.h"

namespace pocketphi_runtime {

const Value& Operands::operator[](size_t i) const {
  if (i >= size) throw Failure("the library is damaged: a call with too few operands");
  int64_t at = operands_[i];
  return at >= 0 ? registers_[at] : constants_[-1 - at];
}

template <typename T>
const T& Operands::get(size_t i) const {
  const T* value = std::get_if<T>(&(*this)[i]);
  if (!value) throw Failure("the library is damaged: an operand of another kind");
  return *value;
}

namespace {

constexpr DataType kInt64{DataType::kInt, 64, 1};

// Sizes that are known only in a call lie on a heap: a tensor int64, or nothing where a function has none.
int64_t* size_on(const Operands& operands, size_t heap, int64_t index) {
  const TensorRef& sizes = operands.get<TensorRef>(heap);
  if (index < 0 || index >= sizes->shape()[0]) throw Failure("the library is damaged: a size that is not on the heap");
  return sizes->data<int64_t>() + index;
}

[[noreturn]] void refuse_argument(const Operands& operands, size_t place) {
  throw Failure("the library was given a tensor that it was not built for: " + operands.get<std::string>(place));
}

// (machine, count) → heap
Value alloc_shape_heap(Machine& machine, const Operands& operands) {
  int64_t count = operands.number(1);
  Storage storage = machine.memory.take(tensor_bytes({count}, kInt64));
  return std::make_shared<const Tensor>(storage.memory.get(), Shape{count}, kInt64, storage.memory);
}

// (tensor, dimensions or -1, type?, place)
Value check_tensor_info(Machine&, const Operands& operands) {
  size_t place = operands.size - 1;
  auto tensor = std::get_if<TensorRef>(&operands[0]);
  int64_t dimensions = operands.number(1);
  if (!tensor || (dimensions >= 0 && (*tensor)->header().ndim != dimensions)) refuse_argument(operands, place);
  if (place == 3 && (*tensor)->dtype() != operands.get<DataType>(2)) refuse_argument(operands, place);
  return {};
}

// (tensor, heap, dimensions, (code, value)…, place)
Value match_shape(Machine&, const Operands& operands) {
  enum Code { kEquals, kStore, kAny, kEqualsStored };
  const Shape& shape = operands.get<TensorRef>(0)->shape();
  int64_t dimensions = operands.number(2);
  size_t place = operands.size - 1;
  if (dimensions != static_cast<int64_t>(shape.size())) refuse_argument(operands, place);
  for (size_t i = 0; i < shape.size(); ++i) {
    int64_t value = operands.number(4 + 2 * i);
    switch (operands.number(3 + 2 * i)) {
      case kEquals:
        if (shape[i] != value) refuse_argument(operands, place);
        break;
      case kStore: *size_on(operands, 1, value) = shape[i]; break;
      case kAny: break;
      case kEqualsStored:
        if (shape[i] != *size_on(operands, 1, value)) refuse_argument(operands, place);
        break;
      default: throw Failure("the library is damaged: an unknown rule for a size");
    }
  }
  return {};
}

// (heap, dimensions, (code, value)…) → shape
Value make_shape(Machine&, const Operands& operands) {
  enum Code { kValue, kStored };
  Shape shape(operands.number(1));
  for (size_t i = 0; i < shape.size(); ++i) {
    int64_t value = operands.number(3 + 2 * i);
    shape[i] = operands.number(2 + 2 * i) == kValue ? value : *size_on(operands, 0, value);
  }
  return shape;
}

// (machine, shape: bytes, device, type, place in memory) → storage
Value alloc_storage(Machine& machine, const Operands& operands) { return machine.memory.take(operands.get<Shape>(1).at(0)); }

// (storage, offset, shape, type) → tensor
Value alloc_tensor(Machine&, const Operands& operands) {
  const Storage& storage = operands.get<Storage>(0);
  int64_t offset = operands.number(1);
  const Shape& shape = operands.get<Shape>(2);
  DataType dtype = operands.get<DataType>(3);
  if (offset < 0 || offset > storage.bytes || tensor_bytes(shape, dtype) > storage.bytes - offset) {
    throw Failure("the library is damaged: a tensor beyond its memory");
  }
  return std::make_shared<const Tensor>(static_cast<char*>(storage.memory.get()) + offset, shape, dtype, storage.memory);
}

Value copy(Machine&, const Operands& operands) { return operands[0]; }

// A value that is over, or a tuple, of which nobody takes a part.
Value nothing(Machine&, const Operands&) { return {}; }

}  // namespace

const std::map<std::string, Machine::BuiltIn>& Machine::built_ins() {
  static const std::map<std::string, BuiltIn> all = {
      {"vm.builtin.alloc_shape_heap", alloc_shape_heap},
      {"vm.builtin.alloc_storage", alloc_storage},
      {"vm.builtin.alloc_tensor", alloc_tensor},
      {"vm.builtin.check_tensor_info", check_tensor_info},
      {"vm.builtin.copy", copy},
      {"vm.builtin.make_shape", make_shape},
      {"vm.builtin.make_tuple", nothing},
      {"vm.builtin.match_shape", match_shape},
      {"vm.builtin.null_value", nothing},
  };
  return all;
}

Storage Memory::take(int64_t bytes) {
  void* data;
  if (auto found = free_->find(bytes); found != free_->end()) {
    data = found->second;
    free_->erase(found);
  } else {
    data = aligned(bytes);
  }
  return {{data, [bytes, free = free_](void* block) { free->keep(bytes, block); }}, bytes};
}

void Memory::Free::keep(int64_t bytes, void* block) try {
  emplace(bytes, block);
} catch (const std::bad_alloc&) {
  std::free(block);
}

void Memory::Free::clear() {
  for (auto [bytes, block] : *this) std::free(block);
  std::multimap<int64_t, void*>::clear();
}

Machine::Machine(Library library) : library_(std::move(library)), code_(Bytecode::read(library_.bytecode())) {
  for (const Function& function : code_.functions) {
    Callee callee;
    if (!function.has_code) {
      callee.kernel = library_.kernel(function.name);
      auto found = built_ins().find(function.name);
      if (found != built_ins().end()) callee.built_in = found->second;
      if (!callee.kernel && !callee.built_in) {
        throw Failure("the library calls " + function.name + ", which this runtime does not have: compile the model again");
      }
    }
    callees_.push_back(callee);
  }
}

const Function* Machine::find(const std::string& name) const {
  for (const Function& function : code_.functions) {
    if (function.has_code && function.name == name) return &function;
  }
  return nullptr;
}

Value Machine::call(const Function& function, std::vector<Value> registers) {
  registers.resize(function.registers);
  for (int64_t at = function.start;; ++at) {
    const Instruction& instruction = code_.instructions[at];
    Operands operands(registers.data(), code_.constants.data(), &code_.operands[instruction.first], instruction.count);
    if (instruction.function == Instruction::kReturn) return operands[0];
    Value result = run(callees_[instruction.function], operands);
    if (instruction.result != Instruction::kNowhere) registers[instruction.result] = std::move(result);
  }
}

Value Machine::run(const Callee& callee, const Operands& operands) {
  if (callee.built_in) return callee.built_in(*this, operands);
  if (!callee.kernel) throw Failure("the library is damaged: a function that calls another");
  arguments_.clear();
  for (size_t i = 0; i < operands.size; ++i) {
    Argument argument{Argument::kNone, 0, {0}};
    if (auto tensor = std::get_if<TensorRef>(&operands[i])) {
      argument.type = Argument::kTensor;
      argument.pointer = &(*tensor)->header();
    } else {
      argument.type = Argument::kInt;
      argument.number = operands.number(i);
    }
    arguments_.push_back(argument);
  }
  Argument result{Argument::kNone, 0, {0}};
  if (callee.kernel(nullptr, arguments_.data(), static_cast<int32_t>(arguments_.size()), &result) != 0) {
    throw Failure(take_raised().text);
  }
  return {};
}

}  // namespace pocketphi_runtime
