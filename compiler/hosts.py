"""The hosts, by target name; see `targets.py`."""

from __future__ import annotations

import importlib
from pathlib import Path

from pocketphi.artifacts.manifest import Manifest
from pocketphi.compiler.targets import missing_extra
from pocketphi.graph.config import read_config
from pocketphi.graph.errors import InputError
from pocketphi.targets.base import Host, Target


def open_host(folder: Path, manifest: Manifest, target: str | None = None) -> Host:
    """The host of one of a bundle's targets, the first if None. Raises InputError where the bundle does not hold it."""
    held = manifest.targets
    name = target or next(iter(held))
    if name not in held:
        raise InputError(f"--target {name}: {folder} holds {', '.join(held)}")
    positions = read_config(folder).max_position
    if not 0 < manifest.context(name) <= positions:
        raise InputError(f"{folder}: holds {manifest.context(name)} tokens, config.json says {positions} positions")
    try:
        if name == "ort-mobile":
            from pocketphi.targets.ort_mobile.host import OrtHost

            return OrtHost(folder)
        if name == "coreml":
            from pocketphi.targets.coreml.host import CoreMLHost

            return CoreMLHost(folder, held[name].weights)
        if name == "tvm-arm":
            from pocketphi.targets.tvm_arm.host import TvmHost

            return TvmHost(folder)
    except ModuleNotFoundError as error:
        raise missing_extra(name, error) from None
    raise InputError(f"{folder}: target {name} cannot run here")


def check_runs_here(target: Target) -> None:
    """Raises CannotRun, before any work, where it is known that this machine cannot run what the target writes."""
    try:
        importlib.import_module(_HOSTS[target.name])
    except ModuleNotFoundError as error:
        raise missing_extra(target.name, error) from None
    target.check_runs_here()


_HOSTS = {
    "ort-mobile": "pocketphi.targets.ort_mobile.host",
    "coreml": "pocketphi.targets.coreml.host",
    "tvm-arm": "pocketphi.targets.tvm_arm.host",
}
