"""Run a saved Core ML package on this host, and read its weights back in canonical form."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.artifacts.kits.reference import Call, Rules
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec, specs
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lazy_weights import LazyWeight, row_chunks
from pocketphi.graph.program import Program
from pocketphi.graph.reading import file_inside, read_whole
from pocketphi.targets.base import Check, Host
from pocketphi.targets.coreml.codecs import Codec, TableCodec, find_codec
from pocketphi.targets.coreml.constant_check import constant_check
from pocketphi.targets.coreml.epsilons import epsilon_check
from pocketphi.targets.coreml.form import Form, make_form
from pocketphi.targets.coreml.graph_check import graph_check
from pocketphi.targets.coreml.interpreter import Interpreter, Mode
from pocketphi.targets.coreml.mlpackage import MLPackage, Operation, find_model
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.coreml.package import FILES, MAC_SCRIPT, MANIFEST_FILE, CoreMLBundle, mac_script, manifest
from pocketphi.targets.coreml.ranges import LARGEST, tight
from pocketphi.targets.coreml.raw import Raw
from pocketphi.targets.coreml.typecheck import typecheck
from pocketphi.targets.coreml.vectors import STEPS, VECTORS, Recorder
from pocketphi.targets.coreml.weightfile import PACKAGE, AsHalf, identifier
from pocketphi.targets.target import Asked

_FIRST = 32
"""Tokens that are run as the first of a text. On the sample at 3 bits one of 6 comes within a factor of 2 of float16's range,
and one of 1,000 leaves it."""


class CoreMLHost(Host):
    """A bundle's package. names: the weights that it should hold, as the manifest lists them."""

    exact_bound = 5e-6
    """Float32 throughout, but with rotary tables and norm weights that float16 has: 2⁻¹¹ relative on each angle's sine."""
    saved_bound = 1e-4
    rounds_to = torch.float16

    def __init__(
        self, folder: Path, names: Mapping[str, str], options: CoreML | None = None, context: int | None = None
    ) -> None:
        """names: of the weights; options, context: what the package was written with, as far as its graph tells."""
        self.folder = folder
        self._options, self._context = options or CoreML(), context
        self.package = MLPackage.open(folder / PACKAGE)
        self._names = list(names)
        self._config = read_config(folder)
        self._interpreters: dict[tuple[Mode, int], Interpreter] = {}

    def weights(self) -> dict[str, LazyWeight]:
        return dict(self._weights())

    def _weights(self) -> dict[str, SavedFloat]:
        function = next(iter(self.package.functions))
        found: dict[str, SavedFloat] = {}
        for name in self._names:
            saved = _saved(self.package, function, identifier(name))
            if saved:
                found[name] = saved
        return found

    def stored(self, name: str, constant: LazyWeight) -> LazyWeight:
        rows = self.package.parts(next(iter(self.package.functions)), identifier(name))[""].shape[0]
        return AsHalf(constant, name, rows)

    def runner(
        self, max_tokens: int, exact: bool = False, every_position: bool = False, threads: int = 0
    ) -> CoreMLRunner:
        interpreter = self._interpreter("fp32" if exact else "fp16", threads)
        switch = self._config.long_rope.original_max_position if self._config.long_rope else None
        return CoreMLRunner(interpreter, max_tokens, every_position, switch, form=self._form)

    def ring_rows(self) -> int | None:
        return self._form.ring or None

    @functools.cached_property
    def _form(self) -> Form:
        return make_form(self._config, self._options, self._context)

    def own_checks(self, prompt: torch.Tensor) -> list[Check]:
        norms = epsilon_check(self.package, self._config.rms_norm_eps)
        read = [raw for weight in self._weights().values() for raw in weight.read_of()]
        constants = constant_check(self.package, read)
        return [norms, constants, self._typecheck(), self._headroom(prompt), self._beside(prompt)]

    def graph_checks(self, program: Program, asked: Asked) -> list[Check]:
        return [graph_check(self.package.path, self.planned(program, asked))]

    def plan(self, program: Program, asked: Asked) -> CoreMLBundle:
        return CoreMLBundle(program, self._options, replace(asked, context=self._context))

    def said(self, program: Program, asked: Asked, notes: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:
        made: CoreMLBundle = self.planned(program, asked)
        return made.operators, made.notes

    def files(self) -> Collection[str]:
        return FILES

    def details(self, program: Program) -> Mapping[str, Any]:
        return CoreMLBundle(program, self._options, Asked(context=self._context)).details()

    def _beside(self, prompt: torch.Tensor) -> Check:
        """The files around the model: the package's list of items, and what a Mac is asked to compare."""
        odd = [name for name, content in self._texts().items() if read_whole(self.folder / name) != content]
        if (self.folder / VECTORS).exists():  # they come from verification
            recorder = Recorder()
            self._short_run(self._interpreter("fp16", 0), prompt, recorder)
            odd += [
                f"{VECTORS}: {name}"
                for name in recorder.differences(file_inside(self.folder, VECTORS, str(self.folder)))
            ]
        return Check(
            "files beside the model that a compile writes otherwise", len(odd), 0, f"first {odd[0]}" if odd else ""
        )

    def _texts(self) -> dict[str, bytes]:
        model = read_whole(find_model(self.package.path))
        return {f"{PACKAGE}/{MANIFEST_FILE}": manifest(model).encode(), MAC_SCRIPT: mac_script()}

    def write_extras(self, prompt: torch.Tensor) -> None:
        recorder = Recorder()
        self._short_run(self._interpreter("fp16", 0), prompt, recorder)
        recorder.write(self.folder / VECTORS)

    def _short_run(self, interpreter: Interpreter, prompt: torch.Tensor, recorder: Recorder | None = None) -> None:
        """All but the last tokens as a prompt, those one by one."""
        runner = CoreMLRunner(interpreter, prompt.shape[1], recorder=recorder, form=self._form)
        steps = min(STEPS, prompt.shape[1] - 1)
        runner.step(prompt[:, : prompt.shape[1] - steps])
        for i in range(prompt.shape[1] - steps, prompt.shape[1]):
            runner.step(prompt[:, i : i + 1])

    def _interpreter(self, mode: Mode, threads: int) -> Interpreter:
        key = (mode, threads)
        if key not in self._interpreters:
            self._interpreters[key] = Interpreter(self.package, mode, threads)
        return self._interpreters[key]

    def _typecheck(self) -> Check:
        name = "operations that coremltools does not accept"
        try:
            return Check(name, 0, 0, f"{typecheck(self.package.path)} operations")
        except InputError as error:
            return Check(name, 1, 0, str(error))

    def _headroom(self, prompt: torch.Tensor) -> Check:
        """Every value stays under half of what float16 holds: on this prompt, and on tokens that come first.

        A trained model's largest values by far are those of its first token, and some tokens' are several times others' (Sun et
        al., Massive Activations in Large Language Models, 2024).
        """
        interpreter = Interpreter(self.package, "fp16", ranges=True)
        self._short_run(interpreter, prompt)
        runner = CoreMLRunner(interpreter, 1, form=self._form)
        for token in torch.randint(self._config.vocab_size, (_FIRST, 1, 1), generator=torch.Generator().manual_seed(1)):
            runner.reset()
            runner.step(token)
        ranges = interpreter.ranges
        largest = max(ranges, key=lambda name: ranges[name])
        detail = f"largest {ranges[largest]:,.0f} of {LARGEST:,.0f}, {largest}"
        return Check("operations within a factor of 2 of float16's range", len(tight(ranges)), 0, detail)


class CoreMLRunner:
    """A `Runner` over the functions of a package and its states, for one sequence.

    It makes the calls that an app's kit makes (`Rules`). recorder: notes them. long_after: positions after which LongRoPE's
    long factors hold: a sequence that grows beyond it is run anew. form: of the package, where it may have a ring.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        max_tokens: int,
        every_position: bool = False,
        long_after: int | None = None,
        recorder: Recorder | None = None,
        form: Form | None = None,
    ) -> None:
        self._recorder = recorder
        self._run, self._functions = interpreter, interpreter.package.functions
        self._every_position = every_position
        first = next(iter(interpreter.package.states.values()))
        rows = first.fixed_shape[3]
        ring = form.ring if form else 0
        held = form.positions if form and ring else rows
        if max_tokens > held:
            raise InputError(f"{interpreter.package.path}: its cache holds {held} tokens, not {max_tokens}")
        self._most = max_tokens
        chunk = 0 if "main" in self._functions else self._functions["prefill"].inputs["inputIds"].fixed_shape[1]
        self._rules = Rules(held, chunk, rows, long_after, frozenset(), ring)
        self.reset()

    def reset(self) -> None:
        exact = self._run.mode == "fp32"
        self._states = self._run.make_states(torch.float32 if exact else None)
        self._seen = torch.zeros(1, 0, dtype=torch.int64)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[0] != 1:
            raise InputError(f"a Core ML package runs one sequence, not a batch of {tokens.shape[0]}")
        past, count = self._seen.shape[1], tokens.shape[1]
        if past + count > self._most:
            raise InputError(f"{past + count} tokens do not fit the cache of {self._most}")
        everything = torch.cat([self._seen, tokens], dim=1)
        calls = self._rules.calls(self._seen[0].tolist(), everything[0].tolist())
        if past and calls[0].start == 0:
            self.reset()
        rows = torch.cat([self._call(call, everything) for call in calls], dim=1).float()
        self._seen = everything
        return rows[:, -count:] if self._every_position else rows[:, -1:]

    def _call(self, call: Call, tokens: torch.Tensor) -> torch.Tensor:
        """One call of a function: logits [1, n or 1, V]."""
        name = call.function if self._rules.chunk else "main"
        past, count = call.start, call.count
        padding = self._rules.chunk - count if name == "prefill" else 0
        values = {
            "inputIds": torch.nn.functional.pad(tokens[:, past : past + count], (0, padding)),
            "position": torch.tensor([past]),
            "length": torch.tensor([count]),
            "total": torch.tensor([tokens.shape[1]]),
            "causalMask": torch.zeros(1, 1, 1, past + count + 1),  # its length is what counts
        }
        inputs = {name: values[name] for name in self._functions[name].inputs}
        if self._every_position and "length" in inputs:
            session = self._run.start(name, inputs, self._states, vary=("length",))
            lengths = [torch.tensor([n]) for n in range(1, count + 1)]
            return torch.cat([session.rerun({"length": length})["logits"] for length in lengths], dim=1)
        logits = self._run.run(name, inputs, self._states)["logits"]
        if self._recorder:
            self._recorder.note(name, inputs, logits)
        return logits if "length" in inputs else logits[:, :count]


def _saved(package: MLPackage, function: str, name: str) -> SavedFloat | None:
    """A weight of the package by its identifier; None where there is no such constant."""
    try:
        stored: dict[str, Any] = package.parts(function, name)
    except InputError:
        return None
    if "" in stored:
        return SavedFloat(stored)
    source = stored.get("data")
    if isinstance(source, Operation):  # decoded by one operator for the next one
        stored = {**stored, **package.parts(function, source.outputs[0][0])}
        del stored["data"]
    scales = stored.get("scale")
    if isinstance(scales, Operation) and scales.kind == Codec.operator:  # whole numbers times the scales of rows
        numbers = package.parts(function, scales.outputs[0][0])
        if set(numbers) != {"data", "scale"}:
            return None
        stored = {**stored, "scale": numbers["data"], "row_scale": numbers["scale"]}
    if not all(isinstance(one, Raw) for one in stored.values()):
        return None
    made = find_codec(stored, lambda part: package.parts(function, f"{name}_{part}")[""])
    if made is None:
        return None
    codec, raw = made
    table = [stored["lut"]] if isinstance(codec, TableCodec) else []
    saved = Saved(raw, codec, (*raw.values(), *table))
    shapes = {part: shape for part, (_, shape) in codec.blobs(saved.parts).items()}
    if any(one.shape != shapes[part] for part, one in raw.items()):
        found = ", ".join(f"{part} {list(one.shape)}" for part, one in raw.items())
        raise InputError(
            f"{package.path}: {name} is stored as {found}, which is not how {codec.format.words} is held; compile it again"
        )
    return saved


@dataclass(frozen=True)
class SavedFloat:
    """A float weight: float32 of the float16 values."""

    raw: Mapping[str, Raw] = field(repr=False)

    def read_of(self) -> Iterable[Raw]:
        """All of a package that makes the weight."""
        return self.raw.values()

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return {"": PartSpec(self.raw[""].shape, torch.float32)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {"": self.raw[""].rows(start, stop).tensor().float()}

    def describe(self) -> str:
        return "as saved in the package"


@dataclass(frozen=True)
class Saved(SavedFloat):
    """A quantized weight, back in canonical form. every: of `raw`, and a table that `Codec.holds` has compared."""

    codec: Codec
    every: tuple[Raw, ...] = field(repr=False)

    def read_of(self) -> Iterable[Raw]:
        return self.every

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return specs(self.codec.layout(self.raw))

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return self.codec.decode(self.raw, start, stop)
