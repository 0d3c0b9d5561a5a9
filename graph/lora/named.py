"""An adapter as a user names it: its folder, how much of it is added, and what an app calls one that it switches."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import path_of, show

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SWITCHED = "--adapter"
_NUMBER = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]{0,19})?|\.[0-9]{1,19})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Lora:
    """weight: what the adapter's change is multiplied with, beside its own scaling; option: which names it. Raises InputError
    where the weight is 0 or no finite number."""

    folder: Path
    weight: float = 1.0
    option: str = field(default="--lora", compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise InputError(f"{self.option} {self}: expected a weight that is a finite number and not 0")

    @property
    def name(self) -> str:
        """Of the folder, as manifests have it."""
        return self.folder.resolve().name

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder / CONFIG, self.folder / WEIGHTS

    def deciding(self) -> list[str | float]:
        """What of this a bundle's bytes depend on, beside the contents of the files."""
        return [self.name, self.weight]

    def __str__(self) -> str:
        """As on the command line."""
        return str(self.folder) if self.weight == 1 else f"{self.folder}={self.weight:g}"


@dataclass(frozen=True)
class NamedLora:
    """An adapter that stays apart from the weights. name: what an app calls it, and its file in a bundle.

    Raises InputError for a name that is no plain file name.
    """

    name: str
    lora: Lora

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name.endswith("."):
            raise InputError(
                f"{_SWITCHED} {show(self.name)}={self.lora}: {show(self.name)} is no name of a file; expected letters, digits, "
                "- and _, and dots inside, 64 at most"
            )

    def deciding(self) -> list[str | float]:
        """What of this a bundle's bytes depend on, beside the contents of the files."""
        return [self.name, self.lora.weight]

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.name}={self.lora}"


def parse_lora(text: str, option: str = "--lora") -> Lora:
    """`DIR`, or `DIR=0.5`. A folder whose own name ends in such a number is named with `=1` behind it.

    Raises InputError for an empty name and a weight that is none.
    """
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return Lora(path_of(text), option=option)
    if not _NUMBER.fullmatch(weight):
        raise InputError(f"{option} {show(text)}: expected DIR or DIR=WEIGHT, with a number such as 0.5")
    return Lora(path_of(folder), float(weight), option)


def parse_named(text: str) -> NamedLora:
    """`NAME=DIR`, or `NAME=DIR=0.5`. Raises InputError for anything else."""
    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise InputError(f"{_SWITCHED} {show(text)}: expected NAME=DIR, with the name that an app switches it by")
    return NamedLora(name, parse_lora(folder, f"{_SWITCHED} {name}"))
