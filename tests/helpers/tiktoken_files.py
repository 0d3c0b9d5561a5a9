"""Small vocabularies as `*.tiktoken` files, and tiktoken's own reading of them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers, trainers
from tokenizers.models import BPE

from pocketphi.graph.models.phi3_small import MODEL, special_tokens

FILE = "cl100k_base.tiktoken"
SPECIAL = 96
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# as published, but for the code that it names
CONFIG = {
    "auto_map": {"AutoTokenizer": ["tokenization_phi3_small.Phi3SmallTokenizer", None]},
    "bos_token": "<|endoftext|>",
    "chat_template": TEMPLATE,
    "eos_token": "<|endoftext|>",
    "model_max_length": 8192,
    "tokenizer_class": "Phi3SmallTokenizer",
}


def trained(texts: list[str], size: int) -> dict[bytes, int]:
    """A byte-level vocabulary of these texts, token → rank, trained by the tokenizers library."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert MODEL.tiktoken is not None
    backend = tokenizers.Tokenizer(BPE())
    cut = pre_tokenizers.Split(Regex(MODEL.tiktoken.cut), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return {bytes(bytes_of[letter] for letter in token): rank for token, rank in backend.get_vocab().items()}


def scrambled(ranks: Mapping[bytes, int], seed: int) -> dict[bytes, int]:
    """No training makes such: a third of the longer tokens are gone, and the others' ranks are in any order."""
    generator = random.Random(seed)
    kept = [token for token in ranks if len(token) == 1 or generator.random() > 1 / 3]
    kept += sorted({bytes(generator.choices(b"ab ", k=generator.randint(2, 6))) for _ in range(60)} - set(kept))
    generator.shuffle(kept)
    return {token: rank for rank, token in enumerate(kept)}


def written(ranks: Mapping[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())


def tiktokens(ranks: Mapping[bytes, int]) -> Any:
    """As `tokenization_phi3_small.py` makes it: tiktoken's own pattern of cl100k_base, and the special tokens."""
    import tiktoken
    import tiktoken_ext.openai_public as public

    kept, public.load_tiktoken_bpe = public.load_tiktoken_bpe, lambda *a, **k: {}  # which would download it
    try:
        pattern = public.cl100k_base()["pat_str"]
    finally:
        public.load_tiktoken_bpe = kept
    special = special_tokens(len(ranks) + SPECIAL)
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=special)


def add_tiktoken(folder: Path, ranks: Mapping[bytes, int], config: Mapping[str, Any] = CONFIG) -> Path:
    """The tokenizer's files as published, with code that must not run."""
    (folder / FILE).write_bytes(written(ranks))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenization_phi3_small.py").write_text("raise SystemExit('this was run')\n", "utf-8")
    return folder
