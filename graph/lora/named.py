"""An adapter as a user names it: its folder, and how much of it is added."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import path_of, show

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NUMBER = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]{0,19})?|\.[0-9]{1,19})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Lora:
    """weight: what the adapter's change is multiplied with, beside its own scaling. Raises InputError where it is 0 or no
    finite number."""

    folder: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise InputError(f"--lora {self}: expected a weight that is a finite number and not 0")

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


def parse_lora(text: str) -> Lora:
    """`DIR`, or `DIR=0.5`. A folder whose own name ends in such a number is named with `=1` behind it.

    Raises InputError for an empty name and a weight that is none.
    """
    folder, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return Lora(path_of(text))
    if not _NUMBER.fullmatch(weight):
        raise InputError(f"--lora {show(text)}: expected DIR or DIR=WEIGHT, with a number such as 0.5")
    return Lora(path_of(folder), float(weight))
