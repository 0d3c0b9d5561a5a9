"""The files of a TVM bundle: a native library, its parameters, and what describes both.

model.so        kernels and the functions that call them, for one operating system and instruction set
model.params    every weight as the kernels read it, mapped by the device
model.json      for the runtime: functions, shapes, offsets, what the CPU must have
libpocketphi.so, pocketphi_runtime.h    the runtime and its C interface
tuning.jsonl    the schedules that the kernels were built with, where they were tuned

Where no compiler links for the operating system here, libmodel.a takes the place of model.so; its link line is in model.json.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pocketphi.artifacts.stream import Progress
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import format_of
from pocketphi.graph.program import Program
from pocketphi.graph.reading import read_json
from pocketphi.targets.base import Packaged, Target
from pocketphi.targets.kv_cache import kv_cache_bytes
from pocketphi.targets.tvm_arm.codecs import CODECS
from pocketphi.targets.tvm_arm.description import DESCRIPTION, FORMAT, PARAMS_FILE, read_description
from pocketphi.targets.tvm_arm.host import check_runs_here
from pocketphi.targets.tvm_arm.kernels.cache import KEYS
from pocketphi.targets.tvm_arm.kv_cache import EXACT_CACHE, KV_CACHES, KvCache
from pocketphi.targets.tvm_arm.library import build_library, toolchain_of
from pocketphi.targets.tvm_arm.lower import CHUNK, WAYS, Schedules, lower
from pocketphi.targets.tvm_arm.params import ParamsFile
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE
from pocketphi.targets.tvm_arm.tune.database import BUNDLED, Tuning, write

BOUND = (
    "format",
    "target",
    "vocab",
    "context",
    "chunk",
    "long_rope_after",
    "cache",
    "functions",
    "params",
    "params_bytes",
    "params_digest",
)
"""What of model.json the library holds as well: the runtime refuses a file that says otherwise."""

LIBRARY_BYTES = 4_000_000
"""What the plan sets aside for the library and the runtime."""


class TvmArm(Target):
    """`--target tvm-arm`."""

    name = "tvm-arm"
    packages = ("apache-tvm", "apache-tvm-ffi")
    forms = CODECS.keys()

    def __init__(
        self,
        platform: Platform,
        context: int | None = None,
        tuning: Path | None = None,
        kv_cache: str = "fp16",
        rows: bytes | None = None,
    ) -> None:
        """platform: what to compile for; context: rows of the K/V cache at most; tuning: a database before the shared one;
        kv_cache: a name of KV_CACHES; rows: the content of `tuning`, where it has been read already."""
        self.platform = platform
        self.context = context
        self.tuning = Tuning(platform, tuning, rows)
        self.kv_cache = kv_cache
        self.cache = KV_CACHES[kv_cache]

    def check_runs_here(self) -> None:
        check_runs_here(self.platform)

    def planned_bytes(self, program: Program) -> int:
        return ParamsFile.plan(program, self.platform.isa).layout.size + LIBRARY_BYTES

    def planned_notes(self, program: Program) -> list[str]:
        _refuse_unfit(program)
        notes = [self.platform.described(), *self.platform.notes()]
        toolchain = toolchain_of(self.platform)
        return notes if toolchain.links else [*notes, f"{ARCHIVE} to link into an app: {toolchain.link_line()}"]

    def package(self, program: Program, folder: Path, progress: Progress) -> Packaged:
        notes = self.planned_notes(program)
        isa = self.platform.isa
        params = ParamsFile.plan(program, isa)
        written = params.write(folder / PARAMS_FILE, progress)
        described = describe(program, self.platform, params, written.sha256, self.context, self.cache)
        module, files, more = self._library(program, folder, described)
        notes += more
        (folder / DESCRIPTION).write_text(json.dumps({**described, **files}, indent=1) + "\n", "utf-8")
        details = {
            "platform": self.platform.described(),
            "context": described["context"],
            "kv_cache": self.kv_cache,
            "kv_cache_bytes_per_token": kv_cache_bytes(program.config, self.name, self.kv_cache),
            **files,
        }
        return Packaged(_operators(module), written.digests, notes, details, {PARAMS_FILE: written.sha256})

    def replace_library(self, program: Program, folder: Path) -> list[str]:
        """Build the library of a packaged folder anew, with this target's schedules; its parameters stay. Returns notes."""
        read_description(folder)
        described = read_json(folder / DESCRIPTION)
        if ParamsFile.plan(program, self.platform.isa).table() != described["params"]:
            raise CompilerBug("the parameters of the program made again are not those of the bundle")
        _, files, notes = self._library(program, folder, described)
        (folder / DESCRIPTION).write_text(json.dumps({**described, **files}, indent=1) + "\n", "utf-8")
        return notes

    def _library(
        self, program: Program, folder: Path, described: dict[str, Any]
    ) -> tuple[Any, dict[str, Any], list[str]]:
        """Lower and build: the module, what model.json says of the library, notes."""
        schedules = Schedules(self.platform.isa, self.tuning.schedules)
        description = json.dumps({name: described[name] for name in BOUND}, separators=(",", ":"))
        module = lower(program, self.platform.isa, schedules, description, self.cache)
        files = build_library(module, self.platform, folder)
        write(folder / BUNDLED, self.tuning.used(schedules.asked))
        return module, files, self.tuning.notes(schedules.asked)


