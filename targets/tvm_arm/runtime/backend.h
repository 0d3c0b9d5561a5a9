// What compiled kernels call of the runtime, by TVM's names for it.
#pragma once
#include <cstddef>
#include <map>
#include <new>
#include <string>

#include "abi.h"

extern "C" {
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count);
void* TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void* data);
int TVMBackendParallelLaunch(pocketphi_runtime::LoopBody body, void* data, int parts);
int TVMBackendParallelBarrier(int part, pocketphi_runtime::LoopGroup* group);
int TVMFFIEnvModRegisterSystemLibSymbol(const char* name, void* symbol);
}

namespace pocketphi_runtime {

// The functions above by name, for a library that reaches them through pointers.
const std::map<std::string, void*>& kernel_services();

// Symbols of the libraries that are linked into this program.
std::map<std::string, void*> linked_symbols();

// Memory that starts at a multiple of 64, to be freed; std::bad_alloc where there is none.
void* aligned(size_t bytes);

}  // namespace pocketphi_runtime
