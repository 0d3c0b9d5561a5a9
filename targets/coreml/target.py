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
from pocketphi.graph.formats import Format, Layout
from pocketphi.graph.options import declared
from pocketphi.graph.reading import show, typed
from pocketphi.targets.coreml.codecs import CODECS, Codec, held
from pocketphi.targets.coreml.options import DEFAULT_CHUNK, DEFAULT_CONTEXT, CoreML, ring_of
from pocketphi.targets.coreml.releases import OLDEST, RELEASES
from pocketphi.targets.memory import Runtime
from pocketphi.targets.target import Asked, Command, Kit, Target

if TYPE_CHECKING:
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared


@dataclass(frozen=True)
class _Details:
    """What a manifest says of a package, as far as others ask for it."""

    cache_rows: int = 0
    ring: int = 0
    context: int | None = None
    chunk: int | None = None
    attention: str = "sdpa"
    norm: str = "max-scaled"
    flavor: str = "functions"
    ios: int = OLDEST
    model_id: str | None = None

    @property
    def options(self) -> CoreML:
        names = ("chunk", "attention", "norm", "flavor", "ios", "model_id")
        return CoreML(**{name: getattr(self, name) for name in names})


class CoreMLTarget(Target[CoreML]):
    """`--target coreml`."""

    name = "coreml"
    title = "Core ML"
    options = CoreML
    extra = "coreml"
    modules = ("coremltools",)
    recorded = ("coremltools",)
    libraries = ("coremltools", "protobuf")
    codecs = CODECS
    weights_file = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    app_files = (("model.mlpackage/Manifest.json",), ("model.mlpackage/Data/com.apple.CoreML/model.mlmodel",))
    default_context = DEFAULT_CONTEXT  # in the package
    platforms = frozenset({"ios"})
    kits = (Kit("ios", "coreml", ("ios", "ios-coreml"), "Tests/KITTests/vectors.json"),)

    def holds(self, options: CoreML) -> Mapping[str, Codec]:
        return {name: codec for name, codec in CODECS.items() if codec.ios <= options.ios}

    def bytes_held(self, codec: Codec, layout: Layout, options: CoreML) -> int:
        return codec.bytes_of(held(layout, options.ios))

    def instead(self, form: type[Format]) -> str:
        return f"add --ios {CODECS[form.name].ios}" if form.name in CODECS else form.instead

    def runtime(self, config: ModelConfig, options: CoreML, longest: int, held: int) -> Runtime:
        chunk = min(options.chunk or DEFAULT_CHUNK, held)
        ring = None if options.flexible else ring_of(config, chunk)
        return Runtime(
            float_bytes=2,
            activation_bytes=2,
            buffers=2.0,
            fixed=20_000_000,
            chunk=chunk,
            kv_per_token=options.kv_cache_bytes(config),
            kv_multiple=chunk,
            kv_most=ring + chunk if ring else None,
            tables_end=True,
            mask_bytes=3 * config.heads if config.sparse else 0,  # flags, and what is added to scores in float16
        )

    def prepare(self, program: Program, options: CoreML, asked: Asked) -> Prepared:
        from pocketphi.targets.coreml.package import CoreMLBundle

        return CoreMLBundle(program, options, asked)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        from pocketphi.targets.coreml.host import CoreMLHost

        details = _details(record)
        return CoreMLHost(folder, record.weights, details.options, details.context)

    def check_runs_here(self, options: CoreML) -> None:
        importlib.import_module("pocketphi.targets.coreml.host")

    def options_of(self, record: TargetRecord) -> CoreML:
        return _details(record).options

    def kit_values(self, record: TargetRecord) -> Mapping[str, Any]:
        details = _details(record)
        if details.flavor == "swift-transformers":
            raise InputError("its package is for swift-transformers; compile with --flavor functions")
        release = RELEASES[details.ios]
        system = {"ios": details.ios, "macos": release.macos, "swift_tools": release.swift_tools}
        return {"chunk": details.chunk or 0, "rows": details.cache_rows, "ring": details.ring, **system}

    def commands(self) -> list[Command]:
        from pocketphi.targets.coreml import run_command

        return [run_command]


def _details(record: TargetRecord) -> _Details:
    where = "manifest.json: targets.coreml"
    found = typed(_Details, record.details, where)
    for one in declared(CoreML).values():
        value = getattr(found, one.name, one.default)  # a manifest speaks of what there is to choose
        if one.choices and value not in one.choices:
            raise InputError(
                f"{where}: {one.name} is {show(value)}, expected one of {', '.join(map(str, one.choices))}"
            )
    return found


TARGET = CoreMLTarget()