def describe(
    program: Program, platform: Platform, params: ParamsFile, digest: str, context: int | None, cache: KvCache
) -> dict[str, Any]:
    """model.json, but for the library's own entries."""
    config = program.config
    isa = platform.isa
    matrices = {}
    for name, recipe in params.weights.items():
        form = format_of(recipe.parts)
        if form:
            matrices[name] = CODECS[form.name].described(recipe.parts)
    tokens = min(context or config.max_position, config.max_position)
    caches = {"saved": cache, "exact": EXACT_CACHE}

    def functions(exact: bool) -> dict[str, str]:
        return {way.role: way.name for way in WAYS if way.exact is exact}

    return {
        "format": FORMAT,
        "target": {
            "os": platform.system,
            "arch": isa.arch,
            "isa": isa.name,
            "cpu": platform.cpu,
            "features": list(isa.features),
        },
        "vocab": config.vocab_size,
        "context": tokens,
        "chunk": CHUNK,
        "long_rope_after": config.long_rope.original_max_position if config.long_rope else None,
        "cache": {
            "count": 2 * config.layers,
            "shape": {
                mode: [config.kv_heads, _rounded_up(tokens), kind.row(config.head_dim)] for mode, kind in caches.items()
            },
            "multiple": KEYS,
            "dtype": {mode: kind.dtype for mode, kind in caches.items()},
        },
        "functions": {"saved": functions(exact=False), "exact": functions(exact=True)},
        "params": params.table(),
        "params_bytes": params.layout.size,
        "params_digest": digest,
        "matrices": matrices,
    }


def _rounded_up(tokens: int) -> int:
    return -(-tokens // KEYS) * KEYS


def _refuse_unfit(program: Program) -> None:
    """Raise InputError where a size is not a multiple of the vectors'."""
    config = program.config
    for what, size in (
        ("hidden size", config.hidden_size),
        ("intermediate size", config.intermediate_size),
        ("head size", config.head_dim),
    ):
        if size % 16:
            raise InputError(f"tvm-arm: the {what} is {size}, expected a multiple of 16")


def _operators(module: Any) -> Counter[str]:
    """Kernels by kind, as often as the function that serves a prompt calls them."""
    called: Counter[str] = Counter()
    for block in module["prefill"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if getattr(getattr(value, "op", None), "name", "").startswith("relax.call_tir"):
                called[value.args[0].name_hint.rpartition("_")[0]] += 1
    return called
