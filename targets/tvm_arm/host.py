"""Run a saved TVM bundle on this host: in a process of the C runtime, under qemu where it is made for another CPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph.adapters import Factors
from pocketphi.graph.cpu import cpu_flags
from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.reading import file_inside
from pocketphi.graph.rounded_cache import RoundedCache
from pocketphi.targets import find_target
from pocketphi.targets.base import Check, Draft, Host, Runner
from pocketphi.targets.target import Asked
from pocketphi.targets.tvm_arm.adapter_file import read_adapter
from pocketphi.targets.tvm_arm.build_runtime import build_runtime, source_names
from pocketphi.targets.tvm_arm.description import FILES, details, read_description
from pocketphi.targets.tvm_arm.kv_cache import CENTRE, cache_rows, kv_cache_of
from pocketphi.targets.tvm_arm.options import TvmArm
from pocketphi.targets.tvm_arm.params import read_weights
from pocketphi.targets.tvm_arm.platform import Platform, lacking, toolchain_of
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.rounded_cache import RowScales, TurnedInt4
from pocketphi.targets.tvm_arm.toolchain import LIBRARY, RUNTIME_FILES, SOURCES_FOLDER, host_arch

INT8 = RowScales()
"""What the kernels' cache of int8 keeps."""


def check_runs_here(platform: Platform) -> None:
    """Raises CannotRun for what runs on no machine like this."""
    platform.toolchain().command(Path("runner"))
    flags = cpu_flags()
    missing = lacking(platform.isa, flags)
    if platform.isa.arch == host_arch() and flags and missing:  # another architecture's are qemu's to have
        raise CannotRun(f"this machine's CPU has no {', '.join(missing)}, which {platform.isa.name} needs")


