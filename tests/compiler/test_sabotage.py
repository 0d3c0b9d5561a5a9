"""One step is broken at a time: the checks before and after a compile have to say so, whatever the step is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rounding_check import rounding_check, same_norms
from pocketphi.compiler.source_check import reading_checks
from pocketphi.graph import gguf_file, gguf_rope, gguf_tokenizer, gguf_vocabulary, hf_folder, hf_weights
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.formats import Affine, Tables, format_of
from pocketphi.graph.gguf_file import GgufFile
from pocketphi.graph.kept import Grouped
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.safetensors_file import RowReader
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import QUANTIZERS as ALL_QUANTIZERS
from pocketphi.passes.quantizers import Quantizer, RoundToNearest, make_quantizer
from tests.graph.test_gguf_file import HIDDEN, random_tensors, write
from tests.graph.test_tokenizer import byte_level_fields, phi3_fields
from tests.helpers.decoder_folders import save_model
from tests.helpers.hf_folders import EMBEDDING, HEAD, configure, save, tensors
from tests.helpers.tiny_phi3 import fused

Patch = Callable[[pytest.MonkeyPatch], None]
TEMPLATE = {"tokenizer.chat_template": "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"}


def broken(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def gguf_model(path: Path, arch: str, fields: dict[str, Any], kind: Type = Type.F16, **more: Any) -> Path:
    count = len(fields["tokenizer.ggml.tokens"])
    weights, rng = random_tensors(arch), np.random.default_rng(3)
    for name in ("token_embd.weight", "output.weight"):
        weights[name] = rng.standard_normal((count, HIDDEN), np.float32)
    weights |= more.pop("tensors", {})
    text = {key: value for key, value in fields.items() if key.startswith("tokenizer.")}
    settings = {"rope.freq_base": 5000.0, "attention.layer_norm_rms_epsilon": 1e-3, **more}
    return write(path, arch, weights, kind, {**text, **TEMPLATE, **settings})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {name: root / name for name in ("plain", "two heads", "two sets", "apart", "heavy tails")}
    for folder in folders.values():
        folder.mkdir()
    save(folders["plain"], tensors())
    (folders["plain"] / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 11]}))
    configure(save(folders["two heads"], tensors()), tie_word_embeddings=True)
    rng = np.random.default_rng(1)  # outliers, as weights have them
    tails = {n: torch.from_numpy(rng.standard_t(3, w.shape)).mul(0.05).bfloat16() for n, w in tensors().items()}
    save(folders["heavy tails"], {n: tails[n] if w.dim() > 1 else w for n, w in tensors().items()})
    save(folders["two sets"], tensors(seed=1), shards=3)
    save(folders["two sets"], tensors())
    save_model(folders["apart"], "LlamaForCausalLM", torch.bfloat16)
    freqs = {"rope_freqs.weight": np.linspace(1, 3, 8).astype(np.float32)}
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    made = {
        "llama": gguf_model(root / "llama.gguf", "llama", byte_level_fields("llama-bpe"), **linear),
        "freqs": gguf_model(root / "freqs.gguf", "llama", byte_level_fields("smollm"), tensors=freqs),
        "phi3": gguf_model(root / "phi3.gguf", "phi3", phi3_fields(), **{"attention.sliding_window": 24}),
        "old phi3": gguf_model(root / "old.gguf", "phi3", phi3_fields()),
        "q4_0": gguf_model(root / "q4_0.gguf", "llama", byte_level_fields("gpt-2"), Type.Q4_0),
        "q4_1": gguf_model(root / "q4_1.gguf", "llama", byte_level_fields("gpt-2"), Type.Q4_1),
    }
    return {**folders, **made}


def wrong(model: Path) -> list[str]:
    """What the checks say of how a model is read; an error counts."""
    try:
        source = open_checkpoint(model)
        source.check_settings()
        return [check.name for check in reading_checks(source) if not check.ok]
    except PocketphiError as error:
        return [str(error)]


@pytest.mark.parametrize(
    "name", ["plain", "two heads", "two sets", "apart", "llama", "freqs", "phi3", "old phi3", "q4_0", "q4_1"]
)
def test_nothing_is_said_of_a_reader_that_is_right(name: str, models: dict[str, Path]) -> None:
    assert wrong(models[name]) == []


def hf_read(**changes: Any) -> Patch:
    def make(old: Any) -> Any:
        def read(data: Any, where: str) -> Any:
            found = old(data, where)
            return replace(found, model=replace(found.model, **changes))

        return read

    return broken(hf_folder, "read_hf_config", make)


def gguf_read(**changes: Any) -> Patch:
    def make(old: Any) -> Any:
        def read(*given: Any) -> Any:
            config, notices = old(*given)
            return replace(config, **changes), notices

        return read

    return broken(gguf_file, "config_of", make)


def vocabulary(**changes: Callable[[Any], Any]) -> Patch:
    def make(old: Any) -> Any:
        def read(self: Any) -> Any:
            found = old(self)
            return replace(found, **{key: change(getattr(found, key)) for key, change in changes.items()})

        return read

    return broken(gguf_vocabulary._Reader, "read", make)


def rows(change: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    return broken(RowReader, "read", lambda old: lambda *given: change(old(*given)))


def assigned(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Patch:
    def make(old: Any) -> Any:
        def changed(*given: Any) -> Any:
            found = old(*given)
            return replace(found, plain=change(found.plain))

        return changed

    return broken(hf_folder, "assign", make)


def parts(change: Callable[[int, Any], Any]) -> Patch:
    def make(old: Any) -> Any:
        return lambda *given: {n: [change(i, p) for i, p in enumerate(v)] for n, v in old(*given).items()}

    return broken(gguf_file, "find_parts", make)


def other_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hf_weights, "SINGLE", hf_weights.INDEX)


def swapped_nibbles(old: Any) -> Any:
    def read(*given: Any) -> Any:
        kept = old(*given)
        return replace(kept, q=(kept.q >> 4) | ((kept.q & 15) << 4))

    return read


def lower_offset(old: Any) -> Any:
    def read(*given: Any) -> Any:
        kept = old(*given)
        return replace(kept, offset=kept.offset - kept.scale)

    return read


def keeping_space(old: Any) -> Any:
    def find(*given: Any) -> Any:
        model, kind = old(*given)
        return model, replace(kind, keep_space=(*kind.keep_space, "<|user|>"))

    return find


NORM, LATER = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
READERS: dict[str, tuple[str, Patch]] = {
    "theta": ("plain", hf_read(rope_theta=5.0)),
    "eps": ("plain", hf_read(rms_norm_eps=0.5)),
    "window": ("plain", hf_read(sliding_window=None)),
    "end tokens": ("plain", hf_read(eos=(3,))),
    "start token": ("plain", hf_read(bos=9)),
    "generation_config": ("plain", broken(hf_folder.HfFolder, "_add_end_tokens", lambda old: lambda self: None)),
    "head left out": ("two heads", broken(hf_folder.HfFolder, "_tie", lambda old: lambda self: self._stored.pop(HEAD))),
    "head as embedding": ("two heads", assigned(lambda found: {**found, EMBEDDING: found[HEAD]})),
    "old files": ("two sets", other_files),
    "another layer": ("plain", assigned(lambda found: {**found, NORM: found[LATER]})),
    "offset": ("plain", assigned(lambda f: {**f, NORM: replace(f[NORM], offset=f[NORM].offset - 2)})),
    "dtype": ("plain", assigned(lambda f: {name: replace(one, dtype="F16") for name, one in f.items()})),
    "rows": ("plain", rows(lambda found: found.flip(0))),
    "columns": ("plain", rows(lambda found: found.roll(1, -1))),
    "stacked in another order": ("apart", broken(hf_folder, "cut", lambda old: lambda p, *rows: old(p[::-1], *rows))),
    "stacked of one": ("apart", broken(hf_folder, "cut", lambda old: lambda p, *rows: old([*p[:1], *p[:-1]], *rows))),
    "gguf theta": ("llama", gguf_read(rope_theta=10000.0)),
    "gguf eps": ("llama", gguf_read(rms_norm_eps=1e-5)),
    "gguf context": ("llama", gguf_read(max_position=64)),
    "gguf window": ("phi3", gguf_read(sliding_window=25)),
    "gguf window lost": ("phi3", gguf_read(sliding_window=None)),
    "gguf window made up": ("old phi3", gguf_read(sliding_window=16)),
    "gguf end tokens": ("phi3", gguf_read(eos=(3,))),
    "gguf start token": ("phi3", gguf_read(bos=5)),
    "gguf rotary": ("phi3", gguf_read(rotary_dim=8)),
    "gguf linear": ("llama", gguf_read(long_rope=None)),
    "gguf linear inverted": ("llama", broken(gguf_rope, "_scale", lambda old: lambda *given: 1 / old(*given))),
    "gguf rope_freqs": ("freqs", gguf_read(long_rope=None)),
    "gguf head": ("llama", gguf_read(tied_embeddings=True)),
    "q and k in another order": ("llama", parts(lambda i, part: replace(part, head_dim=0))),
    "k in another order": ("llama", parts(lambda i, part: replace(part, head_dim=0 if i == 1 else part.head_dim))),
    "phi3 in another order": ("phi3", parts(lambda i, part: replace(part, head_dim=16))),
    "kept nibbles": ("q4_0", broken(GgufFile, "_blocks", swapped_nibbles)),
    "kept offset": ("q4_1", broken(Grouped, "as_blocks", lower_offset)),
    "cut": ("llama", vocabulary(pre=lambda pre: "gpt-2")),
    "another cut": ("freqs", vocabulary(pre=lambda pre: "llama-bpe")),
    "order of merges": ("llama", vocabulary(merges=lambda merges: merges[::-1])),
    "a merge": ("llama", vocabulary(merges=lambda merges: merges[:-1])),
    "scores": ("phi3", vocabulary(scores=lambda scores: [-score for score in scores])),
    "kinds": ("phi3", vocabulary(kinds=lambda kinds: [1] * len(kinds))),
    "tokens": ("phi3", vocabulary(tokens=lambda tokens: [*tokens[:280], *tokens[280:][::-1]])),
    "start of a text": ("phi3", vocabulary(adds_bos=lambda adds: True)),
    "space before a text": ("phi3", vocabulary(space_prefix=lambda prefix: False)),
    "template": ("phi3", vocabulary(template=lambda template: template + " ")),
    "space behind markers": ("phi3", broken(gguf_tokenizer, "find_gguf", keeping_space)),
    "bytes": (
        "phi3",
        broken(gguf_tokenizer, "BPE", lambda old: lambda *a, **k: old(*a, **{**k, "byte_fallback": False})),
    ),
    "words first": ("llama", broken(gguf_tokenizer, "WORDS_FIRST", lambda old: frozenset())),
}


@pytest.mark.parametrize("step", READERS)
def test_a_broken_step_of_a_reader_is_seen(step: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, patch = READERS[step]
    patch(monkeypatch)
    assert wrong(models[name])


QUANTIZERS = [
    *(one(**{name: p.default for name, p in one.parameters.items()}) for one in ALL_QUANTIZERS),
    *(make_quantizer(recipe, "int4", {"block": 0}) for recipe in ("rtn", "search")),
    *(make_quantizer("rtn", form, {"symmetric": False}) for form in ("int2", "int3", "int4", "int5", "int6")),
]
"""Every one that there is."""
TO_NEAREST = [one for one in QUANTIZERS if one.recipe == "rtn"]


def quantized(quantizer: Quantizer, folder: Path) -> tuple[Program, Checkpoint]:
    """The rewritten graph of another checkpoint of the same shape, with the folder's weights."""
    program, source = fused(), open_checkpoint(folder)
    for name, weight in program.weights.items():
        if hasattr(weight, "tensor"):
            program.weights[name] = replace(weight, checkpoint=source)
    QuantizeWeights(Policy.of(quantizer))(program)
    return program, source


