"""What ONNX Runtime Mobile says of itself as a target; see `targets.target.Target`."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CannotRun
from pocketphi.graph.options import option
from pocketphi.targets.memory import Runtime
from pocketphi.targets.ort_mobile.codecs import CODECS
from pocketphi.targets.ort_mobile.prefill import chunk_of
from pocketphi.targets.target import Asked, Kit, Target, TargetOptions, TextReader

if TYPE_CHECKING:
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared

INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy level: 0 computes in float32, 4 with activations rounded to int8 in blocks (three times faster)."""
_VERSIONS = {"genai_version": "0.18.0", "ort_version": "1.32.0"}


@dataclass(frozen=True, kw_only=True)
class OrtMobile(TargetOptions):
    """Options of `--target ort-mobile`."""

    target = "ort-mobile"

    accuracy_level: int = option(
        INT8_ACTIVATIONS, "4: int8 activations (default); 0: float32", choices=(0, 4), recorded=True
    )
    ort_file: bool = option(False, "also the single-file model.ort (under 2 GiB)")


class OrtMobileTarget(Target[OrtMobile]):
    """`--target ort-mobile`."""

    name = "ort-mobile"
    title = "ONNX Runtime"
    options = OrtMobile
    extra = "ort"
    recorded = ("onnx", "onnxruntime")
    libraries = ("onnx", "onnxruntime", "onnxruntime-genai", "protobuf")
    codecs = CODECS
    weights_file = "model.onnx.data"
    measured = "with onnxruntime 1.32 on x86"  # benchmarks/footprint.py measures again
    kits = (
        Kit("ios", "genai", ("ios", "ios-genai"), "Tests/KITTests/vectors.json", rank=1, values=_VERSIONS),
        Kit("android", "genai", ("android", "android-genai"), "src/test/resources/vectors.json", values=_VERSIONS),
    )

    def kv_cache_bytes(self, config: ModelConfig, options: OrtMobile) -> int:
        return config.kv_cache_bytes(1, 4)  # float32

    def runtime(self, config: ModelConfig, options: OrtMobile, longest: int, held: int) -> Runtime:
        return Runtime(
            float_bytes=4,
            activation_bytes=4,
            buffers=1.9,
            fixed=22_500_000,
            chunk=chunk_of(config, longest),
            kv_per_token=self.kv_cache_bytes(config, options),
            scale_copies=2,  # packed weights hold them again, with sums of blocks for int8 activations; the mapped ones stay
        )

    def prepare(self, program: Program, options: OrtMobile, asked: Asked) -> Prepared:
        from pocketphi.targets.ort_mobile.package import OrtBundle

        return OrtBundle(program, options, asked)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        from pocketphi.targets.ort_mobile.host import OrtHost

        return OrtHost(folder)

    def check_runs_here(self, options: OrtMobile) -> None:
        importlib.import_module("pocketphi.targets.ort_mobile.host")
        require_onnxruntime()

    def text_reader(self) -> TextReader:
        from pocketphi.targets.ort_mobile.genai_tokenizer import GenaiTokenizer

        return GenaiTokenizer()


def require_onnxruntime() -> None:
    """Raise CannotRun where ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise CannotRun("ort-mobile needs the package 'onnxruntime'; install it with: pip install 'pocketphi[ort]'")


TARGET = OrtMobileTarget()
