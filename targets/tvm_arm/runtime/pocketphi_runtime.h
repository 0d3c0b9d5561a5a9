/* Run a model that pocketphi compiled for TVM: tokens in, logits out. A bundle folder is all it needs.
 *
 *   char error[256];
 *   pocketphi *model = pocketphi_open("bundle", "{\"threads\": 4}", error, sizeof error);
 *   float *logits = malloc(pocketphi_vocab(model) * sizeof *logits);
 *   pocketphi_prefill(model, prompt, count, logits);
 *   pocketphi_decode(model, next_token, logits);           (or all of it: pocketphi_generate)
 *   pocketphi_close(model);
 *
 * Parameters are mapped from model.params and never copied; rows of the K/V cache cost memory once they are written.
 * Nothing is thrown across this border: a failure is NULL or -1, and one line of text.
 *
 * Threads: a handle runs on a thread of its own, with workers of its own, which sleep while there is nothing to do. Calls may
 * come from any thread; those of one handle wait for each other. A call with NULL or with a handle that is closed fails.
 * Threads stay behind in a fork: there, a call with a handle of the parent fails, and the child opens the bundle itself.
 *
 * Files: what model.json says is compared with what the library was built for. model.params is mapped and must stay as it is
 * while the model is open. A call that finds it written to or cut fails; if it is cut during a call, the system ends the
 * process (SIGBUS). Replace it as package managers do: write another file and rename it.
 *
 * Java: every argument is a plain C type or a flat array, so that a JNI method is one call: keep the handle in a jlong,
 * and take logits in a direct ByteBuffer (GetDirectBufferAddress), which costs no copy.
 */
#ifndef POCKETPHI_RUNTIME_H_
#define POCKETPHI_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define POCKETPHI_API __attribute__((visibility("default")))
#else
#define POCKETPHI_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pocketphi pocketphi;

/* Open the bundle in a folder. NULL on failure: `error` holds one line of UTF-8, at most error_size - 1 bytes.
 *
 * options_json: NULL, "" or an object with any of
 *   "threads":    int; 0, the default: the fast cores of this machine, fewer where a container's quota gives less time.
 *                 Never more than the cores that the process may use.
 *   "mode":       "saved", the default, or "exact": float32 activations and cache, if the library was built with it.
 *   "max_tokens": int; rows of the K/V cache. Default: the model's context.
 *   "check":      bool; hash all of model.params first. Its size is always checked.
 *   "draft":      "none", the default, or "auto": a call of pocketphi_decode may read some tokens that are likely to come next
 *                 along with its own. If they come, their calls return at once. Logits are the same, bit for bit. How many
 *                 are read so is learned from how often guesses come true and what they cost; "always" learns nothing, and asks a
 *                 draft model first.
 *   "prefix":     bool, true by default: where the bundle ships the start of an app's prompts (compile --prefix), a prompt that
 *                 begins with its tokens in an empty cache takes them from there, and only the rest is computed.
 *
 * The CPU's features are compared with those that the library was built for before any of its code runs. */
POCKETPHI_API pocketphi *pocketphi_open(const char *bundle_folder, const char *options_json, char *error,
                                        size_t error_size);

/* Append `count` >= 1 tokens. logits: float32[vocab] of the last one. 0, or -1: see pocketphi_error; then nothing was
 * appended. Logits that are no finite numbers are a failure. */
POCKETPHI_API int pocketphi_prefill(pocketphi *model, const int32_t *tokens, int32_t count, float *logits);

/* The same, with the logits of every new token: float32[count, vocab]. For verification; a library may lack it. */
POCKETPHI_API int pocketphi_prefill_all(pocketphi *model, const int32_t *tokens, int32_t count, float *logits);

/* Append one token. logits: float32[vocab]. 0, or -1: see pocketphi_error. */
POCKETPHI_API int pocketphi_decode(pocketphi *model, int32_t token, float *logits);

/* Called with each token of an answer, on the thread that asked for it. Another value than 0 ends the answer after this token. */
typedef int (*pocketphi_token)(int32_t token, void *data);

