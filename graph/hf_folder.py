"""A Hugging Face folder: `config.json`, tokenizer files, and one or several safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph.checkpoint import Checkpoint, check_tensors
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.hf_config import end_tokens, read_hf_config
from pocketphi.graph.hf_weights import assign, find_weights
from pocketphi.graph.reading import is_lfs_pointer, lfs_pointer, parse_object, read_whole
from pocketphi.graph.safetensors_file import RowReader

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Those that a folder holds, name → content."""
    return {name: read_whole(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


_LARGEST_CONFIG = 1 << 20


class HfFolder(Checkpoint):
    """Reads `Phi3ForCausalLM` folders in bf16, fp16 or fp32 as transformers' `from_pretrained` does; what that would leave
    out is refused, or is one of the notices."""

    settings: Mapping[str, Any]

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder that cannot be read whole."""
        self.label = str(folder)
        self._folder = folder
        path = folder / "config.json"
        self._where = str(path)
        lacks = "" if path.exists() else _why_none(folder)
        self.settings = parse_object(read_whole(path, lacks, _LARGEST_CONFIG), self._where)
        read = read_hf_config(self.settings, self._where)
        self.config = read.model
        self.notices = read.notices
        self._add_end_tokens()
        weights = find_weights(folder, read.weights)
        self.notices = (*self.notices, *weights.notices)
        self._stored = assign(self.config, weights, str(folder))
        self._rows = RowReader({file.path: file.version for file in weights.files})
        self._tie()
        self.tensors = check_tensors(self.config, {n: s.info for n, s in self._stored.items()}, str(folder))
        self.files = sorted({stored.file for stored in self._stored.values()})

    def check_settings(self) -> None:
        from pocketphi.graph.hf_agreement import check_agreement

        check_agreement(self.settings, self.config, self._where)

    def forget_behind(self) -> None:
        self._rows.forgets = True

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._rows.read(self._stored[name], name, start, stop)

    def tokenizer_files(self) -> dict[str, bytes]:
        templates = sorted(self._folder.glob("additional_chat_templates/*.jinja"))
        paths = [*(self._folder / name for name in TOKENIZER_FILES), *templates]
        found = {path.relative_to(self._folder).as_posix(): read_whole(path) for path in paths if path.is_file()}
        for name, content in found.items():
            if is_lfs_pointer(content):
                raise lfs_pointer(str(self._folder / name))
        return found

    def _add_end_tokens(self) -> None:
        path = self._folder / "generation_config.json"
        if path.is_file():
            data = parse_object(read_whole(path, limit=_LARGEST_CONFIG), str(path))
            eos, notices = end_tokens(data, self.config, str(path))
            self.config = replace(self.config, eos=eos)
            self.notices = (*self.notices, *notices)

    def _tie(self) -> None:
        """Where a head is stored beside a tied embedding, transformers ties them if they are equal, and else keeps both."""
        if not self.config.tied_embeddings or HEAD not in self._stored:
            return
        untied = replace(self.config, tied_embeddings=False)
        self.tensors = check_tensors(untied, {n: s.info for n, s in self._stored.items()}, str(self._folder))
        if all(torch.equal(*(self.read(n, *rows).float() for n in (EMBEDDING, HEAD))) for rows in self.chunks(HEAD)):
            del self._stored[HEAD]
            return
        self.config = untied
        told = f"tie_word_embeddings is true, but {HEAD} is another matrix than the embedding; both are used"
        self.notices = (*self.notices, f"{self._where}: {told}")


def _why_none(folder: Path) -> str:
    """What to say where there is no config.json: a folder inside may hold one, or this is an adapter's."""
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: merge it into its base model, and save that"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))[:1]
    return f"its folder {inside[0]!r} holds one" if inside else "a Hugging Face folder holds one"
