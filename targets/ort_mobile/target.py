"""What ONNX Runtime Mobile says of itself as a target; see `targets.target.Target`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import typed
from pocketphi.targets.memory import Runtime
from pocketphi.targets.ort_mobile.codecs import CODECS, FAST
from pocketphi.targets.ort_mobile.draft import DraftSize
from pocketphi.targets.ort_mobile.kv_cache import windowed_rows
from pocketphi.targets.ort_mobile.options import OrtMobile
from pocketphi.targets.ort_mobile.prefill import chunk_of
from pocketphi.targets.target import Asked, Kit, Page, Target, TextReader

if TYPE_CHECKING:
    from pocketphi.graph.program import Program
    from pocketphi.targets.base import Host, Prepared

_VERSIONS = {"genai_version": "0.18.0", "ort_version": "1.32.0"}


@dataclass(frozen=True)
class _Details:
    """What a manifest says of a bundle, as far as others ask for it."""

    kv_cache: str = "fp32"
    windowed_cache: bool = False
    drafts: bool = False
    draft: DraftSize | None = None


class OrtMobileTarget(Target[OrtMobile]):
    """`--target ort-mobile`."""

    name = "ort-mobile"
    title = "ONNX Runtime"
    options = OrtMobile
    extra = "ort"
    modules = ("onnx",)
    recorded = ("onnx", "onnxruntime")
    libraries = ("onnx", "onnxruntime", "onnxruntime-genai", "protobuf")
    codecs = CODECS
    weights_file = "model.onnx.data"
    app_files = (("model.onnx",), ("genai_config.json",))
    routes_experts = True
    switches = "adapters/{}.onnx_adapter"
    no_prefix = "onnxruntime-genai computes its cache itself, and takes none from a file"
    measured = "with onnxruntime 1.32 on x86"  # benchmarks/footprint.py measures again
    kits = (
        Kit("ios", "genai", ("ios", "ios-genai"), "Tests/KITTests/vectors.json", rank=1, values=_VERSIONS),
        Kit("android", "genai", ("android", "android-genai"), "src/test/resources/vectors.json", values=_VERSIONS),
    )

    def runtime(self, config: ModelConfig, options: OrtMobile, longest: int, held: int) -> Runtime:
        draft = options.draft_size or DraftSize(0, 0)
        return Runtime(
            float_bytes=4,
            activation_bytes=4,
            buffers=1.9,
            fixed=22_500_000
            + draft.bytes
            + draft.kv_per_token * held
            + (8 * config.vocab_size * (chunk_of(config, longest) or longest) if options.drafts else 0),
            chunk=chunk_of(config, longest),
            kv_per_token=options.kv_cache_bytes(config),
            kv_most=windowed_rows(config, longest) if options.windowed_cache else None,
            mask_bytes=5 * config.heads if config.sparse else 0,  # a bias in float32, and the flags that it is made of
            scale_copies=2,  # packed weights hold them again, with sums of blocks for int8 activations; the mapped ones stay
        )

    def is_fast(self, form: str, block: int) -> bool:
        return block in FAST[CODECS[form].format.bits]

    def prepare(self, program: Program, options: OrtMobile, asked: Asked) -> Prepared:
        from pocketphi.targets.ort_mobile.package import OrtBundle

        return OrtBundle(program, options, asked)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        from pocketphi.targets.ort_mobile.host import OrtHost

        return OrtHost(folder)

    def options_of(self, record: TargetRecord) -> OrtMobile:
        said = typed(_Details, record.details, "manifest.json: targets.ort-mobile")
        return OrtMobile(
            kv_cache=said.kv_cache, windowed_cache=said.windowed_cache, drafts=said.drafts, draft_size=said.draft
        )

    def kit_values(self, record: TargetRecord) -> Mapping[str, Any]:
        if self.options_of(record).windowed_cache:
            raise InputError(
                "--windowed-cache: an app of ours takes tokens back, which such a cache cannot; compile without"
            )
        return super().kit_values(record)

    def page(self, folder: Path, record: TargetRecord, files: Mapping[str, int]) -> Page:
        from pocketphi.targets.ort_mobile import web

        return Page(web.FOLDER, web.FILES, web.LIBRARY, web.settings(folder, record, files))

    def check_installed(self, options: OrtMobile) -> None:
        super().check_installed(options)
        if options.ort_file:  # it is ONNX Runtime that writes it
            self.require("onnxruntime")

    def check_runs_here(self, options: OrtMobile) -> None:
        importlib.import_module("pocketphi.targets.ort_mobile.host")
        self.require("onnxruntime")

    def text_reader(self) -> TextReader:
        from pocketphi.targets.ort_mobile.genai_tokenizer import GenaiTokenizer

        return GenaiTokenizer()


TARGET = OrtMobileTarget()
