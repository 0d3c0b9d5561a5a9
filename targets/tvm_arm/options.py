"""What can be asked of TVM for ARM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.options import option
from pocketphi.targets.kv_cache import kv_cache_option
from pocketphi.targets.target import TargetOptions
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES
from pocketphi.targets.tvm_arm.platform import SYSTEMS


@dataclass(frozen=True, kw_only=True)
class TvmArm(TargetOptions):
    """Options of `--target tvm-arm`."""

    target = "tvm-arm"

    os: str = option("linux", "linux (default), android, ios, or host: this machine", choices=SYSTEMS, metavar="NAME")
    cpu: str | None = option(
        None,
        "a core such as cortex-a76 or apple-a15, or an instruction set: neon, dotprod (default), i8mm, avx2, avx512vnni",
        metavar="NAME",
    )
    tuning: Path | None = option(
        None, "schedules that 'pocketphi tune' found (before those that ship with us)", metavar="FILE"
    )
    kv_cache: str = kv_cache_option(
        KV_CACHES,
        "fp16 (default), int8 with a scale for each, or int4 with one for 32 dimensions",
    )

    @property
    def calibrates(self) -> bool:
        return KV_CACHES[self.kv_cache].centred

    def kv_cache_bytes(self, config: ModelConfig) -> int:
        return KV_CACHES[self.kv_cache].bytes(config, 1)
