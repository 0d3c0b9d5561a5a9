"""Open an ML package of any origin: Manifest.json → model → functions with their operations, and weights mapped from disk.

    package = MLPackage.open("model.mlpackage")
    package.functions["main"].inputs        # name → ValueType
    package.operators()                     # how often each operator occurs
    package.parts("main", "weight_quantized")   # a constant as it is stored: {"data": Raw, "scale": Raw, …}

Every offset, size and type is checked before it is used: a damaged package is an InputError that says where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import file_inside, is_lfs_pointer, lfs_pointer, read_json, read_whole, show, typed
from pocketphi.targets.coreml.blobfile import BlobFiles
from pocketphi.targets.coreml.declared import Allowed, allowed
from pocketphi.targets.coreml.proto import model_pb2
from pocketphi.targets.coreml.raw import ValueType, carrier
from pocketphi.targets.coreml.releases import NEWEST, RELEASES
from pocketphi.targets.coreml.values import Constant, Name, Reader

NEWEST_SPECIFICATION = RELEASES[NEWEST].specification
"""What it has beyond that of iOS 18 is int8 as a type of inputs and outputs, which the program's own types say already."""

LARGEST_MODEL = (1 << 31) - 1
"""Bytes: the largest message that protobuf reads."""

_ROOT = "Data"


