// Calls the JNI part of the Android kit as a virtual machine would, without one: a table of the functions that it uses.
//
//   jni_harness LIBRARY FOLDER OPTIONS PROMPT STEPS LOGITS
//
// PROMPT: token numbers with commas. Prints one `name value` a line; writes the last logits, float32, to LOGITS. Arrays are handed
// out as copies, as a virtual machine may, so that what is not released as it should be is lost. A function that is called
// while an exception is pending, or that is not in the table, ends the program.
#include <dlfcn.h>
#include <jni.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct Object : _jobject {
  std::string text;
  std::vector<jint> ints;
  std::vector<jfloat> floats;
};

std::map<std::string, void *> methods;
std::string owner, pending;
bool thrown = false;
int held = 0;  // strings and arrays that were not released

Object &at(jobject object) { return *static_cast<Object *>(object); }

void clear_of_exceptions(const char *function) {
  if (!thrown) return;
  std::fprintf(stderr, "%s with an exception pending: %s\n", function, pending.c_str());
  std::exit(2);
}

jclass find_class(JNIEnv *, const char *name) {
  clear_of_exceptions("FindClass");
  Object *made = new Object;
  made->text = name;
  return reinterpret_cast<jclass>(static_cast<_jobject *>(made));
}

jint throw_new(JNIEnv *, jclass kind, const char *message) {
  clear_of_exceptions("ThrowNew");
  thrown = true;
  pending = at(kind).text + ": " + message;
  return 0;
}

jboolean exception_check(JNIEnv *) { return thrown; }

jint register_natives(JNIEnv *, jclass kind, const JNINativeMethod *found, jint count) {
  owner = at(kind).text;
  for (jint i = 0; i < count; ++i) methods[std::string(found[i].name) + found[i].signature] = found[i].fnPtr;
  return JNI_OK;
}

const char *string_chars(JNIEnv *, jstring text, jboolean *) {
  clear_of_exceptions("GetStringUTFChars");
  ++held;
  return strdup(at(text).text.c_str());
}

void release_string(JNIEnv *, jstring, const char *chars) {
  --held;
  std::free(const_cast<char *>(chars));
}

jsize array_length(JNIEnv *, jarray array) {
  return static_cast<jsize>(std::max(at(array).ints.size(), at(array).floats.size()));
}

template <typename T>
T *copied(const std::vector<T> &values) {
  ++held;
  T *made = static_cast<T *>(std::malloc(values.size() * sizeof(T) + 1));
  std::copy(values.begin(), values.end(), made);
  return made;
}

template <typename T>
void released(std::vector<T> &values, T *elements, jint mode) {
  if (mode != JNI_ABORT) std::copy(elements, elements + values.size(), values.begin());
  if (mode == JNI_COMMIT) return;
  --held;
  std::free(elements);
}

jint *int_elements(JNIEnv *, jintArray array, jboolean *) { return copied(at(array).ints); }
jfloat *float_elements(JNIEnv *, jfloatArray array, jboolean *) { return copied(at(array).floats); }
void release_ints(JNIEnv *, jintArray array, jint *elements, jint mode) { released(at(array).ints, elements, mode); }
void release_floats(JNIEnv *, jfloatArray array, jfloat *elements, jint mode) {
  released(at(array).floats, elements, mode);
}

JNIEnv env;
jint get_env(JavaVM *, void **out, jint) {
  *out = &env;
  return JNI_OK;
}

// A method that the library registered; the object that it is called on is of no interest to it.
template <typename Result, typename... Arguments>
Result call(const char *method, Arguments... arguments) {
  auto found = methods.find(method);
  if (found == methods.end()) {
    std::fprintf(stderr, "no method %s\n", method);
    std::exit(2);
  }
  return reinterpret_cast<Result (*)(JNIEnv *, jobject, Arguments...)>(found->second)(&env, nullptr, arguments...);
}

void print_error(const char *name) {
  std::printf("%s %s\n", name, thrown ? pending.c_str() : "");
  thrown = false;
}

void must_not_throw(const char *what) { clear_of_exceptions(what); }

jstring text(const char *content) {
  Object *made = new Object;
  made->text = content;
  return reinterpret_cast<jstring>(static_cast<_jobject *>(made));
}

