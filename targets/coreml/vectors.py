"""Test vectors for a Mac: the calls of a short run of the package, with the logits that the interpreter gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketphi.targets.coreml.verify_on_mac import kl

VECTORS = "test_vectors.npz"
STEPS = 4
"""Tokens of the run, after its prompt, that are given one by one."""
TOLERANCE = 1e-3
"""KL in nats a token: ten times what rounding after every operation explains here, for sums in another order."""
_CALL_BYTES = 1500
"""About: of a call, beside its logits."""


def vectors_bytes(vocabulary: int) -> int:
    """About what the file takes: the logits of a token of each call, in float16."""
    return (STEPS + 1) * (2 * vocabulary + _CALL_BYTES)


class Recorder:
    """Notes calls of functions. Array `i.name` holds input `name` of call i, `i.logits` its result."""

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {"tolerance": np.float64(TOLERANCE)}
        self._calls: list[dict[str, Any]] = []

    def note(self, function: str, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor) -> None:
        number = len(self._calls)
        keys = {name: f"{number}.{name}" for name in inputs}
        for name, value in inputs.items():
            array = value.numpy()
            self._arrays[keys[name]] = array.astype(np.float32 if value.is_floating_point() else np.int32)
        self._arrays[f"{number}.logits"] = logits.half().numpy()
        self._calls.append({"function": function, "inputs": keys, "logits": f"{number}.logits"})

    def write(self, path: Path) -> None:
        """An .npz whose bytes depend on its content only."""
        np.savez(path, **self._all())

    def differences(self, path: Path) -> list[str]:
        """The arrays of a file that are not what was noted: logits as far apart as a Mac's may be, all others at all."""
        wanted = self._all()
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except Exception:  # zipfile, zlib and numpy each have their own
            return ["not readable"]
        odd = sorted(found.keys() ^ wanted.keys())
        return odd + [
            name for name in sorted(found.keys() & wanted.keys()) if not _alike(name, found[name], wanted[name])
        ]

    def _all(self) -> dict[str, Any]:
        return {"calls": np.array(json.dumps(self._calls)), **self._arrays}


def _alike(name: str, found: Any, wanted: Any) -> bool:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return False
    return kl(wanted, found) <= TOLERANCE if name.endswith(".logits") else bool((found == wanted).all())
