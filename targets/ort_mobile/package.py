"""The files of an ONNX Runtime bundle.

model.onnx                  the graph, under a megabyte
model.onnx.data             every weight at a planned offset; large ones page-aligned, so that they can be mapped
genai_config.json           for onnxruntime-genai, the runtime that iOS and Android apps use
required_operators.config   for a reduced build of ONNX Runtime
adapters/NAME.onnx_adapter  each adapter that an app switches
draft/                      on request: the same of a smaller bundle, and its config.json
model.ort                   on request: one file for minimal builds, where it fits under 2 GiB
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto

from pocketphi.artifacts.stream import HasParts, Layout, Progress, Rows, Stored, plan_layout, write_weights
from pocketphi.graph.adapters import bytes_of_factors
from pocketphi.graph.config import EMBEDDING, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec, format_of
from pocketphi.graph.lazy_weights import Constant, LazyWeight
from pocketphi.graph.program import Program, op_name, split_target
from pocketphi.passes.cache_scales import Measured
from pocketphi.passes.choices import BLOCKS
from pocketphi.targets import find_target
from pocketphi.targets.base import Packaged, Prepared
from pocketphi.targets.ort_mobile import draft
from pocketphi.targets.ort_mobile.adapter_file import write_adapter
from pocketphi.targets.ort_mobile.codecs import CODECS, encode, stored
from pocketphi.targets.ort_mobile.experts import paired, why_not
from pocketphi.targets.ort_mobile.kv_cache import KV_CACHES, scale_names, windowed_rows
from pocketphi.targets.ort_mobile.lint import lint
from pocketphi.targets.ort_mobile.lower import Lowered, Placed, lower
from pocketphi.targets.ort_mobile.names import DATA_FILE, GENAI_FILE, GRAPH_FILE, OPERATORS_FILE, ORT_FILE
from pocketphi.targets.ort_mobile.options import OrtMobile
from pocketphi.targets.ort_mobile.pairs import ByExpert, in_turns
from pocketphi.targets.ort_mobile.prefill import chunk_of
from pocketphi.targets.target import Asked

FILES = frozenset({GRAPH_FILE, DATA_FILE, GENAI_FILE, OPERATORS_FILE, ORT_FILE})
ORT_LIMIT = 2**31
"""A flatbuffer's size: ONNX Runtime writes no .ort beyond it, and leaves an empty file when asked to."""

_CONFIG_BYTES = 2048
"""About: of the small files beside model.onnx."""

_ROTARY_STEP = 16
"""GroupQueryAttention rotates a multiple of so many dimensions of a head."""
GUESSES = {
    "ngram_size": 3,
    "max_draft_tokens": 4,
    "ngram_chained_lookup": True,
    "min_adaptive_k": 2,
    "cooldown": True,
}
"""Its guess: what followed when the last two tokens stood there before; as many tokens as have paid so far, of 2 to 16."""

_GENAI_REWINDS_AT = 4097
"""Where onnxruntime-genai 0.18 recomputes the cache of a model of type phi3, because LongRoPE changes its factors."""


