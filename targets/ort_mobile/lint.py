"""What ONNX Runtime would run on a slow path, without a word: each call would dequantize a whole matrix, or copy it.

From `MatMulNBits`' CPU kernel: prepacking, and with it the fast path, is given up for float zero points, for a group
index, and for bits and block sizes without an MLAS kernel.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from pocketphi.targets.ort_mobile.lower import Lowered

FAST_BLOCKS = (16, 32, 64, 128, 256)
SLOW_BLOCKS = (16,)
"""Accepted, but without an int8 kernel: three to four times slower than block 32 (measured)."""
KERNELS = {2: (32, 64, 128), 4: FAST_BLOCKS, 8: FAST_BLOCKS}
"""By bits: the blocks that have a kernel. Others give the same values some 200 times slower (one row times 3072 × 8192 in 2
bits: blocks of 16 take 518 ms, of 32 1.8 ms; onnxruntime 1.32, one core of an x86 machine)."""


def lint(lowered: Lowered) -> list[str]:
    """One line for each kind of slow operator; empty when there is none."""
    float_weights = {w.name for w in lowered.weights if w.spec.dtype.is_floating_point}
    found: dict[str, list[str]] = {}
    for node in lowered.nodes:
        for reason in _slow(node, float_weights):
            found.setdefault(reason, []).append(node.name)
    return [f"slow path: {reason} ({len(names)} operators, first {names[0]})" for reason, names in found.items()]


def _slow(node: NodeProto, float_weights: set[str]) -> list[str]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    reasons = []
    if node.op_type == "MatMulNBits":
        block = attributes["block_size"]
        if len(node.input) > 3 and node.input[3] in float_weights:
            reasons.append("MatMulNBits with float zero points dequantizes the matrix at each call")
        if len(node.input) > 4 and node.input[4]:
            reasons.append("MatMulNBits with a group index dequantizes the matrix at each call")
        bits, level = attributes["bits"], attributes.get("accuracy_level", 0)
        if block not in KERNELS.get(bits, ()):
            reasons.append(f"MatMulNBits has no kernel for {bits} bits in blocks of {block}")
        elif block in SLOW_BLOCKS and level == 4:
            reasons.append(
                f"MatMulNBits has no int8 kernel for blocks of {block}; blocks of 32 run 3 to 4 times faster"
            )
        if level != 4 and bits != 4:
            reasons.append(f"MatMulNBits of {bits} bits has kernels for level 4 alone; others dequantize at each call")
        elif level != 4:
            reasons.append("MatMulNBits at this accuracy level computes in float32; level 4 is about 3 times faster")
    elif node.op_type == "Cast" and attributes.get("to") in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        reasons.append("a cast to a 16-bit float: the CPU kernels compute in float32 and cast back")
    elif node.op_type == "MatMul" and not node.name.endswith("_offsets"):
        reasons.append("a float MatMul: its weight was not quantized")
    return reasons
