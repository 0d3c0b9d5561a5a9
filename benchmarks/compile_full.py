"""Time, memory and size of compiling a full-size Phi-3-mini, next to llama.cpp and onnxruntime-genai's builder.

Every step reads the same bf16 checkpoint from a cold page cache, in a process of its own. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import preflight
from common import (
    BUILDER,
    FULL_MODEL,
    POCKETPHI,
    Bar,
    Cost,
    StepError,
    drop_caches,
    files_of,
    judge,
    make_checkpoint,
    print_table,
    run,
    seconds_to_read,
    seconds_to_sync,
    seconds_to_write,
    size_of,
    with_fast_tokenizer,
)
from llama_cpp import convert, tools_missing

GIB = 1 << 30
NOT_LOADED = "not measured: give --llama-cpp DIR, a built llama.cpp with build/bin/llama-quantize"


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step took and made: bytes of the artifact, bytes of files that it needed on the way; sync: seconds that it
    took afterwards to write out what the step had left in memory (not part of its wall time)."""

    cost: Cost | None
    size: int = 0
    temporary: int = 0
    note: str = ""
    sync: float = 0.0


class Benchmark:
    """The steps, over one checkpoint and one work folder."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.work: Path = a.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.block, self.single_block = a.block, a.single_file_block
        self.llama, self.outtype = a.llama_cpp, a.llama_outtype
        self.checkpoint, self.made = make_checkpoint(a.model, self.work)
        self.checkpoint = self.checkpoint.resolve()
        self.cache = self.work / "cache"
        shutil.rmtree(self.cache, ignore_errors=True)

    def compile(self) -> Step:
        """The first of its shape: nothing is in pocketphi's cache."""
        return self._compile("compile", self.block, self._fresh("no-cache"))

    def compile_again(self) -> Step:
        """With the trace of an earlier compile, which is made here where there is none."""
        if not self.cache.exists():
            self._compile("compile", self.block, self.cache)
        return self._compile("compile", self.block, self.cache)

    def dry_run(self) -> Step:
        return self._dry_run(self._fresh("no-cache"))

    def dry_run_again(self) -> Step:
        if not self.cache.exists():
            self._dry_run(self.cache)
        return self._dry_run(self.cache)

    def _dry_run(self, cache: Path) -> Step:
        options = ["--recipe", "rtn", "--block", str(self.block), "--verify", "never", "--cache", str(cache)]
        return Step(self._run([*POCKETPHI, "compile", str(self.checkpoint), *options, "--dry-run"]))

    def single_file(self) -> Step:
        step = self._compile("single-file", self.single_block, self._fresh("no-cache"), "--ort-file")
        return dataclasses.replace(
            step, size=(self.work / "single-file" / "model.ort").stat().st_size, note="model.ort"
        )

    def llama_cpp(self) -> Step:
        if self.llama is None:
            return Step(None, note=NOT_LOADED)
        for needed in tools_missing(self.llama):
            return Step(None, note=f"not measured: {needed} is missing")
        out, between, (first, second) = convert(self.llama, self.checkpoint, self.work, self.outtype, self._run)
        step = Step(
            first + second,
            size_of(out),
            size_of(between),
            f"convert {first.wall:.1f} s {first.memory / GIB:.2f} GiB, "
            f"quantize {second.wall:.1f} s {second.memory / GIB:.2f} GiB",
        )
        between.unlink()
        return step

    def builder(self) -> Step:
        source = with_fast_tokenizer(self.checkpoint, self.work / "builder-input")
        out = self._fresh("builder")
        cost = self._run([*BUILDER, "-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu"])
        return Step(cost, sum(p.stat().st_size for p in files_of(out) if p.name.startswith("model.onnx")))

    def disk(self) -> Step:
        """The floor under every wall figure: read the input, write what `compile` writes."""
        out = self.work / "compile"
        if not out.exists():
            return Step(None, note="not measured: needs the output of the step compile")
        inputs, size = files_of(self.checkpoint), size_of(out)
        read = seconds_to_read(inputs)
        written = seconds_to_write(self.work / "disk.bin", size)
        speeds = size_of(self.checkpoint) / read / 1e6, size / written / 1e6
        note = f"read {read:.1f} s ({speeds[0]:,.0f} MB/s), write and sync {written:.1f} s ({speeds[1]:,.0f} MB/s)"
        return Step(Cost(read + written, 0.0, 0), size, note=note)

    def _compile(self, name: str, block: int, cache: Path, *options: str) -> Step:
        out = self._fresh(name)
        recipe = ["--recipe", "rtn", "--block", str(block), "--verify", "never", "--cache", str(cache)]
        cost = self._run([*POCKETPHI, "compile", str(self.checkpoint), "-o", str(out), *recipe, *options])
        return Step(cost, size_of(out))

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.work / name, ignore_errors=True)
        return self.work / name

    def _run(self, command: list[str], env: dict[str, str] | None = None) -> Cost:
        """From a cold cache: neither the checkpoint nor anything an earlier step wrote is in memory."""
        drop_caches([*files_of(self.checkpoint), *files_of(self.work)])
        return run(command, env)


