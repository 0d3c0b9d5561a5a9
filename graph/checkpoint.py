"""One interface to every kind of checkpoint: names → tensors that are read lazily, rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CompilerBug, InputError

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.formats import Blocks
    from pocketphi.graph.kept import Kept
    from pocketphi.graph.lora.adapter import Adapter
    from pocketphi.graph.models.base import Model

ROWS_TOGETHER = 16
"""A chunk of a weight begins at a multiple of this many rows: a target may interleave as many."""

CHUNK_BYTES = 1 << 19
"""How much of a tensor is read at once: small enough to stay in a core's second-level cache."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and stored element type of one tensor (`bf16`, `fp16`, `fp32`, or a GGUF type such as `Q4_0`)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Elements in a row: 1 for a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1


class Checkpoint(ABC):
    """A model on disk (or generated), never held in memory.

    label:     how the user named it
    config:    the model's shape
    tensors:   every tensor of `config.tensors()`, with its stored type
    files:     those that hold the tensors, none where they are generated
    notices:   one line each on what was found and is not used, or not as it says
    settings:  what `check_settings` judges, as its file has it; None where there is nothing to judge
    family:    the model that its files are of, which names the modules of transformers' class; None: as the config's form
    adapters:  what was merged into the weights of the files, in this order
    unmerged:  the checkpoint without them, None where there are none
    """

    label: str
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    files: Sequence[Path] = ()
    notices: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    family: Model | None = None
    adapters: Sequence[Adapter] = ()
    unmerged: Checkpoint | None = None

    def wrap(self, inner: Checkpoint, *more: str) -> None:
        """Say of the model what another checkpoint says. more: names of attributes and methods that are its own too."""
        shared = ("label", "config", "notices", "settings", "check_settings", "tokenizer_files", "text_settings")
        for name in (*shared, "family", "adapters", "unmerged", *more):
            setattr(self, name, getattr(inner, name))

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor [stop - start, …] in its stored float type, or float32 where it is packed.

        Safe to call from several threads.
        """

    def check_settings(self) -> None:
        """Raises InputError where transformers would make another model of the settings than `config`. Imports transformers."""
        return

    def forget_behind(self) -> None:
        """From now on every tensor is read for the last time: the system need not keep it in memory."""
        return

    def kept(self, name: str) -> Kept | None:
        """How a tensor is quantized in the file, where that can be taken over; else None."""
        return None

    def read_kept(self, name: str, start: int, stop: int) -> Blocks:
        """Rows [start, stop) of a tensor that can be taken over, as `kept` says. Safe to call from several threads."""
        raise CompilerBug(f"{self.label}: {name!r} cannot be taken over")

    def check_kept(self, name: str) -> str:
        """What is not quite the file's in what `read_kept` gives, or why a tensor is not kept at all; empty where it is, bit
        for bit. Raises InputError for one that is quantized in a way that cannot be taken over."""
        kept = self.kept(name)
        return (
            kept.rounds if kept else f"stored as {self.tensors[name].dtype}, which cannot be kept: rounded to nearest"
        )

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files of a Hugging Face tokenizer folder, chat template included; empty when there is none."""
        return {}

    def text_settings(self) -> dict[str, Any]:
        """The `config.json` that transformers sees when it loads the tokenizer: its class may depend on the model's type."""
        return self.config.to_hf()

    def chunks(self, name: str, multiple: int = ROWS_TOGETHER) -> Iterator[tuple[int, int]]:
        """Row ranges of about CHUNK_BYTES (as bf16), in order, each a multiple of `multiple` rows but the last."""
        info = self.tensors[name]
        step = max(1, CHUNK_BYTES // (2 * info.columns) // multiple) * multiple
        return ((start, min(start + step, info.rows)) for start in range(0, info.rows, step))


def check_shapes(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Raises InputError naming the first of the wanted tensors that is missing or has another shape."""
    for name, shape in wanted.items():
        info = tensors.get(name)
        if info is None:
            raise InputError(f"{where}: tensor {name!r} is missing (the config asks for {list(shape)})")
        if info.shape != shape:
            raise InputError(f"{where}: {name!r} has shape {list(info.shape)}, the config asks for {list(shape)}")
