"""One lowering rule of Core ML is broken at a time, as a bug would: the checks of the package have to say so.

The text is shorter than in a real verification: what is seen here is seen there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from pocketphi.compiler import numerics
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph import random_weights
from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.targets.coreml import codecs, package
from pocketphi.targets.coreml.emitter import Emitter
from pocketphi.targets.coreml.mil import FunctionBuilder
from pocketphi.targets.coreml.weightfile import WeightFile

WINDOW, SWITCH, CONTEXT = 20, 24, 30
"""Of the model, whose LongRoPE switches while a decode passes the window."""
Change = Callable[[Emitter, str, dict[str, Any]], tuple[str, dict[str, Any]]]
"""(emitter, operator, its arguments) → operator and arguments that take their place."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def wrong(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The checks of a tiny package that fail, or the error that ends them. sabotage: holds while the package is made."""
    rope = LongRope((1.0,) * 4, (1.0, 2.0, 3.0, 4.0), SWITCH)
    shape = replace(PUBLISHED["tiny"], layers=2, vocab_size=64, max_position=40, rotary_dim=8)
    monkeypatch.setitem(random_weights.PUBLISHED, "sabotage", replace(shape, sliding_window=WINDOW, long_rope=rope))
    monkeypatch.setattr(numerics, "_DECODE", 3)

    def run(sabotage: Callable[[pytest.MonkeyPatch], None], **options: Any) -> list[str]:
        recipe = {} if "policy" in options else {"recipe": "rtn"}
        asked = {**recipe, "verify": "never", "chunk": 8, "context": CONTEXT, "cache": cache, **options}
        with monkeypatch.context() as patch:
            sabotage(patch)
            bundle = compile_model(compile_options("random:sabotage", tmp_path / "b", ("coreml",), **asked))
        try:
            traced = lambda source: KnownGraphs(source, cache).traced  # noqa: E731
            result = verify_folder(bundle.path, bundle.manifest, Ui(), tracer=traced)
        except PocketphiError as error:
            return [str(error)]
        return [check.name for check in result.checks if not check.ok]

    return run


def emitted(end: str, change: Change, start: str = "") -> Callable[[pytest.MonkeyPatch], None]:
    """Changes each operator whose name ends, and begins, with this."""

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        emit = Emitter.op

        def op(e: Emitter, kind: str, name: str, **arguments: Any) -> Any:
            if name.endswith(end) and name.startswith(start):
                kind, arguments = change(e, kind, arguments)
            return emit(e, kind, name, **arguments)

        patch.setattr(Emitter, "op", op)

    return sabotage


def given(**changes: Any) -> Change:
    """Other arguments; a function makes one from the arguments that were there."""
    return lambda e, kind, a: (kind, {**a, **{k: v(a) if callable(v) else v for k, v in changes.items()}})


def kind(to: str) -> Change:
    return lambda e, kind, a: (to, a)


def next_row(e: Emitter, kind: str, a: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The row after the one that is asked for, as far as there is one."""
    name, last = f"after_{a['x'].name}", np.int32(a["x"].shape[0] - 1)
    after = FunctionBuilder.op(e, "add", name, x=a["indices"], y=np.int32(1))
    return kind, {**a, "indices": FunctionBuilder.op(e, "minimum", f"{name}_least", x=after, y=last)}


def turned(axis: int) -> Change:
    """The heads in another order."""
    return lambda e, kind, a: (
        kind,
        {**a, "x": FunctionBuilder.op(e, "reverse", f"turned_{a['x'].name}", x=a["x"], axes=[axis])},
    )


def first_layer(e: Emitter, kind: str, a: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return kind, {**a, "begin": [0, *a["begin"][1:]], "end": [1, *a["end"][1:]]}


RULES: dict[str, tuple[dict[str, Any], Callable[[pytest.MonkeyPatch], None]]] = {
    "epsilon": ({}, emitted("_root", given(x=np.float16(1e-3)))),
    "epsilon not in units of x": ({}, emitted("_root", given(y=np.float16(1)))),
    "largest of a row without its sign": ({}, emitted("_default_abs", kind("identity"))),
    "sum of a row in place of its largest": ({}, emitted("_default_max", kind("reduce_sum"))),
    "rows of zeros": ({}, emitted("_peak", given(y=np.float16(0)))),
    "no epsilon": ({"norm": "fp32"}, emitted("_rsqrt", given(epsilon=np.float32(1e-12)))),
    "residual": ({}, emitted("_sum", given(y=lambda a: a["x"]))),
    "activation": ({}, emitted("_silu", kind("sigmoid"))),
    "row of the last token": ({}, emitted("_default_row", given(y=np.int32(0)))),
    "scale of attention": ({"attention": "decomposed"}, emitted("_scaled", given(y=np.float16(0.26)))),
    "hidden keys": ({"attention": "decomposed"}, emitted("_added", given(y=np.float16(-4)))),
    "window": ({}, emitted("_first", given(y=np.int32(WINDOW + 1)), "visible")),
    "rotary row": ({}, emitted("_rows", next_row, "rope_cos")),
    "LongRoPE's switch": ({}, emitted("is_long", given(y=np.int32(SWITCH + 1)))),
    "LongRoPE's table": ({}, emitted("table_start", given(y=np.int32(0)))),
    "heads": ({}, emitted("_fold", turned(1))),
    "cache of another layer": ({}, emitted("valueCache_layer", first_layer)),
}


@pytest.mark.parametrize("options", [{}, {"norm": "fp32", "attention": "decomposed"}], ids=["default", "others"])
def test_nothing_is_said_of_rules_that_are_right(options: dict[str, Any], wrong: Callable[..., list[str]]) -> None:
    assert wrong(lambda patch: None, **options) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_seen(rule: str, wrong: Callable[..., list[str]]) -> None:
    options, sabotage = RULES[rule]
    assert wrong(sabotage, **options)


def last_of(constant: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The last value of a constant, which no short text reads, is written otherwise than the lowering has it."""
    records = package.records

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        def changed(file: WeightFile) -> dict[int, bytes]:
            value = file.constants[constant].copy()
            value[-1] += 1
            return {**records(file), file.blobs[constant].blob.offset: value.tobytes()}

        patch.setattr(package, "records", changed)

    return sabotage


@pytest.mark.parametrize("constant", ["const.positions", "const.zeros_64", "const.steps_2"])
def test_a_late_value_of_a_constant_is_seen(constant: str, wrong: Callable[..., list[str]]) -> None:
    assert "constants with other values" in wrong(last_of(constant))


def test_a_function_with_another_norm_than_its_sister_is_seen(wrong: Callable[..., list[str]]) -> None:
    weight, other = FunctionBuilder.weight, "model.layers.1.input_layernorm.weight"

    def in_prefill(self: Emitter, target: str, name: str) -> Any:
        return weight(self, other if "post_attention" in target and self.length > 1 else target, name)

    assert "constants with other values" in wrong(lambda patch: patch.setattr(Emitter, "weight", in_prefill))


def no_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codecs.CODECS["int4"], "parameters", {"data": "q", "scale": "scale"})


