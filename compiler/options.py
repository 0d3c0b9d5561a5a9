"""What a user can ask of a compile, as one frozen value."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.artifacts.manifest import RecipeRecord
from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named, show
from pocketphi.passes.choices import BLOCKS, GROUPS
from pocketphi.passes.policy import default_block
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES

TARGETS = ("ort-mobile", "coreml", "tvm-arm")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "recipe": ("search", "rtn", "keep"),
    "accuracy_level": (0, 4),
    "attention": ("sdpa", "decomposed"),
    "norm": ("max-scaled", "fp32"),
    "flavor": ("functions", "swift-transformers"),
    "os": ("linux", "android", "ios", "host"),
    "verify": ("auto", "always", "never"),
}


@dataclass(frozen=True)
class CompileOptions:
    """Arguments of `compile_model`; the command line has the same.

    model:        checkpoint, as `open_checkpoint` reads it
    out:          folder of the bundle
    recipe:       `search`, `rtn` or `keep`; block (0: whole rows; by default `default_block`), symmetric: its parameters
    palette:      rows that share a lookup table of 16 values, in place of blocks with a scale
    embedding_bits, head_bits: 4, or 8 (a tied weight gets the larger)
    context:      positions that the rotary tables cover; the model's maximum if None
    calibration:  a UTF-8 text; pages of our own and Python's language reference if None
    all_logits:   logits of every position instead of the last
    accuracy_level: 4 computes with int8 activations, 0 in float32
    ort_file:     also write the single-file model.ort
    chunk, attention, norm, flavor, model_id: of a Core ML package, see `targets.coreml.package.CoreML`
    os, cpu:      of a TVM library, see `targets.tvm_arm.platform.Platform`
    tuning:       a database of `pocketphi tune`, taken before the shared one
    kv_cache:     of a TVM library, a name of `targets.tvm_arm.kv_cache.KV_CACHES`
    verify:       `auto` where the model fits into half of the free memory, `always`, `never`
    max_bytes, max_memory: budgets in bytes for the bundle and for the compile's own memory
    contents:     of the files that options name, as `content` has read them; options that are made of these share them
    """

    model: str
    out: Path
    targets: tuple[str, ...] = ("ort-mobile",)
    recipe: str = "search"
    block: int = None  # type: ignore[assignment]  # set below
    symmetric: bool = True
    palette: int | None = None
    embedding_bits: int = 4
    head_bits: int = 4
    context: int | None = None
    calibration: Path | None = None
    calibration_tokens: int = 4096
    all_logits: bool = False
    accuracy_level: int = 4
    ort_file: bool = False
    chunk: int | None = None
    attention: str = "sdpa"
    norm: str = "max-scaled"
    flavor: str = "functions"
    model_id: str | None = None
    os: str = "linux"
    cpu: str | None = None
    tuning: Path | None = None
    kv_cache: str = "fp16"
    verify: str = "auto"
    max_bytes: int | None = None
    max_memory: int | None = None
    strict: bool = False
    force: bool = False
    dump_graphs: Path | None = None
    cache: Path | None = None
    contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.block is None:
            object.__setattr__(self, "block", default_block(self.recipe))
        if self.block and self.block not in BLOCKS:
            raise InputError(f"--block {self.block}: expected one of {', '.join(map(str, BLOCKS))}, or row")
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                words = (
                    " or ".join(map(str, choices)) if len(choices) == 2 else f"one of {', '.join(map(str, choices))}"
                )
                raise InputError(f"--{option.replace('_', '-')} {named(getattr(self, option))}: expected {words}")
        if self.palette is not None and self.palette not in GROUPS:
            raise InputError(f"--palette {self.palette}: expected one of {', '.join(map(str, GROUPS))} rows")
        for what, bits in (("embedding", self.embedding_bits), ("head", self.head_bits)):
            if bits not in (4, 8):
                raise InputError(f"--{what}-bits {bits}: expected 4 or 8")
        if self.calibration_tokens < 1:
            raise InputError(f"--calibration-tokens {self.calibration_tokens}: expected a positive number")
        if self.context is not None and self.context < 2:
            raise InputError(f"--context {self.context}: expected 2 or more tokens: one of a prompt, one of its answer")
        if self.calibration is not None and self.recipe != "search":
            raise InputError(f"--calibration: --recipe {self.recipe} has no use for it; only search has")
        for target in self.targets:
            if target not in TARGETS:
                raise InputError(f"--target {target}: expected one of {', '.join(TARGETS)}")
        if self.kv_cache not in KV_CACHES:
            raise InputError(f"--kv-cache {self.kv_cache}: expected one of {', '.join(KV_CACHES)}")
        if self.kv_cache != "fp16" and "tvm-arm" not in self.targets:
            have = f"{self.targets[0]} has no such"
            if len(self.targets) > 1:
                have = f"neither {' nor '.join(self.targets)} has such a"
            raise InputError(f"--kv-cache {self.kv_cache}: {have} cache; leave it out, or compile for tvm-arm")

    def content(self, option: str) -> bytes | None:
        """What the file that an option names holds, None where it names none. It is read once: what is compiled is what was
        looked at, whatever happens to the file meanwhile. Raises InputError where it cannot be read."""
        path: Path | None = getattr(self, option)
        if path is None:
            return None
        if option not in self.contents:
            what = {"calibration": "the calibration text"}.get(option, f"--{option}")
            try:
                self.contents[option] = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path}: {what} cannot be read: {error.strerror}") from None
        return self.contents[option]

    def _calibration_text(self) -> str | None:
        """Which text the weights were calibrated on: `default`, or the SHA-256 of the user's."""
        if self.recipe != "search":
            return None
        return "default" if self.calibration is None else hashlib.sha256(self.content("calibration") or b"").hexdigest()

    def described(self) -> str:
        """How the weights are quantized, in a few words."""
        return self._recipe(calibration=None).described()

    def recorded(self) -> RecipeRecord:
        """The options that decide a bundle's bytes, for its manifest."""
        return self._recipe(self._calibration_text())

    def _recipe(self, calibration: str | None) -> RecipeRecord:
        return RecipeRecord(
            name=self.recipe,
            block=self.block,
            symmetric=self.symmetric,
            palette=self.palette,
            embedding_bits=self.embedding_bits,
            head_bits=self.head_bits,
            context=self.context,
            all_logits=self.all_logits,
            accuracy_level=self.accuracy_level,
            calibration=calibration,
            calibration_tokens=self.calibration_tokens if self.recipe == "search" else None,
        )


def eight_bit_weights(options: CompileOptions, config: ModelConfig) -> list[str]:
    """The weights that get 8 bits. A tied embedding and head is one weight."""
    head = EMBEDDING if config.tied_embeddings else HEAD
    wanted = ((EMBEDDING, options.embedding_bits), (head, options.head_bits))
    return [name for name, bits in wanted if bits == 8]


def parse_block(text: str) -> int:
    """A number, or `row` → 0. Raises InputError for anything else."""
    if text == "row":
        return 0
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InputError(f"--block {text}: expected one of {', '.join(map(str, BLOCKS))}, or row")
    return int(text)


def parse_size(text: str) -> int:
    """`1.5GB`, `750MiB`, `2000000` → bytes. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kKMGT]?)(i?)B?\s*", text)
    if not found:
        raise InputError(f"{show(text)} is not a size; expected bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix.replace("K", "k") or " "))