class OrtBundle(Prepared):
    """The files of `--target ort-mobile`, planned. The graph is lowered once; weights are read when they are written."""

    def __init__(self, program: Program, options: OrtMobile, asked: Asked) -> None:
        _check_fits(program)
        self._program, self._options, self._asked = program, options, asked
        cache = KV_CACHES[options.kv_cache]
        context = min(asked.context or program.config.max_position, program.config.max_position)
        fits = windowed_rows(program.config, context) is not None and not (
            cache.bits == 4 and program.config.head_dim % 32
        )
        if options.windowed_cache and not fits:
            raise InputError(f"--windowed-cache: {_why_not_windowed(program.config, context)}; leave it out")
        if options.windowed_cache and options.drafts:
            raise InputError(
                "--drafts: onnxruntime-genai takes guesses back, which --windowed-cache cannot; leave one out"
            )
        if options.drafts and not any(op_name(node) == "edge.last_token" for node in program.graph.nodes):
            raise InputError("--drafts gives the logits of the last tokens, --all-logits those of all; leave one out")
        self._draft = None
        if options.draft and (manifest := options.content("draft")):
            tokens = asked.vocabulary or None
            self._draft = draft.fitting_draft(options.draft, manifest, program.config, tokens, context)
        self.lowered = lower(program, options.accuracy_level, cache, options.windowed_cache, options.drafts)
        self.cache_bits = cache.bits if cache.rounds else None
        spec = PartSpec((program.config.kv_heads, program.config.head_dim), torch.float32)
        names = [name for layer in range(program.config.layers) for name in scale_names(layer)] if cache.rounds else []
        self._scales: dict[str, LazyWeight] = {}
        weights: dict[str, HasParts] = {**program.weights_read(), **dict.fromkeys(names, Stored({"": spec}))}
        self._layout = plan_layout({name: Stored(stored(weight.parts)) for name, weight in weights.items()})
        single = plan_layout(weights).size + _tied_bytes(program)  # where all scales are float32
        self.bytes_of_data = self._layout.size
        adapters = sum(bytes_of_factors(program.config, one.ranks) for one in program.adapters.values())
        if adapters:
            find_target("ort-mobile").require("onnxruntime")  # which writes their files
        self.bytes = self._layout.size + adapters + (single if options.ort_file else 0)
        self.bytes += options.draft_size.bytes if options.draft_size else 0
        slow = lint(self.lowered)
        if asked.strict and slow:
            raise InputError(f"ort-mobile: {slow[0]}; without --strict this is only reported")
        self.notes = slow
        if unnoticed_switch(program.config, asked.context or program.config.max_position):
            self.notes.append(
                f"onnxruntime-genai changes LongRoPE's factors at {_GENAI_REWINDS_AT} tokens only, this model elsewhere"
            )
        self.notes += _single_file_notes(single, options.ort_file)

    def take_scales(self, measured: Measured) -> None:
        for layer, one in enumerate(measured):
            for name, scale in zip(scale_names(layer), (one.keys, one.values)):
                self._scales[name] = Constant(scale, "a calibration text")

    def write(self, folder: Path, progress: Progress) -> Packaged:
        program, lowered = self._program, self.lowered
        weights = {**program.weights_read(), **self._scales}
        sizes = {name: weights[name].parts["q"].shape[0] // count for name, count in paired(program).items()}
        turned = {name: ByExpert(weights[name], size) for name, size in sizes.items()}

        def rows(name: str, held: Rows) -> Rows:
            return in_turns(held, sizes[name]) if name in sizes else encode(name, held)

        written = write_weights(folder / DATA_FILE, weights | turned, self._layout, progress, rows)
        (folder / GRAPH_FILE).write_bytes(self.model().SerializeToString(deterministic=True))
        for name, factors in program.adapters.items():
            path = folder / find_target("ort-mobile").switches.format(name)
            path.parent.mkdir(exist_ok=True)
            write_adapter(path, factors)
        settings = genai_config(program, lowered, self._asked.context, self._options)
        if self._draft:
            settings = with_draft(settings, draft.decoder(self._draft))
            draft.copy(self._draft, folder)
        (folder / GENAI_FILE).write_text(json.dumps(settings, indent=1) + "\n")
        (folder / OPERATORS_FILE).write_text(required_operators(lowered.nodes))
        if self._options.ort_file:
            write_ort_file(folder / GRAPH_FILE, folder / ORT_FILE)
        said = details(self._options, program.config)
        return Packaged(self.operators, written.digests, self.notes, said, {DATA_FILE: written.sha256})

    def model(self) -> onnx.ModelProto:
        """model.onnx, which names bytes of the data file."""
        places = [_external(placed, self._layout) for placed in self.lowered.weights]
        return self.lowered.to_model(places, self._asked.version)

    @property
    def around(self) -> int:
        return self.model().ByteSize() + _CONFIG_BYTES

    @property
    def operators(self) -> Counter[str]:
        """Those of the graph, with their domains → count."""
        return Counter(f"{node.domain + '.' if node.domain else ''}{node.op_type}" for node in self.lowered.nodes)


def details(options: OrtMobile, config: ModelConfig) -> dict[str, Any]:
    """What a manifest says of the files; of the cache where it is not the default one."""
    said: dict[str, Any] = {"accuracy_level": options.accuracy_level}
    if KV_CACHES[options.kv_cache].rounds:
        said |= {"kv_cache": options.kv_cache, "kv_cache_bytes_per_token": options.kv_cache_bytes(config)}
    if options.windowed_cache:
        said["windowed_cache"] = True
    if options.drafts:
        said["drafts"] = True
    if options.draft_size:
        said["draft"] = asdict(options.draft_size)
    return said


def _why_not_windowed(config: ModelConfig, context: int) -> str:
    if config.sliding_window is None:
        return "the model has no window: each token sees all before it"
    if config.long_rope and config.long_rope.original_max_position < context:
        return "where LongRoPE changes its factors, the whole text is read again"
    if windowed_rows(config, context):
        return f"in int4, ONNX Runtime wants heads of a multiple of 32 dimensions, not {config.head_dim}; int8 works"
    return f"with {context:,} tokens nothing would be saved, as the window is {config.sliding_window:,}"


def _check_fits(program: Program) -> None:
    """Raise InputError for a size that no operator of ONNX Runtime takes, or experts that it has no operator for."""
    if why := why_not(program):
        raise InputError(f"ort-mobile: {why}")
    for name, weight in program.weights.items():
        form = format_of(weight.parts)
        block = form.block_of(weight.parts) if form else None
        if block and block not in BLOCKS:
            raise InputError(
                f"ort-mobile: {name} has blocks of {block}, MatMulNBits takes {', '.join(map(str, BLOCKS))}; "
                "choose such a --block, or compile it for coreml alone"
            )
    if program.config.rotary_dim % _ROTARY_STEP:
        raise InputError(
            f"ort-mobile: {program.config.rotary_dim} rotary dimensions, ONNX Runtime's attention takes a multiple of "
            f"{_ROTARY_STEP}; compile for coreml or tvm-arm"
        )


def _single_file_notes(single: int, wanted: bool) -> list[str]:
    """A clear statement where the single file does not fit; an error where it was asked for."""
    if single >= ORT_LIMIT:
        if wanted:
            raise InputError(f"--ort-file: {_too_large(single)}")
        return [_too_large(single)]
    return [] if wanted else [f"a single-file model.ort of {single / 1e9:.2f} GB would fit: add --ort-file"]


def write_ort_file(graph: Path, target: Path) -> None:
    """Convert a saved graph and its data to the ORT format, optimised as any device would (no hardware-bound layouts)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def genai_config(
    program: Program, lowered: Lowered, context: int | None, options: OrtMobile | None = None
) -> dict[str, Any]:
    """`genai_config.json`. The window is in the graph, and here only where the cache is cut to it: the runtime would do so."""
    config, inputs, options = program.config, {value.name for value in lowered.inputs}, options or OrtMobile()
    length = min(context or config.max_position, config.max_position)
    return genai_settings(config, inputs, length, options.windowed_cache, options.drafts)


def genai_settings(
    config: ModelConfig, declared: Collection[str], length: int, windowed: bool = False, drafts: bool = False
) -> dict[str, Any]:
    """The same for a graph with these inputs. length: tokens of a conversation; windowed: its caches are; drafts: the runtime
    is to guess tokens."""
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in declared}
    end = config.eos[0] if config.eos else 0
    chunk = chunk_of(config, length)
    window = {"window_size": config.sliding_window, "slide_key_value_cache": False, "slide_inputs": False}
    eos: int | list[int] = list(config.eos) if len(config.eos) != 1 else config.eos[0]
    return {
        "model": {
            "type": _model_type(config, length),
            "bos_token_id": config.bos if config.bos is not None else end,
            "eos_token_id": eos,
            "pad_token_id": config.pad if config.pad is not None else end,
            "vocab_size": config.vocab_size,
            "context_length": length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH_FILE,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.heads,
                "num_key_value_heads": config.kv_heads,
                "num_hidden_layers": config.layers,
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                **({"sliding_window": window} if windowed else {}),
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": length,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            **({"chunk_size": chunk} if chunk else {}),
        },
        **({"speculative": GUESSES} if drafts else {}),
    }


def with_draft(settings: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    """`genai_config.json` where a draft model guesses. decoder: what it says of that one"""
    return {**settings, "model": {**settings["model"], "draft": decoder}, "speculative": draft.GUESSES}


def unnoticed_switch(config: ModelConfig, context: int) -> int | None:
    """Tokens after which LongRoPE changes its factors, within a context, where onnxruntime-genai does not notice: a text that
    it makes longer than that keeps what it read with the factors before."""
    rope = config.long_rope
    if rope is None or rope.short == rope.long or rope.original_max_position >= context:
        return None
    return rope.original_max_position if rope.original_max_position != _GENAI_REWINDS_AT - 1 else None


def _model_type(config: ModelConfig, length: int) -> str:
    """`phi3` makes the runtime recompute the cache at 4,097 tokens. LongRoPE needs that; others beyond would only be slow,
    and take the otherwise equal type `llama`."""
    return "llama" if config.long_rope is None and length >= _GENAI_REWINDS_AT else "phi3"


def _external(placed: Placed, layout: Layout) -> TensorProto:
    name, part = split_target(placed.target)
    tensor = TensorProto(
        name=placed.name,
        dims=placed.shape,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(placed.spec.type_name)),
        data_location=TensorProto.EXTERNAL,
    )
    entries = {"location": DATA_FILE, "offset": layout.offsets[name, part], "length": placed.spec.bytes}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _tied_bytes(program: Program) -> int:
    """What the single file holds twice: there, initializers of two shapes cannot share their bytes."""
    if not program.config.tied_embeddings:
        return 0
    parts = program.weights[EMBEDDING].parts
    form = format_of(parts)
    return parts[CODECS[form.name].values].bytes if form else 0


def _too_large(single: int) -> str:
    return (
        f"no single-file model.ort: it would take {single / 1e9:.3f} GB and the format ends at {ORT_LIMIT / 1e9:.3f} GB; "
        "model.onnx with model.onnx.data has no such limit, or choose --block 128"
    )


def required_operators(nodes: Sequence[onnx.NodeProto]) -> str:
    """One line a domain, as ONNX Runtime's `--include_ops_by_config` reads it: domain;opset;operators."""
    by_domain: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        by_domain[node.domain].add(node.op_type)
    versions = {"": ("ai.onnx", 21), "com.microsoft": ("com.microsoft", 1)}
    lines = [f"{versions[d][0]};{versions[d][1]};{','.join(sorted(ops))}" for d, ops in sorted(by_domain.items())]
    return "\n".join(lines) + "\n"
