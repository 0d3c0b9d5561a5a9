// The toy of `conversation_vectors.py` behind the C interface of the TVM runtime: bytes for tokens. It fails where a message has one of
// two characters, see `kit_talks.py`, ends no answer to a message with the character 5, and ends the process where two threads use it
// at once, or somebody after it was closed.
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pocketphi_runtime.h"

struct pocketphi {
  int32_t length, tokens[2048], fails_in, failed, endless, closed;
  atomic_int used;
  char error[64];
};

static pocketphi *enter(pocketphi *model) {
  if (model == NULL || model->closed || atomic_fetch_add(&model->used, 1) != 0) {
    fprintf(stderr, "closed, or used by another thread\n");
    abort();
  }
  return model;
}

static int leave(pocketphi *model, int result) {
  atomic_fetch_sub(&model->used, 1);
  return result;
}

pocketphi *pocketphi_open(const char *folder, const char *options, char *error, size_t error_size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/config.json", folder);
  FILE *file = fopen(path, "r");
  if (file == NULL || strcmp(options, "{\"draft\": \"auto\"}") != 0) {
    snprintf(error, error_size, "%s: no model", folder);
    return NULL;
  }
  fclose(file);
  pocketphi *model = calloc(1, sizeof(pocketphi));
  model->fails_in = -1;
  return model;
}

static int run(pocketphi *model, const int32_t *tokens, int32_t count, float *logits) {
  enter(model);
  usleep(1000);
  if (count == 0 || tokens[0] < 0 || model->length + count > 2048) {
    snprintf(model->error, sizeof model->error, count == 1 ? "token %d" : "%d tokens", count == 1 ? tokens[0] : count);
    return leave(model, 1);
  }
  for (int i = 0; i < count; i++) {
    model->tokens[model->length++] = tokens[i];
    if (tokens[i] == 7 && !model->failed) model->fails_in = 0;
    if (tokens[i] == 6 && !model->failed) model->fails_in = 3;
    if (tokens[i] == 5) model->endless = 1;
  }
  if (model->fails_in-- == 0) {
    model->failed = 1;
    snprintf(model->error, sizeof model->error, "failed");
    return leave(model, 1);
  }
  int32_t h = 1;
  for (int i = 0; i < model->length; i++) h = (31 * h + model->tokens[i]) % 65521;
  for (int i = 0; i < 256; i++) logits[i] = 0;
  h %= model->endless ? 26 : 29;
  logits[h < 26 ? 97 + h : 0] = 1;
  return leave(model, 0);
}

int pocketphi_prefill(pocketphi *model, const int32_t *tokens, int32_t count, float *logits) {
  return run(model, tokens, count, logits);
}

int pocketphi_decode(pocketphi *model, int32_t token, float *logits) { return run(model, &token, 1, logits); }

int pocketphi_adapter(pocketphi *model, const char *name) {
  enter(model);
  if (name != NULL && strcmp(name, "none") == 0) {
    snprintf(model->error, sizeof model->error, "no adapter");
    return leave(model, -1);
  }
  model->length = 0;
  return leave(model, 0);
}

int pocketphi_draft(pocketphi *model, const char *folder) {
  enter(model);
  char path[4096];
  snprintf(path, sizeof path, "%s/config.json", folder == NULL ? "" : folder);
  FILE *file = folder == NULL ? NULL : fopen(path, "r");
  if (file != NULL) fclose(file);
  if (folder == NULL || file != NULL) return leave(model, 0);
  snprintf(model->error, sizeof model->error, "%.40s: no draft", folder);
  return leave(model, -1);
}

int pocketphi_save(pocketphi *model, const char *path, const char *note) {
  enter(model);
  FILE *file = fopen(path, "w");
  if (file == NULL) {
    snprintf(model->error, sizeof model->error, "cannot be written");
    return leave(model, -1);
  }
  fwrite(&model->length, sizeof model->length, 1, file);
  fwrite(model->tokens, sizeof *model->tokens, model->length, file);
  fputs(note, file);
  fclose(file);
  return leave(model, 0);
}

int64_t pocketphi_load(pocketphi *model, const char *path, char *note, size_t note_size) {
  enter(model);
  FILE *file = fopen(path, "r");
  int32_t length = 0;
  if (file == NULL || fread(&length, sizeof length, 1, file) != 1 || length < 0 || length > 2048) {
    if (file != NULL) fclose(file);
    snprintf(model->error, sizeof model->error, "is no session");
    return leave(model, -1);
  }
  model->length = (int32_t)fread(model->tokens, sizeof *model->tokens, length, file);
  int64_t bytes = 0;
  for (int c; (c = fgetc(file)) != EOF; bytes++) {
    if ((size_t)bytes + 1 < note_size) note[bytes] = (char)c, note[bytes + 1] = 0;
  }
  fclose(file);
  leave(model, 0);
  return bytes;
}

void pocketphi_reset(pocketphi *model) {
  enter(model)->length = 0;
  leave(model, 0);
}

int32_t pocketphi_vocab(const pocketphi *model) { return model == NULL ? 0 : 256; }
int32_t pocketphi_context(const pocketphi *model) { return model == NULL ? 0 : 2048; }
int32_t pocketphi_length(const pocketphi *model) { return model->length; }
const char *pocketphi_error(const pocketphi *model) { return model->error; }
void pocketphi_close(pocketphi *model) { enter(model)->closed = 1; }  // kept, so that a later use is seen