// NativeModel of the kit, in C++.
struct Model {
  jlong handle;
  Object logits;

  void prefill(std::vector<jint> tokens) {
    Object ids;
    ids.ints = tokens;
    call<void>("prefill(J[I[F)V", handle, reinterpret_cast<jintArray>(static_cast<_jobject *>(&ids)), out());
  }
  void decode(jint token) { call<void>("decode(JI[F)V", handle, token, out()); }
  int length() { return call<jint>("length(J)I", handle); }
  jfloatArray out() { return reinterpret_cast<jfloatArray>(static_cast<_jobject *>(&logits)); }

  std::vector<jint> greedy(const std::vector<jint> &prompt, int steps) {
    std::vector<jint> made;
    prefill(prompt);
    for (int step = 0; step < steps; ++step) {
      must_not_throw("prefill or decode");
      auto best = std::max_element(logits.floats.begin(), logits.floats.end());
      made.push_back(static_cast<jint>(best - logits.floats.begin()));
      if (step + 1 < steps) decode(made.back());
    }
    return made;
  }
};

void print(const char *name, const std::vector<jint> &values) {
  std::printf("%s", name);
  for (size_t i = 0; i < values.size(); ++i) std::printf("%c%d", i ? ',' : ' ', values[i]);
  std::printf("\n");
}

}  // namespace

int main(int, char **arguments) {
  JNINativeInterface_ table = {};
  table.FindClass = find_class;
  table.ThrowNew = throw_new;
  table.ExceptionCheck = exception_check;
  table.RegisterNatives = register_natives;
  table.GetStringUTFChars = string_chars;
  table.ReleaseStringUTFChars = release_string;
  table.GetArrayLength = array_length;
  table.GetIntArrayElements = int_elements;
  table.GetFloatArrayElements = float_elements;
  table.ReleaseIntArrayElements = release_ints;
  table.ReleaseFloatArrayElements = release_floats;
  env.functions = &table;
  JNIInvokeInterface_ invoke = {};
  invoke.GetEnv = get_env;
  JavaVM machine;
  machine.functions = &invoke;

  void *library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  auto load = reinterpret_cast<jint (*)(JavaVM *, void *)>(dlsym(library, "JNI_OnLoad"));
  if (load == nullptr || load(&machine, nullptr) != JNI_VERSION_1_6) return std::fprintf(stderr, "JNI_OnLoad\n"), 2;
  std::printf("class %s\n", owner.c_str());

  const char *open = "open(Ljava/lang/String;Ljava/lang/String;)J";
  if (call<jlong>(open, text("/nowhere"), text("{}")) != 0) return std::fprintf(stderr, "opened nothing\n"), 2;
  print_error("no-bundle");
  Model model = {call<jlong>(open, text(arguments[2]), text(arguments[3])), {}};
  must_not_throw("open");
  std::printf("context %d\n", call<jint>("context(J)I", model.handle));
  model.prefill({1});
  print_error("small-logits");
  model.logits.floats.resize(call<jint>("vocabulary(J)I", model.handle));
  std::printf("vocabulary %zu\n", model.logits.floats.size());

  std::vector<jint> prompt;
  for (char *one = std::strtok(arguments[4], ","); one != nullptr; one = std::strtok(nullptr, ","))
    prompt.push_back(std::atoi(one));
  int steps = std::atoi(arguments[5]);
  print("tokens", model.greedy(prompt, steps));
  std::FILE *file = std::fopen(arguments[6], "wb");
  std::fwrite(model.logits.floats.data(), sizeof(jfloat), model.logits.floats.size(), file);
  std::fclose(file);
  std::printf("length %d\n", model.length());
  model.decode(-1);
  print_error("bad-token");
  model.prefill({});
  print_error("no-tokens");
  std::printf("length-after-errors %d\n", model.length());
  call<void>("reset(J)V", model.handle);
  std::printf("length-after-reset %d\n", model.length());
  print("again", model.greedy(prompt, steps));
  call<void>("close(J)V", model.handle);
  must_not_throw("close");
  std::printf("held %d\n", held);
  return 0;
}
