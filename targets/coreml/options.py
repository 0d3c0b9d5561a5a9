"""What can be asked of Core ML."""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.options import option
from pocketphi.graph.packing import rounded_up
from pocketphi.targets.coreml.releases import OLDEST, RELEASES
from pocketphi.targets.kv_cache import kv_cache_option
from pocketphi.targets.target import TargetOptions

DEFAULT_CONTEXT = 2048
"""A phone's memory: Phi-3-mini keeps 393,216 bytes a token, so that 2048 tokens take 0.8 GB."""
DEFAULT_CHUNK = 64


def ring_of(config: ModelConfig, chunk: int) -> int | None:
    """Rows of a cache that keeps the newest tokens alone; None where the model has no window.

    The first query of a chunk sees the window before it. A call writes a whole chunk, of which the end may be padding.
    """
    return rounded_up(config.sliding_window + chunk - 1, chunk) if config.sliding_window else None


@dataclass(frozen=True, kw_only=True)
class CoreML(TargetOptions):
    """Options of `--target coreml`, for a whole package; see `targets.coreml.form.Form`."""

    target = "coreml"

    ios: int = option(
        OLDEST,
        "the oldest iOS that runs it: {default} (default), or 26, with int2, int3, int6, nl3, nl4 and scales of 8 bits too",
        choices=tuple(RELEASES),
        metavar="N",
    )
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

    kv_cache: str = kv_cache_option(("fp16",), "fp16, what a state of Core ML can be")

    @property
    def flexible(self) -> bool:
        """Whether a call may have any number of tokens."""
        return self.flavor == "swift-transformers"

    def kv_cache_bytes(self, config: ModelConfig) -> int:
        return config.kv_cache_bytes(1, 2)  # float16
