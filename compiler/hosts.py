"""The hosts, by target name; see `targets.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketphi.compiler.targets import missing_extra
from pocketphi.graph.errors import InputError
from pocketphi.targets.base import Host


def open_host(folder: Path, manifest: dict[str, Any]) -> Host:
    """The host of a bundle's first target that this machine can run."""
    for name in manifest["targets"]:
        if name == "ort-mobile":
            try:
                from pocketphi.targets.ort_mobile.host import OrtHost
            except ModuleNotFoundError as error:
                raise missing_extra(name, error) from None
            return OrtHost(folder)
    raise InputError(f"{folder}: holds no target that can run here, only {', '.join(manifest['targets'])}")
