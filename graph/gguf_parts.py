"""The parts of a GGUF file that was split, as llama.cpp's gguf-split does: `NAME-00001-of-00003.gguf` and those beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_parse import parse_header, shown
from pocketphi.graph.reading import show

_MOST = 1 << 31
_MOST_PARTS = 1 << 12
_OF_EACH = {"split.no", "general.alignment"}
"""What parts of one model may say differently."""


def all_parts(path: Path) -> tuple[Path, ...]:
    """The files that a GGUF file is made of: itself, and its other parts. Raises InputError as `part_paths` does."""
    return part_paths(path, parse_header(path).fields)


def part_paths(path: Path, fields: Mapping[str, Any]) -> tuple[Path, ...]:
    """The file itself, and its other parts in order.

    fields: the metadata of the file

    Raises InputError for a part that is not the first, for a name that does not say where the others are, and for parts that
    are missing, naming the first.
    """
    count, number = (_whole(path, fields, key, default) for key, default in (("split.count", 1), ("split.no", 0)))
    named = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if count <= 1:
        if named and int(named[3]) > 1:
            raise InputError(f"{path}: named as one of {int(named[3])} parts, but its metadata has no split.count")
        return (path,)
    if not named or int(named[3]) != count:
        raise InputError(
            f"{path}: part {number + 1} of {count} (split.count); expected a name such as "
            f"model-{number + 1:05}-of-{count:05}.gguf, by which the other parts are found"
        )
    if count > _MOST_PARTS:
        raise InputError(f"{path}: split.count is {count}, expected {_MOST_PARTS} at most")
    paths = tuple(path.with_name(f"{named[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    if number or int(named[2]) != 1:
        raise InputError(f"{path}: part {number + 1} of {count}; give the first part, {paths[0].name}")
    missing = [part for part in paths if not part.is_file()]
    if missing:
        raise InputError(
            f"{path}: part 1 of {count}, but {missing[0].name} is missing{_more(missing)}; download all parts"
        )
    return paths


def check_part(path: Path, fields: Mapping[str, Any], number: int, first: Mapping[str, Any]) -> None:
    """Raises InputError for a part that says of itself that it is another one or another model's, or that has metadata of its
    own."""
    count = first["split.count"]
    came = (_whole(path, fields, "split.no", -1), _whole(path, fields, "split.count", 0))
    if came != (number, count):
        raise InputError(
            f"{path}: says it is part {came[0] + 1} of {came[1]}, expected {number + 1} of {count}; download it again"
        )
    for key in sorted((fields.keys() & first.keys()) - _OF_EACH):
        if not _same(first[key], fields[key]):
            raise InputError(
                f"{path}: has {show(key)} {shown(fields[key])}, the first part {shown(first[key])}: it is of another model; "
                "download all parts of one"
            )
    for key, value in fields.items():
        if not key.startswith(("split.", "general.")) and not _same(first.get(key), value):
            raise InputError(f"{path}: has {show(key)}, which the first part does not have; expected tensors alone")


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return type(a) is type(b) and a == b


def declared_tensors(path: Path, fields: Mapping[str, Any]) -> int | None:
    """How many tensors all parts hold together, where the first one says it."""
    key = "split.tensors.count"
    return _whole(path, fields, key, 0) if key in fields else None


def _whole(path: Path, fields: Mapping[str, Any], key: str, default: int) -> int:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < _MOST:
        raise InputError(f"{path}: {key} is {shown(value)}, expected a whole number below {_MOST}")
    return value


def _more(missing: list[Path]) -> str:
    return f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
