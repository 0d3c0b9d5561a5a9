// The toy of `conversation_vectors.py` behind onnxruntime-genai's C interface: bytes for tokens. It fails where a message has one of
// two characters, see `kit_talks.py`, and ends the process where two threads use it at once.
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "onnxruntime-genai/ort_genai_c.h"

struct OgaResult { const char *text; };
struct OgaModel { int unused; };
struct OgaTokenizer { int unused; };
struct OgaTokenizerStream { char text[2]; };
struct OgaSequences { size_t count; int32_t tokens[8192]; };
struct OgaGeneratorParams { double max_length; };
struct OgaGenerator { size_t count, limit; int32_t tokens[8192]; int fails_in, failed, shift; atomic_int used; };
struct OgaAdapters { size_t count; char names[8][64]; };

static OgaResult *fail(const char *text) {
  OgaResult *made = malloc(sizeof *made);
  made->text = text;
  return made;
}

#define MAKE(type) OgaResult *create_##type(type **out) { *out = calloc(1, sizeof(type)); return NULL; }
static MAKE(OgaModel) static MAKE(OgaTokenizer) static MAKE(OgaTokenizerStream) static MAKE(OgaGeneratorParams)
static MAKE(OgaGenerator) static MAKE(OgaSequences) static MAKE(OgaAdapters)

const char *OgaResultGetError(const OgaResult *result) { return result->text; }
void OgaDestroyResult(OgaResult *result) { free(result); }
OgaResult *OgaCreateModel(const char *path, OgaModel **out) { return *path ? create_OgaModel(out) : fail("no path"); }
void OgaDestroyModel(OgaModel *model) { free(model); }
OgaResult *OgaCreateTokenizer(const OgaModel *model, OgaTokenizer **out) { (void)model; return create_OgaTokenizer(out); }
void OgaDestroyTokenizer(OgaTokenizer *tokenizer) { free(tokenizer); }

OgaResult *OgaTokenizerEncode(const OgaTokenizer *tokenizer, const char *text, OgaSequences *sequences) {
  (void)tokenizer;
  for (; *text; text++) sequences->tokens[sequences->count++] = (unsigned char)*text;
  return NULL;
}

OgaResult *OgaCreateTokenizerStream(const OgaTokenizer *tokenizer, OgaTokenizerStream **out) {
  (void)tokenizer;
  return create_OgaTokenizerStream(out);
}
void OgaDestroyTokenizerStream(OgaTokenizerStream *stream) { free(stream); }
OgaResult *OgaTokenizerStreamDecode(OgaTokenizerStream *stream, int32_t token, const char **out) {
  stream->text[0] = (char)token;
  *out = stream->text;
  return NULL;
}

OgaResult *OgaCreateSequences(OgaSequences **out) { return create_OgaSequences(out); }
void OgaDestroySequences(OgaSequences *sequences) { free(sequences); }
size_t OgaSequencesGetSequenceCount(const OgaSequences *s, size_t index) { return index == 0 ? s->count : 0; }
const int32_t *OgaSequencesGetSequenceData(const OgaSequences *s, size_t index) { return index == 0 ? s->tokens : NULL; }
OgaResult *OgaCreateGeneratorParams(const OgaModel *model, OgaGeneratorParams **out) {
  (void)model;
  return create_OgaGeneratorParams(out);
}
void OgaDestroyGeneratorParams(OgaGeneratorParams *parameters) { free(parameters); }
OgaResult *OgaGeneratorParamsSetSearchNumber(OgaGeneratorParams *parameters, const char *name, double value) {
  if (strcmp(name, "max_length") != 0) return fail("an unknown number");
  parameters->max_length = value;
  return NULL;
}
OgaResult *OgaGeneratorParamsSetSearchBool(OgaGeneratorParams *parameters, const char *name, bool value) {
  (void)parameters;
  return strcmp(name, "do_sample") == 0 && !value ? NULL : fail("an unknown choice");
}
OgaResult *OgaCreateGenerator(const OgaModel *model, const OgaGeneratorParams *parameters, OgaGenerator **out) {
  (void)model;
  create_OgaGenerator(out);
  (*out)->limit = (size_t)parameters->max_length;
  (*out)->fails_in = -1;
  return NULL;
}
void OgaDestroyGenerator(OgaGenerator *generator) { free(generator); }

OgaResult *OgaCreateAdapters(const OgaModel *model, OgaAdapters **out) {
  (void)model;
  return create_OgaAdapters(out);
}
void OgaDestroyAdapters(OgaAdapters *adapters) { free(adapters); }

static bool has(const OgaAdapters *adapters, const char *name) {
  for (size_t i = 0; i < adapters->count; i++) {
    if (strcmp(adapters->names[i], name) == 0) return true;
  }
  return false;
}

OgaResult *OgaLoadAdapter(OgaAdapters *adapters, const char *file, const char *name) {
  if (access(file, R_OK) != 0) return fail("no adapter");
  if (has(adapters, name)) return fail("loaded already");
  strncpy(adapters->names[adapters->count++ % 8], name, 63);
  return NULL;
}

OgaResult *OgaSetActiveAdapter(OgaGenerator *generator, OgaAdapters *adapters, const char *name) {
  if (!has(adapters, name) || generator->count != 0) return fail("no such adapter, or too late");
  generator->shift = (int)strlen(name);
  return NULL;
}

OgaResult *OgaGenerator_RewindTo(OgaGenerator *generator, size_t length) {
  if (length > generator->count) return fail("rewound to more than there is");
  generator->count = length;
  return NULL;
}

OgaResult *OgaGenerator_AppendTokens(OgaGenerator *generator, const int32_t *tokens, size_t count) {
  if (generator->count + count > generator->limit) return fail("more tokens than max_length");
  for (size_t i = 0; i < count && !generator->failed; i++) {
    if (tokens[i] == 7) generator->fails_in = 0;
    if (tokens[i] == 6) generator->fails_in = 3;
  }
  memcpy(generator->tokens + generator->count, tokens, count * sizeof *tokens);
  generator->count += count;
  return NULL;
}

OgaResult *OgaGenerator_GenerateNextToken(OgaGenerator *generator) {
  if (atomic_fetch_add(&generator->used, 1) != 0) abort();
  usleep(1000);
  atomic_fetch_sub(&generator->used, 1);
  if (generator->count >= generator->limit) return fail("the sequence is full");
  if (generator->fails_in-- == 0) {
    generator->failed = 1;
    return fail("failed");
  }
  int32_t h = 1 + generator->shift;
  for (size_t i = 0; i < generator->count; i++) h = (31 * h + generator->tokens[i]) % 65521;
  if (h % 29 < 26) generator->tokens[generator->count++] = 97 + h % 29;  // as there, an end token is not appended
  return NULL;
}

size_t OgaGenerator_GetSequenceCount(const OgaGenerator *g, size_t index) { return index == 0 ? g->count : 0; }
const int32_t *OgaGenerator_GetSequenceData(const OgaGenerator *g, size_t index) { return index == 0 ? g->tokens : NULL; }
