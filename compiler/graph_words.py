"""What a graph is made of, in words for somebody who has never seen its operators."""

from __future__ import annotations

from collections.abc import Mapping

_FUSED = {
    "edge.attention": ("attention block", "attention blocks"),
    "edge.sparse_attention": ("block-sparse attention block", "block-sparse attention blocks"),
    "edge.gated_silu": ("gated MLP", "gated MLPs"),
    "edge.gegelu": ("gated MLP", "gated MLPs"),
    "edge.route": ("choice of experts", "choices of experts"),
    "edge.combine": ("sum of experts", "sums of experts"),
    "edge.add_rms_norm": ("norm with the sum before it", "norms, each with the sum before it"),
    "edge.rms_norm": ("norm alone", "norms alone"),
    "edge.add_low_rank": ("place for an adapter", "places for an adapter"),
}
"""Operators that stand for many of the traced graph: one, several."""
_FORMATS = {"nbits": "int4", "palette": "palettes"}
_EXPERTS = ("matrix of all experts", "matrices of all experts")
_FLOAT = {"linear": ("matrix", "matrices"), "embedding": ("embedding", "embeddings"), "edge.experts": _EXPERTS}
_UNSAID = ("getitem", "edge.last_token")


def graph_rows(operators: Mapping[str, int]) -> list[tuple[str, str]]:
    """(title, text) for each thing to say of a graph. operators: name → how often, as a manifest has them.

    What a name does not tell here is said by that name, so that nothing is left out.
    """
    left = {name: count for name, count in operators.items() if name not in _UNSAID}
    rows = [("quantized", _quantized(left))]
    rows.append(("fused", _listed([_count(left.pop(name), *words) for name, words in _FUSED.items() if name in left])))
    rows.append(
        ("in float", _listed([_count(left.pop(name), *words) for name, words in _FLOAT.items() if name in left]))
    )
    rows.append(("not fused", _listed([f"{count} × {name.removeprefix('edge.')}" for name, count in left.items()])))
    said = [(title, text) for title, text in rows if text]
    if "edge.last_token" in operators:
        said.append(("head", "computes the last token only"))
    return said


def _quantized(left: dict[str, int]) -> str:
    """The weights in few bits, which are taken out of `left`: `121 matrices and the embedding in int4`."""
    kinds: dict[str, list[str]] = {}
    for what, words in (
        ("matmul", ("matrix", "matrices")),
        ("experts", _EXPERTS),
        ("embedding", ("embedding", "embeddings")),
    ):
        for name in [name for name in left if name.startswith(f"edge.{what}_")]:
            suffix = name.removeprefix(f"edge.{what}_")
            kinds.setdefault(_FORMATS.get(suffix, suffix), []).append(_count(left.pop(name), *words))
    return _listed([f"{' and '.join(counts)} in {kind}" for kind, counts in kinds.items()])


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _listed(texts: list[str]) -> str:
    return "; ".join(texts)
