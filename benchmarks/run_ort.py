"""Speed in onnxruntime-genai: our bundle and the model builder's int4 artifact of the same checkpoint, in turn.

Each artifact runs in a worker process of its own that stays loaded; rounds alternate between the two. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import (
    BUILDER,
    FULL_MODEL,
    POCKETPHI,
    Bar,
    StepError,
    make_checkpoint,
    print_table,
    run,
    vocab_size,
    with_fast_tokenizer,
)

OURS, THEIRS = "pocketphi", "builder"
BARS = {"decode": 1.0, "prefill": 1.1}
"""Our tokens a second over the builder's, at least: decode after any prompt, prefill of BAR_PROMPT tokens."""
BAR_PROMPT = 512
GIB = 1 << 30


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


class Worker:
    """A process that holds one artifact loaded and answers requests: one JSON line in, one out."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_seconds = self._answer()["load"]

    def round(self, tokens: Sequence[int], generate: int) -> dict[str, float]:
        """Seconds of `prefill` and of `decode`, peak `memory` in bytes."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"tokens": list(tokens), "generate": generate}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise StepError(f"the worker ended with exit code {self.process.wait()}; what it said is above")
        answer: dict[str, float] = json.loads(line)
        return answer


def work(folder: Path, threads: int) -> None:
    """The worker's side."""
    import onnxruntime_genai as og

    begin = time.perf_counter()
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    print(json.dumps({"load": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        tokens, generate = request["tokens"], request["generate"]
        length = len(tokens) + generate + 1
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)  # no early end
        generator = og.Generator(model, params)
        begin = time.perf_counter()
        generator.append_tokens([tokens])
        generator.generate_next_token()  # picks the first token: from here on each call runs the model on one token
        middle = time.perf_counter()
        for _ in range(generate):
            generator.generate_next_token()
        end = time.perf_counter()
        if generator.token_count() != length:
            raise RuntimeError(f"{generator.token_count()} tokens after the round, expected {length}")
        del generator
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"prefill": middle - begin, "decode": end - middle, "memory": memory}), flush=True)


def compare(
    folders: dict[str, Path], threads: int, prompts: list[list[int]], generate: int, rounds: int
) -> list[Speed]:
    """All artifacts with one number of threads. The order of the two turns round with every round: A B, B A, A B, …"""
    workers: dict[str, Worker] = {}
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    try:
        for name, folder in folders.items():
            workers[name] = Worker(folder, threads)
            workers[name].round(prompts[-1], 4)  # warms up
        memory = dict.fromkeys(workers, 0)
        for index in range(rounds):
            print(f"{threads} threads, round {index + 1} of {rounds} …", file=sys.stderr)
            for prompt in prompts:
                for name in list(workers)[:: 1 if index % 2 == 0 else -1]:
                    came = workers[name].round(prompt, generate)
                    times.setdefault((name, len(prompt)), []).append((came["prefill"], came["decode"]))
                    memory[name] = max(memory[name], int(came["memory"]))
    finally:
        for worker in workers.values():
            worker.close()
    speeds = []
    for (name, length), taken in sorted(times.items(), key=lambda item: -item[0][1]):
        prefill = tuple(length / seconds for seconds, _ in taken)
        decode = tuple(generate / seconds for _, seconds in taken)
        middle = statistics.median(prefill), statistics.median(decode)
        load = workers[name].load_seconds
        speeds.append(Speed(name, threads, length, *middle, prefill, decode, load, memory[name]))
    return speeds


def artifacts(a: argparse.Namespace) -> dict[str, Path]:
    """Both artifacts of the model, made where they are missing."""
    work = a.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(a.model, work)[0].resolve()
    ours, theirs = a.bundle or work / "pocketphi", a.builder or work / "builder"
    if not ours.exists():
        print("compiling …", file=sys.stderr)
        recipe = ["--recipe", "rtn", "--block", "32", "--verify", "never"]
        run([*POCKETPHI, "compile", str(checkpoint), "-o", str(ours), *recipe])
    if not (theirs / "genai_config.json").exists():
        print("building with onnxruntime-genai …", file=sys.stderr)
        source = with_fast_tokenizer(checkpoint, work / "builder-input")
        run([*BUILDER, "-i", str(source), "-o", str(theirs), "-p", "int4", "-e", "cpu"])
    return {OURS: ours, THEIRS: theirs}


def bars(speeds: list[Speed]) -> list[Bar]:
    """Our speed over the builder's, for each number of threads and each prompt: the median of the rounds' own ratios,
    in which both artifacts met the same machine."""
    by_key = {(s.artifact, s.threads, s.prompt): s for s in speeds}
    found = []
    for (name, threads, prompt), ours in by_key.items():
        if name != OURS:
            continue
        theirs = by_key[THEIRS, threads, prompt]
        for kind, limit in BARS.items():
            pairs = zip(getattr(ours, f"{kind}_rounds"), getattr(theirs, f"{kind}_rounds"))
            title = f"{kind}, prompt {prompt}, {threads} thread{'s' if threads > 1 else ''}: ours / builder's"
            unbound = "" if kind == "decode" or prompt == BAR_PROMPT else f"holds for prompt {BAR_PROMPT}"
            found.append(Bar(title, statistics.median(a / b for a, b in pairs), limit, at_least=True, unbound=unbound))
    return found


def row(s: Speed) -> list[str]:
    """One line of the table: the median, and the slowest to the fastest round."""

    def spread(values: tuple[float, ...]) -> str:
        return f"{min(values):.1f}–{max(values):.1f}"

    speeds = [f"{s.prefill:.1f}", spread(s.prefill_rounds), f"{s.decode:.1f}", spread(s.decode_rounds)]
    return [s.artifact, str(s.threads), str(s.prompt), *speeds, f"{s.load_seconds:.1f}", f"{s.memory / GIB:.2f}", ""]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=FULL_MODEL, help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument(
        "--work", type=Path, default=Path("build/run_ort"), help="folder for all files (default %(default)s)"
    )
    p.add_argument(
        "--bundle", type=Path, help="a bundle of the model (default: compile one with --recipe rtn --block 32)"
    )
    p.add_argument("--builder", type=Path, help="a folder of the model builder (default: build one with its defaults)")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    p.add_argument("--prompts", type=int, nargs="+", default=[512, 64], help="tokens of the prompts (default 512 64)")
    p.add_argument("--generate", type=int, default=64, help="tokens generated after each (default %(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return p.parse_args()


def main() -> int:
    a = arguments()
    if a.worker:
        work(a.worker, a.threads[0])
        return 0
    speeds: list[Speed] = []
    try:
        folders = artifacts(a)
        size = vocab_size(folders[OURS])
        prompts = [random.Random(length).choices(range(3, size), k=length) for length in a.prompts]
        for threads in a.threads:
            speeds += compare(folders, threads, prompts, a.generate, a.rounds)
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    head = ["artifact", "threads", "prompt", "prefill tok/s", "", "decode tok/s", "", "load s", "peak GiB", ""]
    print_table(f"{a.model} in onnxruntime-genai, medians of {a.rounds} rounds", head, [row(s) for s in speeds])
    limits = bars(speeds)
    print_table("Ratios", ["figure", "measured", "limit", ""], [bar.row() for bar in limits])
    if a.json:
        figures = {"speeds": [dataclasses.asdict(s) for s in speeds], "limits": [bar.as_json() for bar in limits]}
        data = {"model": a.model, **figures}
        a.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return int(any(bar.missed for bar in limits))


if __name__ == "__main__":
    sys.exit(main())
