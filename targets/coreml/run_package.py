"""`pocketphi run-mlpackage`: run any ML program package on this machine, and say what came out and how safe float16 is."""

from __future__ import annotations

import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number, check_threads
from pocketphi.graph.reading import file_inside, parse_json, show
from pocketphi.graph.writing import new_file
from pocketphi.targets.coreml.interpreter import Interpreter, Mode
from pocketphi.targets.coreml.kernels.arguments import affordable
from pocketphi.targets.coreml.mlpackage import Function, MLPackage
from pocketphi.targets.coreml.ranges import tight
from pocketphi.targets.coreml.raw import FLOATS, INTEGERS, ValueType, carrier

_LARGEST_SEED = (1 << 63) - 1
FLEXIBLE = 1
"""The size that a flexible input gets where the package gives no default."""


@dataclass
class Value:
    """A tensor as it is shown. source: where an input came from; first: its first few values.

    Of a classifier's answer: first is the class, or the most probable classes; classes: all of them, with probabilities.
    """

    type: str
    shape: list[int]
    source: str
    first: list[float | str]
    low: float | None
    high: float | None
    not_finite: int
    classes: dict[str, float] = field(default_factory=dict)


@dataclass
class Ran:
    """What a run gave. seconds: of the run itself; largest: the largest magnitudes, `function/operation` → value."""

    package: str
    function: str
    mode: str
    specification: int
    operators: dict[str, int]
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    seconds: float
    largest: dict[str, float]
    tight: dict[str, float]
    difference: dict[str, dict[str, float]] = field(default_factory=dict)
    written: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_mlpackage(
    path: Path,
    function: str | None = None,
    inputs: Sequence[str] = (),
    mode: Mode = "fp16",
    compare: bool = False,
    output: Path | None = None,
    seed: int = 0,
    threads: int = 0,
) -> Ran:
    """Run a function once, with new states.

    inputs: NAME=FILE.npy, NAME=JSON, NAME=random or NAME=zeros; what is not given is random for floats and zeros for
    integers. compare: also run in the other mode. output: an .npz file or a folder of .npy files to write.
    Raises InputError for a package or inputs that cannot be run.
    """
    check_threads(threads)
    check_number("--seed", seed, 0, _LARGEST_SEED)
    package = MLPackage.open(path)
    chosen = package.function(function)
    interpreter = Interpreter(package, mode, threads, ranges=True)
    tensors, sources = read_inputs(chosen, inputs, seed)
    start = time.perf_counter()
    try:
        outputs = interpreter.run(chosen.name, tensors, interpreter.make_states())
    except InputError as error:
        given = {item.partition("=")[0] for item in inputs}
        made = ", ".join(f"{name}: {source}" for name, source in sources.items() if name not in given)
        raise InputError(f"{error} (not given, {made})" if made else str(error)) from error
    seconds = time.perf_counter() - start
    largest = sorted(interpreter.ranges.items(), key=lambda item: -item[1])[:5]
    ran = Ran(
        package=str(path),
        function=chosen.name,
        mode=mode,
        specification=package.specification,
        operators=dict(Counter(op.kind for op in chosen.operations if not op.constant)),
        inputs={n: describe(tensors[n], kind, sources[n]) for n, kind in chosen.inputs.items()},
        outputs={n: describe(outputs[n], kind, "") for n, kind in chosen.outputs.items()},
        seconds=seconds,
        largest=dict(largest),
        tight=tight(interpreter.ranges),
    )
    if compare:
        other = Interpreter(package, "fp32" if mode == "fp16" else "fp16", threads)
        again = other.run(chosen.name, tensors, other.make_states())
        both = ((name, _numbers(outputs[name]), _numbers(again[name])) for name in outputs)
        ran.difference = {n: difference(a, b) for n, a, b in both if a is not None and b is not None}
    if output:
        write(output, outputs)
        ran.written = str(output)
    return ran


