"""What the codecs of every target have in common. A target has one for each format that its files can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import fx

    from pocketphi.graph.formats import Format


class Lowers(Protocol):
    """Lowers the operators of a format, with the emitter of its target."""

    @property
    def format(self) -> type[Format]: ...

    def lower_matmul(self, e: Any, node: fx.Node) -> None: ...

    def lower_embedding(self, e: Any, node: fx.Node) -> None: ...


def rules_of(codecs: Mapping[str, Lowers]) -> dict[str, Callable[[Any, fx.Node], None]]:
    """Rules by the name of the operator (`op_name`)."""
    found: dict[str, Callable[[Any, fx.Node], None]] = {}
    for codec in codecs.values():
        found[f"edge.matmul_{codec.format.suffix}"] = codec.lower_matmul
        found[f"edge.embedding_{codec.format.suffix}"] = codec.lower_embedding
    return found
