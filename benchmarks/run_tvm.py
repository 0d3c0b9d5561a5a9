"""Speed and memory of our TVM bundle on this host, next to our ORT bundle, the model builder's artifact and llama.cpp.

All are made of the same checkpoint, and rounds go from one to the next. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import preflight
from common import FULL_MODEL, Bar, StepError, built, judge, make_checkpoint, print_table, size_of, vocab_size
from llama_cpp import convert, link_flags
from whole_model import (
    HEAD,
    Model,
    Speed,
    WorkerModel,
    compare,
    compiled,
    genai_model,
    made_up_prompts,
    ratios,
    row,
)
from workers import build_native, memory_of

from pocketphi.targets.tvm_arm.description import DESCRIPTION, read_description
from pocketphi.targets.tvm_arm.host import TvmHost
from pocketphi.targets.tvm_arm.params import PARAMS_FILE

OURS, ORT, BUILDER, LLAMA = "tvm", "ort bundle", "builder", "llama.cpp"
BARS = {"prefill": 1.2, "decode": 1.2}
"""Our tokens a second over those of the fastest of the others, at least."""
BLOCK = ("--block", "32")
"""All artifacts have the same, so that runtimes are compared."""
SPARE = 150e6
"""Bytes that decoding may need beside parameters and K/V cache."""
BUILDER_LIMIT = 2 << 30
"""Bytes of a checkpoint of which the builder's artifact is made without asking: it takes three times as much memory."""


class TvmModel:
    """A TVM bundle in its C runtime. Seconds are the runtime's own, and those of picking the next token."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        room = min(ROOM, read_description(folder).context)
        self.runner = TvmHost(folder).runner(room, threads=threads)  # ends its process when it is forgotten
        self.process = self.runner.process
        self.load_seconds = self.process.opened.milliseconds / 1e3

    @property
    def memory(self) -> int:
        return self.process.last.peak_bytes

    def prefill(self, tokens: Sequence[int], room: int) -> float:
        if room > ROOM:
            raise StepError(f"{room} tokens: expected {ROOM} at most")
        self.process.reset()
        return self._pick(self.process.prefill(tokens))

    def decode(self, count: int) -> float:
        return sum(self._pick(self.process.decode(self.next)) for _ in range(count))

    def close(self) -> None:
        self.process.close()

    def decoding(self) -> tuple[int, int]:
        """Resident bytes now, and the bytes of the K/V cache that hold tokens."""
        cache = json.loads((self.folder / DESCRIPTION).read_text("utf-8"))["cache"]
        heads, _, row = cache["shape"]["saved"]
        width = np.dtype(cache["dtype"]["saved"]).itemsize
        return memory_of(self.process.pid, "VmRSS"), cache["count"] * heads * row * width * self.process.length

    def _pick(self, logits: object) -> float:
        begin = time.perf_counter()
        self.next = int(logits.argmax())  # type: ignore[attr-defined]
        return self.process.last.milliseconds / 1e3 + time.perf_counter() - begin


ROOM = 4096
"""Tokens that the cache has room for; rows cost memory once they are written."""


def llama_model(program: Path, file: Path, threads: int) -> WorkerModel:
    return WorkerModel([str(program), str(file), str(threads)])


def artifacts(a: argparse.Namespace) -> tuple[dict[str, Callable[[int], Model]], Path]:
    """What loads each, all made where they are missing; and our bundle."""
    work = a.work.resolve() / a.model.replace(":", "-").replace("/", "_")
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(a.model, a.work.resolve())[0].resolve()
    ours = a.bundle or compiled(checkpoint, work / "tvm", *BLOCK, "--target", "tvm-arm", "--os", "host")
    opens: dict[str, Callable[[int], Model]] = {OURS: partial(TvmModel, ours)}
    opens[ORT] = partial(genai_model, compiled(checkpoint, work / "ort", *BLOCK))
    if a.builder or size_of(checkpoint) <= BUILDER_LIMIT:
        opens[BUILDER] = partial(genai_model, built(checkpoint, a.builder or work / "builder"))
    if a.llama_cpp:
        file = work / "Q4_0.gguf"
        if not file.exists():
            print("converting for llama.cpp …", file=sys.stderr)
            convert(a.llama_cpp, checkpoint, work)[1].unlink()
        program = build_native("llama_worker.cc", a.work.resolve(), "c++", *link_flags(a.llama_cpp, "llama"))
        opens[LLAMA] = partial(llama_model, program, file)
    return opens, ours


def memory_bar(model: Model, bundle: Path, threads: int) -> Bar:
    assert isinstance(model, TvmModel)
    resident, cache = model.decoding()
    limit = (bundle / PARAMS_FILE).stat().st_size + cache + SPARE
    title = f"resident after decoding, {threads} thread{'s' * (threads > 1)}"
    return Bar(title, resident / 1e9, round(limit / 1e9, 3), "GB")


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=FULL_MODEL, help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument("--work", type=Path, default=Path("build/run_tvm"), help="for all files (default %(default)s)")
    p.add_argument("--bundle", type=Path, help="a TVM bundle for this host (default: compile one)")
    p.add_argument(
        "--builder", type=Path, metavar="DIR", help="of the model builder; made where a small model's is missing"
    )
    p.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a built llama.cpp source tree (default: left out)")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    p.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default %(default)s)")
    p.add_argument("--generate", type=int, default=64, help="tokens generated after it (default %(default)s)")
    p.add_argument(
        "--turns", type=int, default=4, help="in which they are, each one's own figure (default %(default)s)"
    )
    p.add_argument("--rounds", type=int, help="default 8; of the full-size model 4")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return p.parse_args()


def main() -> int:
    a = arguments()
    steps = [] if a.builder or a.model == FULL_MODEL else ["builder"]
    preflight.require(__file__, [*steps, "llama.cpp"] if a.llama_cpp else steps)
    rounds = a.rounds or (4 if a.model == FULL_MODEL else 8)
    speeds: list[Speed] = []
    limits: list[Bar] = []
    try:
        opens, bundle = artifacts(a)
        prompts = made_up_prompts(vocab_size(bundle), [a.prompt])
        for threads in a.threads:

            def look(models: dict[str, Model], threads: int = threads) -> None:
                limits.append(memory_bar(models[OURS], bundle, threads))

            speeds += compare(opens, threads, prompts, a.generate, rounds, a.turns, look)
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print_table(f"{a.model} on this host, medians of {rounds} rounds", HEAD, [row(s) for s in speeds])
    for name, option in ((BUILDER, "--builder DIR"), (LLAMA, "--llama-cpp DIR")):
        if name not in opens:
            print(f"  {name}: not measured: give {option}")
    limits = ratios(speeds, OURS, opens.keys() - {OURS}, BARS) + limits
    return judge(limits, a.json, {"model": a.model, "speeds": [dataclasses.asdict(s) for s in speeds]})


if __name__ == "__main__":
    sys.exit(main())