def read_inputs(function: Function, given: Sequence[str], seed: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A tensor for each input, and where it came from."""
    texts: dict[str, str] = {}
    for item in given:
        name, sign, text = item.partition("=")
        if not sign or name not in function.inputs:
            raise InputError(
                f"--input {item}: expected NAME=VALUE with a NAME of {', '.join(function.inputs) or 'none'}"
            )
        texts[name] = text
    generator = torch.Generator().manual_seed(seed)
    tensors, sources = {}, {}
    for name, kind in function.inputs.items():
        fill = function.allowed[name].fill
        if name not in texts and fill is not None:
            tensors[name], sources[name] = function.default_input(name), f"the default, {fill:g}"
            continue
        text = texts.get(name) or ("random" if kind.dtype in FLOATS else "zeros")
        if kind.dtype not in FLOATS | INTEGERS:
            raise InputError(f"function {function.name}: input {name} is {kind}, which cannot be given here")
        if text in ("random", "zeros"):
            shape = _made_up(function, name)
        if text == "random":
            tensors[name], sources[name] = _random(kind, shape, generator), f"random, seed {seed}"
        elif text == "zeros":
            tensors[name], sources[name] = torch.zeros(shape, dtype=carrier(kind.dtype)), "zeros"
        else:
            tensors[name], sources[name] = _read(name, text, kind), text if text.endswith(".npy") else "given"
    return tensors, sources


def input_shape(function: Function, name: str) -> tuple[int, ...]:
    """The declared shape; for sizes that only a call knows those of the package's default."""
    declared = function.inputs[name].shape
    allowed = function.allowed[name]
    low = tuple(low for low, _ in allowed.ranges)
    default = ((FLEXIBLE,) * len(declared) + (allowed.default or low))[-len(declared) :] if declared else ()
    return tuple(size if size is not None else other for size, other in zip(declared, default))


def _made_up(function: Function, name: str) -> tuple[int, ...]:
    """The shape of an input that is not given. Raises InputError for one that is too large to be made up."""
    shape = input_shape(function, name)
    try:
        function.allowed[name].check(shape)
        return affordable(shape)
    except ValueError as error:
        raise InputError(f"function {function.name}: input {name} is {function.inputs[name]}: {error}") from None


def _random(kind: ValueType, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if kind.dtype in FLOATS:
        return torch.randn(shape, generator=generator).to(carrier(kind.dtype))
    return torch.randint(0, 2, shape, generator=generator).to(carrier(kind.dtype))


def _read(name: str, text: str, kind: ValueType) -> torch.Tensor:
    file = text.endswith(".npy")
    try:
        array = np.load(text, allow_pickle=False) if file else np.array(parse_json(text.encode(), "JSON"))
        value = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except Exception as error:  # numpy raises whatever a damaged file leads its reader to
        reason = error.strerror if isinstance(error, OSError) and error.strerror else show(str(error), 200)
        raise InputError(
            f"--input {name}={show(text)}: expected a .npy file, JSON numbers, random or zeros: {reason}"
        ) from None
    if kind.dtype in FLOATS and (value.is_floating_point() or (not file and value.dtype == torch.int64)):
        return value.to(carrier(kind.dtype))
    if value.is_floating_point() != (kind.dtype in FLOATS) or value.is_complex():
        wanted = "floats" if kind.dtype in FLOATS else "integers"
        raise InputError(f"--input {name}={show(text)}: expected {wanted}, {kind}, got {value.dtype}")
    return value


def describe(value: Any, kind: ValueType, source: str) -> Value:
    if isinstance(value, str):
        return Value(str(kind), [], source, [value], None, None, 0)
    if isinstance(value, dict):
        best = sorted(value.items(), key=lambda item: -item[1])[:6]
        shown = describe(_numbers(value), kind, source)
        shown.type, shown.first = kind.dtype, [f"{name}: {p:.4g}" for name, p in best]
        shown.classes = {str(name): p for name, p in value.items()}
        return shown
    flat = value.double().flatten()
    finite = flat[torch.isfinite(flat)]
    low, high = (float(v) for v in finite.aminmax()) if finite.numel() else (None, None)
    first: list[float | str] = [float(v) for v in flat[:6]]
    return Value(str(kind), list(value.shape), source, first, low, high, flat.numel() - finite.numel())


def _numbers(value: Any) -> torch.Tensor | None:
    """The floats of an output: of a classifier's its probabilities; None where it has none."""
    if isinstance(value, dict):
        return torch.tensor(list(value.values()), dtype=torch.float64)
    return value if isinstance(value, torch.Tensor) and value.is_floating_point() else None


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Largest and mean distance, and the largest magnitude to compare them with."""
    distance = (a.double() - b.double()).abs()
    if not distance.numel():
        return {"max": 0.0, "mean": 0.0, "of": 0.0}
    return {"max": float(distance.max()), "mean": float(distance.mean()), "of": float(b.double().abs().max())}


def write(path: Path, outputs: Mapping[str, Any]) -> None:
    """An .npz file, or a folder with a .npy for each output. Of a dictionary the values, and its keys as NAME.classes."""
    arrays = dict(_arrays(outputs))
    try:
        if path.suffix == ".npz":
            with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:  # np.savez takes no array named "file"
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            return
        path.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            with new_file(file_inside(path, f"{name}.npy", f"--output {path}: the package")) as file:
                np.save(file, array)
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written: {error.strerror}") from None


def _arrays(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in outputs.items():
        if isinstance(value, dict):
            yield name, np.array(list(value.values()))
            yield f"{name}.classes", np.array(list(value))
        else:
            yield name, np.array(value) if isinstance(value, str) else value.numpy()
