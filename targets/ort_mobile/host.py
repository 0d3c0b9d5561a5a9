"""Run the saved files on this host: plain onnxruntime, and onnxruntime-genai as a second opinion."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from pocketphi.graph.adapters import Factors
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec, format_of
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.reading import file_inside, read_whole, show, size_inside
from pocketphi.graph.rounded_cache import FixedScales
from pocketphi.targets import find_target, packages_of
from pocketphi.targets.base import Check, Draft, Host, Runner
from pocketphi.targets.guessing import DraftModel, Guessing
from pocketphi.targets.ort_mobile.adapter_file import load_parameters, read_adapter
from pocketphi.targets.ort_mobile.codecs import CODECS, UNITS, decode, stored
from pocketphi.targets.ort_mobile.draft import FILES as DRAFT_FILES
from pocketphi.targets.ort_mobile.draft import FOLDER as DRAFT
from pocketphi.targets.ort_mobile.draft import DraftSize
from pocketphi.targets.ort_mobile.graph_file import (
    checks_guesses,
    chunk_size,
    external,
    has_draft,
    is_windowed,
    other_operations,
    other_places,
    other_settings,
    other_words,
    read_graph,
    spec_of,
)
from pocketphi.targets.ort_mobile.kv_cache import KV_CACHES, scale_names, windowed_rows
from pocketphi.targets.ort_mobile.lower import CHECKED_LOGITS, K_SCALE
from pocketphi.targets.ort_mobile.names import DATA_FILE, GRAPH_FILE, OPERATORS_FILE, ORT_FILE
from pocketphi.targets.ort_mobile.options import CHECKED, INT8_ACTIVATIONS, OrtMobile
from pocketphi.targets.ort_mobile.ort_file_check import is_compared, ort_file_check
from pocketphi.targets.ort_mobile.package import (
    FILES,
    OrtBundle,
    details,
    required_operators,
    unnoticed_switch,
)
from pocketphi.targets.ort_mobile.pairs import places
from pocketphi.targets.ort_mobile.refused import refused_by
from pocketphi.targets.saved_weight import SavedWeight
from pocketphi.targets.target import Asked


class OrtHost(Host):
    """A bundle's ONNX Runtime files."""

    rounds_inputs = 32  # or as many as a block of weights has, which rounds a little more

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def saved_bound(self) -> float:
        return 1e-2 if level_of(read_graph(self.folder)) == INT8_ACTIVATIONS else self.exact_bound

    def weights(self) -> dict[str, LazyWeight]:
        return read_weights(self.folder)

    def adapters(self, names: Collection[str]) -> dict[str, Factors]:
        if not names:
            return {}
        config = read_config(self.folder)
        return {name: read_adapter(adapter_path(self.folder, name), config) for name in names}

    def own_weights(self) -> dict[str, LazyWeight]:
        return read_scales(self.folder)

    def rounded_cache(self) -> FixedScales | None:
        cache = KV_CACHES[kv_cache_of(read_graph(self.folder))]
        if not cache.rounds:
            return None
        held = self.own_weights()
        names = [scale_names(layer) for layer in range(read_config(self.folder).layers)]
        try:
            scales = [(materialize(held[keys])[""], materialize(held[values])[""]) for keys, values in names]
        except KeyError as error:
            raise InputError(f"{self.folder / GRAPH_FILE}: has no {error.args[0]}; copy or compile it again") from None
        return FixedScales(cache.bits, scales)

    def runner(self, max_tokens: int, exact: bool = False, every_position: bool = False, threads: int = 0) -> OrtRunner:
        changes = [accuracy_level(0), float_cache] if exact else []
        changes += [all_logits] if every_position else []
        return OrtRunner(self.folder, max_tokens, threads, changes)

    @property
    def no_guesses(self) -> str | None:
        return None if checks_guesses(read_graph(self.folder)) else "was compiled without --drafts"

    def talker(self, max_tokens: int, threads: int = 0, draft: Draft = "auto") -> Runner:
        runner = OrtRunner(self.folder, max_tokens, threads)
        if draft == "none" or self.no_guesses:
            return runner
        folder = draft if isinstance(draft, Path) else self.folder / DRAFT if has_draft(self.folder) else None
        if folder is None:
            return Guessing(runner)
        if is_windowed(read_graph(folder)):
            raise InputError(
                f"--draft {draft}: has a windowed cache, which forgets no guesses; compile it without that"
            )
        limit = min(max_tokens, read_config(folder).max_position)
        cost = size_inside(folder, DATA_FILE) / size_inside(self.folder, DATA_FILE)
        return Guessing(runner, DraftModel(OrtRunner(folder, limit, threads), limit), cost)

    def own_checks(self, prompt: torch.Tensor) -> list[Check]:
        """The epsilon of each norm, which moves no logit where hidden values are large, as in a model of random weights; and
        what onnxruntime-genai is told of the model, such as the tokens that end an answer."""
        graph = read_graph(self.folder)
        nodes = [n for n in graph.graph.node if n.op_type.endswith("LayerNormalization")]
        wanted = float(np.float32(read_config(self.folder).rms_norm_eps))
        odd = [n for n in nodes if [a.f for a in n.attribute if a.name == "epsilon"] != [wanted]]
        detail = f"first {show(odd[0].name)}" if odd else f"{len(nodes)} norms"
        folders = [self.folder, self.folder / DRAFT] if has_draft(self.folder) else [self.folder]
        other = [one for folder in folders for one in other_settings(folder, read_config(folder))]
        checks = [
            Check("norms with another epsilon", len(odd), 0, detail),
            Check("settings of genai_config.json that are not the model's", len(other), 0, other[0] if other else ""),
        ]
        pattern = find_target("ort-mobile").switches
        ending = pattern.rpartition("{}")[2]
        names = sorted(path.name.removesuffix(ending) for path in self.folder.glob(pattern.format("*")))
        if names and not is_windowed(graph):  # whose caches have to be shared, which RunOptions prevent
            checks.append(adapters_check(self.folder, names, prompt))
        if checks_guesses(graph):
            checks.append(guesses_check(self.folder, prompt))
        if has_draft(self.folder):
            checks.append(draft_check(self.folder, prompt))
        if (self.folder / ORT_FILE).is_file() and is_compared(self.folder):
            with refused_by("ONNX Runtime", self.folder / ORT_FILE):
                checks.append(ort_file_check(self.folder))
        return checks

    def graph_checks(self, program: Program, asked: Asked) -> list[Check]:
        saved = read_graph(self.folder)
        made: OrtBundle = self.planned(program, asked)
        lowered = made.lowered
        odd = [*other_operations(saved, lowered), *other_places(saved, lowered)] or other_words(saved, made.model())
        size = size_inside(self.folder, DATA_FILE)
        if size != made.bytes_of_data:
            odd.append(f"{DATA_FILE}: {size} bytes, expected {made.bytes_of_data}")
        detail = f"first {show(odd[0])}" if odd else f"{len(saved.graph.node)} operations"
        needed = required_operators(lowered.nodes).encode()
        right = read_whole(file_inside(self.folder, OPERATORS_FILE, str(self.folder))) == needed
        return [
            Check("operations that are not the model's", len(odd), 0, detail),
            Check(f"operators that {OPERATORS_FILE} has otherwise", int(not right), 0),
        ]

    def plan(self, program: Program, asked: Asked) -> OrtBundle:
        return OrtBundle(program, self._options(), asked)

    def _options(self) -> OrtMobile:
        """Those that the files were made with."""
        graph, ort_file = read_graph(self.folder), (self.folder / ORT_FILE).is_file()
        return OrtMobile(
            accuracy_level=level_of(graph),
            ort_file=ort_file,
            kv_cache=kv_cache_of(graph),
            windowed_cache=is_windowed(graph),
            drafts=checks_guesses(graph),
            draft_size=held_draft(self.folder),
        )

    def said(self, program: Program, asked: Asked, notes: Sequence[str]) -> tuple[Mapping[str, int], list[str]]:
        made: OrtBundle = self.planned(program, asked)
        return made.operators, made.notes

    def files(self) -> Collection[str]:
        return {*FILES, *DRAFT_FILES} if has_draft(self.folder) else FILES

    def details(self, program: Program) -> Mapping[str, Any]:
        return details(self._options(), program.config)

    def caveats(self, max_tokens: int) -> list[str]:
        told = []
        if (self.folder / ORT_FILE).is_file() and not is_compared(self.folder):
            told.append(f"{ORT_FILE} was run, and is too large to be compared with what a compile writes")
        switch = unnoticed_switch(read_config(self.folder), max_tokens)
        if switch is None:
            return told
        return [
            *told,
            f"onnxruntime-genai keeps LongRoPE's short factors where a text grows past {switch:,} tokens; there an app has "
            "to read the text again from its start, as the app kits do",
        ]

    def other_runners(self, max_tokens: int) -> dict[str, Callable[[], Runner]]:
        others: dict[str, Callable[[], Runner]] = {}
        if importlib.util.find_spec("onnxruntime_genai"):
            others["onnxruntime-genai"] = lambda: GenaiRunner(self.folder, max_tokens)
        if (self.folder / ORT_FILE).is_file():
            others[ORT_FILE] = lambda: OrtRunner(self.folder, max_tokens, file=ORT_FILE)
        return others


