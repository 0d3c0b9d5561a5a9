"""Torch modules converted by coremltools, run by `run-mlpackage`'s interpreter, and compared with torch.

    python benchmarks/coreml_zoo.py [--target iOS15] [NAME …]

Says of each module whether it was converted, run, and equal within rounding; ends with 1 where fewer than 95 of 100 converted
modules agree, or where one differs. README.md says which environment it needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import preflight
import torch
from coreml_modules import zoo
from torch import Tensor, nn

logging.getLogger("coremltools").setLevel(logging.CRITICAL)
warnings.simplefilter("ignore")
preflight.require(__file__)
import coremltools as ct  # noqa: E402 - only once its logger is quiet

from pocketphi.targets.coreml.run_package import run_mlpackage  # noqa: E402

LIMIT = 1e-5
"""Of the largest magnitude: sums of a few hundred float32 products in another order."""


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flat(part)]


def convert(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, target: str) -> list[str]:
    """Convert and save; returns the names of the outputs in the module's order."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    traced = module if scripted else torch.jit.trace(module, inputs, check_trace=False)
    types = [
        ct.TensorType(name=f"in{i}", shape=t.shape, dtype=np.float32 if t.is_floating_point() else np.int32)
        for i, t in enumerate(inputs)
    ]
    model = ct.convert(
        traced,
        inputs=types,
        convert_to="mlprogram",
        skip_model_load=True,
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT32,
    )
    model.save(str(path))
    return [output.name for output in model.get_spec().description.output]


def compare(name: str, module: nn.Module, inputs: tuple[Tensor, ...], folder: Path, target: str) -> tuple[str, str]:
    """What became of a module: same, differs, refused or not converted; and a detail."""
    module.eval()
    path, result = folder / "m.mlpackage", folder / "out.npz"
    with torch.no_grad():
        expected = flat(module(*inputs))
    try:
        names = convert(module, inputs, path, target)
    except Exception as error:
        return "not converted", (str(error).strip().splitlines() or [""])[-1][:90]
    given = []
    for i, tensor in enumerate(inputs):
        array = tensor.numpy() if tensor.is_floating_point() else tensor.numpy().astype(np.int32)
        np.save(folder / f"in{i}.npy", array)
        given.append(f"in{i}={folder}/in{i}.npy")
    try:
        run_mlpackage(path, inputs=given, mode="fp32", output=result)
    except Exception as error:
        return "refused", f"{type(error).__name__}: {error}"[-150:]
    with np.load(result) as came:
        return judge([torch.from_numpy(came[output]) for output in names], expected)


def judge(came: list[Tensor], expected: list[Tensor]) -> tuple[str, str]:
    if len(came) != len(expected):
        return "differs", f"{len(came)} outputs, expected {len(expected)}"
    largest = 0.0
    for got, want in zip(came, expected):
        if got.shape != want.shape and not (want.dim() == 0 and got.numel() == 1):
            return "differs", f"shape {list(got.shape)}, expected {list(want.shape)}"
        distance = (got.double().reshape(want.shape) - want.double()).abs()
        scale = max(1.0, float(want.double().abs().max())) if want.numel() else 1.0
        if want.numel():
            largest = max(largest, float(distance.max()) / scale)
    return ("same" if largest <= LIMIT else "differs"), f"{largest:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--target", default="iOS17", choices=["iOS15", "iOS16", "iOS17", "iOS18"])
    arguments = parser.parse_args()
    modules = zoo()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or modules:
            verdict, detail = compare(name, *modules[name], Path(folder), arguments.target)
            counts[verdict] += 1
            print(f"{name:<42} {verdict:<14} {detail}", flush=True)
    tried = counts.total() - counts["not converted"]
    print(
        f"{counts.total()} modules for {arguments.target}: {dict(counts)}; {counts['same']} of {tried} converted ones agree"
    )
    return int(counts["differs"] > 0 or counts["same"] < 0.95 * tried)


if __name__ == "__main__":
    sys.exit(main())