RIGHT = [*((one, "heavy tails") for one in QUANTIZERS), *((one, "plain") for one in QUANTIZERS[::4])]


@pytest.mark.parametrize(("quantizer", "model"), RIGHT, ids=lambda x: x if isinstance(x, str) else x.describe())
def test_rounded_weights_are_the_models(quantizer: Quantizer, model: str, models: dict[str, Path]) -> None:
    program, source = quantized(quantizer, models[model])
    for policy in (Policy.of(quantizer), None):
        found = rounding_check(program.weights, source, policy)
        assert found.ok, found.detail
    assert same_norms(program.weights, source)


@pytest.mark.parametrize(("target", "form"), [("ort-mobile", "int2"), ("coreml", "palette2")])
def test_few_bits_that_were_searched_are_the_models(
    target: str, form: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """With the errors of other layers made up for, which moves rows by most of their length."""
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[[rules]]\npattern = "*"\nformat = "{form}"\nrecipe = "search"\n')
    options = {"policy": rules, "calibration_tokens": 512, "context": 64, "verify": "always"}
    made = compile_model(compile_options(str(models["heavy tails"]), tmp_path / "b", (target,), **options))
    assert made.manifest.verified


def values_changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """Whole numbers or indices of a weight are other ones: uint8 [N, K], or [G, R, K] of a palette."""

    def changed(made: Any) -> Any:
        more = [made.lut] if isinstance(made, Tables) else [made.scale, made.zeros()]
        offset = {"offset": made.offset} if isinstance(made, Affine) else {}
        return type(made).pack(change(made.values()), *more, **offset)

    return changed


def scaled(by: float) -> Callable[[Any], Any]:
    def changed(made: Any) -> Any:
        part = "lut" if isinstance(made, Tables) else "scale"
        return replace(made, **{part: getattr(made, part) * by})

    return changed


def only(columns: slice, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def changed(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values[..., columns] = change(values[..., columns])
        return values

    return values_changed(changed)


ROUNDING: dict[str, Callable[[Any], Any]] = {
    "larger": scaled(1.25),
    "smaller": scaled(0.7),
    "sign": scaled(-1),
    "order of rows": values_changed(lambda values: values.roll(1, -2)),
    "order of columns": values_changed(lambda values: values.flip(-1)),
    "pairs": values_changed(lambda values: values.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)),
    "lowest bit": values_changed(lambda values: values & 0xFE),
    "the next level": values_changed(lambda values: torch.where(values > 0, values - 1, values)),
    "last column": only(slice(-1, None), torch.zeros_like),
    "a row": values_changed(lambda v: torch.where(torch.arange(v.shape[-2])[:, None] == v.shape[-2] // 2, 0 * v, v)),
}


@pytest.mark.parametrize("quantizer", TO_NEAREST, ids=lambda q: q.describe())
@pytest.mark.parametrize("step", ROUNDING)
def test_broken_rounding_is_seen(
    step: str, quantizer: Quantizer, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, source = quantized(quantizer, models["plain"])
    change = ROUNDING[step]
    broken(type(quantizer), "quantize", lambda old: lambda *given: change(old(*given)))(monkeypatch)
    found = rounding_check(program.weights, source, Policy.of(quantizer))
    assert found.measured == sum(bool(format_of(weight.parts)) for weight in program.weights.values()), found.detail


SEARCHED = [one for one in QUANTIZERS if one.recipe == "search"]


@pytest.mark.parametrize("quantizer", SEARCHED, ids=lambda q: q.describe())
@pytest.mark.parametrize("step", ["sign", "order of rows", "order of columns", "pairs"])
def test_broken_search_is_seen(
    step: str, quantizer: Quantizer, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_broken_rounding_is_seen(step, quantizer, models, monkeypatch)


def test_an_exchanged_weight_and_another_norm_are_seen(models: dict[str, Path]) -> None:
    program, source = quantized(RoundToNearest(32), models["plain"])
    assert rounding_check(program.weights, source).ok
    kept = dict(program.weights)
    first, second = (f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1))
    program.weights[first] = kept[second]
    assert first in rounding_check(program.weights, source).detail
    program.weights |= {first: kept[first], NORM: kept["model.norm.weight"]}
    assert not same_norms(program.weights, source)