@dataclass(frozen=True)
class Operation:
    """One operation of a function.

    inputs:     parameter → names of values, or constants that stand in the operation itself, in order
    attributes: parameter → constant; of a `const` its value (`val`)
    outputs:    names and declared types
    blocks:     nested programs: of `cond` one for true and one for false, of `while_loop` its condition and its body
    """

    kind: str
    name: str
    inputs: Mapping[str, tuple[Name | Constant, ...]]
    attributes: Mapping[str, Constant]
    outputs: tuple[tuple[str, ValueType], ...]
    blocks: tuple[Block, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether its value is known without running the function."""
        return self.kind == "const" or self.kind.startswith("constexpr_")

    def giving(self, name: str) -> Operation:
        """The same with one of its outputs alone."""
        return replace(self, outputs=tuple(output for output in self.outputs if output[0] == name))


@dataclass(frozen=True)
class Block:
    """Operations inside of an operation, which may also read what was made before that one. outputs: names of values."""

    inputs: Mapping[str, ValueType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Function:
    """inputs, states, outputs: name → type; allowed: the shapes that each input may have, as the description says."""

    name: str
    inputs: Mapping[str, ValueType]
    states: Mapping[str, ValueType]
    outputs: Mapping[str, ValueType]
    operations: tuple[Operation, ...]
    allowed: Mapping[str, Allowed]

    def default_input(self, name: str) -> torch.Tensor:
        """The value of an input that need not be given. Raises InputError where the package names none."""
        declared, allowed = self.inputs[name], self.allowed[name]
        sizes = declared.shape if None not in declared.shape else allowed.default
        if allowed.fill is None or any(size is None or size < 0 for size in sizes):
            raise InputError(f"function {self.name}: input {name!r} is {declared} and has no default")
        kind = carrier(declared.dtype)
        return torch.full(
            [size or 0 for size in sizes], allowed.fill if kind.is_floating_point else int(allowed.fill), dtype=kind
        )

    def every_operation(self) -> Iterator[Operation]:
        """Its operations and those of the blocks inside of them."""
        return walk(self.operations)


@dataclass(frozen=True)
class MLPackage:
    """An opened package. specification: its version (`releases.py`); metadata: the user-defined texts of the description."""

    path: Path
    specification: int
    functions: Mapping[str, Function]
    default: str
    metadata: Mapping[str, str]

    @staticmethod
    def open(path: str | Path) -> MLPackage:
        """Read the model and map its weights. Raises InputError saying what is wrong with the package, and where."""
        path = Path(path)
        model_path = find_model(path)
        spec = parse_model(model_path)
        if spec.specificationVersion > NEWEST_SPECIFICATION:
            raise InputError(
                f"{path}: specification version {spec.specificationVersion} is newer than {NEWEST_SPECIFICATION} "
                f"(iOS {NEWEST}), the newest that is understood"
            )
        if spec.WhichOneof("Type") != "mlProgram":
            raise InputError(f"{path}: holds a {spec.WhichOneof('Type') or 'model without a type'}, not an ML program")
        reader = Reader(BlobFiles(model_path.parent))
        functions = {}
        for name in sorted(spec.mlProgram.functions):
            try:
                functions[name] = _function(name, spec, reader)
            except (ValueError, KeyError) as error:
                raise InputError(f"{path}: function {show(name)[1:-1]}: {told(error)}") from None
        if not functions:
            raise InputError(f"{path}: the ML program has no function")
        _check_states(path, functions)
        default = spec.description.defaultFunctionName or ("main" if "main" in functions else next(iter(functions)))
        metadata = dict(spec.description.metadata.userDefined)
        return MLPackage(path, spec.specificationVersion, functions, default, metadata)

    @property
    def states(self) -> dict[str, ValueType]:
        """The states of all functions, which share them by name."""
        return {name: kind for function in self.functions.values() for name, kind in function.states.items()}

    def operators(self) -> Counter[str]:
        """How often each operator occurs, in all functions."""
        return Counter(op.kind for function in self.functions.values() for op in function.every_operation())

    def function(self, name: str | None = None) -> Function:
        """A function by name; the default one without. Raises InputError naming those there are."""
        name = name or self.default
        if name not in self.functions:
            raise InputError(f"{self.path}: no function {name!r}; there are {', '.join(self.functions)}")
        return self.functions[name]

    def parts(self, function: str, name: str) -> dict[str, Any]:
        """A constant by its name, as it is stored: {"": Raw} for a `const`; for a `constexpr_…` its parameters.

        Values are `Raw` (nothing is decoded), or str. Raises InputError where there is no such constant.
        """
        found = self.function(function)
        constants = {out: op for op in found.operations if op.constant for out, _ in op.outputs}
        if name not in constants:
            raise InputError(f"{self.path}: function {function} has no constant {name!r}")
        try:
            return constant_parts(constants[name], constants)
        except ValueError as error:
            raise InputError(f"{self.path}: function {function}: {told(error)}") from None


def told(error: BaseException) -> str:
    """What an error says, on one line that does not grow with what the package holds."""
    text = " ".join(str(error).strip().partition("\n")[0].split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


_LONGEST_MESSAGE = 600


def _named(name: str) -> str:
    """A name of a function, an operator or a value. Raises ValueError for one that no message could show."""
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name is {show(name)}, which is longer than {_LONGEST_NAME} or not printable")
    return name


_LONGEST_NAME = 512


def walk(operations: Iterable[Operation]) -> Iterator[Operation]:
    """Operations and, after each, those of its blocks."""
    for operation in operations:
        yield operation
        for block in operation.blocks:
            yield from walk(block.operations)


def constant_parts(op: Operation, constants: Mapping[str, Operation]) -> dict[str, Any]:
    """The stored values that a constant is made of; a parameter that is itself a `constexpr_…` gives its operation."""
    if op.kind == "const":
        return {"": _value(op)}
    parts: dict[str, Any] = {key: value for key, value in op.attributes.items() if key != "name"}
    for parameter, values in op.inputs.items():
        if len(values) != 1:
            raise ValueError(f"{op.name} ({op.kind}): {len(values)} values for {parameter}")
        (value,) = values
        if isinstance(value, Name):
            if value not in constants:
                raise ValueError(f"{op.name} ({op.kind}): {parameter} is no constant")
            source = constants[value]
            parts[parameter] = _value(source) if source.kind == "const" else source.giving(value)
        else:
            parts[parameter] = value
    return parts


def _value(op: Operation) -> Constant:
    if "val" not in op.attributes:
        raise ValueError(f"{op.name} ({op.kind}) has no value")
    return op.attributes["val"]


def find_model(path: Path) -> Path:
    """The file of the model that Manifest.json names as the root. Raises InputError."""
    manifest_path = path / "Manifest.json"
    if not manifest_path.is_file():
        raise InputError(f"{path}: expected an ML package, a folder with a Manifest.json")
    where = f"{manifest_path}: not a manifest of an ML package"
    manifest = typed(_Manifest, read_json(file_inside(path, manifest_path.name, str(path))), where)
    if manifest.rootModelIdentifier not in manifest.itemInfoEntries:
        raise InputError(f"{where}: the root model {show(manifest.rootModelIdentifier)} is no entry of it")
    entry = manifest.itemInfoEntries[manifest.rootModelIdentifier].path
    file_inside(path / _ROOT, entry, str(manifest_path))
    model = file_inside(path, f"{_ROOT}/{entry}", str(manifest_path))
    if not model.is_file():
        raise InputError(f"{model}: the model that the manifest names is missing")
    return model


@dataclass(frozen=True)
class _Item:
    path: str


@dataclass(frozen=True)
class _Manifest:
    """The keys of Manifest.json, as they are spelled there."""

    itemInfoEntries: dict[str, _Item]  # noqa: N815
    rootModelIdentifier: str  # noqa: N815


def parse_model(path: Path) -> Any:
    """The protobuf message `Model` in a file. Raises InputError for one that is damaged."""
    content = read_whole(path, limit=LARGEST_MODEL)
    spec = model_pb2().Model()
    try:
        spec.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError has no import path of its own that all versions share
        if is_lfs_pointer(content):
            raise lfs_pointer(str(path)) from None
        raise InputError(f"{path}: cut short or damaged: {error}") from None
    return spec


def _function(name: str, spec: Any, reader: Reader) -> Function:
    function = spec.mlProgram.functions[_named(name)]
    if function.opset not in function.block_specializations:
        raise ValueError(f"no block for its operator set {function.opset!r}")
    block = function.block_specializations[function.opset]
    declared = {_named(value.name): reader.type(value.type) for value in function.inputs}
    for kind in declared.values():
        if kind.state and kind.count < 1:  # count raises where a size is not known
            raise ValueError(f"a {kind} holds nothing")
    types = dict(declared)
    operations = _operations(block, reader, types)
    described = next((f for f in spec.description.functions if f.name == name), spec.description)
    shapes = {feature.name: allowed(feature.type) for feature in described.input}
    inputs = {n: kind for n, kind in declared.items() if not kind.state}
    return Function(
        name,
        inputs,
        {n: kind for n, kind in declared.items() if kind.state},
        {out: types[out] for out in block.outputs},
        operations,
        {n: shapes.get(n, Allowed()) for n in inputs},
    )


def _operations(block: Any, reader: Reader, types: dict[str, ValueType]) -> tuple[Operation, ...]:
    """The operations of a block. types: of the values that it may read; those it makes are added."""
    operations = tuple(_operation(message, reader, types) for message in block.operations)
    missing = [out for out in block.outputs if out not in types]
    if missing:
        raise ValueError(f"the output {missing[0]!r} is made by no operation")
    return operations


def _block(message: Any, reader: Reader, types: dict[str, ValueType]) -> Block:
    inputs = {_named(value.name): reader.type(value.type) for value in message.inputs}
    operations = _operations(message, reader, types := {**types, **inputs})
    return Block(inputs, tuple(message.outputs), operations)


def _operation(message: Any, reader: Reader, types: dict[str, ValueType]) -> Operation:
    outputs = tuple((_named(out.name), reader.type(out.type)) for out in message.outputs)
    operator = _named(message.type)
    try:
        attributes = {key: reader.constant(value) for key, value in message.attributes.items()}
        inputs = {
            key: tuple(
                Name(a.name) if a.WhichOneof("binding") == "name" else reader.constant(a.value) for a in value.arguments
            )
            for key, value in message.inputs.items()
        }
    except ValueError as error:
        raise ValueError(f"{outputs[0][0] if outputs else 'an operation'} ({message.type}): {error}") from None
    name = attributes.get("name")
    if not isinstance(name, str):
        name = outputs[0][0] if outputs else operator
    for refs in inputs.values():
        for ref in refs:
            if isinstance(ref, Name) and ref not in types:
                raise ValueError(f"{name} ({message.type}) reads {str(ref)!r}, which nothing makes before it")
    blocks = tuple(_block(block, reader, types) for block in message.blocks)
    for out, kind in outputs:
        if out in types:
            raise ValueError(f"two values have the name {out!r}")
        types[out] = kind
    return Operation(operator, name, inputs, attributes, outputs, blocks)


def _check_states(path: Path, functions: Mapping[str, Function]) -> None:
    seen: dict[str, tuple[str, ValueType]] = {}
    for function in functions.values():
        for name, kind in function.states.items():
            other, expected = seen.setdefault(name, (function.name, kind))
            if kind != expected:
                raise InputError(
                    f"{path}: state {name!r} is {kind} in function {function.name}, {expected} in function {other}"
                )
