"""model.onnx as it lies in a bundle: parsed, with every weight inside of its data file, and the runtime's refusals as ours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import Message

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.reading import file_inside, read_json, read_whole, show, size_inside, typed
from pocketphi.targets.ort_mobile import draft
from pocketphi.targets.ort_mobile.lower import CHECKED_LOGITS, Lowered
from pocketphi.targets.ort_mobile.names import DATA_FILE, GENAI_FILE, GRAPH_FILE
from pocketphi.targets.ort_mobile.package import genai_settings, with_draft

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
}
_SESSION = (
    *("intra_op_num_threads", "inter_op_num_threads", "log_id", "log_severity_level", "log_verbosity_level"),
    *("enable_cpu_mem_arena", "enable_mem_pattern", "enable_profiling"),
)
"""Options of a session that change no result."""
_AGAIN = "copy or compile it again"


@dataclass(frozen=True)
class _Search:
    chunk_size: int | None = None


@dataclass(frozen=True)
class _Genai:
    search: _Search


def chunk_size(folder: Path) -> int | None:
    """Tokens of a prompt that go through at once, by genai_config.json; None for all of them."""
    path = file_inside(folder, GENAI_FILE, str(folder))
    size = typed(_Genai, read_json(path, _AGAIN), str(path)).search.chunk_size
    if size is not None and not 0 < size < 1 << 31:
        raise InputError(f"{path}: search.chunk_size is {show(size)}, expected a positive number below 2^31; {_AGAIN}")
    return size


def other_settings(folder: Path, config: ModelConfig) -> list[str]:
    """The keys of genai_config.json that are not as a compile writes them for this config and the graph beside it.

    How fast a session runs may be tuned, and how long a text may be within the context. How much of a text goes through at
    once may be too, where LongRoPE does not change its factors inside of one.
    """
    path = file_inside(folder, GENAI_FILE, str(folder))
    found = _flat(read_json(path, _AGAIN))
    length = found.get("model.context_length")
    if type(length) is not int or not 0 < length <= config.max_position:
        return [f"model.context_length is {show(length)}, config.json says {config.max_position} positions"]
    wanted = _flat(_wanted(folder, config, length))
    free = {f"model.{part}.session_options.{name}" for name in _SESSION for part in ("decoder", "draft")}
    names = [name for name in sorted(found.keys() | wanted.keys()) if name not in free]
    longest, chunk = found.get("search.max_length"), found.get("search.chunk_size")
    if type(longest) is int and 0 < longest <= length:
        names.remove("search.max_length")
    if "search.chunk_size" in names and ("search.chunk_size" in wanted or chunk is None):  # any, or all at once
        names.remove("search.chunk_size")
    return [
        f"{name} is {show(found.get(name))}, expected {show(wanted.get(name))}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def _wanted(folder: Path, config: ModelConfig, length: int) -> dict[str, Any]:
    """genai_config.json as a compile writes it for the graph of a folder, and for the draft model in it."""
    graph = read_graph(folder)
    inputs = {value.name for value in graph.graph.input}
    made = genai_settings(config, inputs, length, is_windowed(graph), checks_guesses(graph))
    if not has_draft(folder):
        return made
    held = folder / draft.FOLDER
    decoder = _wanted(held, read_config(held), length)["model"]["decoder"]
    return with_draft(made, {**decoder, "filename": f"{draft.FOLDER}/{GRAPH_FILE}"})


def has_draft(folder: Path) -> bool:
    """Whether a bundle has a draft model."""
    return (folder / draft.FOLDER).exists()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by the names of all keys that lead there."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def read_graph(folder: Path) -> onnx.ModelProto:
    """The graph, without its weights. Raises InputError where it does not parse, or names bytes that model.onnx.data lacks."""
    path = file_inside(folder, GRAPH_FILE, str(folder))
    content, model = read_whole(path, _AGAIN), onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError has no import path of its own that all versions share
        raise InputError(f"{path}: damaged ({show(str(error))}); {_AGAIN}") from None
    if not _is_text(model):
        raise InputError(f"{path}: damaged (a name that is not UTF-8); {_AGAIN}")
    for tensor in external(model):
        spec_of(tensor, folder)
    return model


def is_windowed(model: onnx.ModelProto) -> bool:
    """Whether the caches of a graph may have fewer rows than a text has tokens."""
    return any(a.name == "sliding_window_cache" and a.i for node in model.graph.node for a in node.attribute)


def checks_guesses(model: onnx.ModelProto) -> bool:
    """Whether a graph gives the logits of the last tokens, among zeros in place of the others'."""
    return any(CHECKED_LOGITS in node.output for node in model.graph.node)


