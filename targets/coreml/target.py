"""What Core ML says of itself as a target; see `targets.target.Target`. Importing this loads nothing of coremltools."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.options import option
from pocketphi.graph.reading import typed
from pocketphi.targets.coreml.codecs import CODECS
from pocketphi.targets.memory import Runtime
from pocketphi.targets.target import Asked, Command, Kit, Target, TargetOptions

if TYPE_CHECKING:
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared

DEFAULT_CONTEXT = 2048
"""A phone's memory: Phi-3-mini keeps 393,216 bytes a token, so that 2048 tokens take 0.8 GB."""
DEFAULT_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class CoreML(TargetOptions):
    """Options of `--target coreml`, for a whole package; see `targets.coreml.form.Form`."""

    target = "coreml"

    chunk: int | None = option(
        None, f"tokens of a prefill call (default {DEFAULT_CHUNK})", flag="prefill-chunk", metavar="N"
    )
    attention: str = option(
        "sdpa", "one fused operator (default), or products and a softmax", choices=("sdpa", "decomposed")
    )
    norm: str = option(
        "max-scaled",
        "norms in float16, safe from overflow (default), or in float32",
        choices=("max-scaled", "fp32"),
    )
    flavor: str = option(
        "functions",
        "prefill and decode functions (default), or one function as swift-transformers calls it",
        choices=("functions", "swift-transformers"),
    )
    model_id: str | None = option(
        None, "repository that swift-transformers reads the tokenizer from", metavar="OWNER/NAME"
    )


@dataclass(frozen=True)
class _Details:
    """What a manifest says of a package, as far as others ask for it."""

    cache_rows: int = 0
    chunk: int | None = None
    flavor: str = "functions"


class CoreMLTarget(Target[CoreML]):
    """`--target coreml`."""

    name = "coreml"
    title = "Core ML"
    options = CoreML
    extra = "coreml"
    recorded = ("coremltools",)
    libraries = ("coremltools", "protobuf")
    codecs = CODECS
    weights_file = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    default_context = DEFAULT_CONTEXT  # in the package
    platforms = frozenset({"ios"})
    kits = (Kit("ios", "coreml", ("ios", "ios-coreml"), "Tests/KITTests/vectors.json"),)

    def kv_cache_bytes(self, config: ModelConfig, options: CoreML) -> int:
        return config.kv_cache_bytes(1, 2)  # float16

    def runtime(self, config: ModelConfig, options: CoreML, longest: int, held: int) -> Runtime:
        chunk = min(options.chunk or DEFAULT_CHUNK, held)
        return Runtime(
            float_bytes=2,
            activation_bytes=2,
            buffers=2.0,
            fixed=20_000_000,
            chunk=chunk,
            kv_per_token=self.kv_cache_bytes(config, options),
            kv_multiple=chunk,
            tables_end=True,
        )

    def prepare(self, program: Program, options: CoreML, asked: Asked) -> Prepared:
        from pocketphi.targets.coreml.package import CoreMLBundle

        return CoreMLBundle(program, options, asked)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        from pocketphi.targets.coreml.host import CoreMLHost

        return CoreMLHost(folder, record.weights)

    def check_runs_here(self, options: CoreML) -> None:
        importlib.import_module("pocketphi.targets.coreml.host")

    def options_of(self, record: TargetRecord) -> CoreML:
        return CoreML(chunk=_details(record).chunk)

    def kit_values(self, record: TargetRecord) -> Mapping[str, Any]:
        details = _details(record)
        if details.flavor == "swift-transformers":
            raise InputError("its package is for swift-transformers; compile with --flavor functions")
        return {"chunk": details.chunk or 0, "rows": details.cache_rows}

    def commands(self) -> list[Command]:
        from pocketphi.targets.coreml import run_command

        return [run_command]


def _details(record: TargetRecord) -> _Details:
    return typed(_Details, record.details, "manifest.json: targets.coreml")


TARGET = CoreMLTarget()
