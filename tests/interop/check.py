"""Load bundles with optimum and compare what it generates, token by token, with plain onnxruntime; runs in optimum's
environment. A bundle with a tokenizer gets a chat prompt, others made-up tokens.

python tests/interop/check.py BUNDLE…
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

from pocketphi.targets.ort_mobile.optimum_adapter import load_causal_lm

NEW_TOKENS = 32
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


class Plain:
    """Greedy decoding on onnxruntime alone, with caches as plain arrays."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.eos = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
        self.long_after = config["original_max_position_embeddings"] if config["rope_scaling"] else None
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def generate(self, prompt: Sequence[int]) -> list[int]:
        """At most NEW_TOKENS tokens, up to and with the end token."""
        tokens, caches = list(prompt), self._empty()
        new = tokens
        for _ in range(NEW_TOKENS):
            if self.long_after and len(tokens) - len(new) <= self.long_after < len(tokens):
                new, caches = tokens, self._empty()
            logits, caches = self._step(new, len(tokens), caches)
            new = [int(logits[0, -1].argmax())]
            tokens = tokens + new
            if new[0] in self.eos:
                break
        return tokens[len(prompt) :]

    def _step(self, new: list[int], total: int, caches: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, total), np.int64), **caches}
        if any(value.name == "position_ids" for value in self.session.get_inputs()):
            feeds["position_ids"] = np.arange(total - len(new), total)[None]
        names = [value.name for value in self.session.get_outputs()]
        came = dict(zip(names, self.session.run(names, feeds)))
        logits = came.pop("logits")
        return logits, {name.replace("present", "past_key_values"): cache for name, cache in came.items()}

    def _empty(self) -> dict[str, Any]:
        caches = {v.name: v.shape for v in self.session.get_inputs() if v.name.startswith("past_key_values")}
        return {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in caches.items()}


def prompt_of(folder: Path, vocab: int) -> list[int]:
    """A chat prompt where there is a tokenizer, else 16 tokens."""
    if not (folder / "tokenizer.json").exists():
        return [3 + 7 * i % (vocab - 3) for i in range(16)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True))


def generated(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What `generate()` adds to each prompt, up to and with the end token; prompts are padded to the right."""
    pad, longest = model.config.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [up_to_end(row, model.generation_config.eos_token_id) for row in out[:, longest:].tolist()]


def up_to_end(tokens: list[int], eos: int | list[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in (eos if isinstance(eos, list) else [eos])]
    return tokens[: ends[0] + 1] if ends else tokens


def checks(folder: Path) -> dict[str, Callable[[], str]]:
    """Name → a function that returns what is wrong, or nothing."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    plain, model = Plain(folder), load_causal_lm(folder, threads=1)
    prompt = prompt_of(folder, config["vocab_size"])
    prompts = [prompt, prompt[: len(prompt) // 2], prompt[:3]]
    expected = [plain.generate(p) for p in prompts]

    def same(came: list[list[int]]) -> str:
        wrong = [(c, e) for c, e in zip(came, expected) if c != e]
        return f"expected {wrong[0][1]}, came {wrong[0][0]}" if wrong else ""

    def left_padding() -> str:
        try:
            model(torch.tensor([[0, *prompt]]), torch.tensor([[0] + [1] * len(prompt)]))
        except ValueError as error:
            return "" if "begins with 1 padding token" in str(error) else f"another message: {error}"
        return "was accepted"

    def text() -> str:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
        reply = chat(MESSAGES, max_new_tokens=NEW_TOKENS, do_sample=False)[0]["generated_text"][-1]["content"]
        wanted = tokenizer.decode(expected[0], skip_special_tokens=True)
        print(f"  {reply!r}")
        return "" if reply == wanted else f"expected {wanted!r}, came {reply!r}"

    found: dict[str, Callable[[], str]] = {
        "adapter, one row": lambda: same(generated(model, prompts[:1])),
        "adapter, IO binding": lambda: same(generated(load_causal_lm(folder, use_io_binding=True), prompts[:1])),
        "adapter, left padding refused": left_padding,
    }
    if not config["rope_scaling"]:  # with LongRoPE, transformers switches by the longest row of a batch
        found["adapter, rows of three lengths"] = lambda: same(generated(model, prompts))
    usual = config["num_attention_heads"] == config["num_key_value_heads"] and "head_dim" not in config
    if usual:
        found["optimum alone, one row"] = lambda: same(
            generated(ORTModelForCausalLM.from_pretrained(folder), prompts[:1])
        )
    if (folder / "tokenizer.json").exists():
        found["adapter, transformers' pipeline"] = text
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    failures = 0
    for folder in parser.parse_args().bundles:
        print(folder.name)
        for name, check in checks(folder).items():
            wrong = check()
            failures += bool(wrong)
            print(f"  {'FAILED' if wrong else 'ok'}  {name}{': ' if wrong else ''}{wrong}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
