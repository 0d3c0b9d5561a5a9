"""coremltools' protobuf classes without the rest of coremltools, whose import takes seconds and prints advice."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.foreign import check_version, other_parts

PACKAGE, VERSION = "coremltools", "9.0"
"""The one whose parts are extended: see coremltools_parts.py."""
_ALIAS = "_pocketphi_coreml_proto"


@cache
def model_pb2() -> Any:
    """The module of `Model`. Raises InputError where coremltools is not installed.

    The generated modules import only protobuf and each other, so that their folder is loaded as a package of its own.
    Protobuf keeps one class for a message type: these are the same classes as coremltools' if that is imported too.
    """
    found = importlib.util.find_spec("coremltools")  # finds the folder, runs nothing
    if found is None or not found.submodule_search_locations:
        raise missing_coremltools()
    check_version(PACKAGE, VERSION, "coreml")
    package = ModuleType(_ALIAS)
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "proto")]
    sys.modules[_ALIAS] = package
    try:
        return importlib.import_module(f"{_ALIAS}.Model_pb2")
    except ModuleNotFoundError as error:
        raise other_parts(
            PACKAGE, VERSION, f"the protobuf classes that pocketphi reads packages with: {error}"
        ) from None


def mil_pb2() -> Any:
    """The module of `Program`, `Operation`, `Value`."""
    model_pb2()
    return importlib.import_module(f"{_ALIAS}.MIL_pb2")


def missing_coremltools() -> InputError:
    return InputError(
        "Core ML packages need the package 'coremltools'; install it with: pip install 'pocketphi[coreml]'"
    )
