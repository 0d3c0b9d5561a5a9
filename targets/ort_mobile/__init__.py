"""ONNX Runtime Mobile: `model.onnx` + `model.onnx.data`, for onnxruntime and onnxruntime-genai on iOS, Android and desktops.

target.py   what the target says of itself: its options, its memory, its kits
lower.py    Program → ONNX graph: one small rule for each operator
package.py  files: weights streamed to planned offsets, genai_config.json, the single-file .ort
lint.py     what ONNX Runtime would run on a slow path
prefill.py  how much of a prompt goes through at once
genai_tokenizer.py  how onnxruntime-genai reads a tokenizer
host.py     runs the saved files here: plain onnxruntime, and onnxruntime-genai

int4 matrices are `com.microsoft.MatMulNBits`, whose layout is the canonical one; attention is `GroupQueryAttention` with
rotary embedding and a cache that past and present share.
"""
