// The C interface of onnxruntime-genai, whose framework has no module of its own.
#include <onnxruntime-genai/ort_genai_c.h>
