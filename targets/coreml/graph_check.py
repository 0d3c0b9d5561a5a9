"""Whether a package's functions are those that a compile writes. A text that is run sees no more than its own tokens and
lengths: an operation that is wrong for others would pass."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from pocketphi.graph.reading import read_whole
from pocketphi.targets.base import Check
from pocketphi.targets.coreml.mlpackage import find_model
from pocketphi.targets.coreml.package import CoreMLBundle
from pocketphi.targets.coreml.proto import model_pb2


def graph_check(package: Path, planned: CoreMLBundle) -> Check:
    """planned: what a compile writes of the same program, with the form that the manifest says."""
    saved, made = _read(package), planned.model
    odd = [*_other_operations(saved, made), *_other_interface(saved, made)]
    if not odd and _bytes(saved) != _bytes(made):
        odd.append("the texts that describe it, or a field that Core ML does not know")
    odd += planned.file_differences(package)
    operations = sum(map(len, _operations(made).values()))
    return Check(
        "operations that are not the model's", len(odd), 0, f"first {odd[0]}" if odd else f"{operations} operations"
    )


def _read(package: Path) -> Any:
    saved = model_pb2().Model()
    saved.ParseFromString(read_whole(find_model(package)))
    return saved


def _other_operations(saved: Any, made: Any) -> list[str]:
    """By function and name. Each stands where it was written: its order is what it reads."""
    found, wanted = _operations(saved), _operations(made)
    odd = [f"{name}: one has it, the other not" for name in sorted(found.keys() ^ wanted.keys())]
    for name in found.keys() & wanted.keys():
        for one, other in zip_longest(found[name], wanted[name]):
            if one is None or other is None or _bytes(one) != _bytes(other):
                given = one or other
                odd.append(f"{name}/{given.outputs[0].name if given.outputs else given.type}")
    return odd


def _operations(model: Any) -> dict[str, list[Any]]:
    """By function and block."""
    return {
        f"{name}/{opset}" if len(function.block_specializations) > 1 else name: list(block.operations)
        for name, function in model.mlProgram.functions.items()
        for opset, block in function.block_specializations.items()
    }


def _other_interface(saved: Any, made: Any) -> list[str]:
    """What is around the operations: versions, inputs, states and outputs, without the texts that describe them."""
    bare = [_bare(model) for model in (saved, made)]
    return [] if bare[0] == bare[1] else ["the version, or the inputs, states or outputs of a function"]


def _bare(model: Any) -> list[bytes]:
    description = type(model.description)()
    description.CopyFrom(model.description)
    description.ClearField("metadata")
    for function in [*description.functions, description]:
        for feature in (*function.input, *function.state, *function.output):
            feature.ClearField("shortDescription")
    around = [model.specificationVersion.to_bytes(4, "little"), _bytes(description)]
    for name, function in sorted(model.mlProgram.functions.items()):
        without = type(function)()
        without.CopyFrom(function)
        for block in without.block_specializations.values():
            block.ClearField("operations")
        around += [name.encode(), _bytes(without)]
    return around


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))