def unsigned(patch: pytest.MonkeyPatch) -> None:
    """Values that are symmetric stay unsigned, when they are written and when they are read back."""
    codec = codecs.CODECS["int4"]
    encode, decode = codec.encode, codec.decode

    def written(name: str, rows: Any) -> Any:
        return {**encode(name, rows), "q": rows["q"]}

    def read(raw: Any, start: int, stop: int) -> Any:
        found = decode(raw, start, stop)
        return {**found, "q": found["q"] ^ 0x88}

    patch.setattr(codec, "encode", written)
    patch.setattr(codec, "decode", read)


def scale_of_bytes(patch: pytest.MonkeyPatch) -> None:
    encode = codecs.CODECS["int8"].encode

    def written(name: str, rows: Any) -> Any:
        stored = encode(name, rows)
        return {**stored, "scale": stored["scale"] * 2}

    patch.setattr(codecs.CODECS["int8"], "encode", written)


@pytest.mark.parametrize(
    ("options", "sabotage"),
    [({"symmetric": False}, no_zero), ({}, unsigned), ({"embedding_bits": 8}, scale_of_bytes)],
    ids=["zero point", "sign", "scale"],
)
def test_a_broken_format_is_seen(
    options: dict[str, Any], sabotage: Callable[[pytest.MonkeyPatch], None], wrong: Callable[..., list[str]]
) -> None:
    assert wrong(sabotage, **options)


RULES_OF_TABLES = """
[[rules]]
pattern = "model.embed*"
format = "palette6"
recipe = "rtn"
[[rules]]
pattern = "*qkv*"
format = "palette3"
recipe = "rtn"
block = 32
[[rules]]
pattern = "*down*"
format = "palette2"
recipe = "rtn"
[[rules]]
pattern = "*"
format = "palette"
recipe = "rtn"
group = 4
"""


def both_ways(part: str, change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A part is another one when it is written, and turned back when it is read: `change` undoes itself."""

    def sabotage(patch: pytest.MonkeyPatch) -> None:
        encode, decode = codecs.PaletteCodec.encode, codecs.PaletteCodec.decode

        def changed(self: Any, rows: Any) -> Any:
            name = self.indices if part == "indices" else part
            return {**rows, name: change(rows[name])}

        patch.setattr(codecs.PaletteCodec, "encode", lambda self, *given: changed(self, encode(self, *given)))
        patch.setattr(codecs.PaletteCodec, "decode", lambda self, *given: changed(self, decode(self, *given)))

    return sabotage


def a_table_for_columns(patch: pytest.MonkeyPatch) -> None:
    blobs = codecs.PaletteCodec.blobs

    def turned(self: Any, parts: Any) -> Any:
        kind, (groups, one, *rest) = (found := blobs(self, parts))["lut"]
        return {**found, "lut": (kind, (one, groups, *rest))}

    patch.setattr(codecs.PaletteCodec, "blobs", turned)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Any]:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES_OF_TABLES)
    return {"policy": rules}


def test_nothing_is_said_of_tables_that_are_right(tables: dict[str, Any], wrong: Callable[..., list[str]]) -> None:
    assert wrong(lambda patch: None, **tables) == []


@pytest.mark.parametrize(
    "sabotage",
    [
        both_ways("lut", lambda lut: lut.flip(-1)),
        both_ways("lut", lambda lut: lut.roll(len(lut) // 2, 0)),
        both_ways("indices", lambda packed: packed.flip(-1)),
    ],
    ids=["entries", "tables", "indices"],
)
def test_tables_that_are_written_and_read_otherwise_are_seen(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    tables: dict[str, Any],
    wrong: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    assert "KL prefill, exact" in wrong(lambda patch: None, **tables)


def test_tables_of_another_shape_are_named(tables: dict[str, Any], wrong: Callable[..., list[str]]) -> None:
    (said,) = wrong(a_table_for_columns, **tables)
    assert said == (
        "model.embed_tokens.weight is saved in other blocks, or with other zero points or scales, than its recipe makes"
    )
