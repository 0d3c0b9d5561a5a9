"""Whole models in turn: each artifact stays loaded in a process of its own, and rounds go from one to the next."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from common import POCKETPHI, Bar, run
from workers import Worker, memory_of, serve

GIB = 1 << 30
RECIPE = ["--recipe", "rtn", "--block", "32", "--verify", "never"]


class Model(Protocol):
    """An artifact that is loaded. load_seconds: how long that took; memory: peak resident bytes, so far."""

    load_seconds: float
    memory: int

    def prefill(self, tokens: Sequence[int], room: int) -> float:
        """Seconds to take a prompt and pick the token after it; everything before is forgotten. room: tokens to come."""
        ...

    def decode(self, count: int) -> float:
        """Seconds of `count` steps, each of which appends the picked token and picks the next."""
        ...

    def close(self) -> None: ...


class WorkerModel:
    """A model in a worker that answers `prefill ROOM ID…` and `decode COUNT`."""

    def __init__(self, command: Sequence[str]) -> None:
        self.worker = Worker(command)
        self.load_seconds = float(self.worker.ready["load"])
        self.memory = 0

    def prefill(self, tokens: Sequence[int], room: int) -> float:
        return self._seconds(self.worker.ask("prefill", room, *tokens))

    def decode(self, count: int) -> float:
        return self._seconds(self.worker.ask("decode", count))

    def close(self) -> None:
        self.worker.close()

    def _seconds(self, answer: dict[str, Any]) -> float:
        self.memory = int(answer["memory"])
        return float(answer["seconds"])


def genai_model(folder: Path, threads: int) -> WorkerModel:
    """A folder that onnxruntime-genai loads."""
    return WorkerModel([sys.executable, __file__, str(folder), str(threads)])


def genai_worker(folder: str, threads: int) -> None:
    """The worker's side."""
    import onnxruntime_genai as og

    begin = time.perf_counter()
    config = og.Config(folder)
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    generator: Any = None

    def answer(verb: str, words: list[str]) -> dict[str, Any]:
        nonlocal generator
        if verb == "prefill":
            room, tokens = int(words[0]), [int(word) for word in words[1:]]
            params = og.GeneratorParams(model)
            params.set_search_options(max_length=room, min_length=room, do_sample=False)  # no early end
            generator = None  # its cache, before the next one's
            generator = og.Generator(model, params)
        start = time.perf_counter()
        if verb == "prefill":
            generator.append_tokens([tokens])
            generator.generate_next_token()  # picks the first token: from here on each call runs the model on one token
            expected = len(tokens) + 1
        else:
            expected = generator.token_count() + int(words[0])
            for _ in range(int(words[0])):
                generator.generate_next_token()
        seconds = time.perf_counter() - start
        if generator.token_count() != expected:
            raise RuntimeError(f"{generator.token_count()} tokens after {verb}, expected {expected}")
        return {"seconds": seconds, "memory": memory_of("self", "VmHWM")}

    serve({"load": time.perf_counter() - begin}, answer)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Medians over the rounds, in tokens a second, and every round's value; memory in bytes."""

    artifact: str
    threads: int
    prompt: int
    prefill: float
    decode: float
    prefill_rounds: tuple[float, ...]
    decode_rounds: tuple[float, ...]
    load_seconds: float
    memory: int


