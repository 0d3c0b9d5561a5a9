// C interface of pocketphi's TVM runtime. One model a handle; a handle is for one thread at a time.
#ifndef POCKETPHI_RUNTIME_H
#define POCKETPHI_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pocketphi pocketphi;

// NULL on failure; then `error` holds one line.
pocketphi *pocketphi_open(const char *bundle_folder, const char *options_json, char *error, size_t error_size);
// 0 where it worked; logits[vocab] of the last token.
int pocketphi_prefill(pocketphi *, const int32_t *tokens, int32_t count, float *logits);
int pocketphi_decode(pocketphi *, int32_t token, float *logits);
void pocketphi_reset(pocketphi *);
int32_t pocketphi_vocab(const pocketphi *);
int32_t pocketphi_context(const pocketphi *);
int32_t pocketphi_length(const pocketphi *);
// Of the last call that failed.
const char *pocketphi_error(const pocketphi *);
void pocketphi_close(pocketphi *);

#ifdef __cplusplus
}
#endif

#endif
