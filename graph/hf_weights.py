"""Which weight files of a Hugging Face folder are read, and what each tensor in them is, by the rules of `from_pretrained`.

transformers takes `model.safetensors`, else the files that `model.safetensors.index.json` names, and of those every tensor,
whatever the index says of it. Names may come with or without the prefix of the base model. What transformers would leave
out with a warning is refused here: it may be what somebody trained.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.checkpoint import check_shapes
from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.models.base import Model
from pocketphi.graph.packed import Packing
from pocketphi.graph.reading import file_inside, named, parse_object, read_whole, show, some, typed
from pocketphi.graph.safetensors_file import DTYPES, SafetensorsFile, Stored

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_INDEX = 1 << 23
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)$|\.(safetensors|bin)\.index\.json$")
_TRAINER = re.compile(r"^(training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth)$")
_DISTRIBUTED = re.compile(r"^shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
_UNUSED = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors that old files hold and that are computed today."""
_BASE = "model."


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


@dataclass(frozen=True)
class Weights:
    """tensors: by their names in the files; notices: one line each on the files that were not taken."""

    files: tuple[SafetensorsFile, ...]
    tensors: Mapping[str, Stored]
    notices: tuple[str, ...]


def find_weights(folder: Path, chosen: str | None = None) -> Weights:
    """Open the weight files. chosen: the one that config.json names (`transformers_weights`).

    Raises InputError where there is none that can be read, one is damaged, or files contradict each other.
    """
    beside = _weight_files(folder)
    if "adapter_config.json" in beside:
        raise InputError(
            f"{folder}: holds an adapter (adapter_config.json), which transformers adds to the weights; move it to a "
            "folder of its own, and name that with --lora"
        )
    if found := [name for name in beside if _DISTRIBUTED.match(name)]:
        raise InputError(
            f"{folder}: holds a distributed checkpoint ({found[0]}), which transformers reads first; save it whole"
        )
    name = chosen or next((name for name in (SINGLE, INDEX) if os.path.lexists(folder / name)), None)
    if name is None:
        if packed := [name for name in beside if name.endswith(".gguf")]:
            raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; to compile {named(packed[0])}, name that file")
        rest = f"; {_listed(beside)} cannot be read: load it with transformers, then save_pretrained" if beside else ""
        raise InputError(f"{folder}: no {SINGLE} and no {INDEX}{rest}")
    if name.endswith(".index.json"):
        files, tensors = _read_index(folder, name)
    else:
        path = file_inside(folder, name, f"{folder / 'config.json'}: transformers_weights", follow=True)
        files = (SafetensorsFile.open(path),)
        tensors = dict(files[0].tensors)
    unread = sorted(set(beside) - {name, *(str(file.path.relative_to(folder)) for file in files)})
    why = "as transformers does" if name == SINGLE else "and the files that it names"
    why = "as config.json says" if chosen else why
    return Weights(files, tensors, (f"{folder}: read {name}, {why}; not read: {_listed(unread)}",) if unread else ())


@dataclass(frozen=True)
class Assigned:
    """The tensors of a model by the names that transformers has for them; the head too, where it is stored beside a tied
    embedding.

    plain: those that are stored as floats; packed: of each that a tool has quantized, its name in the files without `.weight`,
    and the tensors that it is made of
    """

    plain: dict[str, Stored]
    packed: Mapping[str, tuple[str, Mapping[str, Stored]]]


def assign(config: ModelConfig, model: Model, weights: Weights, where: str, packing: Packing | None = None) -> Assigned:
    """Raises InputError for a tensor that the model has no place for, one that is there twice, is missing or has another shape
    or type. packing: how weights are quantized, where they are."""
    if 6 * config.layers > len(weights.tensors):
        raise InputError(
            f"{where}: config.json says num_hidden_layers = {config.layers:,}, each of six tensors, but the files hold "
            f"{len(weights.tensors)} tensors"
        )
    wanted = model.stored_shapes(config, weights.tensors)
    groups, rest = _packed_groups(weights.tensors, packing)
    named: dict[str, str] = {}
    odd = []
    for stored in [*rest, *(f"{module}.weight" for module in groups)]:
        name = _our_name(stored, wanted)
        if name in named:
            raise InputError(f"{where}: holds {named[name]!r} and {stored!r}, which are one tensor; remove one of them")
        if name in wanted:
            named[name] = stored
        elif not _UNUSED.search(name) and not (packing and _no_bias(stored, groups)):
            odd.append(stored)
    if odd:
        listed = some([show(name, 200) for name in odd], 1)
        raise InputError(f"{where}: holds the tensor {listed}, {_reason(odd[0], config, model, packing)}")
    packed = {
        name: (module, groups[module])
        for name, stored in named.items()
        if (module := stored.removesuffix(".weight")) in groups
    }
    if packing:
        _check_packed(packed, wanted, packing, where)
    ours = {name: weights.tensors[stored] for name, stored in named.items() if name not in packed}
    for name, place in ours.items():
        if place.dtype not in DTYPES:
            raise InputError(f"{place.file}: {name!r} has dtype {place.dtype}, expected one of {', '.join(DTYPES)}")
    if config.tied_embeddings:
        for held in (ours, packed):  # transformers ties to the one that is there
            _move_head(held, ours.keys() | packed.keys())
    tied = config.tied_embeddings and not {HEAD} & (ours.keys() | packed.keys())
    needed = {n: shape for n, shape in wanted.items() if n not in packed and not (tied and n == HEAD)}
    check_shapes(needed, {name: place.info for name, place in ours.items()}, where)
    return Assigned({name: place.in_rows() for name, place in ours.items()}, packed)