def _is_text(message: Any) -> bool:
    """Whether every text in a message is one. protobuf gives bytes for one that is not UTF-8, or raises when it is read."""
    try:
        for field, value in message.ListFields():
            if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
                continue
            for one in [value] if isinstance(value, str | bytes | Message) else value:
                if isinstance(one, bytes) or (isinstance(one, Message) and not _is_text(one)):
                    return False
    except UnicodeDecodeError:
        return False
    return True


def external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights that lie in the data file."""
    return [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def other_operations(model: onnx.ModelProto, lowered: Lowered) -> list[str]:
    """What of a graph is not as it was lowered: operations, inputs, outputs and small constants. The weights are read by
    `read_weights`."""
    whole = lowered.to_model([], "")
    wanted = whole.graph
    pairs: list[tuple[Any, Any]] = [
        (model.opset_import, whole.opset_import),
        (model.functions, whole.functions),  # may give an operator another meaning
        (model.graph.sparse_initializer, wanted.sparse_initializer),
        (model.graph.node, wanted.node),
        (model.graph.input, wanted.input),
        (model.graph.output, wanted.output),
        ([t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL], wanted.initializer),
    ]
    odd = []
    for found, made in pairs:
        held, own = Counter(map(_bytes, found)), Counter(map(_bytes, made))
        names = {_bytes(one): getattr(one, "name", "an operator set") for one in [*found, *made]}
        odd += [names[content] for content in (held - own) | (own - held)]
    return odd


def other_words(model: onnx.ModelProto, wanted: onnx.ModelProto) -> list[str]:
    """What of a graph, whose operations are right, is not as it was written: versions, names, texts, places of weights."""
    if _bytes(model) == _bytes(wanted):
        return []
    held = {tensor.name: tensor for tensor in external(model)}
    odd = [tensor.name for tensor in external(wanted) if _bytes(tensor) != _bytes(held[tensor.name])]
    for one, made in ((model, wanted), (model.graph, wanted.graph)):
        fields = {field.name for each in (one, made) for field, _ in each.ListFields()} - {"graph", "initializer"}
        odd += [name for name in sorted(fields) if getattr(one, name) != getattr(made, name)]
    return odd or ["the order of what it holds, or a field that ONNX does not know"]


def other_places(model: onnx.ModelProto, lowered: Lowered) -> list[str]:
    """Weights of the data file that a graph has otherwise than it was lowered: of another shape, twice, or not at all; and
    those that are one weight under two shapes, and do not lie in one place."""
    found = Counter((t.name, tuple(t.dims), t.data_type) for t in external(model))
    made = Counter(
        (w.name, w.shape, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(w.spec.type_name))) for w in lowered.weights
    )
    odd = [name for name, *_ in (found - made) | (made - found)]
    places: dict[str, set[str]] = {}
    by_name = {t.name: t for t in external(model)}
    for placed in lowered.weights:
        said = (
            {entry.key: entry.value for entry in by_name[placed.name].external_data} if placed.name in by_name else {}
        )
        places.setdefault(placed.target, set()).add(said.get("offset", ""))
    return odd + [target for target, offsets in places.items() if len(offsets) > 1]


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def spec_of(tensor: onnx.TensorProto, folder: Path) -> tuple[PartSpec, int]:
    """(shape and dtype, offset in the data file) of a weight. Raises InputError for what is not there."""
    where = f"{folder / GRAPH_FILE}: {show(tensor.name)}"
    said = {entry.key: entry.value for entry in tensor.external_data}
    if said.get("location") != DATA_FILE:
        raise InputError(f"{where}: lies in {show(said.get('location'))}, expected {DATA_FILE}; {_AGAIN}")
    if tensor.data_type not in _DTYPES:
        raise InputError(f"{where}: is of type {tensor.data_type}, expected float32, uint8 or int8; {_AGAIN}")
    if not tensor.dims or min(tensor.dims) < 1:
        raise InputError(f"{where}: has the shape {show(list(tensor.dims))}; {_AGAIN}")
    dtype = _DTYPES[tensor.data_type]
    size, offset = math.prod(tensor.dims) * dtype.itemsize, _number(said, "offset", where)
    held = size_inside(folder, DATA_FILE)
    if _number(said, "length", where) != size or offset + size > held:
        raise InputError(f"{where}: {size} bytes at {offset} do not lie in the {held} of {DATA_FILE}; {_AGAIN}")
    return PartSpec(tuple(tensor.dims), dtype), offset


def _number(said: Mapping[str, str], key: str, where: str) -> int:
    text = said.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{where}: {key} is {show(text)}, expected a number of bytes; {_AGAIN}")
    return int(text)
