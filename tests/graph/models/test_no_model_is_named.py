"""Only graph/models/ knows a model by its name. What else names one stands here, with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMES = re.compile(r"phi-?[34]|(?<!ex)llama(?!\.cpp|_vocab|-vocab)|mistral|smollm", re.IGNORECASE)
ALLOWED = {
    # names of tokenizers and of ways to cut text in GGUF metadata, which models of all kinds use
    "graph/gguf_vocabulary.py": r'model == "llama"|`llama` \(SentencePiece\)',
    "graph/gguf_tokenizer.py": r'"llama": _sentencepiece|model == "llama"|expected gpt2 or llama|smollm, llama-bpe',
    "graph/gguf_cuts.py": r'_?LLAMA3\w*|"(llama|smollm)[-\w]*"|Llama 3 (takes a word|puts its start)',
    "graph/second_text.py": r'_?LLAMA3|"(llama|smollm)[-\w]*"',
    "graph/second_settings.py": r'tokenizer.ggml.model"\) == "llama"',
    # the sample's package
    "graph/gguf_file.py": r"llm.smollm2",
    # an example of what may stand there
    "graph/opening.py": r"random:phi-3-mini-4k",
    "compiler/": r"random:phi-3-mini-4k|Compile Phi-3 models",
    # types of onnxruntime-genai, which decide what its runtime does, and of what optimum reads
    "targets/ort_mobile/": r"`phi3`|`llama`|\"(llama|phi3)\"|type phi3|transformers' own Phi-3|Phi-3-mini reads 2,000 tokens",
    # what was measured
    "targets/coreml/options.py": r"Phi-3-mini keeps",
    # the description in a Core ML package, and a file in a vector for the kits' tests
    "targets/coreml/": r"Phi-3 with",
    "artifacts/kits/vectors.py": r'"model_type": "phi3"',
    # a size that a bound was chosen for
    "graph/safetensors_file.py": r"Phi-3 has 200",
}
"""A file, or all in a folder → what may stand in it."""


def named(path: Path) -> list[str]:
    """The lines of a file that name a model, without what is allowed in it."""
    allowed = [what for where, what in ALLOWED.items() if path.relative_to(ROOT).as_posix().startswith(where)]
    lines = path.read_text("utf-8").splitlines()
    return [line.strip() for line in lines if NAMES.search(re.sub("|".join(allowed), "", line) if allowed else line)]


@pytest.mark.parametrize("stage", ["graph", "passes", "artifacts", "targets", "compiler"])
def test_no_model_is_named(stage: str) -> None:
    files = [path for path in (ROOT / stage).rglob("*.py") if "graph/models" not in path.as_posix()]
    assert files != []
    assert {str(path.relative_to(ROOT)): odd for path in files if (odd := named(path))} == {}


@pytest.mark.parametrize("where", ALLOWED)
def test_every_exception_is_needed(where: str) -> None:
    files = (ROOT / where).rglob("*.py") if where.endswith("/") else [ROOT / where]
    assert any(re.search(ALLOWED[where], path.read_text("utf-8")) for path in files)


def test_the_check_sees_names() -> None:
    assert len(named(ROOT / "graph" / "models" / "llama.py")) > 10