def _move_head(held: dict[str, Any], there: Set[str]) -> None:
    if HEAD in held and EMBEDDING not in there:
        held[EMBEDDING] = held.pop(HEAD)


def _check_packed(
    packed: Mapping[str, tuple[str, Mapping[str, Stored]]],
    wanted: Mapping[str, tuple[int, ...]],
    packing: Packing,
    where: str,
) -> None:
    """Raises InputError where the files hold packed what the settings or the model have otherwise, or hold nothing packed."""
    for name, (module, parts) in packed.items():
        if len(wanted[name]) != 2:
            raise InputError(f"{where}: {name!r} is packed, but the config asks for {list(wanted[name])}")
        if packing.in_float(name.removesuffix(".weight")):
            first = next(iter(parts))
            raise InputError(f"{where}: {module!r} is packed ({first}), but config.json says that it is left in float")
    if not packed:
        raise InputError(
            f"{where}: config.json says that weights are quantized by {packing.tool}, but the files hold none of its"
        )


def _packed_groups(
    tensors: Mapping[str, Stored], packing: Packing | None
) -> tuple[dict[str, dict[str, Stored]], list[str]]:
    """The parts of packed weights by the names of these without `.weight`, and the names of all other tensors."""
    if packing is None:
        return {}, list(tensors)
    mark = f".{packing.marks}"
    groups: dict[str, dict[str, Stored]] = {n.removesuffix(mark): {} for n in tensors if n.endswith(mark)}
    rest = []
    for name, stored in tensors.items():
        module, _, part = name.rpartition(".")
        if module in groups and part in packing.parts:
            groups[module][part] = stored
        else:
            rest.append(name)
    return groups, rest


def _no_bias(name: str, groups: Mapping[str, Any]) -> bool:
    """Whether it is the bias of a packed weight, as old tools write one of zeros where the model has none; see
    `HfFolder._check_biases`."""
    return name.endswith(".bias") and name.removesuffix(".bias") in groups


def _our_name(name: str, wanted: Mapping[str, Any]) -> str:
    """A file saved from the base model has no `model.` before its names, and one of a wrapped model a second one."""
    short = name.removeprefix(_BASE)
    return short if short in wanted else _BASE + name if _BASE + name in wanted else name


def _reason(name: str, config: ModelConfig, model: Model, packing: Packing | None) -> str:
    layer = layer_of(name)
    if "lora_" in name or name.startswith("base_model."):
        return "part of an adapter; save the model without it, and name the adapter with --lora"
    if layer is not None and layer >= config.layers:
        return f"but config.json says num_hidden_layers = {config.layers}"
    if name.endswith((".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight_scale", ".scales", ".biases")):
        if packing:
            return f"part of a quantized weight, but not one as {packing.tool} packs it, which config.json names"
        return "part of a quantized weight; config.json does not say how it was quantized (quantization_config)"
    return f"which has no place in {model.name}; it cannot be compiled"


def _read_index(folder: Path, name: str) -> tuple[tuple[SafetensorsFile, ...], dict[str, Stored]]:
    index = file_inside(folder, name, f"{folder / 'config.json'}: transformers_weights", follow=True)
    content = read_whole(index, limit=_LARGEST_INDEX)
    weight_map = typed(_Index, parse_object(content, str(index)), str(index)).weight_map
    paths = {file: file_inside(folder, file, str(index), follow=True) for file in sorted(set(weight_map.values()))}
    files = {file: SafetensorsFile.open(path) for file, path in paths.items()}
    tensors: dict[str, Stored] = {}
    for file in files.values():
        for tensor, stored in file.tensors.items():
            if tensor in tensors:
                raise InputError(f"{file.path}: holds {show(tensor, 200)}, which {tensors[tensor].file.name} holds too")
            tensors[tensor] = stored
    for tensor, listed in weight_map.items():
        if tensor not in files[listed].tensors:
            raise InputError(f"{index}: puts {show(tensor, 200)} into {listed}, which does not hold it")
    if not tensors:
        raise InputError(f"{index}: names no file that holds a tensor")
    return tuple(files.values()), tensors


def _weight_files(folder: Path) -> list[str]:
    """The files of a folder that hold, list or change weights, a trainer's state aside."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    return [n for n in names if (_WEIGHTS.search(n) and not _TRAINER.match(n)) or n == "adapter_config.json"]


def _listed(names: Iterable[str]) -> str:
    return some([show(name, 100).strip("'") for name in names], 3)