STEPS: dict[str, Callable[[Benchmark], Step]] = {
    "compile": Benchmark.compile,
    "compile again": Benchmark.compile_again,
    "dry-run": Benchmark.dry_run,
    "dry-run again": Benchmark.dry_run_again,
    "single-file": Benchmark.single_file,
    "llama.cpp": Benchmark.llama_cpp,
    "builder": Benchmark.builder,
    "disk": Benchmark.disk,
}


def bars(steps: dict[str, Step], unbound: str) -> list[Bar]:
    """The figures that have a limit, as far as they were measured. unbound: why the limits do not hold."""
    taken = {name: step.cost for name, step in steps.items() if step.cost is not None}
    found: list[Bar] = []
    if "compile" in taken:
        mine = taken["compile"]
        found.append(Bar("compile: peak memory", mine.memory / GIB, 0.75, "GiB", unbound=unbound))
        found += [
            Bar(f"compile: wall time / {name}'s", mine.wall / taken[name].wall, limit, unbound=unbound)
            for name, limit in (("llama.cpp", 0.3), ("builder", 0.2))
            if name in taken
        ]
        found.append(Bar("compile: bundle", steps["compile"].size / 1e9, 2.40, "GB", unbound=unbound))
    if {"compile again", "llama.cpp"} <= taken.keys():
        ratio = taken["compile again"].wall / taken["llama.cpp"].wall
        found.append(Bar("compile again: wall time / llama.cpp's", ratio, 0.25, unbound=unbound))
    if {"compile", "compile again"} <= taken.keys():
        gained = taken["compile"].wall - taken["compile again"].wall
        found.append(Bar("compile again: less than the first by", gained, 3, "s", at_least=True, unbound=unbound))
    if "dry-run again" in taken:
        found.append(Bar("dry run again: wall time", taken["dry-run again"].wall, 2.5, "s", unbound=unbound))
    if "dry-run" in taken:
        found.append(Bar("dry run: wall time", taken["dry-run"].wall, 25, "s", unbound=unbound))
        found.append(Bar("dry run: peak memory", taken["dry-run"].memory / GIB, 0.75, "GiB", unbound=unbound))
    if "single-file" in taken:
        found.append(Bar("single file: model.ort", steps["single-file"].size / 1e9, 2.04, "GB", unbound=unbound))
    return found


def row(name: str, step: Step) -> list[str]:
    """One line of the table."""
    if step.cost is None:
        return [name, "–", "–", "–", "–", "–", "–", step.note]
    cost = step.cost
    return [
        name,
        f"{cost.wall:.1f}",
        f"{step.sync:.1f}",
        f"{cost.cpu:.1f}" if cost.cpu else "–",
        f"{cost.memory / GIB:.2f}" if cost.memory else "–",
        f"{step.size / 1e6:,.1f}" if step.size else "–",
        f"{step.temporary / 1e6:,.1f}" if step.temporary else "–",
        step.note,
    ]


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=FULL_MODEL, help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument(
        "--work", type=Path, default=Path("build/compile_full"), help="folder for all files (default %(default)s)"
    )
    p.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default: all of them, in this order")
    p.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a built llama.cpp source tree")
    p.add_argument(
        "--llama-outtype", choices=["bf16", "f16"], default="bf16", help="its file between (default %(default)s)"
    )
    p.add_argument("--block", type=int, default=32, help="block of the steps compile and dry-run (default %(default)s)")
    p.add_argument("--single-file-block", type=int, default=128, help="of the step single-file (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return p.parse_args()


def main() -> int:
    a = arguments()
    preflight.require(__file__, a.steps if a.llama_cpp else set(a.steps) - {"llama.cpp"})
    try:
        benchmark = Benchmark(a)
    except StepError as error:
        sys.exit(f"make-checkpoint {a.model}: {error}")
    if benchmark.made is not None:
        print(f"checkpoint written in {benchmark.made.wall:.1f} s, {benchmark.made.memory / GIB:.2f} GiB")
    print(f"{a.model}: checkpoint of {size_of(benchmark.checkpoint) / 1e6:,.1f} MB")
    steps: dict[str, Step] = {}
    failed = False
    for name in [name for name in STEPS if name in a.steps]:
        print(f"{name} …", file=sys.stderr)
        try:
            done = STEPS[name](benchmark)
            steps[name] = dataclasses.replace(done, sync=seconds_to_sync(files_of(benchmark.work)))
        except StepError as error:
            steps[name], failed = Step(None, note=f"FAILED: {error}"), True
    head = ["step", "wall s", "sync s", "CPU s", "peak GiB", "output MB", "temporary MB", ""]
    print_table("Each step, from a cold page cache", head, [row(*item) for item in steps.items()])
    limits = bars(steps, "" if a.model == FULL_MODEL else f"holds for {FULL_MODEL}")
    made = benchmark.made and dataclasses.asdict(benchmark.made)
    results = {name: dataclasses.asdict(step) for name, step in steps.items()}
    missed = judge(limits, a.json, {"model": a.model, "checkpoint": made, "steps": results})
    return int(failed or missed)


if __name__ == "__main__":
    sys.exit(main())
