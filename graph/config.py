"""The shape of a model, and what it is traced as."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

from pocketphi.graph.errors import InputError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The names of two tensors; where they are tied, there is only the first."""


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv:2402.13753): per-frequency factors, switched by the total length.

    short, long: `rotary_dim / 2` factors each; long applies once a position reaches `original_max_position`.
    attention_factor: what rotated vectors are multiplied with; None: what follows from the lengths
    short_attention_factor: the same as long as the short factors apply; None: as with the long ones
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position: int
    attention_factor: float | None = None
    short_attention_factor: float | None = None


@dataclass(frozen=True)
class BlockSparse:
    """Which keys a head of a block-sparse layer sees (arXiv:2404.14219, figure 1): with blocks of `block` tokens, a query
    of block q sees those of block k ≤ q, and not in its future, where q - k < local, or (k + step · head + 1) mod stride = 0.
    """

    block: int
    local: int
    stride: int
    step: int


@dataclass(frozen=True)
class Experts:
    """The experts of a layer's MLP, of which each token goes through some.

    count: of a layer; chosen: for a token
    threshold: of the router's scores, how far below the largest one they count, relative to their size (`edge.route`)
    """

    count: int
    chosen: int
    threshold: float


@dataclass(frozen=True)
class Form:
    """What a model is traced, saved and verified as: a class of transformers, or one of ours. `graph/models/` has one for each.

    name:         for messages
    architecture: the class, which a bundle's `config.json` names
    period:       layers after which the pattern of layers repeats: 1 where all are alike
    tensors:      every tensor that a checkpoint holds: name → shape
    settings:     the content of `config.json`
    folds:        (the ending of a projection's name, that of the norm before it), within a layer
    build:        makes the module that is traced, of a config with untied embeddings; None: transformers' class does. Its
                  method `make_constants(config)` makes what is no weight, which has values when the module has none yet
    in_float:     the endings of names of matrices that are not quantized
    routed:       of those that hold the rows of all experts, one expert after the other
    """

    name: str
    architecture: str
    period: int
    tensors: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    settings: Callable[[ModelConfig], dict[str, Any]]
    folds: tuple[tuple[str, str], ...]
    build: Callable[[ModelConfig], Any] | None = None
    in_float: tuple[str, ...] = ()
    routed: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """What the compiler needs to know of a model. Lengths are in tokens, sizes in elements.

    sparse: of the layers that are block-sparse, all but the last of each of the form's periods; None where none is
    experts: of each layer's MLP; None where it is one for all tokens
    own:    what only this form has, in a frozen dataclass of the model's file
    where:  the file that says so, for the message where sizes do not fit each other: an InputError
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    long_rope: LongRope | None
    sliding_window: int | None
    tied_embeddings: bool
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    form: Form = field(repr=False)
    sparse: BlockSparse | None = None
    experts: Experts | None = None
    own: Any = None
    where: InitVar[str] = "config"

    def __post_init__(self, where: str) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{where}: {name} = {getattr(self, name)}, expected a positive number")
        if self.heads % self.kv_heads:
            raise InputError(f"{where}: {self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise InputError(
                f"{where}: rotary dimension {self.rotary_dim} must be even and at most {self.head_dim}, not 0"
            )

    @property
    def qkv_size(self) -> int:
        """Rows of the packed projection: (heads + 2 kv_heads) · head_dim."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors().values()))

    def kv_cache_bytes(self, tokens: int, bytes_per_value: int = 4, bytes_per_row: int = 0) -> int:
        """Bytes that keys and values of `tokens` tokens take over all layers.

        bytes_per_row: what lies beside each token's key of a head, and beside its value
        """
        return 2 * self.layers * self.kv_heads * (self.head_dim * bytes_per_value + bytes_per_row) * tokens

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model holds: name → shape."""
        return self.form.tensors(self)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Those that can be quantized: name → [N, K]."""
        return {
            name: (shape[0], shape[1])
            for name, shape in self.tensors().items()
            if len(shape) == 2 and not name.endswith(self.form.in_float)
        }

    def experts_of(self, name: str) -> int:
        """How many experts a matrix holds the rows of; 1 for that of no expert."""
        return self.experts.count if self.experts and name.endswith(self.form.routed) else 1

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` of the class that the model is compiled as."""
        return self.form.settings(self)


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor or input belongs to, by its name: `model.layers.3.…` → 3."""
    found = re.search(r"(?:layers|past_key_values|present)\.(\d+)\.", name)
    return int(found.group(1)) if found else None
