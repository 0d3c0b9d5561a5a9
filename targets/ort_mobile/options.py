"""What can be asked of ONNX Runtime Mobile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.options import option
from pocketphi.targets.kv_cache import kv_cache_option
from pocketphi.targets.ort_mobile.draft import DraftSize, draft_size
from pocketphi.targets.ort_mobile.kv_cache import KV_CACHES
from pocketphi.targets.target import TargetOptions

INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy level: 0 computes in float32, 4 with activations rounded to int8 in blocks (three times faster)."""

CHECKED = 17
"""Tokens whose logits onnxruntime-genai 0.18 may ask for where it checks guesses: 16 of these, and the one before."""


@dataclass(frozen=True, kw_only=True)
class OrtMobile(TargetOptions):
    """Options of `--target ort-mobile`. draft_size: of `draft`, or of the draft model that a bundle has."""

    target = "ort-mobile"

    accuracy_level: int = option(
        INT8_ACTIVATIONS, "4: int8 activations (default); 0: float32", choices=(0, 4), recorded=True
    )
    ort_file: bool = option(False, "also the single-file model.ort (under 2 GiB)")

    kv_cache: str = kv_cache_option(KV_CACHES, "fp32 (default), int8 or int4, whose scales a calibration text gives")

    drafts: bool = option(
        False,
        "onnxruntime-genai guesses tokens from the text and checks several at once: what repeats itself comes faster",
    )

    draft: Path | None = option(
        None,
        "a smaller bundle with the same tokenizer, which onnxruntime-genai asks for guesses in place of the text",
        metavar="BUNDLE",
        stands=MANIFEST,
    )

    draft_size: DraftSize | None = None

    windowed_cache: bool = option(
        False,
        "keep keys and values of the model's window alone: memory stops growing there, and no token can be taken back",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft is not None:
            object.__setattr__(self, "drafts", True)
            object.__setattr__(self, "draft_size", draft_size(self.draft))

    @property
    def calibrates(self) -> bool:
        return KV_CACHES[self.kv_cache].rounds

    def kv_cache_bytes(self, config: ModelConfig) -> int:
        return KV_CACHES[self.kv_cache].bytes(config)
