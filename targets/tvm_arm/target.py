"""What TVM for ARM says of itself as a target; see `targets.target.Target`. Importing this loads nothing of TVM."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.digests import digest_files
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Layout
from pocketphi.graph.reading import show, typed
from pocketphi.targets.memory import Runtime
from pocketphi.targets.target import Asked, Command, Kit, Target
from pocketphi.targets.tvm_arm.codecs import CODECS, BlocksCodec
from pocketphi.targets.tvm_arm.kv_cache import CHUNK, KEYS, ring_rows
from pocketphi.targets.tvm_arm.options import TvmArm
from pocketphi.targets.tvm_arm.platform import Platform

if TYPE_CHECKING:
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared

_SOURCES = "src/main/cpp/runtime"
"""Where a kit for Android has the runtime, for the app's own compiler."""


@dataclass(frozen=True)
class _Details:
    """What a manifest says of a bundle, as far as others ask for it."""

    kv_cache: str = "fp16"
    platform: str = "android"


def _export_sources(folder: Path) -> list[str]:
    """The runtime with its C interface, into a kit."""
    from pocketphi.targets.tvm_arm.build_runtime import export_sources

    export_sources(folder / _SOURCES)
    return [str(path.relative_to(folder)) for path in (folder / _SOURCES).rglob("*") if path.is_file()]


class TvmArmTarget(Target[TvmArm]):
    """`--target tvm-arm`."""

    name = "tvm-arm"
    title = "TVM"
    options = TvmArm
    extra = "tvm"
    modules = ("tvm", "tvm_ffi")
    recorded = ("apache-tvm", "apache-tvm-ffi")
    libraries = ("apache-tvm", "apache-tvm-ffi")
    codecs = CODECS
    routes_experts = True
    switches = "adapters/{}.tvm_adapter"
    prefix = "prefix.session"
    weights_file = "model.params"
    app_files = (("model.json",), ("model.so", "libmodel.a"))
    measured = "with our runtime on x86"
    kits = (
        Kit(
            "android",
            "tvm",
            ("android", "android-jni"),
            "src/test/resources/vectors.json",
            rank=1,
            export=_export_sources,
        ),
    )

    def runtime(self, config: ModelConfig, options: TvmArm, longest: int, held: int) -> Runtime:
        return Runtime(
            float_bytes=4,
            activation_bytes=4,
            buffers=0.7,
            fixed=9_300_000,
            chunk=CHUNK,
            kv_per_token=options.kv_cache_bytes(config),
            kv_multiple=KEYS,
            kv_most=ring_rows(config),
        )

    def bytes_held(self, codec: BlocksCodec, layout: Layout, options: TvmArm) -> int:
        return codec.bytes_of(layout, Platform.of(options.os, options.cpu).isa.lanes)

    def prepare(self, program: Program, options: TvmArm, asked: Asked) -> Prepared:
        from pocketphi.targets.tvm_arm.package import TvmBundle

        return TvmBundle(program, options, asked)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        from pocketphi.targets.tvm_arm.host import TvmHost

        return TvmHost(folder, record.context)

    def check_runs_here(self, options: TvmArm) -> None:
        from pocketphi.targets.tvm_arm.host import check_runs_here

        check_runs_here(Platform.of(options.os, options.cpu))

    def options_of(self, record: TargetRecord) -> TvmArm:
        details = typed(_Details, record.details, "manifest.json: targets.tvm-arm")
        return TvmArm(kv_cache=details.kv_cache)

    def kit_values(self, record: TargetRecord) -> Mapping[str, Any]:
        platform = typed(_Details, record.details, "manifest.json: targets.tvm-arm").platform
        if platform.split(",")[0] != "android":
            raise InputError(f"its library is for {show(platform)}; compile with --os android")
        return super().kit_values(record)

    def key(self, options: TvmArm) -> list[str]:
        """What a library is made for, which is this machine's CPU for `--os host`, and the compiler that links it."""
        made_for = Platform.of(options.os, options.cpu)
        toolchain = made_for.toolchain()
        return [made_for.described(), toolchain.triple, *toolchain.flags, *map(_version_of, toolchain.compiler[:1])]

    def commands(self) -> list[Command]:
        from pocketphi.targets.tvm_arm.tune import command

        return [command]


@functools.cache
def _version_of(compiler: str) -> str:
    """What a compiler says of itself, which names the release of an NDK too, and the digest of its program."""
    try:
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise InputError(f"{compiler}: cannot be run: {error.strerror}") from None
    lines = [line for line in said.stdout.splitlines() if not line.startswith("InstalledDir")]
    return "\n".join([*lines, digest_files([Path(compiler)])])


TARGET = TvmArmTarget()
