"""How much faster answers come where the runtime guesses tokens that come next. See README.md.

Each request of drafts.toml is answered with guesses and without, in turns, by greedy choice, in processes of the C runtime.
Only the time of decodes counts, as the runtime's process measures it. With `--replay` the bundle reads what another one
answers, token by token: so a model with random weights, at its full size, is measured on texts that say something.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import preflight

preflight.require(__file__)

from common import Bar  # noqa: E402 - packages may be missing
from guessed import Sum, finish, requests, together  # noqa: E402

from pocketphi.artifacts.bundle import Bundle  # noqa: E402
from pocketphi.compiler.hosts import check_draft, open_host  # noqa: E402
from pocketphi.graph.hf_config import read_config  # noqa: E402
from pocketphi.graph.tokenizer import Tokenizer  # noqa: E402
from pocketphi.targets.tvm_arm.host import TvmHost, TvmRunner  # noqa: E402

Answer = tuple[list[Any], int, float]
"""Its tokens, or what tells whether two are the same; calls of the library for it, and milliseconds."""


def answer(runner: TvmRunner, prompt: list[int], most: int, stops: frozenset[int]) -> Answer:
    """Greedy tokens."""
    process = runner.process
    process.reset()
    token, made, time = int(process.prefill(prompt).argmax()), [], 0.0
    begin = process.calls
    while len(made) < most and token not in stops:
        made.append(token)
        token = int(process.decode(token).argmax())
        time += process.last.milliseconds
    return made, process.calls - begin, time


def replay(runner: TvmRunner, prompt: list[int], answered: list[int]) -> Answer:
    """What each token of an answer leads to, as a digest of all logits."""
    process = runner.process
    process.reset()
    process.prefill(prompt)
    begin, time, led = process.calls, 0.0, list[bytes]()
    for token in answered:
        led.append(hashlib.sha256(process.decode(token).tobytes()).digest())
        time += process.last.milliseconds
    return led, process.calls - begin, time


def renamed(text: list[int], vocabulary: int) -> list[int]:
    """Tokens of another vocabulary as those of one of this size, equal ones where they were equal. Raises ValueError for a
    text of more."""
    names = {token: number for number, token in enumerate(dict.fromkeys(text))}
    if len(names) > vocabulary:
        raise ValueError(f"{len(names)} tokens, and the model has {vocabulary}")
    return [names[token] for token in text]


def opened(path: Path) -> tuple[Bundle, TvmHost]:
    bundle = Bundle.open(path)
    host = open_host(path, bundle.manifest, "tvm-arm")
    assert isinstance(host, TvmHost)
    return bundle, host


def main() -> int:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("bundle", type=Path, help="compiled with --target tvm-arm --os host")
    p.add_argument("--draft", type=Path, help="a bundle that guesses as well (default: the text alone)")
    p.add_argument("--tokens", type=int, default=256, help="of an answer, at most (default %(default)s)")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=1, help="how often all of it is done (default %(default)s)")
    p.add_argument("--past-end", action="store_true", help="go on after the model's end token, to --tokens")
    p.add_argument(
        "--replay", type=Path, metavar="BUNDLE", help="read what this one answers, and not the bundle's own choice"
    )
    p.add_argument("--every", type=int, default=1, help="answer only every n-th request (default %(default)s)")
    p.add_argument("--json", type=Path)
    a = p.parse_args()

    bundle, host = opened(a.bundle)
    draft = a.draft or "auto"
    check_draft(draft, host, bundle, "tvm-arm")
    speaks = a.replay or a.bundle
    tokenizer, stops = Tokenizer.load(speaks), frozenset() if a.past_end else frozenset(read_config(speaks).eos)
    prompts = [(kind, tokenizer.encode_chat([{"role": "user", "content": text}])) for kind, text in requests()][
        :: a.every
    ]
    room = max(len(prompt) for _, prompt in prompts) + a.tokens + 1
    runners = [host.talker(room, a.threads, how) for how in ("none", draft)]
    other = opened(a.replay)[1].talker(room, a.threads, "none") if a.replay else None

    def both(prompt: list[int], order: tuple[int, int]) -> dict[int, Answer]:
        if other is None:
            return {i: answer(runners[i], prompt, a.tokens, stops) for i in order}
        answered = answer(other, prompt, a.tokens, stops)[0]
        text = renamed([*prompt, *answered], runners[0].process.vocab)
        return {i: replay(runners[i], text[: len(prompt)], text[len(prompt) :]) for i in order}

    sums: dict[str, Sum] = defaultdict(Sum)
    for turn in range(a.rounds):
        for number, (kind, prompt) in enumerate(prompts):
            order = (0, 1) if (turn + number) % 2 else (1, 0)
            found = both(prompt, order)
            (plain, calls, time), (guessed, fewer, less) = found[0], found[1]
            different = sum(x != y for x, y in zip(plain, guessed)) + abs(len(plain) - len(guessed))
            sums[kind] += Sum(len(plain), different, (calls, fewer), (time, less))
            print(f"{number + 1}/{len(prompts)} {kind}: {len(plain)} tokens, {fewer} calls", file=sys.stderr)
    repeating = together(sums)
    limits = [
        Bar("tokens that differ", repeating.different + sums["chat"].different, 0, ""),
        Bar("speed of repeating answers", repeating.speedup, 1.6, "x", at_least=True),
    ]
    if "chat" in sums:
        limits.append(Bar("speed of free chat", sums["chat"].speedup, 0.97, "x", at_least=True))
    return finish(sums, limits, a.json)


if __name__ == "__main__":
    sys.exit(main())
