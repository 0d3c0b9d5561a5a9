"""One layer of the graph before and after the rewrites, from what a compile kept of its trace. No torch is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.report.kept import kept_about
from pocketphi.graph.config import ModelConfig, layer_of

_OURS = "edge."
_UNSAID = "operator.getitem"
"""Takes one of several results; no work."""


@dataclass(frozen=True)
class OperatorRow:
    """One call. operator: its name, without which overload; result: type and shape; reads: what goes in, in words; weight:
    that it reads, and how that is stored; ours: whether it stands for several of the traced graph."""

    operator: str
    result: str
    reads: str
    weight: str
    ours: bool


@dataclass(frozen=True)
class Layer:
    """The calls of one layer, and how many the whole graph has. graph: `traced` or `fused`."""

    graph: str
    number: int
    calls: list[OperatorRow]
    all_calls: int


def known_layers(
    bundle: Bundle, config: ModelConfig, forms: Mapping[str, str], cache: Path | None = None
) -> list[Layer]:
    """The second layer, or the only one, as traced and as rewritten; none where the cache has no trace of this shape.

    forms: how each quantized weight is stored, by name
    """
    number, made = min(1, config.layers - 1), []
    for graph, more in (("traced", {}), ("fused", {"context": bundle.manifest.recipe.context})):
        for _, content in kept_about("graph", {"graph": graph, "config": config.to_hf(), **more}, cache):
            layer = _layer(graph, content, number, forms)
            if layer is not None:
                made.append(layer)
                break
    return made if len(made) == 2 else []


def _layer(graph: str, content: Any, number: int, forms: Mapping[str, str]) -> Layer | None:
    """None for what is no stored graph."""
    try:
        nodes, types = content["program"]["nodes"], [_type(one) for one in content["program"]["types"]]
        layers: list[int] = []
        rows, count = [], 0
        for kind, _, target, arguments, keywords, number_of_type in nodes:
            inputs = list(_nodes([arguments, keywords]))
            own = layer_of(str(target)) if kind != "call_function" else None
            # what joins two layers, such as the norm that a sum became a part of, is of the layer whose weight it reads
            read = [layers[i] for i in inputs if nodes[i][0] == "get_attr" and layers[i] >= 0]
            layers.append(own if own is not None else max(read or [layers[i] for i in inputs], default=-1))
            if kind != "call_function" or target == _UNSAID:
                continue
            count += 1
            if layers[-1] == number:
                weights = [str(nodes[i][2]) for i in inputs if nodes[i][0] == "get_attr"]
                values = [str(nodes[i][1]) for i in inputs if nodes[i][0] != "get_attr"]
                said = ", ".join(
                    f"{name} ({forms[name]})" if name in forms and graph != "traced" else name for name in weights
                )
                name = ".".join(str(target).split(".")[:2])
                rows.append(OperatorRow(name, types[number_of_type], ", ".join(values), said, name.startswith(_OURS)))
    except (LookupError, TypeError, ValueError):
        return None
    return Layer(graph, number, rows, count)


def _nodes(value: Any) -> Sequence[int]:
    """The numbers of the nodes that arguments name, in order."""
    if isinstance(value, dict):
        if isinstance(value.get("node"), int):
            return [value["node"]]
        value = list(value.values())
    if isinstance(value, list):
        return [i for one in value for i in _nodes(one)]
    return []


def _type(one: Any) -> str:
    """`float32 [batch, sequence, 576]`, of several the first; empty for what is no tensor."""
    while isinstance(one, dict) and ("tuple" in one or "list" in one):
        several = one.get("tuple") or one.get("list")
        one = several[0] if several else None
    if not isinstance(one, dict) or "tensor" not in one:
        return ""
    return f"{one['tensor']} [{', '.join(map(_size, one['shape']))}]"


def _size(size: Any) -> str:
    """`past + 16`, from {"past": 1, "": 16}."""
    if not isinstance(size, dict):
        return str(size)
    parts = [(name if n == 1 else f"{n} {name}") if name else str(n) for name, n in size.items() if n]
    return " + ".join(parts) or "0"
