"""An adapter's folder, opened for one base: every tensor in it has its place there, or it is refused before any work."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.digests import digest_files
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.changes import Change, LowRank, OfEmbedding, SomeRows, Tensor, Whole
from pocketphi.graph.lora.modules import Modules, modules_of, saved_whole, targeted
from pocketphi.graph.lora.named import CONFIG, WEIGHTS, Lora
from pocketphi.graph.lora.settings import LoraSettings, read_settings
from pocketphi.graph.reading import named, parse_object, read_whole, show, some
from pocketphi.graph.safetensors_file import DTYPES, RowReader, SafetensorsFile, Stored

_PREFIX = "base_model.model."
_LARGEST_CONFIG = 1 << 22
_CHUNK_VALUES = 1 << 22
_PART = re.compile(
    r"\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector(?:\.weight)?"
    r"|base_layer\.weight|token_adapter\.trainable_tokens_delta|weight)$"
)
_EMBED = EMBEDDING.removesuffix(".weight")
_TIED = {_EMBED, HEAD.removesuffix(".weight")}

Norms = Callable[[OfEmbedding, Sequence[Change]], torch.Tensor]
"""(a change of an embedding, what replaces the base's rows before it) → the lengths of the columns that it leaves"""

Parts = dict[str, tuple[str, Stored]]
"""Of a module: part (`lora_A`, `weight`) → its name in the file, and where it lies."""


@dataclass(frozen=True)
class Adapter:
    """lora: as the user named it; blake3: digest of its two files; modules: of the base, as it names them; changes: by module;
    bases: of modules whose own weight the adapter holds, which a tied weight has in both places."""

    lora: Lora
    blake3: str
    modules: Modules
    changes: Mapping[str, Sequence[Change]]
    bases: Mapping[str, Sequence[Change]]
    notices: Sequence[str]


def open_adapter(lora: Lora, base: Checkpoint, norms: Norms) -> Adapter:
    """norms: what `OfEmbedding.norms` gives. Raises InputError for an adapter that is damaged or not known, or is for another
    model than this one."""
    folder = lora.folder
    if not folder.is_dir():
        raise InputError(f"{lora.option} {folder}: no such folder; expected one that holds {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{lora.option} {folder}: holds no {CONFIG}{_where_else(folder)}")
    where = str(folder / CONFIG)
    settings = read_settings(parse_object(read_whole(folder / CONFIG, limit=_LARGEST_CONFIG), where), where)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{lora.option} {folder}: holds no {WEIGHTS}{_why_no_weights(folder)}")
    digest = digest_files(lora.files)
    file = SafetensorsFile.open(folder / WEIGHTS)
    found = _by_module(file)
    modules = modules_of(base, found, str(file.path))
    parts = {}
    for path, held in found.items():
        name = modules.find(path)
        if name is None:
            odd = next(iter(held.values()))[0]
            raise InputError(f"{file.path}: holds {show(odd, 200)}, which is of no module of {base.label}{_hint(path)}")
        if name in parts:
            raise InputError(f"{file.path}: holds two of {name}")
        parts[name] = held
    opened = _Opened(lora, base, settings, file, modules, parts)
    opened.check()
    changes = {name: list(opened.changes(name, norms)) for name in parts}
    bases = {name: [Whole(opened.tensor(name, "base_layer"))] for name, held in parts.items() if "base_layer" in held}
    return Adapter(lora, digest, modules, changes, bases, opened.notices())


class _Opened:
    """One adapter while it is looked at."""

    def __init__(
        self,
        lora: Lora,
        base: Checkpoint,
        settings: LoraSettings,
        file: SafetensorsFile,
        modules: Modules,
        parts: Mapping[str, Parts],
    ) -> None:
        self._lora, self._base, self._settings, self._file = lora, base, settings, file
        self._modules, self._parts = modules, parts
        self._where, self._tied = str(file.path), base.config.tied_embeddings
        self._reader = RowReader({file.path: file.version})
        self._kept: dict[str, torch.Tensor] = {}

    def check(self) -> None:
        """Raises InputError for what does not fit the settings, or the base, and for a value that is not finite."""
        for name, held in self._parts.items():
            kinds = _kinds(name)
            if odd := [stored for part, (stored, _) in held.items() if not any(part in kind for kind in kinds)]:
                raise InputError(f"{self._where}: holds {show(odd[0], 200)}, which nothing of an adapter reads there")
        self._check_names()
        for name, held in self._parts.items():
            self._check_shapes(name, held)
        for stored, place in (pair for held in self._parts.values() for pair in held.values()):
            self._check_finite(stored, place)

    def tensor(self, name: str, part: str) -> Tensor:
        stored, place = self._parts[name][part]
        return Tensor(place, stored, self._reader, self._kept)

    def changes(self, name: str, norms: Norms) -> Iterator[Change]:
        """Of a module, in the order in which they are made."""
        held = self._parts[name]
        scale = self._settings.scaling(self._modules.path(name)) * self._lora.weight
        magnitude = self.tensor(name, "magnitude") if "magnitude" in held else None
        if "weight" in held:
            yield Whole(self.tensor(name, "weight"))
        if "lora_A" in held:
            yield LowRank(self.tensor(name, "lora_A"), self.tensor(name, "lora_B"), scale, magnitude)
        if "embedding_A" in held:
            a, b = self.tensor(name, "embedding_A"), self.tensor(name, "embedding_B")
            plain = OfEmbedding(a, b, scale)
            bases = [Whole(self.tensor(name, "base_layer"))] if "base_layer" in held else []
            yield OfEmbedding(a, b, scale, magnitude, lambda: norms(plain, bases))
        if "tokens" in held:
            yield SomeRows(self.tensor(name, "tokens"), torch.tensor(self._tokens(name)))

    def notices(self) -> list[str]:
        """What a user should know of it."""
        told, made_for = [], self._settings.base_model_name_or_path
        ours = Path(self._base.label).name
        if made_for and Path(made_for).name.casefold() != ours.casefold():
            told.append(
                f"{self._lora.folder}: was made for {named(made_for)}; it is added to {ours}, whose shapes it fits"
            )
        text = self._base.tokenizer_files()
        for file in ("tokenizer.json", "chat_template.jinja"):
            path = self._lora.folder / file
            if file in text and path.is_file() and read_whole(path) != text[file]:
                told.append(f"{path}: another one than the base's, whose {file} is used")
        return told

    def _tokens(self, name: str) -> tuple[int, ...]:
        path = self._modules.path(name)
        return next((rows for end, rows in self._settings.tokens().items() if path.endswith(end)), ())

    def _check_names(self) -> None:
        """What the settings say to be there is there, and nothing else."""
        has = {
            kind: {name for name, held in self._parts.items() if held.keys() & set(parts)}
            for kind, parts in (
                ("low", ("lora_A", "lora_B", "embedding_A", "embedding_B")),
                ("whole", ("weight",)),
                ("tokens", ("tokens",)),
            )
        }
        said = {
            "low": targeted(self._settings, self._modules, self._tied),
            "whole": saved_whole(self._settings, self._modules, self._tied),
            "tokens": {name for name in self._modules.shapes if self._tokens(name)},
        }
        keys = {"low": "target_modules", "whole": "modules_to_save", "tokens": "trainable_token_indices"}
        for kind, key in keys.items():
            wanted = said[kind]
            if wanted is None:
                continue
            if extra := sorted(has[kind] - wanted):
                raise InputError(
                    f"{self._where}: holds changes of {some(extra, 1)}, which {key} in {CONFIG} does not name"
                )
            if lacks := sorted(wanted - has[kind]):
                raise InputError(f"{self._where}: lacks the changes of {some(lacks, 1)}, which {key} in {CONFIG} names")
        if not any(self._parts.values()):
            raise InputError(f"{self._where}: holds no tensor")

    def _check_shapes(self, name: str, held: Parts) -> None:
        shape, rank = self._modules.shapes[name], self._settings.rank(self._modules.path(name))
        wanted: dict[str, tuple[int, ...]] = {"weight": shape, "base_layer": shape}
        if len(shape) == 2:
            rows, columns = shape
            wanted |= {"lora_A": (rank, columns), "lora_B": (rows, rank), "magnitude": (rows,)}
            wanted |= {"tokens": (len(self._tokens(name)), columns)}
        if name == _EMBED:
            wanted |= {"embedding_A": (rank, shape[0]), "embedding_B": (shape[1], rank), "magnitude": (shape[1],)}
        for part, (stored, place) in held.items():
            if place.dtype not in DTYPES:
                raise InputError(
                    f"{self._where}: {stored!r} has dtype {place.dtype}, expected one of {', '.join(DTYPES)}"
                )
            if place.shape != wanted[part]:
                came, expected = list(place.shape), list(wanted[part])
                why = f"the adapter is for another model than {self._base.label}"
                raise InputError(f"{self._where}: {stored!r} has shape {came}, expected {expected}: {why}")
        for one, other in (("lora_A", "lora_B"), ("embedding_A", "embedding_B")):
            if (one in held) != (other in held):
                raise InputError(
                    f"{self._where}: of {name} it holds only one of {one} and {other}; save the adapter again"
                )
        low = "lora_A" in held or "embedding_A" in held
        if low and self._settings.use_dora != ("magnitude" in held):
            lacks = "no magnitude" if self._settings.use_dora else "a magnitude"
            raise InputError(
                f"{self._where}: holds {lacks} of {name}, but use_dora is {self._settings.use_dora} in {CONFIG}"
            )
        if self._lora.weight != 1 and ("weight" in held or "tokens" in held):
            raise InputError(
                f"{self._lora.option} {self._lora}: holds {name} as a whole, of which there is no part; "
                f"leave out ={self._lora.weight:g}"
            )
        tokens = self._tokens(name) if "tokens" in held else ()
        if tokens and (max(tokens) >= shape[0] or len(set(tokens)) != len(tokens)):
            told = f"trainable_token_indices names a token twice, or one that is not of {shape[0]}"
            raise InputError(f"{self._lora.folder / CONFIG}: {told}")

    def _check_finite(self, name: str, stored: Stored) -> None:
        columns = math.prod(stored.shape[1:])
        step = max(1, _CHUNK_VALUES // max(1, columns))
        for start in range(0, stored.shape[0] if stored.shape else 0, step):
            rows = self._reader.read(stored, name, start, min(start + step, stored.shape[0]))
            if not bool(rows.isfinite().all()):
                raise InputError(f"{self._where}: {name!r} holds a value that is not finite (NaN or infinity)")


def _kinds(name: str) -> tuple[set[str], ...]:
    """Parts that may be of a module."""
    low = {"embedding_A", "embedding_B"} if name == _EMBED else {"lora_A", "lora_B"}
    return low | {"magnitude", "weight"}, ({"base_layer", "tokens"} if name in _TIED else set())


def _by_module(file: SafetensorsFile) -> dict[str, Parts]:
    """The tensors of a file, by the path of their module. Raises InputError for a name that is of no adapter."""
    found: dict[str, Parts] = {}
    for name, stored in file.tensors.items():
        short = name.removeprefix(_PREFIX)
        match = _PART.search(short)
        if not match:
            is_bias = short.endswith(".bias")
            what = "a bias, which no model here has" if is_bias else "which is of no adapter that is known"
            raise InputError(f"{file.path}: holds {show(name, 200)}, {what}")
        part = match["part"].removesuffix(".weight") or "weight"
        part = {"lora_embedding_A": "embedding_A", "lora_embedding_B": "embedding_B"}.get(part, part)
        part = {"lora_magnitude_vector": "magnitude", "token_adapter.trainable_tokens_delta": "tokens"}.get(part, part)
        held = found.setdefault(short[: match.start()], {})
        if part in held:
            raise InputError(
                f"{file.path}: holds {show(held[part][0], 200)} and {show(name, 200)}, which are one tensor"
            )
        held[part] = name, stored
    return found


def _where_else(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return ": it is a model, not an adapter"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))[:1]
    return f"; its folder {show(inside[0])} holds one" if inside else ""


def _why_no_weights(folder: Path) -> str:
    if os.path.lexists(folder / "adapter_model.bin"):
        return ", but a pickled adapter_model.bin, which may run code: load it with PEFT, then save_pretrained"
    return ""


def _hint(path: str) -> str:
    if path.endswith(("score", "classifier")):
        return ": it is for classification"
    if "layers." in path:
        return ", which has other layers"
    return ""
