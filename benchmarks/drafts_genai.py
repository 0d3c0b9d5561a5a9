"""How much faster answers come where onnxruntime-genai guesses tokens that come next. See README.md.

Each request of drafts.toml is answered with guesses and without, in turns, by greedy choice. The CPU time of decodes counts:
of a machine that others use too, time on the clock says little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import Any

import preflight

preflight.require(__file__)

import numpy as np  # noqa: E402 - packages may be missing
import onnxruntime_genai as genai  # noqa: E402
import torch  # noqa: E402
from common import Bar  # noqa: E402
from guessed import Sum, finish, requests, together  # noqa: E402

from pocketphi.graph.hf_config import read_config  # noqa: E402
from pocketphi.graph.tokenizer import Tokenizer  # noqa: E402
from pocketphi.targets.ort_mobile.host import OrtHost  # noqa: E402

OFF = {"ngram_size": 0, "ngram_chained_lookup": False, "min_adaptive_k": 0, "cooldown": False}


def answer(options: dict[str, Any], prompt: list[int], model: Any, most: int) -> tuple[list[int], int, float]:
    """Greedy tokens, passes of the model for them, and milliseconds of CPU time."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + most, do_sample=False)
    parameters.set_speculative_options(**options)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    generator.generate_next_token()  # its logits are those of the prompt
    begin, made = time.process_time(), 0
    while not generator.is_done():
        generator.generate_next_token()
        made += 1
    milliseconds = 1000 * (time.process_time() - begin)
    counted = generator.get_speculative_stats()
    saved = counted.get("draft_tokens_accepted", 0) + counted.get("bonus_tokens", 0)
    return generator.get_sequence(0)[len(prompt) :].tolist(), made - saved, milliseconds


def genai_model(bundle: Path, threads: int) -> Any:
    """With so many threads."""
    config = genai.Config(str(bundle))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai.Model(config)


def answer_alone(runner: Any, prompt: list[int], most: int, eos: Container[int]) -> tuple[list[int], int, float]:
    """The same of onnxruntime alone, as `pocketphi chat` runs it."""
    runner.reset()
    logits, made = runner.step(torch.tensor([prompt])), list[int]()
    begin, before = time.process_time(), getattr(runner, "calls", 0)
    while len(made) < most and (not made or made[-1] not in eos):
        made.append(int(logits[0, -1].argmax()))
        logits = runner.step(torch.tensor([made[-1:]]))
    return made, getattr(runner, "calls", len(made)) - before, 1000 * (time.process_time() - begin)


def main() -> int:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("bundle", type=Path, help="compiled with --target ort-mobile --drafts")
    p.add_argument("--tokens", type=int, default=256, help="of an answer, at most (default %(default)s)")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--every", type=int, default=1, help="answer only every n-th request (default %(default)s)")
    p.add_argument("--alone", action="store_true", help="without onnxruntime-genai, as 'pocketphi chat' runs a bundle")
    p.add_argument("--json", type=Path)
    a = p.parse_args()

    tokenizer = Tokenizer.load(a.bundle)
    if a.alone:
        eos, host = read_config(a.bundle).eos, OrtHost(a.bundle)
        off, on = (host.talker(2048, a.threads, draft) for draft in ("none", "auto"))
        take: Callable[..., tuple[list[int], int, float]] = partial(answer_alone, most=a.tokens, eos=eos)
    else:
        off, on = OFF, json.loads((a.bundle / "genai_config.json").read_text("utf-8"))["speculative"]
        take = partial(answer, model=genai_model(a.bundle, a.threads), most=a.tokens)
    asked = list(requests())[:: a.every]
    sums: dict[str, Sum] = defaultdict(Sum)
    for number, (kind, text) in enumerate(asked):
        prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
        order = (off, on) if number % 2 else (on, off)
        found = {id(one): take(one, prompt) for one in order}
        (plain, calls, slow), (guessed, fewer, fast) = found[id(off)], found[id(on)]
        different = sum(x != y for x, y in zip(plain, guessed)) + abs(len(plain) - len(guessed))
        sums[kind] += Sum(len(plain), different, (calls, fewer), (slow, fast))
        print(
            f"{number + 1}/{len(asked)} {kind}: {len(plain)} tokens, {different} others, {slow / fast:.2f}",
            file=sys.stderr,
        )
    limits = [Bar("speed of repeating answers", together(sums).speedup, 1.3, "x", at_least=True)]
    return finish(sums, limits, a.json)


if __name__ == "__main__":
    sys.exit(main())
