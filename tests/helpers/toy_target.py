"""A target in one file: weights in safetensors, run by torch. It is registered by one line, `TARGETS["toy"] = "toy_target"`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.artifacts.stream import Progress
from pocketphi.compiler.rebuild import _ShapesOnly
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.formats import bytes_of, format_of
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lazy_weights import Dequantized, LazyWeight, PartSpec, digest, materialize, row_chunks
from pocketphi.graph.options import option
from pocketphi.graph.program import Program, split_target
from pocketphi.graph.trace import trace
from pocketphi.targets.base import Host, Packaged, Prepared, Runner
from pocketphi.targets.memory import Runtime
from pocketphi.targets.target import Asked, Target, TargetOptions


@dataclass(frozen=True, kw_only=True)
class Toy(TargetOptions):
    target = "toy"
    greeting: str = option("hello", "what the file's header says", flag="toy-greeting")

    def kv_cache_bytes(self, config: ModelConfig) -> int:
        return config.kv_cache_bytes(1, 4)


@dataclass(frozen=True)
class Saved:
    """A weight in memory."""

    held: dict[str, torch.Tensor]

    @property
    def parts(self) -> dict[str, PartSpec]:
        return {part: PartSpec(tuple(held.shape), held.dtype) for part, held in self.held.items()}

    def chunks(self) -> Any:
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {part: held[start:stop] for part, held in self.held.items()}

    def describe(self) -> str:
        return "saved"


@functools.cache
def traced(config: ModelConfig) -> Program:
    return trace(_ShapesOnly(config))


class ToyBundle(Prepared):
    def __init__(self, program: Program, options: Toy) -> None:
        self.program, self.options, self.notes = program, options, [f"toy: {options.greeting}"]
        self.bytes = sum(spec.bytes for recipe in program.weights_read().values() for spec in recipe.parts.values())

    def write(self, folder: Path, progress: Progress) -> Packaged:
        held = {name: materialize(recipe) for name, recipe in self.program.weights_read().items()}
        tensors = {f"{n}:{part}" if part else n: t for n, parts in held.items() for part, t in parts.items()}
        save_file(tensors, folder / "model.toy", {"greeting": self.options.greeting})
        progress(self.bytes)
        digests = {name: digest(parts) for name, parts in held.items()}
        return Packaged(self.program.operators(), digests, self.notes, {"greeting": self.options.greeting})


class ToyHost(Host):
    saved_bound = 1e-6

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def weights(self) -> dict[str, LazyWeight]:
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(self.folder / "model.toy").items():
            name, part = split_target(key)
            found.setdefault(name, {})[part] = tensor
        return {name: Saved(held) for name, held in found.items()}

    def runner(self, max_tokens: int, exact: bool = False, every_position: bool = False, threads: int = 0) -> Runner:
        program, saved = traced(read_config(self.folder)).copy(), self.weights()
        program.weights |= {
            n: Dequantized(w) if format_of(w.parts) else w for n, w in saved.items() if n in program.weights
        }
        return ProgramRunner(program)

    def other_runners(self, max_tokens: int) -> dict[str, Callable[[], Runner]]:
        return {}


class ToyTarget(Target[Toy]):
    name, title, options, extra, weights_file = "toy", "Toy", Toy, "toy", "model.toy"
    app_files = ()
    recorded = libraries = ("safetensors",)
    codecs = {"int4": SimpleNamespace(bytes_of=bytes_of)}  # noqa: RUF012

    def runtime(self, config: ModelConfig, options: Toy, longest: int, held: int) -> Runtime:
        per_token = options.kv_cache_bytes(config)
        return Runtime(4, 4, 2.0, 10**7, None, per_token)

    def prepare(self, program: Program, options: Toy, asked: Asked) -> Prepared:
        return ToyBundle(program, options)

    def open_host(self, folder: Path, record: TargetRecord) -> Host:
        return ToyHost(folder)


TARGET = ToyTarget()
