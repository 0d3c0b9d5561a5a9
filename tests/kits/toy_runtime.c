// A toy behind the C interface of the TVM runtime: after every prefill it says "Hi <tokens in the cache>!" and then token 2.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pocketphi_runtime.h"

struct pocketphi {
  int32_t length, said;
  char answer[32];
  char error[64];
};

pocketphi *pocketphi_open(const char *folder, const char *options, char *error, size_t error_size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/config.json", folder);
  FILE *file = fopen(path, "r");
  if (file == NULL || strcmp(options, "{}") != 0) {
    snprintf(error, error_size, "%s: no model", folder);
    return NULL;
  }
  fclose(file);
  return calloc(1, sizeof(pocketphi));
}

static int say(pocketphi *model, float *logits) {
  for (int i = 0; i < 256; i++) logits[i] = 0;
  char next = model->answer[model->said];
  logits[next == 0 ? 2 : (unsigned char)next] = 1;
  model->said += next != 0;
  return 0;
}

int pocketphi_prefill(pocketphi *model, const int32_t *tokens, int32_t count, float *logits) {
  if (count == 0 || tokens[0] < 0) {
    snprintf(model->error, sizeof model->error, "%d tokens", count);
    return 1;
  }
  model->length += count;
  model->said = 0;
  snprintf(model->answer, sizeof model->answer, "Hi %d!", model->length);
  return say(model, logits);
}

int pocketphi_decode(pocketphi *model, int32_t token, float *logits) {
  if (token < 0) {
    snprintf(model->error, sizeof model->error, "token %d", token);
    return 1;
  }
  model->length += 1;
  return say(model, logits);
}

void pocketphi_reset(pocketphi *model) { model->length = 0; }
int32_t pocketphi_vocab(const pocketphi *model) { return model == NULL ? 0 : 256; }
int32_t pocketphi_context(const pocketphi *model) { return model == NULL ? 0 : 2048; }
int32_t pocketphi_length(const pocketphi *model) { return model->length; }
const char *pocketphi_error(const pocketphi *model) { return model->error; }
void pocketphi_close(pocketphi *model) { free(model); }
