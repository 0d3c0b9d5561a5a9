"""What ONNX Runtime would run on a slow path, without a word: each call would dequantize a whole matrix, or copy it.

From `MatMulNBits`' CPU kernel: prepacking, and with it the fast path, is given up for float zero points, for a group
index, and for bits and block sizes without an MLAS kernel.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

from pocketphi.targets.ort_mobile.codecs import FAST
from pocketphi.targets.ort_mobile.lower import Lowered

FLOAT_BLOCKS = {4: (16,), 8: (16,)}
"""By bits: the blocks that have a kernel in float alone."""


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
    if node.op_type == "QMoE" and attributes.get("accuracy_level", 0) != 4:
        reasons.append("QMoE at this accuracy level computes in float32; level 4 is about 7 times faster")
    if node.op_type == "MatMulNBits":
        block = attributes["block_size"]
        if len(node.input) > 3 and node.input[3] in float_weights:
            reasons.append("MatMulNBits with float zero points dequantizes the matrix at each call")
        if len(node.input) > 4 and node.input[4]:
            reasons.append("MatMulNBits with a group index dequantizes the matrix at each call")
        bits, level = attributes["bits"], attributes.get("accuracy_level", 0)
        if block not in (*FAST.get(bits, ()), *FLOAT_BLOCKS.get(bits, ())):
            reasons.append(f"MatMulNBits has no kernel for {bits} bits in blocks of {block}")
        elif block not in FAST[bits] and level == 4:
            reasons.append(
                f"MatMulNBits has no int8 kernel for blocks of {block}; blocks of 32 run 3 to 4 times faster"
            )
        if level != 4 and bits != 4:
            reasons.append(f"MatMulNBits of {bits} bits has kernels for level 4 alone; others dequantize at each call")
        elif level != 4:
            reasons.append("MatMulNBits at this accuracy level computes in float32; level 4 is about 3 times faster")
    elif node.op_type == "Cast" and attributes.get("to") in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        reasons.append("a cast to a 16-bit float: the CPU kernels compute in float32 and cast back")
    elif node.op_type == "MatMul" and not node.name.endswith(("_offsets", "_scores", "_down", "_up")):
        reasons.append("a float MatMul: its weight was not quantized")
    return reasons
