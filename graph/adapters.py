"""Adapters that stay apart from the weights: a program reads the low-rank factors of a projection as inputs, which a runtime
switches. Without any they have rank 0, and the projection is what it was. Importing this loads no torch, as plans of memory ask
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig

if TYPE_CHECKING:
    import torch

_WEIGHT = ".weight"
_ENDS = (".lora_A", ".lora_B")


class Factors(Protocol):
    """What an adapter adds to projections: x · A · B to x · Wᵀ.

    ranks: by the name of the weight W [N, K]
    """

    @property
    def ranks(self) -> Mapping[str, int]: ...

    def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(A float32 [K, r], B float32 [r, N]) for one of the weights of `ranks`, with all scaling in B."""


def input_names(weight: str) -> tuple[str, str]:
    """Of the inputs that are A and B for a weight: `a.weight` → `a.lora_A`, `a.lora_B`."""
    stem = weight.removesuffix(_WEIGHT)
    return stem + _ENDS[0], stem + _ENDS[1]


def weight_of_input(name: str) -> str | None:
    """The inverse, for either; None for another input of a program."""
    return name[: -len(_ENDS[0])] + _WEIGHT if name.endswith(_ENDS) else None


def shape_of(config: ModelConfig, weight: str) -> tuple[int, int]:
    """(N, K) of a matrix, of a head that is tied to the embedding too. Raises KeyError where the model has no such."""
    rows, columns = config.matrices()[EMBEDDING if weight == HEAD and config.tied_embeddings else weight]
    return rows, columns


def bytes_of_factors(config: ModelConfig, ranks: Mapping[str, int]) -> int:
    """What the factors take in float32."""
    return 4 * sum(rank * sum(shape_of(config, weight)) for weight, rank in ranks.items())


def feeds(factors: Factors) -> dict[str, torch.Tensor]:
    """The inputs of a program for an adapter, by name."""
    return {
        name: value
        for weight in factors.ranks
        for name, value in zip(input_names(weight), factors.read(weight), strict=True)
    }


def factors_digest(factors: Factors) -> str:
    """BLAKE3 of an adapter's weights, by name, with the digests of their factors, in hex: the same whatever file holds them."""
    from pocketphi.graph.lazy_weights import digest

    whole = blake3()
    for weight in sorted(factors.ranks):
        a, b = factors.read(weight)
        whole.update(f"{weight} {digest({'a': a, 'b': b})}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class Turned:
    """An adapter for a program whose norms gave off powers of two of their channels to the columns of the weights behind.

    exponents: weight → int32 [K], None where nothing was given off
    """

    factors: Factors
    exponents: Callable[[str], torch.Tensor | None]

    @property
    def ranks(self) -> Mapping[str, int]:
        return self.factors.ranks

    def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.factors.read(weight)
        turn = self.exponents(weight)
        return (a if turn is None else a.ldexp(turn[:, None])), b