def adapter_path(folder: Path, name: str) -> Path:
    """Of an adapter in a bundle. Raises InputError for a link that leads out."""
    return file_inside(folder, find_target("ort-mobile").switches.format(name), str(folder))


class OrtRunner:
    """A `Runner` over model.onnx and its data, with a K/V cache that past and present share."""

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        threads: int = 0,
        changes: Sequence[Callable[[onnx.ModelProto], None]] = (),
        file: str = GRAPH_FILE,
    ) -> None:
        """max_tokens: size of the cache; file: model.onnx or model.ort; changes: edits in memory of the graph in model.onnx."""
        with packages_of(find_target("ort-mobile")):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        source: Any = str(file_inside(folder, file, str(folder)))
        model = read_graph(folder) if file == GRAPH_FILE else None
        if model and changes:
            try:
                for change in changes:
                    change(model)
            except (StopIteration, LookupError) as error:
                said = f"{type(error).__name__} {show(str(error))}"
                raise InputError(f"{folder / file}: no graph of ours ({said}); copy or compile it again") from None
            source = model.SerializeToString()
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        config = read_config(folder)
        self._file = folder / file
        with refused_by("ONNX Runtime", self._file):
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self._shapes = self._cache_shapes(config)
        self._long_after = config.long_rope.original_max_position if config.long_rope else None
        self._chunk: int | None = chunk_size(folder)
        self.max_tokens = self._rows = max_tokens
        graph = model or read_graph(folder)
        window = config.sliding_window if is_windowed(graph) else None
        if window and window < max_tokens:  # as an app's, but for short runs, which are to see it move on too
            self._rows = min(windowed_rows(config, max_tokens) or max_tokens, window + (max_tokens - window) // 2)
        self._last_only = checks_guesses(graph)
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._folder, self._adapter = folder, dict[str, Any]()
        self.reset()

    def switch(self, adapter: str | None) -> None:
        """An adapter's tensors take the place of the initializers of rank 0. With `run` in place of `run_with_iobinding`,
        `RunOptions.add_active_adapter` does the same."""
        self._adapter = load_parameters(adapter_path(self._folder, adapter)) if adapter is not None else {}
        self.reset()

    def _cache_shapes(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """(heads, elements of a head) of each cache. Raises InputError where they are not those of the config."""
        types = {value.type for value in self.session.get_inputs() if value.name.startswith("past_key_values.")}
        kinds = [kind for name, kind in KV_CACHES.items() if types <= {_TYPES[name]}]
        if not kinds:
            raise InputError(f"{self._file}: caches are {show(sorted(types))}; copy or compile it again")
        self._dtype, wanted = np.dtype(kinds[0].dtype), (config.kv_heads, kinds[0].row(config.head_dim))
        names = [f"past_key_values.{layer}.{kind}" for layer in range(config.layers) for kind in ("key", "value")]
        came = {name: shape for name, shape in self._inputs.items() if name.startswith("past_key_values.")}
        for name in dict.fromkeys([*names, *came]):
            shape = came.get(name, [])
            if name not in names or len(shape) != 4 or (shape[1], shape[3]) != wanted:
                raise InputError(
                    f"{self._file}: {show(name)} has the shape {show(shape)}, config.json says {config.layers} layers of "
                    f"{wanted[0]} heads, {wanted[1]} wide; copy or compile it again"
                )
        return dict.fromkeys(names, wanted)

    def reset(self) -> None:
        """Forget all tokens."""
        self._past = 0
        self._caches: dict[str, Any] = {}
        self._seen: list[torch.Tensor] = []

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [B, S], in chunks as the bundle says. Where LongRoPE changes its factors, everything before is
        computed again."""
        total = self._past + tokens.shape[1]
        if total > self.max_tokens:
            raise ValueError(f"{total} tokens do not fit the cache of {self.max_tokens}")
        if self._long_after and 0 < self._past <= self._long_after < total:
            everything = torch.cat([*self._seen, tokens], dim=1)
            self.reset()
            return self.step(everything)[:, -tokens.shape[1] :]
        self._seen.append(tokens)
        alone = tokens.shape[0] == 1  # the attention takes a batch at once
        size = self._chunk if self._chunk and alone else tokens.shape[1]
        chunks = [self._run(chunk) for chunk in tokens.split(size, dim=1)]
        return chunks[-1] if chunks[0].shape[1] == 1 else torch.cat(chunks, dim=1)

    def room(self) -> int:
        """See `Checks`: before LongRoPE changes its factors, and as many as the graph gives the logits of."""
        switch = self._long_after if self._long_after and self._past <= self._long_after else self.max_tokens
        return min(CHECKED, self._chunk or CHECKED, min(switch, self.max_tokens) - self._past)

    def check(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Checks`: of a graph that gives the logits of the last tokens."""
        self._seen.append(tokens)
        return torch.from_numpy(self.run(tokens))

    def forget(self, count: int) -> None:
        """The last tokens of a text. Where that takes LongRoPE's change of factors back, the others are computed again."""
        left = torch.cat(self._seen, dim=1)[:, : self._past - count]
        if self._long_after and left.shape[1] <= self._long_after < self._past:
            self.reset()
            self.step(left)
        else:
            self._seen, self._past = [left], left.shape[1]

    def _feeds(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the graph wants beside the caches, by name."""
        batch, length = tokens.shape
        total = self._past + length
        feeds = {
            "input_ids": tokens.numpy(),
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.broadcast_to(np.arange(self._past, total), (batch, length)).copy(),
        }
        return {name: value for name, value in feeds.items() if name in self._inputs}

    def feeds(self, prompt: torch.Tensor) -> dict[str, Any]:
        """All inputs of the graph for a text by itself, int64 [1, S]."""
        self.reset()
        caches = {name: np.zeros((1, heads, 0, dim), self._dtype) for name, (heads, dim) in self._shapes.items()}
        return self._feeds(prompt) | caches

    def _run(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.from_numpy(self.run(tokens))
        return logits[:, -1:] if self._last_only else logits

    def run(self, tokens: torch.Tensor) -> npt.NDArray[np.float32]:
        """Append tokens int64 [B, S] in one call; the graph's logits."""
        batch, length = tokens.shape
        total = self._past + length
        if not self._caches:
            for name, (heads, dim) in self._shapes.items():
                self._caches[name] = self._value(np.zeros((batch, heads, self._rows, dim), self._dtype))
        feeds = self._feeds(tokens)
        with refused_by("ONNX Runtime", self._file):
            binding = self.session.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name, value in self._adapter.items():
                binding.bind_ortvalue_input(name, value)
            for name, cache in self._caches.items():
                binding.bind_ortvalue_input(name, cache)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
            binding.bind_output("logits")
            self.session.run_with_iobinding(binding)
            logits = binding.get_outputs()[-1].numpy()
        if logits.dtype != np.float32 or logits.shape[:1] != (batch,) or logits.shape[1:2] not in ((1,), (length,)):
            raise InputError(f"{self._file}: logits are {logits.dtype} {list(logits.shape)}; copy or compile it again")
        self._past = total
        return np.asarray(logits)


def adapters_check(folder: Path, names: Collection[str], prompt: torch.Tensor) -> Check:
    """`RunOptions.add_active_adapter`, which an app uses with ONNX Runtime alone, gives the bits of the tensors in the file.

    prompt: int64 [1, S]
    """
    with packages_of(find_target("ort-mobile")):
        import onnxruntime

    runner, wrong = OrtRunner(folder, prompt.shape[1]), []
    for name in names:
        runner.switch(name)
        expected = runner.step(prompt)
        path = adapter_path(folder, name)
        with refused_by("ONNX Runtime", path):
            held, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
            held.Load(str(path))
            options.add_active_adapter(held)
            came = runner.session.run(["logits"], runner.feeds(prompt), options)[0]
        if not np.array_equal(came, expected.numpy()):
            wrong.append(name)
    detail = f"first {wrong[0]}" if wrong else f"{len(names)} adapters"
    return Check("adapters that RunOptions give other logits", len(wrong), 0, detail)


def guesses_check(folder: Path, prompt: torch.Tensor) -> Check:
    """The logits of the last tokens, by which onnxruntime-genai checks what it guessed, are those of a graph that gives every
    token's, and those before are 0. The largest KL of one of them.

    prompt: int64 [1, S], of which as much is run as goes through at once
    """
    tokens = prompt[:, : chunk_size(folder) or prompt.shape[1]]
    length = tokens.shape[1]
    few, every = OrtRunner(folder, length), OrtRunner(folder, length, changes=[all_logits])
    came, wanted = few.run(tokens)[0], every.run(tokens)[0]
    first = max(length - CHECKED, 0)
    p, q = (torch.from_numpy(one[first:]).double().log_softmax(-1) for one in (wanted, came))
    worst = float((p.exp() * (p - q)).sum(-1).max()) if not came[:first].any() else math.inf
    return Check("KL of the tokens that check guesses", worst, Host.exact_bound, f"{length - first} of {length} tokens")


def held_draft(folder: Path) -> DraftSize | None:
    """What the draft model in a bundle takes, None where it has none."""
    if not has_draft(folder):
        return None
    held = folder / DRAFT
    files = sum(size_inside(folder, name) for name in DRAFT_FILES)
    return DraftSize(files, KV_CACHES[kv_cache_of(read_graph(held))].bytes(read_config(held)))


def draft_check(folder: Path, prompt: torch.Tensor) -> Check:
    """The draft model in a bundle reads the text, and gives as many logits as the model.

    prompt: int64 [1, S], of which as much is run as goes through at once
    """
    tokens = prompt[:, : chunk_size(folder) or prompt.shape[1]]
    logits = OrtRunner(folder / DRAFT, tokens.shape[1]).step(tokens)
    wrong = int((~logits.isfinite()).sum()) + abs(logits.shape[-1] - read_config(folder).vocab_size)
    return Check("logits of the draft model that are no numbers, or too many", wrong, 0)


def all_logits(model: onnx.ModelProto) -> None:
    """Keep every position where the graph takes the last one: for measuring, over the same weights."""
    few = checks_guesses(model)
    nodes = {output: node for node in model.graph.node for output in node.output}
    rows = {node.input[0]: node for node in model.graph.node if node.op_type == "Unsqueeze"}
    picked = {
        n.output[0] if few else rows[n.output[0]].output[0]: n.input[0]
        for n in nodes.values()
        if n.op_type == "GatherND"
    }
    if few:
        model.graph.node.remove(nodes["logits"])
        nodes[CHECKED_LOGITS].output[0] = "logits"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = picked.get(name, name)
    tokens = next(value for value in model.graph.output if value.name == "logits").type.tensor_type.shape.dim[1]
    tokens.dim_param = "sequence"


def level_of(model: onnx.ModelProto) -> int:
    """The accuracy level of a graph's products; that of int8 where one of them has it."""
    levels = {a.i for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"}
    return INT8_ACTIVATIONS if INT8_ACTIVATIONS in levels else min(levels, default=INT8_ACTIVATIONS)


_TYPES = {"fp32": "tensor(float)", "int8": "tensor(int8)", "int4": "tensor(uint8)"}
"""Of a cache's tensors, as ONNX Runtime calls them."""


def kv_cache_of(model: onnx.ModelProto) -> str:
    """What a graph's caches are: a name of KV_CACHES, the default where none of its attentions says one."""
    bits = {a.i for node in model.graph.node for a in node.attribute if a.name == "kv_cache_bit_width"}
    return next((name for name, kind in KV_CACHES.items() if kind.bits in bits), next(iter(KV_CACHES)))


def float_cache(model: onnx.ModelProto) -> None:
    """An edit that keeps keys and values as they are, in float32."""
    cache = KV_CACHES[kv_cache_of(model)]
    if not cache.rounds:
        return
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [a for a in node.attribute if a.name not in ("kv_cache_bit_width", "k_quant_type", "v_quant_type")]
            del node.input[K_SCALE:], node.attribute[:]
            node.attribute.extend(kept)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            size = value.type.tensor_type.shape.dim[3]
            size.dim_value = size.dim_value * (2 if cache.bits == 4 else 1)


def accuracy_level(level: int) -> Callable[[onnx.ModelProto], None]:
    """An edit that sets the accuracy level of every MatMulNBits."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = level

    return edit


def read_scales(folder: Path) -> dict[str, LazyWeight]:
    """The saved scales of the cache by name."""
    specs = {t.name: spec_of(t, folder) for t in external(read_graph(folder)) if t.name.endswith(_SCALES)}
    return {n: _Saved(folder / DATA_FILE, {"": spec}, {"": offset}) for n, (spec, offset) in specs.items()}


_SCALES = tuple(name.rpartition(".")[2] for name in scale_names(0))


def read_weights(folder: Path) -> dict[str, LazyWeight]:
    """The saved weights of the model by name, read lazily."""
    named = {part for codec in CODECS.values() for part in codec.format.part_names()}
    parts: dict[str, dict[str, PartSpec]] = {}
    offsets: dict[str, dict[str, int]] = {}
    graph = read_graph(folder)
    mixtures = [node.input for node in graph.graph.node if node.op_type == "QMoE" and len(node.input) > _SECOND]
    routed = {inputs[place].rpartition(".")[0] for inputs in mixtures for place in (_FIRST, _SECOND)}
    paired = {inputs[_FIRST].rpartition(".")[0] for inputs in mixtures}
    for tensor in external(graph):
        stem, _, suffix = tensor.name.rpartition(".")
        if suffix in ("2d", "3d", *_SCALES):  # other shape, same bytes; no weight of the model
            continue
        name, part = (stem, suffix) if suffix in named else (tensor.name, "")
        parts.setdefault(name, {})[part], offsets.setdefault(name, {})[part] = spec_of(tensor, folder)
    found: dict[str, LazyWeight] = {}
    for name, held in parts.items():
        size = 0
        if name in routed:
            held, size = _in_rows(held, folder, name)
        saved = folder / DATA_FILE, _canonical(held, folder, name), offsets[name]
        found[name] = _SavedPairs(*saved, size) if name in paired else _Saved(*saved)
    return found


_FIRST, _SECOND = 2, 5
"""Which inputs of a QMoE are the matrices."""


def _in_rows(held: Mapping[str, PartSpec], folder: Path, name: str) -> tuple[dict[str, PartSpec], int]:
    """The parts [E, N, …] of a matrix of experts as those of one [E · N, …], and N. Raises InputError for other parts."""
    sizes = {spec.shape[1] if len(spec.shape) == 3 else 0 for spec in held.values()}
    size = sizes.pop()
    if sizes or not size or size % 2:
        raise InputError(f"{folder / GRAPH_FILE}: {show(name)} has parts of several sizes; copy or compile it again")
    return {p: replace(s, shape=(s.shape[0] * size, s.shape[2])) for p, s in held.items()}, size


def _canonical(held: Mapping[str, PartSpec], folder: Path, name: str) -> dict[str, PartSpec]:
    """The parts that stored ones stand for. Raises InputError for what no weight is stored as."""
    form = format_of(held)
    if not form:
        return dict(held)
    # the graph may say another shape
    flat = {part: replace(s, shape=((*s.shape, 1)[0], math.prod(s.shape[1:]))) for part, s in held.items()}
    names, lengths = set(form.part_names()), {spec.shape[0] for spec in flat.values()}
    if not names - form.optional() <= flat.keys() <= names or len(lengths) > 1:
        raise InputError(
            f"{folder / GRAPH_FILE}: {show(name)} has the parts {', '.join(sorted(flat))} in rows of "
            f"{' and '.join(map(str, sorted(lengths)))}, which is no {form.words}; copy or compile it again"
        )
    found = flat | {part: replace(flat[part], dtype=torch.float32) for part in UNITS if part in flat}
    if stored(found) != flat:
        raise InputError(f"{folder / GRAPH_FILE}: {show(name)} has scales of another type; copy or compile it again")
    return found


class _Saved(SavedWeight):
    """A weight in model.onnx.data. parts: in canonical form."""

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return decode(self.stored(stored(self.parts), start, stop))


@dataclass(frozen=True)
class _SavedPairs(_Saved):
    """The same, with rows in the order of `pairs.py`. size: rows of an expert."""

    size: int

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rows = places(start, stop, self.size)
        first = int(rows.min(initial=start))
        held = super().read(first, int(rows.max(initial=first)) + 1)
        return {part: tensor[rows - first] for part, tensor in held.items()}


class GenaiRunner:
    """A `Runner` over the whole folder in onnxruntime-genai, as an app would load it. Logits of the last token only."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        import onnxruntime_genai as genai

        self._genai, self._folder, self._adapter = genai, folder, ""
        with refused_by("onnxruntime-genai", folder):
            self.model = genai.Model(str(folder))
            self._adapters = genai.Adapters(self.model)
        self._loaded: set[str] = set()
        self.max_tokens = max_tokens
        self.reset()

    def reset(self) -> None:
        with refused_by("onnxruntime-genai", self._folder):
            parameters = self._genai.GeneratorParams(self.model)
            parameters.set_search_options(max_length=self.max_tokens)
            self._generator = self._genai.Generator(self.model, parameters)
            if self._adapter:
                self._generator.set_active_adapter(self._adapters, self._adapter)

    def switch(self, adapter: str | None) -> None:
        """As an app does: each adapter is loaded once, and chosen for a generator before its first token."""
        self._adapter = adapter or ""
        if adapter is not None and adapter not in self._loaded:
            with refused_by("onnxruntime-genai", self._folder):
                self._adapters.load(str(adapter_path(self._folder, adapter)), adapter)
            self._loaded.add(adapter)
        self.reset()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        with refused_by("onnxruntime-genai", self._folder):
            self._generator.append_tokens(tokens.numpy().astype(np.int32))
            logits = torch.from_numpy(np.array(self._generator.get_logits()))
        return logits[:, -1:].float()
