"""What a model's file says: how its checkpoints are read, and what they are compiled as (its `Form`, in graph/config.py).

A model may be compiled as another one, where that is the same function of other numbers: a Llama is a Phi-3 whose
projections are stored apart. Then it is traced, saved and verified as that one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketphi.graph.config import HEAD, Form, ModelConfig, layer_of
from pocketphi.graph.models.settings import written_sizes, written_tokens


@dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor that are rows of one of ours.

    name:        of the stored tensor
    rows, first: how many, from which one
    head_dim:    rows of a head, where they are stored in pairs that turn together; else 0
    step:        from one stored row to the next, where those of several pieces take turns
    blocks:      of a stored tensor [blocks, R, K], whose rows are all of them, one block after the other; 0 for [R, K]
    """

    name: str
    rows: int
    first: int = 0
    head_dim: int = 0
    step: int = 1
    blocks: int = 0

    def stored_rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The numbers of the stored rows that are rows [start, stop) of this piece.

        Row r of a head of d rows lies at 2·(r mod d/2) + r div d/2 where pairs lie together, (d/2, 2), and is read half
        after half, (2, d/2).
        """
        row = np.arange(start, stop)
        if self.head_dim:
            within, half = row % self.head_dim, self.head_dim // 2
            row = row - within + 2 * (within % half) + within // half
        return self.first + self.step * row

    def span(self, start: int, stop: int) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """The stored rows [first, last) among which rows [start, stop) lie, and which of them these are, in order; None where
        they are all of them, as they lie."""
        if (not self.head_dim and self.step == 1) or start == stop:
            return self.first + start, self.first + stop, None
        numbers = self.stored_rows(start, stop)
        first = int(numbers.min())
        return first, int(numbers.max()) + 1, numbers - first


def cut(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
    """The pieces that rows [start, stop) of a tensor come from, each with its own first row and the one behind its last."""
    for piece in pieces:
        if max(start, 0) < min(stop, piece.rows):
            yield piece, max(start, 0), min(stop, piece.rows)
        start, stop = start - piece.rows, stop - piece.rows


Stacks = Mapping[str, Sequence[Piece]]
"""Names of a layer's tensors without the layer (`mlp.gate_up_proj.weight`) → the pieces that each is stacked from."""


@dataclass(frozen=True)
class KnownWindow:
    """A sliding window that llama.cpp assumes where a file does not mention one. kv_heads: None for any number."""

    layers: int
    kv_heads: int | None
    context: int
    window: int
    models: str


@dataclass(frozen=True)
class Gguf:
    """How GGUF files have a model.

    architecture: their `general.architecture`
    layer:        names of a layer's tensors → stacks of `blk.N.` tensors, of which a file has one: the first whose first tensor
                  is there, else the last
    in_pairs:     rows of q and k are stored in pairs that turn together
    whole_heads:  the rotary embedding turns whole heads
    rope_freqs:   factors lie in `rope_freqs`, and in two tensors with rope type longrope only; else they always lie in two
    reads_window: llama.cpp honours `attention.sliding_window`
    windows:      those that files without the key are known for
    markers_take_space: control tokens swallow the space behind them, but for `keep_space`
    """

    architecture: str
    layer: Callable[[ModelConfig], Mapping[str, Sequence[Sequence[Piece]]]]
    in_pairs: bool = False
    whole_heads: bool = True
    rope_freqs: bool = True
    reads_window: bool = False
    windows: tuple[KnownWindow, ...] = ()
    markers_take_space: bool = False
    keep_space: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tiktoken:
    """The tokenizer of folders that have it as a `*.tiktoken` file and code of their own, which is not run.

    file:    the file's name
    cut:     the pattern of the pieces that text is cut into, for Oniguruma
    special: rows of the embedding → the tokens beside those of the file, with their ids, without a gap behind the file's
    end:     the token between texts
    shown:   those of the special tokens that are not left out of decoded text
    """

    file: str
    cut: str
    special: Callable[[int], Mapping[str, int]]
    end: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A family of checkpoints.

    name:          for messages
    architectures: what `config.json` may call it; the first is transformers' class
    form:          what it is compiled as
    settings:      a dataclass: the keys of `config.json` that are honoured, with transformers' own defaults
    read:          (settings, file's name, notices to add to) → the config. Raises InputError for what cannot be honoured
    layer:         the tensors of a layer that are stored otherwise than the form has them
    other_layer:   the same as other files have them, which hold the last of these tensors; None: there is one way
    outside:       tensors outside of the layers that have another name in files: ours → theirs
    only:          keys that may have one value alone, beside those of `graph/hf_keys.py`
    harmless:      keys that change no logit, beside those of `graph/hf_keys.py`
    published:     shapes for `random:NAME`
    tiktoken:      how its folders hold a tokenizer, beside the files that transformers reads
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    form: Form
    settings: type[Any]
    read: Callable[[Any, str, list[str]], ModelConfig]
    layer: Callable[[ModelConfig], Stacks] = lambda config: {}
    other_layer: Callable[[ModelConfig], Stacks] | None = None
    outside: Mapping[str, str] = field(default_factory=dict)
    gguf: Gguf | None = None
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    published: Mapping[str, ModelConfig] = field(default_factory=dict)
    tiktoken: Tiktoken | None = None

    @property
    def architecture(self) -> str:
        return self.architectures[0]

    def written(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of this model's own class that make the model of a config, but for the rotary embedding."""
        if self.architecture == config.form.architecture:
            return config.to_hf()
        own = {"head_dim": config.head_dim, "sliding_window": config.sliding_window}
        keys = {**written_sizes(config), **written_tokens(config), **own}
        return {key: value for key, value in keys.items() if key in self.settings.__dataclass_fields__}

    def stacks(self, config: ModelConfig, held: Container[str] = ()) -> Stacks:
        """The tensors of a layer that are stored otherwise in files that hold tensors of these names."""
        if self.other_layer:
            other = self.other_layer(config)
            first = [pieces[0].name for pieces in other.values()][-1]
            if any(f"{prefix}layers.0.{first}" in held for prefix in ("model.", "")):
                return other
        return self.layer(config)

    def pieces(self, config: ModelConfig, held: Container[str] = ()) -> dict[str, list[Piece]]:
        """The stored tensors that each tensor of the config is stacked from; the head too, which a tied model may have. held:
        names of the tensors in the files, where a model is stored in several ways."""
        stacks = self.stacks(config, held)
        shapes = {**config.tensors(), HEAD: (config.vocab_size, config.hidden_size)}
        return {
            name: _in_layer(name, stacks) or [Piece(self.outside.get(name, name), shape[0])]
            for name, shape in shapes.items()
        }

    def stored_shapes(self, config: ModelConfig, held: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Every tensor that a file may hold: name → shape. held: as for `pieces`."""
        shapes = {**config.tensors(), HEAD: (config.vocab_size, config.hidden_size)}
        stored: dict[str, tuple[int, ...]] = {}
        for name, pieces in self.pieces(config, held).items():
            for piece in pieces:
                rows = max(piece.first + piece.step * (piece.rows - 1) + 1, *stored.get(piece.name, (0,))[:1])
                blocks = (piece.blocks, rows // piece.blocks) if piece.blocks else (rows,)
                stored[piece.name] = (*blocks, *shapes[name][1:])
        return stored


def _in_layer(name: str, stacks: Stacks) -> list[Piece]:
    layer = layer_of(name)
    prefix = f"model.layers.{layer}."
    own = stacks.get(name.removeprefix(prefix), ()) if layer is not None else ()
    return [replace(piece, name=prefix + piece.name) for piece in own]
