"""Bundles that the driver's tests share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.gguf_file import GgufFile, sample_path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """random:tiny, round to nearest: grouped heads, a window of 48, untied embeddings, no tokenizer."""
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    compile_model(compile_options("random:tiny", out, recipe="rtn", verify="never"))
    return out


@pytest.fixture(scope="session")
def sample_tokenizer_files() -> dict[str, bytes]:
    return GgufFile(sample_path()).tokenizer_files()


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def talking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose 256 tokens are a character each."""
    out = tmp_path_factory.mktemp("chat") / "bundle"
    compile_model(compile_options("random:tiny", out, recipe="rtn", block=32, accuracy_level=0, verify="never"))
    names = ["<unk>", "<s>", "<end>", *map(chr, range(32, 127)), *(chr(0x100 + i) for i in range(158))]
    library = Tokenizer(BPE({name: number for number, name in enumerate(names)}, []))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(names[:3])
    library.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    write_manifest(out, Bundle.open(out, check=False).manifest)
    return out