class TvmHost(Host):
    """A bundle's TVM files. context: tokens that they hold, as the manifest says; None for all that the model has."""

    no_guesses = None
    saved_bound = 1e-2  # activations rounded to int8, as ONNX Runtime's level 4 does
    rounds_inputs = 32

    def __init__(self, folder: Path, context: int | None = None) -> None:
        self.folder, self._context = folder, context
        self.described = read_description(folder)
        target = self.described.target
        self.platform = Platform(target.os, self.described.isa, target.cpu)

    @property
    def kv_cache(self) -> str:
        """What the library was compiled with: a name of KV_CACHES."""
        return kv_cache_of(self.described.cache.dtype["saved"])

    def rounded_cache(self) -> RoundedCache | None:
        if self.kv_cache != "int4":
            return {"int8": INT8}.get(self.kv_cache)
        centres = [materialize(one)[""] for one in self.own_weights().values()]
        if len(centres) != read_config(self.folder).layers:
            raise InputError(f"{self.folder}: has {len(centres)} means of keys, one a layer is expected; copy it again")
        return TurnedInt4(centres)

    def ring_rows(self) -> int | None:
        rows = cache_rows(read_config(self.folder), self.described.context)
        return rows if rows < self.described.context else None

    def weights(self) -> dict[str, LazyWeight]:
        held = read_weights(self.folder, self.described)
        return {name: one for name, one in held.items() if name.rpartition(".")[2] != CENTRE}

    def own_weights(self) -> dict[str, LazyWeight]:
        held = read_weights(self.folder, self.described)
        return {name: one for name, one in held.items() if name.rpartition(".")[2] == CENTRE}

    def adapters(self, names: Collection[str]) -> dict[str, Factors]:
        if not names:
            return {}
        config, weights = read_config(self.folder), [one.weight for one in self.described.adapters]
        pattern = find_target("tvm-arm").switches
        paths = {name: file_inside(self.folder, pattern.format(name), str(self.folder)) for name in names}
        return {name: read_adapter(path, config, weights, self.described.params_digest) for name, path in paths.items()}

    def graph_checks(self, program: Program, asked: Asked) -> list[Check]:
        from pocketphi.targets.tvm_arm.graph_check import graph_checks  # loads TVM, which running does without

        return graph_checks(self.folder, self.planned(program, asked), self.platform, self.described)

    def plan(self, program: Program, asked: Asked) -> Any:
        from pocketphi.targets.tvm_arm.graph_check import plan

        return plan(self.folder, program, self.platform, self.described, replace(asked, context=self._context))

    def said(self, program: Program, asked: Asked, notes: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:
        from pocketphi.targets.tvm_arm.package import operators_of, platform_notes

        ignored = [
            note for note in notes if " was ignored: " in note
        ]  # a user's rows of schedules, which no file keeps
        return operators_of(self.planned(program, asked).module), [*platform_notes(self.platform), *ignored]

    def files(self) -> Collection[str]:
        library = self.described.library
        beside = RUNTIME_FILES if library == LIBRARY else [f"{SOURCES_FOLDER}/{name}" for name in source_names()]
        return {*FILES, library, *beside}

    def details(self, program: Program) -> Mapping[str, Any]:
        from pocketphi.targets.tvm_arm.library import about_library

        about = about_library(toolchain_of(self.platform, self.described.library))
        return details(self.platform, program.config, self.described.context, self.kv_cache, about)

    def write_prefix(self, out: Path, tokens: Sequence[int], computed_on: str, program: Program) -> None:
        from pocketphi.targets.tvm_arm.package import TvmBundle
        from pocketphi.targets.tvm_arm.prefix import find_computing_isa

        isa, target = find_computing_isa(computed_on), self.described.target
        options = TvmArm(os=target.os, cpu=target.cpu or self.described.isa.name, kv_cache=self.kv_cache)
        made = TvmBundle(program, options, Asked(context=self._context))
        made.take_centres(self.own_weights())
        made.write_prefix(out, tokens, self.folder, isa)

    def caveats(self, max_tokens: int) -> list[str]:
        from pocketphi.targets.tvm_arm.graph_check import linked_elsewhere

        compilers = linked_elsewhere(self.folder, self.platform, self.described)
        if compilers is None:
            return []
        return [
            f"its library was linked by {compilers}: the machine code in it was run and not compared with what a compile "
            "writes, and the runtime beside it was not looked at; compile it here for that"
        ]

    def runner(self, max_tokens: int, exact: bool = False, every_position: bool = False, threads: int = 0) -> TvmRunner:
        mode = "exact" if exact else "saved"
        options = {"mode": mode, "max_tokens": max_tokens, "threads": threads}
        process = RuntimeProcess(self._command(), self.folder, prefix=False, **options)  # what is measured is computed
        return TvmRunner(process, every_position)

    def talker(self, max_tokens: int, threads: int = 0, draft: Draft = "auto") -> TvmRunner:
        options = {"max_tokens": max_tokens, "threads": threads, "draft": "auto" if isinstance(draft, Path) else draft}
        process = RuntimeProcess(self._command(), self.folder, **options)
        if isinstance(draft, Path):
            process.draft(draft)
        return TvmRunner(process, every_position=False)

    def _command(self) -> list[str]:
        """How the runner is started here; it is built once. Raises CannotRun for what runs on no machine like this."""
        check_runs_here(self.platform)  # before anything is built
        toolchain = self.platform.toolchain()
        return toolchain.command(build_runtime(toolchain).runner)

    def peak_bytes(self, runner: Runner) -> int:
        return runner.peak_bytes if isinstance(runner, TvmRunner) else super().peak_bytes(runner)


class TvmRunner:
    """A `Runner` over the C runtime, for one sequence."""

    def __init__(self, process: RuntimeProcess, every_position: bool) -> None:
        self.process, self.every_position = process, every_position

    def reset(self) -> None:
        self.process.reset()

    def switch(self, adapter: str | None) -> None:
        """With a call of the runtime's own, which reads the adapter's file in the bundle."""
        self.process.adapter(adapter)

    def save(self, path: Path, note: str) -> None:
        self.process.save(path, note)

    def load(self, path: Path) -> str:
        return self.process.load(path)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [1, S]; float32 logits [1, 1, V], or [1, S, V] of every position."""
        if tokens.shape[0] != 1:
            raise ValueError(f"{tokens.shape[0]} rows: the runtime holds one sequence")
        row = tokens[0].tolist()
        if len(row) == 1:
            logits = self.process.decode(row[0])
        else:
            logits = self.process.every_position(row) if self.every_position else self.process.prefill(row)
        return torch.from_numpy(logits.copy()).view(1, -1, self.process.vocab)

    @property
    def peak_bytes(self) -> int:
        """Largest resident memory of the runtime's process so far."""
        return self.process.last.peak_bytes

    def __del__(self) -> None:
        self.process.close()
