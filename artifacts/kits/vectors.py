"""Test vectors for the app kits: cases with the answers of `reference.py` and of the chat template, and damaged bundles."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketphi.artifacts.bundle import seal
from pocketphi.artifacts.kits.chat_format import PROBES, Render
from pocketphi.artifacts.kits.conversation_vectors import conversation_vectors
from pocketphi.artifacts.kits.damage import Files, forgery, random_damage
from pocketphi.artifacts.kits.documents import document_vectors
from pocketphi.artifacts.kits.reference import ChatFormat, Rules, Sampler, stream
from pocketphi.artifacts.manifest import FORMAT, MANIFEST

DAMAGES = 1000
_STREAM = {
    "parts of characters": (["48c3", "a9", "20f09f", "9982", "21"], [0, 1, 2, 3, 4, 0, 1]),
    "never complete": (["61", "ff", "62"], [0, 1, 2, 1, 0]),
    "plain": (["61", "6263", "20"], [0, 1, 2, 2, 1]),
    "special tokens show nothing": (["2061", "", "2062"], [1, 0, 1, 2, 1, 1, 2, 0]),
}


def make_vectors(chat: ChatFormat, render: Render) -> dict[str, Any]:
    """render: the chat template itself, run by Jinja."""
    return {
        "chat": [
            {"messages": messages, "prompt": render(messages)}
            for messages in PROBES
            if all(role in chat.roles for role, _ in messages)
        ],
        "calls": _calls(),
        "answers": _answers(),
        "conversations": conversation_vectors(),
        "sampling": _sampling(),
        "stream": [_stream(*case) for case in _STREAM.values()],
        "documents": document_vectors(),
        "integrity": _integrity(),
    }


def _rules(rules: Rules) -> dict[str, Any]:
    return {**vars(rules), "stops": sorted(rules.stops)}


def _calls() -> list[dict[str, Any]]:
    """Whole prompts, further turns, other starts; chunks, the end of the cache; both sides of the LongRoPE switch; a ring."""
    turns = [(0, 1), (0, 20), (20, 21), (20, 25), (20, 20), (25, 20), (29, 30), (30, 31), (31, 32), (20, 47)]
    texts = [(list(range(past)), list(range(total))) for past, total in turns] + [([5, 5], [5, 6, 7])]
    cases = []
    for (chunk, rows, ring), switch in itertools.product(((0, 0, 0), (16, 48, 0), (4, 20, 16)), (None, 30)):
        rules = Rules(48, chunk, rows, switch, frozenset({7}), ring)
        for seen, tokens in texts:
            calls = [list(vars(c).values()) for c in rules.calls(seen, tokens)]
            cases.append({**_rules(rules), "seen": seen, "tokens": tokens, "calls": calls})
    return cases


def _answers() -> list[dict[str, Any]]:
    rules = Rules(20, 0, 0, None, frozenset({2, 9}))
    cases = [
        (10, 99, [5, 6, 2, 8]),
        (10, 99, [9]),
        (10, 3, [5, 5, 5, 5]),
        (10, 3, [5, 5, 2]),
        (17, 99, [5, 6, 7, 8, 1]),
    ]
    found = []
    for prompt, limit, chosen in cases:
        made, end = rules.answer(prompt, limit, chosen)
        case = {"prompt": prompt, "limit": limit, "chosen": chosen, "made": made, "end": end}
        found.append({**_rules(rules), **case})
    return found


def _sampling() -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    cases: list[tuple[Sequence[float], float, int, float, int]] = [([0.5, 2.0, 2.0, -1.0], 0.0, 0, 1.0, 0)]
    cases += [([0.0] * 8, 1.0, 0, 1.0, 3), ([1.0, 1.0, 1.0, 0.0], 0.5, 2, 1.0, 4)]
    for i, (temperature, top_k, top_p) in enumerate(
        [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.95), (2.0, 1, 0.1)]
    ):
        logits = (3 * rng.standard_normal(60)).astype(np.float32).tolist()
        cases.append((logits, temperature, top_k, top_p, 2**40 + i))
    found = []
    for logits, temperature, top_k, top_p, seed in cases:
        sampler = Sampler(temperature, top_k, top_p, seed)
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        found.append({**options, "logits": list(logits), "tokens": [sampler.choose(logits) for _ in range(20)]})
    return found


def _stream(pieces: list[str], tokens: list[int]) -> dict[str, Any]:
    """pieces: a token's bytes in hex. As with SentencePiece, a text loses a space that it begins with."""

    def decode(ids: list[int]) -> str:
        return b"".join(bytes.fromhex(pieces[i]) for i in ids).removeprefix(b" ").decode("utf-8", errors="replace")

    return {"bytes": pieces, "tokens": tokens, "texts": list(stream(decode, tokens))}


def _integrity() -> dict[str, Any]:
    """A small bundle, a thousand ways to spoil it, and forgeries that only the pinned manifest tells."""
    files = small_bundle()
    rng = random.Random(6)
    return {
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "sha256": hashlib.sha256(files[MANIFEST]).hexdigest(),
        "refused": random_damage(files, DAMAGES, seed=6),
        "forged": [forgery(files, rng) for _ in range(20)],
    }


def small_bundle() -> Files:
    """The files of a bundle of 600 bytes, with a manifest as `write_manifest` makes them."""
    rng = random.Random(7)
    content = {
        "model.onnx": rng.randbytes(60),
        "model.onnx.data": rng.randbytes(300),
        "config.json": b'{"model_type": "phi3"}\n',
        "model.mlpackage/Data/weight.bin": rng.randbytes(200),
        "empty": b"",
    }
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(content.items())
    }
    said = {"format": FORMAT, "recipe": {"name": "rtn", "block": 32}, "kl": 4.1e-11, "name": "\xe9", "files": entries}
    return {**content, MANIFEST: seal(json.dumps(said, indent=1).removesuffix("\n}").encode())}
