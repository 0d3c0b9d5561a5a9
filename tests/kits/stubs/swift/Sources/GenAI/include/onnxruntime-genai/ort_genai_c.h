// What the kit uses of onnxruntime-genai's C interface, from src/ort_genai_c.h of github.com/microsoft/onnxruntime-genai.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct OgaResult OgaResult;
typedef struct OgaModel OgaModel;
typedef struct OgaTokenizer OgaTokenizer;
typedef struct OgaTokenizerStream OgaTokenizerStream;
typedef struct OgaSequences OgaSequences;
typedef struct OgaGeneratorParams OgaGeneratorParams;
typedef struct OgaGenerator OgaGenerator;
typedef struct OgaAdapters OgaAdapters;

const char *OgaResultGetError(const OgaResult *result);
void OgaDestroyResult(OgaResult *result);
OgaResult *OgaCreateModel(const char *path, OgaModel **out);
void OgaDestroyModel(OgaModel *model);
OgaResult *OgaCreateTokenizer(const OgaModel *model, OgaTokenizer **out);
void OgaDestroyTokenizer(OgaTokenizer *tokenizer);
OgaResult *OgaTokenizerEncode(const OgaTokenizer *tokenizer, const char *text, OgaSequences *sequences);
OgaResult *OgaCreateTokenizerStream(const OgaTokenizer *tokenizer, OgaTokenizerStream **out);
void OgaDestroyTokenizerStream(OgaTokenizerStream *stream);
OgaResult *OgaTokenizerStreamDecode(OgaTokenizerStream *stream, int32_t token, const char **out);
OgaResult *OgaCreateSequences(OgaSequences **out);
void OgaDestroySequences(OgaSequences *sequences);
size_t OgaSequencesGetSequenceCount(const OgaSequences *sequences, size_t index);
const int32_t *OgaSequencesGetSequenceData(const OgaSequences *sequences, size_t index);
OgaResult *OgaCreateGeneratorParams(const OgaModel *model, OgaGeneratorParams **out);
void OgaDestroyGeneratorParams(OgaGeneratorParams *parameters);
OgaResult *OgaGeneratorParamsSetSearchNumber(OgaGeneratorParams *parameters, const char *name, double value);
OgaResult *OgaGeneratorParamsSetSearchBool(OgaGeneratorParams *parameters, const char *name, bool value);
OgaResult *OgaCreateGenerator(const OgaModel *model, const OgaGeneratorParams *parameters, OgaGenerator **out);
void OgaDestroyGenerator(OgaGenerator *generator);
OgaResult *OgaCreateAdapters(const OgaModel *model, OgaAdapters **out);
void OgaDestroyAdapters(OgaAdapters *adapters);
OgaResult *OgaLoadAdapter(OgaAdapters *adapters, const char *file, const char *name);
OgaResult *OgaSetActiveAdapter(OgaGenerator *generator, OgaAdapters *adapters, const char *name);
OgaResult *OgaGenerator_RewindTo(OgaGenerator *generator, size_t length);
OgaResult *OgaGenerator_AppendTokens(OgaGenerator *generator, const int32_t *tokens, size_t count);
OgaResult *OgaGenerator_GenerateNextToken(OgaGenerator *generator);
size_t OgaGenerator_GetSequenceCount(const OgaGenerator *generator, size_t index);
const int32_t *OgaGenerator_GetSequenceData(const OgaGenerator *generator, size_t index);
