// The virtual machine that a model's bytecode runs on.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bytecode.h"
#include "library.h"

namespace pocketphi_runtime {

// Memory for activations. What is given back waits for the next request of the same size.
class Memory {
 public:
  Storage take(int64_t bytes);
  void release() { free_->clear(); }

 private:
  struct Free : std::multimap<int64_t, void*> {
    ~Free() { clear(); }
    void keep(int64_t bytes, void* block);
    void clear();
  };
  std::shared_ptr<Free> free_ = std::make_shared<Free>();  // kept by every block that may come back
};

// What an instruction is called with.
class Operands {
 public:
  Operands(const Value* registers, const Value* constants, const int64_t* operands, size_t count)
      : size(count), registers_(registers), constants_(constants), operands_(operands) {}

  // Each fails where there is no such operand, or one of another kind.
  const Value& operator[](size_t i) const;
  int64_t number(size_t i) const { return get<int64_t>(i); }
  template <typename T>
  const T& get(size_t i) const;

  const size_t size;

 private:
  const Value* registers_;
  const Value* constants_;
  const int64_t* operands_;
};

class Machine {
 public:
  // Fails where a kernel or a built-in function is missing.
  explicit Machine(Library library);

  // Null where there is none.
  const Function* find(const std::string& name) const;

  // Fails with the kernel's reason. Its result lives as long as the machine at most.
  Value call(const Function& function, std::vector<Value> arguments);

  Memory memory;

 private:
  using BuiltIn = Value (*)(Machine&, const Operands&);
  struct Callee {
    Kernel kernel = nullptr;
    BuiltIn built_in = nullptr;
  };

  static const std::map<std::string, BuiltIn>& built_ins();
  Value run(const Callee& callee, const Operands& operands);

  Library library_;
  Bytecode code_;
  std::vector<Callee> callees_;  // of the bytecode's functions
  std::vector<Argument> arguments_;
};

}  // namespace pocketphi_runtime
