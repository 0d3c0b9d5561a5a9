"""What transformers makes of a tokenizer, from the cache or asked now: `text_check.check_text` takes seconds, most of them for
importing transformers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from blake3 import blake3

from pocketphi.artifacts.manifest import TextRecord
from pocketphi.compiler.known import Known
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.text_check import ModelText, check_text
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.reading import typed

_LIBRARIES = ("transformers", "tokenizers", "jinja2", "sentencepiece", "protobuf", "onnxruntime-genai")


@dataclass(frozen=True)
class _Stored:
    """files: name → bytes of those that lie behind the JSON, in this order"""

    files: dict[str, int]
    notices: list[str]
    recorded: TextRecord | None


def opened(options: CompileOptions) -> tuple[HashedCheckpoint, ModelText]:
    """The model of a compile, with tokenizer files as transformers reads them, and what is to be said of them."""
    source = HashedCheckpoint(open_checkpoint(options.model, options.lora))
    text = known_text(source, options.target_names, options.cache_folder)
    source.tokenizer_files = lambda: text.files  # type: ignore[method-assign]
    return source, text


def known_text(source: Checkpoint, targets: Collection[str], cache: Path | None = None) -> ModelText:
    """As `check_text`."""
    files = source.tokenizer_files()
    if not files:
        return ModelText()
    known = Known("text", _LIBRARIES, cache)
    about = {
        "files": {name: blake3(content).hexdigest() for name, content in files.items()},
        "model": source.label,  # messages name it
        "config": source.config.to_hf(),
        "settings": source.text_settings(),
        "targets": sorted(targets),
    }
    if (found := known.find(about)) is not None and (text := _text(*found)) is not None:
        return text
    text = check_text(source, targets)
    stored = _Stored({name: len(content) for name, content in text.files.items()}, text.notices, text.recorded)
    known.keep(about, asdict(stored), list(text.files.values()))
    return text


def _text(content: object, data: memoryview) -> ModelText | None:
    """What an entry holds, or None where it is none."""
    try:
        stored = typed(_Stored, content, "a stored text")
    except InputError:
        return None
    if sum(stored.files.values()) != len(data) or any(size < 0 for size in stored.files.values()):
        return None
    files, at = {}, 0
    for name, size in stored.files.items():
        files[name] = bytes(data[at : at + size])
        at += size
    return ModelText(files, stored.notices, stored.recorded)
