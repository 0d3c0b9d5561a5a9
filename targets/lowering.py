"""What lowering has in common in every target: the loop over the calls of a graph, and values that are made once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from torch import fx

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import Format
from pocketphi.graph.program import Program, op_name

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound="Emits")
Rule = Callable[[Any, fx.Node], None]
"""Lowers a node, with the emitter of its target."""


class Emits(Protocol):
    """An emitter. made: what `once` has made with it."""

    made: dict[Any, Any]


def once(function: Callable[Concatenate[E, P], T]) -> Callable[Concatenate[E, P], T]:
    """A function of an emitter, or a method, whose value many operators use: made at the first call with these arguments."""

    @functools.wraps(function)
    def shared(emitter: E, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, args, *kwargs.items())
        if key not in emitter.made:
            emitter.made[key] = function(emitter, *args, **kwargs)
        made: T = emitter.made[key]
        return made

    return shared


class Lowers(Protocol):
    """Lowers the operators of a format that a target's files can hold: its codec. Where the target routes experts, it has a
    method `lower_experts` too."""

    @property
    def format(self) -> type[Format]: ...

    def lower_matmul(self, e: Any, node: fx.Node) -> None: ...

    def lower_embedding(self, e: Any, node: fx.Node) -> None: ...


def lower_calls(
    program: Program, emitter: Any, rules: Mapping[str, Rule], codecs: Mapping[str, Lowers], what: str
) -> None:
    """Lower every call of a graph. rules: by the name of the operator (`op_name`); what: is made, for messages.

    Raises CompilerBug naming the first operator that has no rule.
    """
    found = dict(rules)
    for codec in codecs.values():
        found[f"edge.matmul_{codec.format.suffix}"] = codec.lower_matmul
        found[f"edge.embedding_{codec.format.suffix}"] = codec.lower_embedding
        if lower_experts := getattr(codec, "lower_experts", None):
            found[f"edge.experts_{codec.format.suffix}"] = lower_experts
    for node in program.graph.nodes:
        if node.op == "call_function":
            rule = found.get(op_name(node))
            if rule is None:
                raise CompilerBug(f"no {what} rule for {op_name(node)} ({node.name})")
            rule(emitter, node)
