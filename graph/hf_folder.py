"""A Hugging Face folder: `config.json`, tokenizer files, and one or several safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph import tiktoken_file
from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks
from pocketphi.graph.hf_config import end_tokens, read_hf_config
from pocketphi.graph.hf_weights import Weights, assign, find_weights
from pocketphi.graph.kept import Grouped, Kept, fitted, kept_together, stacked
from pocketphi.graph.models.base import Model, Piece, cut
from pocketphi.graph.packed.base import ROUND_AGAIN
from pocketphi.graph.reading import is_lfs_pointer, lfs_pointer, named, parse_object, read_whole, show
from pocketphi.graph.safetensors_file import DTYPES, RowReader

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
    return {name: read_whole(folder / name) for name in TOKENIZER_FILES if os.path.lexists(folder / name)}


_LARGEST_CONFIG = 1 << 20


class HfFolder(Checkpoint):
    """Reads the folder of a known model in bf16, fp16 or fp32, or as a tool has quantized it (`graph/packed`), in the way of
    transformers' `from_pretrained`; what that would leave out is refused, or is one of the notices."""

    settings: Mapping[str, Any]
    family: Model

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder that cannot be read whole."""
        self.label = str(folder)
        self._folder = folder
        path = folder / "config.json"
        self._where = str(path)
        lacks = "" if path.exists() else _why_none(folder)
        self.settings = parse_object(read_whole(path, lacks, _LARGEST_CONFIG), self._where)
        read = read_hf_config(self.settings, self._where)
        self.config, self.family = read.model, read.family
        self.notices = read.notices
        self._add_end_tokens()
        weights = find_weights(folder, read.weights)
        self.notices = (*self.notices, *weights.notices)
        found = assign(self.config, self.family, weights, str(folder), read.packing)
        self._stored = found.plain
        self._pieces = self.family.pieces(self.config, weights.tensors)
        self._rows = RowReader({file.path: file.version for file in weights.files})
        shapes = self.family.stored_shapes(self.config, weights.tensors)
        self._packed = {
            name: read.packing.matrix(module, (shapes[name][0], shapes[name][1]), parts, self._rows)
            for name, (module, parts) in found.packed.items()
            if read.packing
        }
        self._check_biases([module for module, _ in found.packed.values()], weights)
        self._tie()
        self.tensors = {name: TensorInfo(shape, self._dtype(name)) for name, shape in self.config.tensors().items()}
        packed = (stored for matrix in self._packed.values() for stored in matrix.parts.values())
        self.files = sorted({stored.file for stored in (*self._stored.values(), *packed)})

    def check_settings(self) -> None:
        from pocketphi.graph.hf_agreement import check_agreement

        check_agreement(self.settings, self.config, self._where)

    def forget_behind(self) -> None:
        self._rows.forgets = True

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        parts = [self._read_piece(*part) for part in cut(self._pieces[name], start, stop)]
        if not parts:
            parts = [self._read_piece(self._pieces[name][0], 0, 0)]
        if "+" in self._dtype(name):
            parts = [part.float() for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def kept(self, name: str) -> Kept | None:
        several = [
            self._packed[piece.name].kept if piece.name in self._packed else None for piece in self._pieces[name]
        ]
        found = [one for one in several if one]
        return kept_together(found) if len(found) == len(several) else None

    def read_kept(self, name: str, start: int, stop: int) -> Blocks:
        kept, rows = self.kept(name), []
        assert kept is not None
        for piece, first, last in cut(self._pieces[name], start, stop):
            own = self._packed[piece.name].kept
            assert own is not None
            made = self._grouped(piece, first, last).as_blocks(own)
            if not bool(made.half_values.sum().isfinite()):
                raise InputError(f"{piece.name}: a scale of rows {first} to {last} is beyond the range of float16")
            rows.append(fitted(made, kept))
        return stacked(rows)

    def check_kept(self, name: str) -> str:
        matrices = {piece.name: self._packed.get(piece.name) for piece in self._pieces[name]}
        for own, matrix in matrices.items():
            if matrix and not matrix.kept:
                raise InputError(f"--recipe keep: {own} {matrix.why}")
        packed = [matrix for matrix in matrices.values() if matrix]
        if not packed:
            return super().check_kept(name)
        if len(packed) < len(matrices):
            first = next(own for own, matrix in matrices.items() if not matrix)
            raise InputError(
                f"--recipe keep: {packed[0].module} is quantized, and {first}, which becomes one weight with it, is "
                f"{self._stored[first].info.dtype}; {ROUND_AGAIN}"
            )
        return next((said for matrix in packed if (said := matrix.remark())), "")

    def text_settings(self) -> dict[str, Any]:
        return {
            **self.config.to_hf(),
            "model_type": self.family.model_type,
            "architectures": [self.family.architecture],
        }

    def tokenizer_files(self) -> dict[str, bytes]:
        found = read_tokenizer_files(self._folder)
        for path in sorted(self._folder.glob("additional_chat_templates/*.jinja")):
            found[path.relative_to(self._folder).as_posix()] = read_whole(path)
        for name, content in found.items():
            if is_lfs_pointer(content):
                raise lfs_pointer(str(self._folder / name))
        return self._of_tiktoken(found)

    def _of_tiktoken(self, found: dict[str, bytes]) -> dict[str, bytes]:
        """Tokenizer files with those made of a `*.tiktoken` file, where the folder has that alone."""
        kind = self.family.tiktoken
        if kind is None or "tokenizer.json" in found or "tokenizer.model" in found:
            return found
        path = self._folder / kind.file
        if os.path.lexists(path):
            content = read_whole(path, limit=tiktoken_file.LARGEST)
            return tiktoken_file.tokenizer_files(content, kind, self.config.vocab_size, found, str(path))
        if found:
            raise InputError(f"{self._folder}: neither tokenizer.json nor {kind.file}; put the model's own there")
        return found

    def _read_piece(self, piece: Piece, start: int, stop: int) -> torch.Tensor:
        """Rows that lie in pairs, or take turns with others, are read with those between them, and put into order."""
        if piece.name in self._packed:
            return self._grouped(piece, start, stop).dequantize()
        first, last, order = piece.span(start, stop)
        rows = self._rows.read(self._stored[piece.name], piece.name, first, last)
        return rows if order is None else rows[order]

    def _grouped(self, piece: Piece, start: int, stop: int) -> Grouped:
        """As `_read_piece`, of a packed weight."""
        first, last, order = piece.span(start, stop)
        rows = self._packed[piece.name].rows(first, last)
        return rows if order is None else rows.picked(torch.from_numpy(order))

    def _dtype(self, name: str) -> str:
        """Of several types, all are read as float32."""
        names = (piece.name for piece in self._pieces[name])
        return "+".join(
            dict.fromkeys(self._packed[n].dtype if n in self._packed else self._stored[n].info.dtype for n in names)
        )

    def _check_biases(self, modules: Sequence[str], weights: Weights) -> None:
        """Raises InputError for the bias of a packed weight that is not zero, where the model has none."""
        own = {piece.name for pieces in self._pieces.values() for piece in pieces}
        for name in (f"{module}.bias" for module in modules if f"{module}.bias" not in own):
            stored = weights.tensors.get(name)
            if stored and (stored.dtype not in DTYPES or bool(self._rows.read(stored, name, 0, stored.shape[0]).any())):
                raise InputError(
                    f"{stored.file}: holds {name!r}, which is not zero; a {self.family.name} has no such bias"
                )

    def _add_end_tokens(self) -> None:
        path = self._folder / "generation_config.json"
        if os.path.lexists(path):
            data = parse_object(read_whole(path, limit=_LARGEST_CONFIG), str(path))
            eos, notices = end_tokens(data, self.config, str(path))
            self.config = replace(self.config, eos=eos)
            self.notices = (*self.notices, *notices)

    def _tie(self) -> None:
        """Where a head is stored beside a tied embedding, transformers ties them if they are equal, and else keeps both."""
        held = self._packed if HEAD in self._packed else self._stored
        if not self.config.tied_embeddings or HEAD not in held:
            return
        self.tensors = {HEAD: TensorInfo((self.config.vocab_size, self.config.hidden_size), self._dtype(HEAD))}
        if all(torch.equal(*(self.read(n, *rows).float() for n in (EMBEDDING, HEAD))) for rows in self.chunks(HEAD)):
            del held[HEAD]
            return
        self.config = replace(self.config, tied_embeddings=False)
        told = f"tie_word_embeddings is true, but {HEAD} is another matrix than the embedding; both are used"
        self.notices = (*self.notices, f"{self._where}: {told}")


def _why_none(folder: Path) -> str:
    """What to say where there is no config.json: a folder inside may hold one, or this is an adapter's."""
    if (folder / "adapter_config.json").is_file():
        return f"this is an adapter: compile its base model, with --lora {folder}"
    if files := sorted(path.name for path in folder.glob("*.gguf")):
        return f"to compile {named(files[0])}, name that file"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))[:1]
    return f"its folder {show(inside[0])} holds one" if inside else "a Hugging Face folder holds one"