def compare(
    opens: dict[str, Callable[[int], Model]],
    threads: int,
    prompts: list[list[int]],
    generate: int,
    rounds: int,
    turns: int = 1,
    before_close: Callable[[dict[str, Model]], None] = lambda models: None,
) -> list[Speed]:
    """All artifacts with one number of threads. opens: what loads each, given the threads.

    In a round all take the same prompt, then all generate, in `turns` turns. The order turns round every time: A B, B A, …
    """
    models: dict[str, Model] = {}
    prefills: dict[tuple[str, int], list[float]] = {}
    decodes: dict[tuple[str, int], list[float]] = {}
    try:
        for name, load in opens.items():
            models[name] = load(threads)
            warm = prompts[-1][:64]
            models[name].prefill(warm, len(warm) + 5)
            models[name].decode(4)
        for index in range(rounds):
            print(f"{threads} threads, round {index + 1} of {rounds} …", file=sys.stderr)
            for prompt in prompts:
                key, room = len(prompt), len(prompt) + generate + 1
                for name in _order(models, index):
                    seconds = models[name].prefill(prompt, room)
                    prefills.setdefault((name, key), []).append(len(prompt) / seconds)
                for turn in range(turns):
                    for name in _order(models, index + turn):
                        seconds = models[name].decode(generate // turns)
                        decodes.setdefault((name, key), []).append(generate // turns / seconds)
        before_close(models)
    finally:
        for model in models.values():
            model.close()
    speeds = []
    for (name, length), prefill in sorted(prefills.items(), key=lambda item: -item[0][1]):
        decode = decodes[name, length]
        middle = statistics.median(prefill), statistics.median(decode)
        loaded = models[name].load_seconds, models[name].memory
        speeds.append(Speed(name, threads, length, *middle, tuple(prefill), tuple(decode), *loaded))
    return speeds


def _order(models: dict[str, Model], number: int) -> list[str]:
    return list(models)[:: 1 if number % 2 == 0 else -1]


def made_up_prompts(vocab: int, lengths: Sequence[int]) -> list[list[int]]:
    return [random.Random(length).choices(range(3, vocab), k=length) for length in lengths]


def ratio(ours: Speed, theirs: Speed, kind: str) -> float:
    """Our speed over theirs: the median of the rounds' own ratios, in which both met the same machine."""
    pairs = zip(getattr(ours, f"{kind}_rounds"), getattr(theirs, f"{kind}_rounds"))
    return statistics.median(a / b for a, b in pairs)


def ratios(
    speeds: list[Speed], ours: str, limits: dict[str, float], bound_prompt: int | None = None, everywhere: str = ""
) -> list[Bar]:
    """For each number of threads and each prompt our speed over that of whom we beat by least.

    limits: at least so much, for `prefill` and `decode`. They hold for prompts of `bound_prompt` tokens; the one of the kind
    `everywhere` for all.
    """
    found = []
    for mine in speeds:
        peers = [s for s in speeds if s.artifact != ours and (s.threads, s.prompt) == (mine.threads, mine.prompt)]
        if mine.artifact != ours or not peers:
            continue
        for kind, limit in limits.items():
            value, name = min((ratio(mine, theirs, kind), theirs.artifact) for theirs in peers)
            title = f"{kind}, prompt {mine.prompt}, {mine.threads} thread{'s' * (mine.threads > 1)}: ours / {name}'s"
            free = bound_prompt is not None and mine.prompt != bound_prompt and kind != everywhere
            unbound = f"holds for prompt {bound_prompt}" if free else ""
            found.append(Bar(title, value, limit, at_least=True, unbound=unbound))
    return found


HEAD = ["artifact", "threads", "prompt", "prefill tok/s", "", "decode tok/s", "", "load s", "peak GiB", ""]


def row(s: Speed) -> list[str]:
    """One line of the table under HEAD: the median, and the slowest to the fastest round."""

    def spread(values: tuple[float, ...]) -> str:
        return f"{min(values):.1f}–{max(values):.1f}"

    speeds = [f"{s.prefill:.1f}", spread(s.prefill_rounds), f"{s.decode:.1f}", spread(s.decode_rounds)]
    return [s.artifact, str(s.threads), str(s.prompt), *speeds, f"{s.load_seconds:.1f}", f"{s.memory / GIB:.2f}", ""]


def compiled(checkpoint: Path, out: Path, *options: str) -> Path:
    """A bundle of the checkpoint, made where it is missing."""
    if not out.exists():
        print(f"compiling {out.name} …", file=sys.stderr)
        run([*POCKETPHI, "compile", str(checkpoint), "-o", str(out), *RECIPE, *options])
    return out


if __name__ == "__main__":
    genai_worker(sys.argv[1], int(sys.argv[2]))