/* Append `count` >= 1 tokens, and answer. How many tokens of the answer there were, each of which `each` was called with, or -1:
 * see pocketphi_error; then the cache holds what it held after the last call of `each`, or before.
 *
 * options_json: NULL, "" or an object with any of
 *   "limit":       int; tokens at most. Default: until the cache is full.
 *   "temperature": 0, the default: always the most likely token. Ties go to the lower id.
 *   "top_k":       int; choose among so many of the most likely ones. 0, the default: among all.
 *   "top_p":       choose among those that make up this part of the probability. Default: 1.
 *   "repetition_penalty": logits of tokens that are in the cache are divided by it, those below 0 multiplied. Default: 1.
 *   "seed":        int; the same one gives the same answer.
 *   "stop":        list of tokens that end an answer, and do not belong to it.
 *
 * Afterwards the cache holds the tokens and the answer but for its last token, which a next call begins with. While an answer is
 * made, no other thread may use the handle; `each` may ask for its length, and nothing else. */
POCKETPHI_API int64_t pocketphi_generate(pocketphi *model, const int32_t *tokens, int32_t count, const char *options_json,
                                         pocketphi_token each, void *data);

/* Switch an adapter of the bundle on, by its name, and forget all tokens; NULL switches it off again. A name with a slash is
 * the path of an adapter's file that was made for the same weights. The file is mapped: it must stay as model.params must.
 * 0, or -1: see pocketphi_error; then everything is as it was. */
POCKETPHI_API int pocketphi_adapter(pocketphi *model, const char *name);

/* Let the bundle in a folder guess which tokens come next: a smaller model with the same tokenizer, as its model.json says. NULL
 * ends that. Guesses come from it or, with "draft", from the text, wherever more tokens are likely to come in a time, and from
 * neither where that does not pay. Logits stay the same, bit for bit. Tokens stay: what the draft model has not read of them, it
 * reads when it is asked. It runs on the threads of `model`, and takes memory of its own: its weights, and a cache of as many tokens
 * as it has positions, behind which it is not asked.
 * 0, or -1: see pocketphi_error; then everything is as it was. A draft model that fails later, as where its files were changed, is
 * not asked any more; calls go on, and pocketphi_error says why. */
POCKETPHI_API int pocketphi_draft(pocketphi *model, const char *bundle_folder);

/* Write the tokens, what the cache has of them, and a text of yours (NULL for none) to a file, which is replaced once all is
 * written. It belongs to this bundle, mode and adapter. 0, or -1: see pocketphi_error. */
POCKETPHI_API int pocketphi_save(pocketphi *model, const char *path, const char *note);

/* Go on where pocketphi_save was called: what the model computes next has the same bits. How many bytes the text has, as much of
 * which is put into `note` as fits with a zero behind it (NULL for none), or -1: see pocketphi_error; then everything is as it was.
 * A file that is cut, damaged, or of another bundle is refused. */
POCKETPHI_API int64_t pocketphi_load(pocketphi *model, const char *path, char *note, size_t note_size);

/* Forget all tokens. */
POCKETPHI_API void pocketphi_reset(pocketphi *model);

POCKETPHI_API int32_t pocketphi_vocab(const pocketphi *model);   /* how many logits a token has */
POCKETPHI_API int32_t pocketphi_context(const pocketphi *model); /* how many tokens the cache holds */
POCKETPHI_API int32_t pocketphi_length(const pocketphi *model);  /* how many tokens are in it */

/* How often the library was called since the model was opened: each call reads all weights once. Those of a draft model are not
 * counted. */
POCKETPHI_API int64_t pocketphi_calls(const pocketphi *model);

/* One line of UTF-8 about the last call that failed, or the draft model that did; valid until this thread asks again. "" before any. */
POCKETPHI_API const char *pocketphi_error(const pocketphi *model);

/* Release everything, after the calls that have begun. NULL and a handle that is closed are allowed. */
POCKETPHI_API void pocketphi_close(pocketphi *model);

#ifdef __cplusplus
}
#endif

#endif /* POCKETPHI_RUNTIME_H_ */
