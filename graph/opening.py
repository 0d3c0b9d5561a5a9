"""Which reader a model has, by how a user names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_file import GgufFile, sample_path
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.lora.merged import MergedAdapters
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.reading import lost_link, path_of


def open_checkpoint(model: str | Path, lora: Sequence[Lora] = ()) -> Checkpoint:
    """Open MODEL: a Hugging Face folder, a `.gguf` file, `sample`, or `random:NAME`. lora: adapters to merge into it, in order.

    Raises InputError when there is no such model, it is damaged, or an adapter cannot be added to it.
    """
    base = _open(model)
    return MergedAdapters(base, lora) if lora else base


def _open(model: str | Path) -> Checkpoint:
    text = str(model)
    if text.startswith("random:"):
        return RandomWeights(text)
    if text == "sample":
        return GgufFile(sample_path(), label="sample")
    path = path_of(model)
    if path.is_dir():
        return HfFolder(path)
    if path.is_file() and path.suffix == ".gguf":
        return GgufFile(path)
    if lost := lost_link(path):
        raise lost
    if path.exists():
        raise InputError(f"{path}: expected a Hugging Face folder or a .gguf file")
    raise InputError(
        f"{text}: no such model; expected a Hugging Face folder, a .gguf file, 'sample', "
        "or 'random:phi-3-mini-4k' and other published shapes"
    )
