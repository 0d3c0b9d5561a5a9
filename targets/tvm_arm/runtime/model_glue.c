/* Linked into every model.so. TVM's compiler calls this function by name, the only one; all others it reaches through
 * pointers that the runtime fills in. A library with an open name loads only where the runtime's names are global: not on
 * Android, nor behind an app's dlopen. Here it goes through such a pointer as well. */
#include <stdint.h>
#include <string.h>

__attribute__((visibility("default"))) void (*__TVMFFIErrorSetRaisedFromCStr)(const char *kind, const char *message);

__attribute__((visibility("hidden"))) void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts,
                                                                             int32_t count) {
  char message[1024] = "";
  size_t used = 0;
  for (int32_t i = 0; i < count; ++i) {
    size_t size = parts[i] ? strlen(parts[i]) : 0;
    if (size > sizeof message - 1 - used) size = sizeof message - 1 - used;
    memcpy(message + used, parts[i] ? parts[i] : "", size);
    used += size;
  }
  message[used] = 0;
  __TVMFFIErrorSetRaisedFromCStr(kind, message);
}
