"""What a GGUF file says of rotary embedding, as far as LongRoPE can express it, read as llama.cpp reads it.

llama.cpp turns pair i of a vector at position p by p / (scale · factor_i) · base^(-2i/d), and multiplies the result by
`attn_factor`. LongRoPE has such factors too, so that linear scaling, and the tensor `rope_freqs`, are LongRoPE with the same
factors at every length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_metadata import Metadata
from pocketphi.graph.gguf_parse import shown
from pocketphi.graph.models.rope import same_everywhere

SHORT, LONG, FREQUENCIES = "rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"
ROPE_TENSORS = (SHORT, LONG, FREQUENCIES)
_TYPES = ("none", "linear", "longrope")


def read_rope(metadata: Metadata, factors: Mapping[str, tuple[float, ...]], rotary_dim: int) -> LongRope | None:
    """factors: values of the tensors ROPE_TENSORS, as far as the file has them

    Raises InputError naming the key or the tensor for what LongRoPE cannot express.
    """
    kind = metadata.get("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    if not isinstance(kind, str) or kind not in _TYPES:
        raise InputError(
            f"{metadata.where}: unknown rope type {shown(kind)} ({metadata.key('rope.scaling.type')}), "
            f"expected {', '.join(_TYPES)}"
        )
    _check_tensors(metadata, factors, kind, rotary_dim)
    scale = _scale(metadata, kind)
    context = metadata.whole("context_length")
    if SHORT not in factors:
        _check_attention_factor(metadata, 1.0)
        same = tuple(scale * factor for factor in factors.get(FREQUENCIES, (1.0,) * (rotary_dim // 2)))
        return same_everywhere(same, context)
    if scale != 1:
        raise InputError(f"{metadata.where}: {_scale_key(metadata)} is {scale}, expected none beside rope factors")
    original = metadata.whole("rope.scaling.original_context_length", context, least=2)
    length = context / original
    _check_attention_factor(metadata, math.sqrt(1 + math.log(length) / math.log(original)) if length > 1 else 1.0)
    return LongRope(factors[SHORT], factors[LONG], original)


def _check_tensors(metadata: Metadata, factors: Mapping[str, tuple[float, ...]], kind: str, rotary_dim: int) -> None:
    """A model has rope_freqs, or with type longrope both others; or both others whatever the type."""
    where, files = metadata.where, metadata.kind
    long = bool(factors.keys() & {SHORT, LONG}) or kind == "longrope"
    for name in (SHORT, LONG) if long else ():
        if name not in factors:
            raise InputError(f"{where}: {name!r} is missing, expected {rotary_dim // 2} rope factors; convert again")
    misplaced = [
        *([SHORT] if long and files.rope_freqs and kind != "longrope" else []),
        *([FREQUENCIES] if FREQUENCIES in factors and (long or not files.rope_freqs) else []),
    ]
    if misplaced:
        raise InputError(
            f"{where}: holds the tensor {misplaced[0]!r}, which {files.architecture} with rope type {kind} does not have"
        )
    for name, values in factors.items():
        if len(values) != rotary_dim // 2:
            raise InputError(f"{where}: {name!r} has {len(values)} values, expected {rotary_dim // 2}")
        if not all(0 < value < math.inf for value in values):
            raise InputError(f"{where}: {name!r} holds a value that is not a positive number")


def _scale(metadata: Metadata, kind: str) -> float:
    """By how much positions are divided. 0 stands for 1, and rope type none for no scaling, as in llama.cpp."""
    key, old = _scale_key(metadata), metadata.get("rope.scale_linear")
    scale = metadata.real(key.partition(".")[2], 1.0, zero=True) or 1.0
    if old is not None and old != metadata.get(key.partition(".")[2]):
        metadata.notices.append(
            f"{metadata.key('rope.scale_linear')} = {shown(old)} is not read: {key} is {scale}, which counts in llama.cpp"
        )
    if kind == "none" and scale != 1:
        metadata.notices.append(
            f"{_scale_key(metadata)} = {scale} is not applied: the rope type is none, as in llama.cpp"
        )
        return 1.0
    return scale


def _scale_key(metadata: Metadata) -> str:
    return metadata.key("rope.scaling.factor" if metadata.has("rope.scaling.factor") else "rope.scale_linear")


def _check_attention_factor(metadata: Metadata, expected: float) -> None:
    """LongRoPE (arXiv:2402.13753) scales attention by √(1 + ln scale / ln original); a file may say otherwise."""
    key = "rope.scaling.attn_factor"
    stored = metadata.real(key, 1.0)
    if not math.isclose(stored, expected, rel_tol=1e-4):
        came = f"is {stored:.4f}" if metadata.has(key) else f"is missing, which llama.cpp reads as {stored:.4f}"
        expects = f"{metadata.model.form.name} uses {expected:.4f} here"
        raise InputError(f"{metadata.where}: {metadata.key(key)} {came}, {expects}")
