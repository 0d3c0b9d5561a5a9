"""A draft model in a bundle: a smaller bundle's files in a folder of their own, which onnxruntime-genai asks for guesses."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.reading import read_json
from pocketphi.targets import find_target
from pocketphi.targets.draft_bundle import check_tokens, open_draft
from pocketphi.targets.ort_mobile.names import DATA_FILE, GENAI_FILE, GRAPH_FILE

if TYPE_CHECKING:
    from pocketphi.targets.ort_mobile.options import OrtMobile

FOLDER = "draft"
_TARGET = "ort-mobile"
NAMES = (GRAPH_FILE, DATA_FILE, GENAI_FILE, "config.json")
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
    bundle = open_draft(path, _TARGET, check=False)
    files = sum(entry.bytes for name, entry in bundle.manifest.files.items() if name in NAMES)
    return DraftSize(files, _options(bundle).kv_cache_bytes(read_config(path)))


def fitting_draft(path: Path, manifest: bytes, config: ModelConfig, vocabulary: str | None, context: int) -> Bundle:
    """A bundle that can guess for a model. Every file of it is compared with its manifest.

    manifest: what that holds; vocabulary: digest of the model's tokens, None where it is not known; context: tokens that the
    model's bundle holds

    Raises InputError for one that cannot.
    """
    bundle = _checked(path, manifest)
    check_tokens(bundle, config.vocab_size, vocabulary, "the model")
    options, theirs = _options(bundle), read_config(path)
    if options.draft_size:
        raise InputError(f"--draft {path}: has a draft model of its own; name that one's bundle, or one without")
    if options.windowed_cache:
        raise InputError(f"--draft {path}: has a windowed cache, which forgets no guesses; compile it without that")
    held = bundle.manifest.context(_TARGET)
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
    settings: dict[str, Any] = read_json(bundle.file(GENAI_FILE))["model"]["decoder"]
    return {**settings, "filename": f"{FOLDER}/{GRAPH_FILE}"}


def copy(bundle: Bundle, folder: Path) -> None:
    """Its files into a bundle. Raises InputError where they have changed since it was opened."""
    whole = Bundle.open(bundle.path)
    if whole.manifest != bundle.manifest:
        raise InputError(f"--draft {bundle.path}: was replaced while this compiled; compile again")
    (folder / FOLDER).mkdir()
    for name in NAMES:
        shutil.copyfile(whole.file(name), folder / FOLDER / name)


@functools.lru_cache(maxsize=8)
def _checked(path: Path, manifest: bytes) -> Bundle:
    """Hashing a large one takes seconds, and a budget plans many bundles."""
    return open_draft(path, _TARGET)


def _options(bundle: Bundle) -> OrtMobile:
    options: OrtMobile = find_target(_TARGET).options_of(bundle.manifest.targets[_TARGET])
    return options
