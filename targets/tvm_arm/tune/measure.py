"""A kernel's time on this machine.

Other programs run too: schedules take turns, so that each meets the same neighbours, and the least time of each counts, since
a neighbour only ever adds. With one thread it is the thread's own time. Decode finds its weights in memory, as it does in a
model, because copies that do not fit into the caches take turns as well.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from pocketphi.graph.cpu import cpu_flags
from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform, lacking
from pocketphi.targets.tvm_arm.toolchain import host_arch
from pocketphi.targets.tvm_arm.tune.candidate import KERNEL, compile_kernel
from pocketphi.targets.tvm_arm.tune.cost_model import PROMPT, weight_bytes

COLD_BYTES = 128 << 20
"""More than the caches of a phone or a desktop hold."""

_COPIES = 512
"""At most: a matrix of less than 128 kB stays in the cache of its own accord."""


def runs_here(platform: Platform) -> bool:
    """Whether this machine can run the platform's kernels."""
    return platform.isa.arch == host_arch() and not lacking(platform.isa, cpu_flags())


class LocalMeasurer:
    """Runs kernels in this process. rounds: how often each schedule is timed."""

    def __init__(self, platform: Platform, threads: int = 1, rounds: int = 9) -> None:
        """Raises InputError where this machine cannot run the platform's kernels."""
        if not runs_here(platform):
            raise InputError(
                f"kernels for {platform.isa.name} do not run on this machine; give a board by --rpc and --key"
            )
        self.platform, self.threads, self.rounds = platform, threads, rounds

    @property
    def how(self) -> str:
        return f"host {tvm.target.codegen.llvm_get_system_cpu()}, {said(self.threads)}"

    def times(self, form: Form, schedules: list[Schedule]) -> dict[Schedule, float]:
        """Microseconds of each schedule."""
        use_threads(self.threads)
        sets = self._arguments(form)
        kernels = {schedule: compile_kernel(self.platform, form, schedule).mod[KERNEL] for schedule in schedules}
        clock = time.thread_time_ns if self.threads == 1 else time.perf_counter_ns
        found: dict[Schedule, list[float]] = {schedule: [] for schedule in schedules}
        turn = 0
        for _ in range(self.rounds + 1):
            for schedule, kernel in kernels.items():
                turn += 1
                begin = clock()
                kernel(*sets[turn % len(sets)])
                found[schedule].append((clock() - begin) / 1e3)
        return {schedule: min(times[1:]) for schedule, times in found.items()}

    def _arguments(self, form: Form) -> list[list[Any]]:
        """Arguments of a call, as often as it takes to leave the caches behind."""
        copies = 1 + min(_COPIES, int(COLD_BYTES / weight_bytes(form.matrix))) if form.single else 1
        arrays = arguments(form)
        made = [tvm.runtime.tensor(array) for array in arrays]
        weights = slice(1, len(made) - 1)
        return [[made[0], *map(tvm.runtime.tensor, arrays[weights]), made[-1]] for _ in range(copies)]


def use_threads(count: int) -> None:
    """Let kernels called from this thread run on `count` threads. They share the cores, as those of the C runtime do: TVM's
    own way binds each, and the caller for good, to a core where it waits for whatever else runs there."""
    share_all, cores = -3, [str(core) for core in sorted(os.sched_getaffinity(0))]
    tvm.get_global_func("runtime.config_threadpool")(share_all, count, cores)


def arguments(form: Form, rows: int = PROMPT) -> list[npt.NDArray[Any]]:
    """Values of a kernel's arguments: x, the parts, y. Random, as zeros would lie on one page of memory."""
    matrix, random = form.matrix, np.random.default_rng(0)
    m = 1 if form.single else rows
    return [
        random.standard_normal((m, matrix.columns), np.float32),
        *(_part(part, matrix, random) for part in form.parts),
        np.zeros((m, matrix.rows), np.float32),
    ]


def _part(part: str, matrix: Interleaved, random: np.random.Generator) -> npt.NDArray[Any]:
    spec = matrix.spec(part)
    size = math.prod(spec.shape)
    if spec.type_name == "int8":
        return random.integers(-127, 128, size, np.int8)
    if spec.type_name == "uint8":
        return random.integers(0, 256 if part == matrix.values else 1 << matrix.bits, size, np.uint8)
    return (random.random(size, np.float32) / 100).astype(spec.type_name)


def said(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads != 1)
