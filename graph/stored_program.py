"""A float program as JSON and bytes, and back: what a cache keeps in place of a trace.

    nodes:   [kind, name, target, arguments, keywords, type], in order; an argument that JSON has no word for is an object with
             one key: {"node": 12}, {"tuple": […]}, {"dtype": "int64"}, {"device": "cpu"}, {"layout": "strided"}, {"names": {…}}
    types:   the same, with {"tensor": [{"dtype": "float32"}, 1, …]} and {"size": {"past": 1, "sequence": 1, "": 0}}
    weights: {"name", "tensor"} for one of the checkpoint, {"name", "origin", "dtype", "shape"} for a constant, whose bytes lie
             one after the other behind the JSON

Nothing in it is code: a target names an operator of `aten` or `edge`, or one of a few functions of Python's `operator`.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.lazy_weights import Constant, FloatWeight, LazyWeight
from pocketphi.graph.program import Program
from pocketphi.graph.types import EXAMPLES, Size, TensorType

_FUNCTIONS = {f"operator.{name}": getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv")}
_NAMESPACES = ("aten", "edge")
_KINDS = ("placeholder", "get_attr", "call_function", "output")


def pack(program: Program) -> tuple[dict[str, Any], list[memoryview]]:
    """The JSON part, and the bytes of each constant in turn. Raises CompilerBug for what cannot be kept."""
    places = {node: i for i, node in enumerate(program.graph.nodes)}
    types: dict[str, int] = {}
    nodes = []
    for node in program.graph.nodes:
        kind = types.setdefault(json.dumps(_type(node.meta.get("val"))), len(types))
        keywords = {name: _argument(value, places) for name, value in node.kwargs.items()}
        nodes.append([node.op, node.name, _target(node), _argument(list(node.args), places), keywords, kind])
    weights, blobs = [], []
    for name, recipe in program.weights.items():
        weights.append(_weight(name, recipe))
        if isinstance(recipe, Constant):
            blobs.append(recipe.value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"nodes": nodes, "types": [json.loads(one) for one in types], "weights": weights}, blobs


def unpack(content: Any, data: memoryview, checkpoint: Checkpoint) -> Program:
    """The program that `pack` was given, for a checkpoint of the same config. data: the constants' bytes.

    Raises InputError for anything that `pack` did not make.
    """
    try:
        types = [_read_type(one) for one in content["types"]]
        graph, nodes = fx.Graph(), list[fx.Node]()
        for kind, name, target, arguments, keywords, number in content["nodes"]:
            if kind not in _KINDS:
                raise InputError(f"a stored graph has a node of kind {kind!r}")
            function = _read_target(target) if kind == "call_function" else str(target)
            args = tuple(_read_argument(one, nodes) for one in arguments)
            kwargs = {str(key): _read_argument(value, nodes) for key, value in keywords.items()}
            nodes.append(graph.create_node(kind, function, args, kwargs, str(name)))
            if kind != "output":
                nodes[-1].meta["val"] = types[number]
        program = Program(graph, checkpoint.config, dict(_read_weights(content["weights"], data, checkpoint)))
        program.check()
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, CompilerBug) as error:
        raise InputError(f"a stored graph cannot be read ({error})") from None
    return program


def same_program(a: Program, b: Program) -> bool:
    """Whether two programs are the same: nodes with their operators, names, arguments and types, weights, and constants by
    their bits."""
    if a.dump() != b.dump():  # it leaves out which overload of an operator is called
        return False
    values = [[recipe.value for recipe in one.weights.values() if isinstance(recipe, Constant)] for one in (a, b)]
    targets = ([str(node.target) for node in one.graph.nodes] for one in (a, b))
    bits = all(x.dtype is y.dtype and torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(*values))
    return bits and next(targets) == next(targets)


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    overload = isinstance(node.target, torch._ops.OpOverload)
    name = str(node.target) if overload else f"operator.{getattr(node.target, '__name__', '')}"
    try:
        _read_target(name)
    except InputError:
        raise CompilerBug(f"{node.name}: {node.target} is no operator that a stored graph may have") from None
    return name


def _read_target(name: str) -> Callable[..., Any]:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    operation, _, overload = rest.partition(".")
    found = None
    if namespace in _NAMESPACES:
        found = getattr(getattr(getattr(torch.ops, namespace), operation, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"a stored graph calls {name!r}")
    return found


def _argument(value: Any, places: Mapping[fx.Node, int]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return {"node": places[value]}
    if isinstance(value, tuple):
        return {"tuple": [_argument(one, places) for one in value]}
    if isinstance(value, list):
        return [_argument(one, places) for one in value]
    if isinstance(value, dict):
        return {"names": {name: _argument(one, places) for name, one in value.items()}}
    for kind, (cls, _) in _WORDS.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    raise CompilerBug(f"{value!r} cannot be kept in a stored graph")


def _read_argument(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read_argument(one, nodes) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[_whole(inner)]
    if kind == "tuple":
        return tuple(_read_argument(one, nodes) for one in inner)
    if kind == "names":
        return {name: _read_argument(one, nodes) for name, one in inner.items()}
    cls, make = _WORDS[kind]
    made = make(inner)
    if not isinstance(made, cls):
        raise InputError(f"a stored graph has the {kind} {inner!r}")
    return made


_WORDS: dict[str, tuple[type, Callable[[str], Any]]] = {
    "dtype": (torch.dtype, lambda name: getattr(torch, name)),
    "layout": (torch.layout, lambda name: getattr(torch, name)),
    "memory_format": (torch.memory_format, lambda name: getattr(torch, name)),
    "device": (torch.device, torch.device),
}


def _type(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, TensorType):
        return {"tensor": str(value.dtype).removeprefix("torch."), "shape": [_size(one) for one in value.shape]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_type(one) for one in value]}
    if isinstance(value, int | Size):
        return {"size": _size(value)}
    raise CompilerBug(f"the type {value!r} cannot be kept in a stored graph")


def _size(value: int | Size) -> Any:
    return value if isinstance(value, int) else {**dict(value.terms), "": value.constant}


def _read_type(value: Any) -> Any:
    if value is None:
        return None
    if "tensor" in value:
        return TensorType(tuple(map(_read_size, value["shape"])), _read_argument({"dtype": value["tensor"]}, []))
    if "size" in value:
        return _read_size(value["size"])
    ((kind, inner),) = value.items()
    return {"tuple": tuple, "list": list}[kind](map(_read_type, inner))


def _read_size(value: Any) -> int | Size:
    if not isinstance(value, dict):
        return _whole(value)
    factors = {name: _whole(factor) for name, factor in value.items() if name}
    if not factors.keys() <= EXAMPLES.keys():
        raise InputError(f"a stored graph has a size of {', '.join(factors)}")
    return Size.of(factors, _whole(value[""]))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise InputError(f"a stored graph has {value!r} where a whole number stands")
    return value


def _weight(name: str, recipe: LazyWeight) -> dict[str, Any]:
    if isinstance(recipe, FloatWeight):
        return {"name": name, "tensor": recipe.tensor}
    if isinstance(recipe, Constant):
        shape, dtype = list(recipe.value.shape), str(recipe.value.dtype).removeprefix("torch.")
        return {"name": name, "origin": recipe.origin, "dtype": dtype, "shape": shape}
    raise CompilerBug(f"{name}: {recipe.describe()} cannot be kept in a stored graph")


def _read_weights(stored: Any, data: memoryview, checkpoint: Checkpoint) -> Iterator[tuple[str, LazyWeight]]:
    at = 0
    for one in stored:
        if "tensor" in one:
            if one["tensor"] not in checkpoint.tensors:
                raise InputError(f"a stored graph reads {one['tensor']!r}, which the checkpoint does not have")
            yield str(one["name"]), FloatWeight(checkpoint, one["tensor"])
            continue
        dtype, shape = _read_argument({"dtype": one["dtype"]}, []), [_whole(size) for size in one["shape"]]
        end = at + math.prod(shape) * dtype.itemsize
        if not shape or end > len(data):
            raise InputError(f"a stored graph has {len(data)} bytes of constants, expected {end}")
        value = torch.frombuffer(bytearray(data[at:end]), dtype=dtype).view(shape)
        yield str(one["name"]), Constant(value, str(one["origin"]))
        at = end
    if at != len(data):
        raise InputError(f"a stored graph has {len(data)} bytes of constants, expected {at}")
