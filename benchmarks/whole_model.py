"""Whole models in turn: each artifact is loaded in a process of its own, and a round goes from one to the next."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from common import POCKETPHI, Bar, run
from workers import Worker, memory_of, serve

GIB = 1 << 30
KINDS = ("first_prefill", "prefill", "decode")


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
    """Every round's value, in tokens a second: of the first prompt of that length after loading, which meets memory that was
    never used, of the next one, and of decoding; seconds to load (median), and the largest memory in bytes."""

    artifact: str
    threads: int
    prompt: int
    first_prefill: tuple[float, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    load_seconds: float
    memory: int


def compare(
    opens: dict[str, Callable[[int], Model]],
    threads: int,
    prompts: list[list[int]],
    generate: int,
    rounds: int,
    turns: int = 1,
    at_end: Callable[[dict[str, Model]], None] = lambda models: None,
) -> list[Speed]:
    """All artifacts with one number of threads. opens: what loads each, given the threads.

    Each round loads all of them anew, because where a process's memory lies can make it 5 % slower for as long as it lives.
    Then all take the same prompt, all take it again, and all generate, in `turns` turns. Another is first every time: A B,
    B A, …
    at_end: looks at the loaded models of the last round.
    """
    measured: dict[str, dict[tuple[str, int], list[float]]] = {kind: defaultdict(list) for kind in KINDS}
    loads: dict[str, list[float]] = defaultdict(list)
    memory: dict[str, int] = defaultdict(int)
    for index in range(rounds):
        print(f"{threads} threads, round {index + 1} of {rounds} …", file=sys.stderr)
        models: dict[str, Model] = {}
        try:
            for name in _order(opens, index):
                models[name] = opens[name](threads)
                warm = prompts[-1][:64]
                models[name].prefill(warm, len(warm) + 5)
                models[name].decode(4)
            for prompt in prompts:
                key, room = len(prompt), len(prompt) + generate + 1
                for turn, kind in enumerate(("first_prefill", "prefill")):
                    for name in _order(opens, index + turn):
                        measured[kind][name, key].append(len(prompt) / models[name].prefill(prompt, room))
                for turn in range(turns):
                    for name in _order(opens, index + turn):
                        seconds = models[name].decode(generate // turns)
                        measured["decode"][name, key].append(generate // turns / seconds)
            for name, model in models.items():
                loads[name].append(model.load_seconds)
                memory[name] = max(memory[name], model.memory)
            if index == rounds - 1:
                at_end(models)
        finally:
            for model in models.values():
                model.close()
    speeds = []
    for name, length in sorted(measured["prefill"], key=lambda key: -key[1]):
        values = {kind: tuple(found[name, length]) for kind, found in measured.items()}
        load, most = statistics.median(loads[name]), memory[name]
        speeds.append(Speed(name, threads, length, **values, load_seconds=load, memory=most))
    return speeds


def _order(names: Iterable[str], number: int) -> list[str]:
    """Each one is first, second, … as often as any other."""
    names = list(names)
    first = number % len(names)
    return names[first:] + names[:first]


def made_up_prompts(vocab: int, lengths: Sequence[int]) -> list[list[int]]:
    return [random.Random(length).choices(range(3, vocab), k=length) for length in lengths]


def ratio(ours: Speed, theirs: Speed, kind: str) -> tuple[float, float]:
    """Our speed over theirs, and its standard error: the median of the turns' own ratios, in which both met the same machine,
    and how far it strays when as many rounds are drawn again out of these (bootstrap). The turns of a round stay together."""
    pairs = [a / b for a, b in zip(getattr(ours, kind), getattr(theirs, kind))]
    rounds = len(ours.prefill)
    turns = len(pairs) // rounds
    groups = [pairs[turns * i : turns * (i + 1)] for i in range(rounds)]
    draw = random.Random(0)
    medians = [statistics.median(chain(*draw.choices(groups, k=rounds))) for _ in range(1000)]
    return statistics.median(pairs), statistics.stdev(medians)


def ratios(
    speeds: list[Speed],
    ours: str,
    peers: Collection[str],
    limits: dict[str, float],
    bound_prompt: int | None = None,
    everywhere: str = "",
    unbound: str = "",
) -> list[Bar]:
    """For each number of threads and each prompt our speed over that of the peer whom we beat by least.

    limits: at least so much, by KINDS. They hold for prompts of `bound_prompt` tokens; the one of the kind `everywhere` for
    all. unbound: why none holds.
    """
    found = []
    for mine in speeds:
        others = [s for s in speeds if s.artifact in peers and (s.threads, s.prompt) == (mine.threads, mine.prompt)]
        if mine.artifact != ours or not others:
            continue
        for kind, limit in limits.items():
            (value, error), name = min((ratio(mine, theirs, kind), theirs.artifact) for theirs in others)
            of = f"prompt {mine.prompt}, {mine.threads} thread{'s' * (mine.threads > 1)}"
            title = f"{kind.replace('_', ' ')}, {of}: {ours} / {name}"
            free = bound_prompt is not None and mine.prompt != bound_prompt and kind != everywhere
            why = f"holds for prompt {bound_prompt}" if free else unbound
            found.append(Bar(title, value, limit, at_least=True, unbound=why, error=error))
    return found


HEAD = ["artifact", "threads", "prompt"]
HEAD += ["first prefill tok/s", "", "prefill tok/s", "", "decode tok/s", "", "load s", "peak GiB", ""]


def row(s: Speed) -> list[str]:
    """One line of the table under HEAD: the medians, and the slowest to the fastest round."""
    speeds = []
    for kind in KINDS:
        values = getattr(s, kind)
        speeds += [f"{statistics.median(values):.1f}", f"{min(values):.1f}–{max(values):.1f}"]
    return [s.artifact, str(s.threads), str(s.prompt), *speeds, f"{s.load_seconds:.1f}", f"{s.memory / GIB:.2f}", ""]


def compiled(checkpoint: Path | str, out: Path, *options: str) -> Path:
    """A bundle of the checkpoint, made where it is missing. A policy among the options says the recipe itself."""
    if not out.exists():
        print(f"compiling {out.name} …", file=sys.stderr)
        recipe = [] if "--policy" in options else ["--recipe", "rtn"]
        run([*POCKETPHI, "compile", str(checkpoint), "-o", str(out), "--verify", "never", *recipe, *options])
    return out


if __name__ == "__main__":
    genai_worker(sys.argv[1], int(sys.argv[2]))
