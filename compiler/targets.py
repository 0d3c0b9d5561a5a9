"""The targets, by name. What a target needs is imported only when it is asked for."""

from __future__ import annotations

from pocketphi.compiler import __version__
from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.targets.base import Target


def make_target(name: str, options: CompileOptions) -> Target:
    """Raises InputError naming the extra to install when a target's packages are missing."""
    try:
        if name == "ort-mobile":
            from pocketphi.targets.ort_mobile.package import OrtMobile

            return OrtMobile(options.accuracy_level, options.ort_file, options.strict, options.context, __version__)
        if name == "coreml":
            from pocketphi.targets.coreml.package import CoreML

            return CoreML(
                options.context,
                options.chunk,
                options.attention,
                options.norm,
                options.flavor,
                options.strict,
                __version__,
                options.described(),
                options.model_id,
            )
        if name == "tvm-arm":
            from pocketphi.targets.tvm_arm.package import TvmArm
            from pocketphi.targets.tvm_arm.platform import Platform

            return TvmArm(
                Platform.of(options.os, options.cpu),
                options.context,
                options.tuning,
                options.kv_cache,
                options.content("tuning"),
            )
    except ModuleNotFoundError as error:
        raise missing_extra(name, error) from None
    raise InputError(f"--target {name}: no such target")


EXTRAS = {"ort-mobile": "ort", "coreml": "coreml", "tvm-arm": "tvm"}


def missing_extra(target: str, error: ModuleNotFoundError) -> CannotRun:
    extra = EXTRAS[target]
    return CannotRun(f"{target} needs the package {error.name!r}; install it with: pip install 'pocketphi[{extra}]'")
