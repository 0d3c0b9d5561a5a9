"""The files of a TVM bundle: a native library, its parameters, and what describes both.

model.so        kernels and the functions that call them, for one operating system and instruction set
model.params    every weight as the kernels read it, mapped by the device
model.json      for the runtime: functions, shapes, offsets, what the CPU must have
libpocketphi.so, pocketphi_runtime.h    the runtime and its C interface
adapters/NAME.tvm_adapter    each adapter that an app switches
prefix.session  the cache of the tokens that an app's prompts begin with
tuning.jsonl    the schedules that the kernels were built with, where they were tuned

Where no compiler links for the operating system here, libmodel.a takes the place of model.so. The runtime then comes as
sources, in `runtime/`, with a CMakeLists.txt; the link line is in model.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketphi.artifacts.stream import Progress
from pocketphi.graph.adapters import bytes_of_factors, shape_of
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import format_of
from pocketphi.graph.lazy_weights import Constant, LazyWeight
from pocketphi.graph.program import Program, op_name
from pocketphi.graph.reading import read_json
from pocketphi.passes.cache_scales import Measured
from pocketphi.targets import find_target
from pocketphi.targets.base import Packaged, Prepared
from pocketphi.targets.target import Asked
from pocketphi.targets.tvm_arm.adapter_file import RANK_MOST, carried, write_adapter
from pocketphi.targets.tvm_arm.codecs import CODECS
from pocketphi.targets.tvm_arm.description import (
    DESCRIPTION,
    FORMAT,
    PARAMS_FILE,
    described_text,
    details,
    read_description,
)
from pocketphi.targets.tvm_arm.epsilons import require_epsilon
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.dots import dots_of
from pocketphi.targets.tvm_arm.kv_cache import CHUNK, EXACT_CACHE, KEYS, KV_CACHES, KvCache, cache_rows, centre_name
from pocketphi.targets.tvm_arm.library import build_library
from pocketphi.targets.tvm_arm.lower import WAYS, Schedules, long_after, lower
from pocketphi.targets.tvm_arm.options import TvmArm
from pocketphi.targets.tvm_arm.params import ParamsFile
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.prefix import computing_isa, prefix_bytes, read_tokens, write_prefix
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
    "adapters",
)
"""What of model.json the library holds as well: the runtime refuses a file that says otherwise."""

_RUNTIME_BYTES, _OPERATOR_BYTES, _ROW_SCALE_BYTES = 890_000, 2_600, 1_800
_KERNEL_BYTES, _TWICE_BYTES = 35_000, 45_000
"""About: of the runtime and what each library has; of an operator's calls in all functions; of a weight's row scales in
those calls; of the kernels for one form of matrices, and of those that have the loop of a tile twice. Measured on libraries of
5 to 62 forms for dotprod and avx512vnni."""


class TvmBundle(Prepared):
    """The files of `--target tvm-arm`, planned; lowered when they are written, with weights as they are by then."""

    def __init__(self, program: Program, options: TvmArm, asked: Asked) -> None:
        """Raises InputError for a size that is no multiple of the vectors', and where a compiler is missing."""
        _refuse_unfit(program)
        _refuse_cache(program.config, options)
        self._program, self._options, self._asked = program, options, asked
        self._platform = Platform.of(options.os, options.cpu)
        self._cache = KV_CACHES[options.kv_cache]
        self._tuning = Tuning(self._platform, options.tuning, options.content("tuning"))
        self._params = ParamsFile.plan(program, self._platform.isa, self._cache)
        self.cache_bits = self._cache.bits if self._cache.centred else None
        self._centres: dict[str, LazyWeight] = {}
        _refuse_ranks(program)
        self.bytes = self._params.layout.size
        self.bytes += sum(bytes_of_factors(program.config, one.ranks) for one in program.adapters.values())
        if asked.prefix:
            self.bytes += prefix_bytes(program.config, self._cache, len(asked.prefix))
        self.notes = platform_notes(self._platform)

    @property
    def around(self) -> int:
        parts = [one.parts for one in self._program.weights_read().values() if format_of(one.parts)]
        forms = {tuple(one.items()) for one in parts}
        by_row = sum("row_scale" in one for one in parts)
        kernels = _TWICE_BYTES if dots_of(self._platform.isa, tile=True).whole else _KERNEL_BYTES
        library = _RUNTIME_BYTES + self._program.operators().total() * _OPERATOR_BYTES + len(forms) * kernels
        described = describe(self._program, self._platform, self._params, "0" * 64, self._asked, self._cache)
        return library + by_row * _ROW_SCALE_BYTES + len(described_text(described))

    def write(self, folder: Path, progress: Progress) -> Packaged:
        program = self._program
        params = replace(self._params, weights={**self._params.weights, **program.weights_read(), **self._centres})
        written = params.write(folder / PARAMS_FILE, progress)
        described = describe(program, self._platform, params, written.sha256, self._asked, self._cache)
        for name, factors in program.adapters.items():
            path = folder / find_target("tvm-arm").switches.format(name)
            path.parent.mkdir(exist_ok=True)
            write_adapter(path, factors, carried(program), written.sha256)
        module, files, more = self._library(folder, described)
        (folder / DESCRIPTION).write_text(described_text({**described, **files}), "utf-8")
        said = details(self._platform, program.config, described["context"], self._options.kv_cache, files)
        computed_on = ""
        if self._asked.prefix:
            isa = computing_isa(self._platform)
            self.write_prefix(folder / find_target("tvm-arm").prefix, self._asked.prefix, folder, isa)
            computed_on = isa.name
        return Packaged(
            operators_of(module),
            written.digests,
            [*self.notes, *more],
            said,
            {PARAMS_FILE: written.sha256},
            computed_on,
        )

    def take_scales(self, measured: Measured) -> None:
        means = enumerate(one.mean for one in measured)
        self.take_centres({centre_name(layer): Constant(mean, "a calibration text") for layer, mean in means})

    def take_centres(self, centres: Mapping[str, LazyWeight]) -> None:
        """The means of keys, by the names that they have in the file."""
        self._centres = dict(centres)

    def write_prefix(self, out: Path, tokens: Sequence[int], folder: Path, isa: Isa) -> None:
        """The cache of `tokens` for the files in `folder`. isa: one of this machine's, which computes it."""

        def build(isa: Isa, place: Path) -> None:
            options = TvmArm(os="host", cpu=isa.name, kv_cache=self._options.kv_cache)
            other = TvmBundle(self._program, options, replace(self._asked, prefix=()))
            other.take_centres(self._centres)
            other.write(place, lambda done: None)

        write_prefix(out, tokens, folder, self._platform, isa, build)

    def replace_library(self, folder: Path) -> list[str]:
        """Build the library of a packaged folder anew, with these options' schedules; its parameters stay. Returns notes."""
        read_description(folder)
        described = read_json(folder / DESCRIPTION)
        if self._params.table() != described["params"]:
            raise CompilerBug("the parameters of the program made again are not those of the bundle")
        _, files, notes = self._library(folder, described)
        (folder / DESCRIPTION).write_text(described_text({**described, **files}), "utf-8")
        prefix = folder / find_target("tvm-arm").prefix
        if prefix.is_file():
            tokens = read_tokens(prefix)
            prefix.unlink()  # a link to the one of the bundle that is replaced
            self.write_prefix(prefix, tokens, folder, computing_isa(self._platform))
        return notes

    def _library(self, folder: Path, described: dict[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
        """Lower and build: the module, what model.json says of the library, notes."""
        schedules = Schedules(self._platform.isa, self._tuning.schedules)
        module = lowered(self._program, self._platform, schedules, described, self._cache)
        files = build_library(module, self._platform, folder)
        write(folder / BUNDLED, self._tuning.used(schedules.asked))
        return module, files, self._tuning.notes(schedules.asked)


def lowered(
    program: Program, platform: Platform, schedules: Schedules, described: Mapping[str, Any], cache: KvCache
) -> Any:
    """The module of a program's library. described: model.json, of which it holds a part."""
    description = json.dumps({name: described[name] for name in BOUND if name in described}, separators=(",", ":"))
    module = lower(program, platform.isa, schedules, description, cache)
    require_epsilon(module, program.config.rms_norm_eps)
    return module


def platform_notes(platform: Platform) -> list[str]:
    """What a user should know of a library for a platform."""
    toolchain = platform.toolchain()
    linked = [] if toolchain.links else [f"{ARCHIVE} to link into an app: {toolchain.link_line()}"]
    return [platform.described(), *platform.notes(), *linked]


def describe(
    program: Program, platform: Platform, params: ParamsFile, digest: str, asked: Asked, cache: KvCache
) -> dict[str, Any]:
    """model.json, but for the library's own entries."""
    config = program.config
    isa = platform.isa
    matrices = {}
    for name, weight in params.weights.items():
        form = format_of(weight.parts)
        if form:
            matrices[name] = CODECS[form.name].described(weight.parts)
    adapters = []
    for one in carried(program):
        rows, columns = shape_of(config, one)
        adapters.append({"weight": one, "rows": rows, "columns": columns})
    tokens = min(asked.context or config.max_position, config.max_position)
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
        **({"vocabulary": asked.vocabulary} if asked.vocabulary else {}),
        "context": tokens,
        "chunk": CHUNK,
        "long_rope_after": long_after(program) or None,
        "cache": {
            "count": 2 * config.layers,
            "shape": {
                mode: [config.kv_heads, cache_rows(config, tokens), kind.row(config.head_dim)]
                for mode, kind in caches.items()
            },
            "multiple": KEYS,
            "dtype": {mode: kind.dtype for mode, kind in caches.items()},
        },
        "functions": {"saved": functions(exact=False), "exact": functions(exact=True)},
        "params": params.table(),
        "params_bytes": params.layout.size,
        "params_digest": digest,
        "matrices": matrices,
        **({"adapters": adapters} if adapters else {}),
    }


def _refuse_unfit(program: Program) -> None:
    """Raise InputError where a size is not a multiple of the vectors', or logits are of every token."""
    config = program.config
    if not any(op_name(node) == "edge.last_token" for node in program.graph.nodes):
        raise InputError(
            "tvm-arm: its library gives the logits of the last token, and by pocketphi_prefill_all of every one; "
            "leave out --all-logits"
        )
    for what, size in (
        ("hidden size", config.hidden_size),
        ("intermediate size", config.intermediate_size),
        ("head size", config.head_dim),
    ):
        if size % 16:
            raise InputError(f"tvm-arm: the {what} is {size}, expected a multiple of 16")
    if config.sparse and config.sparse.block % KEYS:
        raise InputError(
            f"tvm-arm: blocks of attention hold {config.sparse.block} tokens, expected a multiple of {KEYS}"
        )


def _refuse_ranks(program: Program) -> None:
    """Raise InputError for an adapter that the kernels have no room for."""
    for name, factors in program.adapters.items():
        for weight, rank in factors.ranks.items():
            if rank > RANK_MOST:
                raise InputError(
                    f"tvm-arm: --adapter {name}: rank {rank} of {weight}, its kernels take {RANK_MOST} at most; merge it with "
                    "--lora"
                )


def _refuse_cache(config: ModelConfig, options: TvmArm) -> None:
    """Raise InputError where the dimensions of a head do not come in groups with a scale."""
    group = KV_CACHES[options.kv_cache].group
    if group and config.head_dim % group:
        raise InputError(
            f"tvm-arm: --kv-cache {options.kv_cache} has a scale for {group} dimensions, and a head of this model has "
            f"{config.head_dim}; --kv-cache int8 works"
        )


def operators_of(module: Any) -> Counter[str]:
    """Kernels by kind, as often as the function that serves a prompt calls them."""
    called: Counter[str] = Counter()
    for block in module["prefill"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if getattr(getattr(value, "op", None), "name", "").startswith("relax.call_tir"):
                called[value.args[0].name_hint.rpartition("_")[0]] += 1
    return called
