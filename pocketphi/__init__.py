"""An edge compiler for Phi-3 models: one graph, one set of int4 weights, verified artifacts for three runtimes.

    import pocketphi

    bundle = pocketphi.compile("sample", "chat", ["ort-mobile", pocketphi.CoreML(chunk=32)], recipe="rtn")
    print(bundle.manifest.bytes, pocketphi.verify(bundle).ok)

Its stages are the folders at the root of the repository. Here each has a link: `pocketphi.graph` is `graph/`, and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pocketphi.compiler import __version__

if TYPE_CHECKING:
    from pocketphi.compiler.api import compile, open_bundle, open_checkpoint, plan, verify
    from pocketphi.graph.errors import CannotRun, CheckFailed, InputError, PocketphiError
    from pocketphi.targets.coreml.options import CoreML
    from pocketphi.targets.ort_mobile.options import OrtMobile
    from pocketphi.targets.tvm_arm.options import TvmArm

__all__ = [
    "CannotRun",
    "CheckFailed",
    "CoreML",
    "InputError",
    "OrtMobile",
    "PocketphiError",
    "TvmArm",
    "__version__",
    "compile",
    "open_bundle",
    "open_checkpoint",
    "plan",
    "verify",
]
_FROM = {
    "compiler.api": ("compile", "open_bundle", "open_checkpoint", "plan", "verify"),
    "graph.errors": ("CannotRun", "CheckFailed", "InputError", "PocketphiError"),
    "targets.coreml.options": ("CoreML",),
    "targets.ort_mobile.options": ("OrtMobile",),
    "targets.tvm_arm.options": ("TvmArm",),
}


def __getattr__(name: str) -> Any:
    """Loaded when they are asked for: importing pocketphi costs nothing."""
    for module, names in _FROM.items():
        if name in names:
            return getattr(importlib.import_module(f"pocketphi.{module}"), name)
    raise AttributeError(f"module 'pocketphi' has no attribute {name!r}")
