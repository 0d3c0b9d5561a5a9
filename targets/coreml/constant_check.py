"""Constants of a package that are no weights, and what functions share. A prompt reads the first positions only, and a function
may refer to other bytes than its sister: all values are compared with what their names say, in every function."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import torch

from pocketphi.targets.base import Check
from pocketphi.targets.coreml.mlpackage import MLPackage
from pocketphi.targets.coreml.raw import Raw
from pocketphi.targets.coreml.weightfile import INLINE


def constant_check(package: MLPackage, weights: Iterable[Raw]) -> Check:
    """weights: what was read of the first function as weights, whose values are checked elsewhere. A constant is one of them by
    its bytes: what it is called says nothing."""
    seen: dict[str, Raw] = {}
    read = {raw.data.data_ptr() for raw in weights}
    odd = [f"{name} in {function}" for function, name, raw in _stored(package) if not _is_right(name, raw, read, seen)]
    detail = f"first {odd[0]}" if odd else f"{len(seen)} constants"
    return Check("constants with other values", len(odd), 0, detail)


def _stored(package: MLPackage) -> Iterator[tuple[str, str, Raw]]:
    """Function, name and value of every constant that lies in the weight file."""
    for function in package.functions.values():
        for op in function.every_operation():
            if not op.constant:
                continue
            held = [(op.name, value) for value in op.attributes.values()]
            for name, value in held + [(f"{op.name}_{part}", value) for part, (value, *_) in op.inputs.items()]:
                if isinstance(value, Raw) and (value.count >= INLINE or op.kind != "const"):
                    yield function.name, name, value


def _is_right(name: str, raw: Raw, read: Collection[int], seen: dict[str, Raw]) -> bool:
    """Whether functions that have a constant of this name share its bytes, and whether these are what the name says."""
    before = seen.setdefault(name, raw)
    if (before.shape, before.dtype) != (raw.shape, raw.dtype):
        return False
    if before.data.data_ptr() != raw.data.data_ptr() and not torch.equal(before.data, raw.data):
        return False
    if before.data.data_ptr() in read:
        return True
    wanted = _wanted(name, raw)
    return wanted is not None and torch.equal(raw.tensor(), wanted)


def _wanted(name: str, raw: Raw) -> torch.Tensor | None:
    """What a name stands for (`weightfile._constants`); None for a name that no constant has."""
    what = re.fullmatch(r"const_(positions|zeros_(\d+)|steps_(\d+))", name)
    if what is None:
        return None
    if what[2]:
        return torch.zeros(int(what[2]), dtype=torch.float16)
    times = int(what[3] or 1)
    return torch.arange(raw.count // times, dtype=torch.int32).repeat(times) if times else None
