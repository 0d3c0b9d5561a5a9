// The C interface of pocketphi's TVM runtime for Kotlin. Errors become IllegalStateException.
#include <jni.h>

#include <string>
#include <vector>

#include "pocketphi_runtime.h"

namespace {

pocketphi *model(jlong handle) { return reinterpret_cast<pocketphi *>(handle); }

void fail(JNIEnv *env, const char *message) {
  env->ThrowNew(env->FindClass("java/lang/IllegalStateException"), message);
}

// UTF-8 of a Java string, released with the object; a null pointer where the virtual machine has no memory for it.
class Text {
 public:
  Text(JNIEnv *env, jstring text) : env_(env), text_(text), chars_(env->GetStringUTFChars(text, nullptr)) {}
  Text(const Text &) = delete;
  ~Text() {
    if (chars_ != nullptr) env_->ReleaseStringUTFChars(text_, chars_);
  }
  const char *chars() const { return chars_; }

 private:
  JNIEnv *env_;
  jstring text_;
  const char *chars_;
};

jlong open(JNIEnv *env, jobject, jstring folder, jstring options) {
  Text path(env, folder), json(env, options);
  if (path.chars() == nullptr || json.chars() == nullptr) return 0;
  char error[512] = "";
  pocketphi *made = pocketphi_open(path.chars(), json.chars(), error, sizeof error);
  if (made == nullptr) fail(env, error);
  return reinterpret_cast<jlong>(made);
}

// Whether `logits` holds the whole vocabulary; throws where it does not.
bool has_room(JNIEnv *env, jlong handle, jfloatArray logits) {
  if (env->GetArrayLength(logits) == pocketphi_vocab(model(handle))) return true;
  fail(env, "logits: another size than the vocabulary");
  return false;
}

void prefill(JNIEnv *env, jobject, jlong handle, jintArray tokens, jfloatArray logits) {
  if (!has_room(env, handle, logits)) return;
  jint *ids = env->GetIntArrayElements(tokens, nullptr);
  jfloat *out = env->GetFloatArrayElements(logits, nullptr);
  int failed = ids == nullptr || out == nullptr;  // then an OutOfMemoryError is on its way
  if (!failed) failed = pocketphi_prefill(model(handle), ids, env->GetArrayLength(tokens), out);
  if (ids != nullptr) env->ReleaseIntArrayElements(tokens, ids, JNI_ABORT);
  if (out != nullptr) env->ReleaseFloatArrayElements(logits, out, 0);
  if (failed && !env->ExceptionCheck()) fail(env, pocketphi_error(model(handle)));
}

void decode(JNIEnv *env, jobject, jlong handle, jint token, jfloatArray logits) {
  if (!has_room(env, handle, logits)) return;
  jfloat *out = env->GetFloatArrayElements(logits, nullptr);
  if (out == nullptr) return;
  int failed = pocketphi_decode(model(handle), token, out);
  env->ReleaseFloatArrayElements(logits, out, 0);
  if (failed) fail(env, pocketphi_error(model(handle)));
}

// A call with a text, or with a null pointer for none.
void with_text(JNIEnv *env, jlong handle, jstring text, int (*call)(pocketphi *, const char *)) {
  if (text == nullptr) {
    if (call(model(handle), nullptr) != 0) fail(env, pocketphi_error(model(handle)));
    return;
  }
  Text held(env, text);
  if (held.chars() == nullptr) return;
  if (call(model(handle), held.chars()) != 0) fail(env, pocketphi_error(model(handle)));
}

void adapter(JNIEnv *env, jobject, jlong handle, jstring name) { with_text(env, handle, name, pocketphi_adapter); }
void draft(JNIEnv *env, jobject, jlong handle, jstring folder) { with_text(env, handle, folder, pocketphi_draft); }

// note: UTF-8 without zeros.
void save(JNIEnv *env, jobject, jlong handle, jstring file, jbyteArray note) {
  Text path(env, file);
  if (path.chars() == nullptr) return;
  std::string text(env->GetArrayLength(note), ' ');
  env->GetByteArrayRegion(note, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte *>(&text[0]));
  if (pocketphi_save(model(handle), path.chars(), text.c_str()) != 0) fail(env, pocketphi_error(model(handle)));
}

// The note.
jbyteArray load(JNIEnv *env, jobject, jlong handle, jstring file) {
  Text path(env, file);
  if (path.chars() == nullptr) return nullptr;
  std::vector<char> note(1 << 16);
  int64_t size = pocketphi_load(model(handle), path.chars(), note.data(), note.size());
  if (size >= static_cast<int64_t>(note.size())) {
    note.resize(size + 1);
    size = pocketphi_load(model(handle), path.chars(), note.data(), note.size());
  }
  if (size < 0 || size >= static_cast<int64_t>(note.size())) {
    fail(env, size < 0 ? pocketphi_error(model(handle)) : "the file was changed meanwhile");
    return nullptr;
  }
  jbyteArray made = env->NewByteArray(static_cast<jsize>(size));
  if (made != nullptr) env->SetByteArrayRegion(made, 0, static_cast<jsize>(size), reinterpret_cast<jbyte *>(note.data()));
  return made;
}

void reset(JNIEnv *, jobject, jlong handle) { pocketphi_reset(model(handle)); }
jint vocabulary(JNIEnv *, jobject, jlong handle) { return pocketphi_vocab(model(handle)); }
jint context(JNIEnv *, jobject, jlong handle) { return pocketphi_context(model(handle)); }
jint length(JNIEnv *, jobject, jlong handle) { return pocketphi_length(model(handle)); }
void close(JNIEnv *, jobject, jlong handle) { pocketphi_close(model(handle)); }

template <typename Function>
JNINativeMethod method(const char *name, const char *signature, Function function) {
  return {const_cast<char *>(name), const_cast<char *>(signature), reinterpret_cast<void *>(function)};
}

}  // namespace

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *) {
  JNIEnv *env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void **>(&env), JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  const JNINativeMethod methods[] = {
      method("open", "(Ljava/lang/String;Ljava/lang/String;)J", open),
      method("prefill", "(J[I[F)V", prefill),
      method("decode", "(JI[F)V", decode),
      method("adapter", "(JLjava/lang/String;)V", adapter),
      method("draft", "(JLjava/lang/String;)V", draft),
      method("save", "(JLjava/lang/String;[B)V", save),
      method("load", "(JLjava/lang/String;)[B", load),
      method("reset", "(J)V", reset),
      method("vocabulary", "(J)I", vocabulary),
      method("context", "(J)I", context),
      method("length", "(J)I", length),
      method("close", "(J)V", close),
  };
  jclass owner = env->FindClass("«package | replace(".", "/")»/NativeModel");
  if (owner == nullptr) return JNI_ERR;
  if (env->RegisterNatives(owner, methods, sizeof methods / sizeof methods[0]) != JNI_OK) return JNI_ERR;
  return JNI_VERSION_1_6;
}
