"""How onnxruntime-genai, which the apps of an ort-mobile bundle use, reads a tokenizer: where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketphi.graph.reading import show

_MODEL = {"type": "phi3", "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 1, "context_length": 1}
_DECODER = {"filename": "model.onnx", "inputs": {}, "outputs": {}}


class GenaiTokenizer:
    """A `TextReader`."""

    name = "onnxruntime-genai"

    def installed(self) -> bool:
        return importlib.util.find_spec("onnxruntime_genai") is not None

    def settings(self) -> Mapping[str, bytes]:
        settings = {"model": {**_MODEL, "decoder": _DECODER}, "search": {}}
        return {"genai_config.json": json.dumps(settings).encode()}

    def differences(self, folder: Path, loaded: Any, texts: Sequence[str]) -> list[int]:
        """Which of these texts get other ids, or another text from their ids, than transformers gives; all if it opens
        nothing.

        loaded: transformers' tokenizer. A start token comes from the template alone. onnxruntime-genai keeps the space that
        SentencePiece puts before a text, and takes spaces after special tokens away: texts are compared without.
        """
        import onnxruntime_genai

        try:
            reader = onnxruntime_genai.Tokenizer(str(folder))
            return [i for i, text in enumerate(texts) if not _agrees(reader, loaded, text)]
        except Exception:  # it raises nothing narrower
            return list(range(len(texts)))

    def notice(self, differ: Sequence[int], texts: Sequence[str]) -> str:
        return (
            f"{self.name} {importlib.metadata.version(self.name)} reads {len(differ)} of {len(texts)} texts otherwise than "
            f"transformers, first {show(texts[differ[0]])}: its apps feed other tokens there (it ignores "
            "lstrip, normalized and single_word of added tokens, and joins some repeated pieces otherwise)"
        )


def _agrees(reader: Any, loaded: Any, text: str) -> bool:
    ids = loaded(text, add_special_tokens=False).input_ids
    if reader.encode(text).tolist() != ids:
        return False
    special = set(loaded.added_tokens_decoder)
    if not ids or special & set(ids):
        return True
    stream, want = reader.create_stream(), loaded.decode(ids)
    streamed = "".join(stream.decode(token) for token in ids)
    return all(came in (want, f" {want}") for came in (reader.decode(ids), streamed))
