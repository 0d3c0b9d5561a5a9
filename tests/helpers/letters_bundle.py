"""A random model whose 256 tokens are a character each, with a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders
from tokenizers.models import BPE

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}<assistant>"


def letters_bundle(out: Path, target: str = "ort-mobile", **options: Any) -> Path:
    """The bundle, of which only the tokenizer was made by hand."""
    exact = {"accuracy_level": 0} if target == "ort-mobile" and "accuracy_level" not in options else {}
    compile_model(
        compile_options("random:tiny", out, (target,), recipe="rtn", block=32, verify="never", **exact, **options)
    )
    names = ["<unk>", "<s>", "<end>", *map(chr, range(32, 127)), *(chr(0x100 + i) for i in range(158))]
    library = Library(BPE({name: number for number, name in enumerate(names)}, []))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(names[:3])
    library.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    write_manifest(out, Bundle.open(out, check=False).manifest)
    return out
