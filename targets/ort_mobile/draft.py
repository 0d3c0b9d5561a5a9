"""A draft model in a bundle: a smaller bundle's files in a folder of their own, which onnxruntime-genai asks for guesses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import vocabulary_of
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.reading import read_json
from pocketphi.targets import find_target

if TYPE_CHECKING:
    from pocketphi.targets.ort_mobile.options import OrtMobile

FOLDER = "draft"
GRAPH, GENAI = "model.onnx", "genai_config.json"
NAMES = (GRAPH, "model.onnx.data", GENAI, "config.json")
FILES = tuple(f"{FOLDER}/{name}" for name in NAMES)
"""In a bundle. What is asked of the draft model alone, its genai_config.json says as well."""
GUESSES = {"max_draft_tokens": 4}
"""Of onnxruntime-genai, in place of what it guesses from the text: it takes one or the other."""


@dataclass(frozen=True)
class DraftSize:
    """What a draft model takes beside the model. bytes: of its files; kv_per_token: of its cache."""

    bytes: int
    kv_per_token: int


def draft_size(path: Path) -> DraftSize:
    """Of a bundle, whose files are not looked at. Raises InputError where it is none for this target."""
    bundle = Bundle.open(path, check=False)
    files = sum(entry.bytes for name, entry in bundle.manifest.files.items() if name in NAMES)
    return DraftSize(files, _options(bundle).kv_cache_bytes(read_config(path)))


def open_draft(path: Path, config: ModelConfig, vocabulary: str, context: int) -> Bundle:
    """A bundle that can guess for a model. Every file of it is compared with its manifest.

    vocabulary: digest of the model's tokens, "" where it is not known; context: tokens that the model's bundle holds

    Raises InputError for one that cannot.
    """
    bundle = Bundle.open(path)
    options, theirs = _options(bundle), read_config(path)
    known = vocabulary_of(bundle.manifest.text)
    if theirs.vocab_size != config.vocab_size or (vocabulary and known != vocabulary):
        raise InputError(
            f"--draft {path}: has another tokenizer than the model ({theirs.vocab_size:,} tokens, and {config.vocab_size:,}); "
            "only a model with the same tokens can guess for it: take a smaller one of the same family"
        )
    if options.draft_size:
        raise InputError(f"--draft {path}: has a draft model of its own; name that one's bundle, or one without")
    if options.windowed_cache:
        raise InputError(f"--draft {path}: has a windowed cache, which forgets no guesses; compile it without that")
    held = bundle.manifest.context("ort-mobile")
    if held < context:
        raise InputError(
            f"--draft {path}: holds {held:,} tokens, the model {context:,}; onnxruntime-genai guesses to the end: "
            f"compile the model with --context {held}"
        )
    rope = theirs.long_rope
    if rope and rope.short != rope.long and rope.original_max_position < context:
        raise InputError(
            f"--draft {path}: changes LongRoPE's factors after {rope.original_max_position:,} tokens, where guesses cannot be "
            f"taken back; compile the model with --context {rope.original_max_position}"
        )
    return bundle


def decoder(bundle: Bundle) -> dict[str, Any]:
    """What the model's genai_config.json says of it."""
    settings: dict[str, Any] = read_json(bundle.file(GENAI))["model"]["decoder"]
    return {**settings, "filename": f"{FOLDER}/{GRAPH}"}


def copy(bundle: Bundle, folder: Path) -> None:
    """Its files into a bundle."""
    (folder / FOLDER).mkdir()
    for name in NAMES:
        shutil.copyfile(bundle.file(name), folder / FOLDER / name)


def _options(bundle: Bundle) -> OrtMobile:
    held = bundle.manifest.targets
    if "ort-mobile" not in held:
        raise InputError(f"--draft {bundle.path}: holds {', '.join(held)}; compile it with --target ort-mobile")
    options: OrtMobile = find_target("ort-mobile").options_of(held["ort-mobile"])
    return options
