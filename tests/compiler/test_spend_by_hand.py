"""What a budget allows and what choices count, in numbers worked out by hand for one small model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pocketphi.compiler.candidates import bytes_by_target, candidates_of
from pocketphi.compiler.options import PRESETS, CompileOptions, compile_options
from pocketphi.compiler.spend import Budget, _budget, _policy, _sizes, _smallest_in_words, _values
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.passes.quantizers import make_quantizer

CONFIG = dataclasses.replace(PUBLISHED["tiny"], layers=1, hidden_size=64, intermediate_size=96, vocab_size=256)
QKV, DOWN = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.down_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = ("ort-mobile", "coreml")


def options(targets: tuple[str, ...] = BOTH, **given: Any) -> CompileOptions:
    return compile_options("random:tiny", Path("-"), targets, **given)


def values() -> int:
    """Embedding, head, attention's two projections, and the three of the MLP."""
    qkv = (CONFIG.heads + 2 * CONFIG.kv_heads) * CONFIG.head_dim
    return 2 * 256 * 64 + qkv * 64 + CONFIG.heads * CONFIG.head_dim * 64 + 3 * 96 * 64


@pytest.mark.parametrize(
    ("given", "limit", "of"),
    [
        ({"bits": 5.0}, values() * 5 // 8, "weights"),
        ({"preset": "small"}, int(PRESETS["small"] * values() / 8), "weights"),
        ({"max_bytes": 100_000}, 100_000, "files"),
        ({"max_read": 100_000}, 100_000 - 4 * 3 * 64, "read"),  # two norms of the layer and the last one
    ],
    ids=["bits", "preset", "max_bytes", "max_read"],
)
def test_what_a_budget_allows(given: dict[str, Any], limit: int, of: str) -> None:
    found = _budget(CONFIG, options(**given))
    assert (found.limit, found.of) == (limit, of)
    assert _values(CONFIG) == values()


@pytest.mark.parametrize(
    ("given", "made_so"),
    [
        ({}, ("search", 4096)),
        ({"preset": "balanced"}, ("search", 4096)),
        ({"preset": "best"}, ("two-sided", 16384)),
        ({"preset": "best", "recipe": "search"}, ("search", 16384)),
        ({"preset": "best", "calibration_tokens": 4096}, ("two-sided", 4096)),
    ],
)
def test_a_preset_says_what_nobody_else_does(given: dict[str, Any], made_so: tuple[str, int]) -> None:
    asked = options(**given)
    assert (asked.recipe, asked.calibration_tokens) == made_so
    assert (asked.recorded().name, asked.recorded().calibration_tokens) == made_so


def test_what_a_recipe_cannot_make_is_made_by_the_usual_one() -> None:
    """Core ML's tables of two to six bits, without which `best` would be further from the model than `balanced`."""
    made = {
        recipe: {
            (one.format.name, one.recipe)
            for one in candidates_of(CONFIG, options(("coreml",), bits=4.5, recipe=recipe))[DOWN]
        }
        for recipe in ("search", "two-sided")
    }
    assert (
        {form for form, _ in made["two-sided"]}
        == {form for form, _ in made["search"]}
        >= {"palette", "palette3", "int4"}
    )
    assert {("palette", "search"), ("int4", "two-sided")} <= made["two-sided"]


@pytest.mark.parametrize(
    ("given", "spends"),
    [({}, True), ({"recipe": "two-sided"}, True), ({"recipe": "rtn"}, False), ({"block": 32}, False)],
    ids=str,
)
def test_the_size_of_a_bundle_chooses_formats_where_nobody_else_does(given: dict[str, Any], spends: bool) -> None:
    assert options(max_bytes=100_000, **given).spends == spends


def test_what_choices_count() -> None:
    """Files of all targets together; else the largest; and an embedding of its own is not read for a token."""
    made = {name: [make_quantizer("rtn", "int8", {"block": 32})] for name in (EMBEDDING, HEAD, DOWN)}
    asked = options(bits=5.0).of_targets
    ort, coreml = bytes_by_target(made[DOWN][0], (64, 96), asked)
    whole = 64 * 96 + 2 * 64 * 3  # a byte a value, and a float16 a block
    assert min(ort, coreml) >= whole
    assert ort != coreml  # or their sum, and their largest, would tell nothing
    sizes = {of: _sizes(CONFIG, made, Budget("", 0, of), asked) for of in ("files", "weights", "read")}  # type: ignore[arg-type]
    assert [sizes[of][DOWN] for of in sizes] == [[ort + coreml], [max(ort, coreml)], [max(ort, coreml)]]
    assert sizes["read"][EMBEDDING] == [0]
    assert sizes["weights"][EMBEDDING] == sizes["read"][HEAD] == sizes["weights"][HEAD] != [0]
    tied = dataclasses.replace(CONFIG, tied_embeddings=True)
    only = {EMBEDDING: made[EMBEDDING]}
    assert _sizes(tied, only, Budget("", 0, "read"), asked)[EMBEDDING] == sizes["weights"][EMBEDDING]


def test_what_is_said_of_the_smallest() -> None:
    said = _smallest_in_words(CONFIG, Budget("", 0, "weights"), values() // 2, BOTH)
    assert "ort-mobile and coreml is 4.000 bits a weight" in said
    assert "is 1,234 bytes" in _smallest_in_words(CONFIG, Budget("", 0, "files"), 1234, BOTH)


def test_a_budget_smooths_and_names_each_weight() -> None:
    choices = {name: [make_quantizer("rtn", "int4", {"block": block}) for block in (16, 32)] for name in (QKV, DOWN)}
    policy = _policy(choices, [1, 0])
    assert policy.smooth
    assert [(rule.pattern, rule.quantizer.block) for rule in policy.rules] == [(QKV, 32), (DOWN, 16)]


CARRIED: dict[tuple[str, ...], dict[str, tuple[Any, ...]]] = {
    # blocks of 16 are slow there, and so is every block of 3, 5 and 6 bits
    ("ort-mobile",): {"int2": (32, 64), **dict.fromkeys(("int4", "affine4", "int8"), (32, 64, 128, 256))},
    ("coreml",): {
        **dict.fromkeys(("int4", "affine4", "int8"), (16, 32, 64, 128, 256)),
        **dict.fromkeys(("palette", "palette2", "palette3"), ((1, 0), (4, 0), (16, 0), (64, 0), (16, 64))),
        "palette6": ((1, 0), (4, 0), (16, 0), (64, 0)),
    },
    # levels are in place of even steps of 3 and 4 bits
    ("tvm-arm",): {
        "int2": (16, 32, 64),
        "nl3": (16, 32, 64, 128),
        "nl4": (16, 32, 64, 128, 256),
        "int5": (32, 64, 128),
        "int6": (32, 64, 128),
        "int8": (16, 32, 64, 128, 256),
    },
    BOTH: dict.fromkeys(("int4", "affine4", "int8"), (32, 64, 128, 256)),
}
ZEROS = {"int2", "int4"}
"""Of which there are some with zero points too."""
ONLY_SYMMETRIC = {"int5", "int6"}
"""Which could have them: they gain less than they cost. The others cannot."""


@pytest.mark.parametrize("targets", CARRIED, ids="+".join)
def test_the_candidates_of_each_target(targets: tuple[str, ...]) -> None:
    """Every block in both widths of scales; tables by the rows and the columns that share one."""
    wide = dataclasses.replace(CONFIG, intermediate_size=256, hidden_size=256)
    made = candidates_of(wide, options(targets, bits=5.0, recipe="rtn"))[DOWN]
    found = [(one.format.name, *sorted((key, int(getattr(one, key))) for key in one.parameters)) for one in made]
    want: list[tuple[object, ...]] = []
    for form, sizes in CARRIED[targets].items():
        for size in sizes:
            if form.startswith("palette"):
                want.append((form, ("block", size[1]), ("group", size[0])))
                continue
            for scale_bits in (8, 16):
                both = (("symmetric", 1),), (("symmetric", 0),)
                kinds = both if form in ZEROS else both[:1] if form in ONLY_SYMMETRIC else ((),)
                want += [(form, ("block", size), ("scale_bits", scale_bits), *kind) for kind in kinds]
    assert sorted(map(repr, found)) == sorted(map(repr, want))


def test_a_block_that_divides_no_row_is_no_candidate() -> None:
    made = candidates_of(CONFIG, options(("coreml",), bits=5.0))
    assert {one.block for one in made[DOWN]} == {0, 16, 32}  # of 96 columns
    assert {one.block for one in made[QKV]} == {0, 16, 32, 64}


def test_slow_blocks_where_no_others_fit() -> None:
    odd = dataclasses.replace(CONFIG, intermediate_size=80)
    made = candidates_of(odd, options(("ort-mobile",), bits=5.0))
    assert {one.block for one in made[DOWN]} == {16}
    assert {one.block for one in made[QKV]} == {32, 64}
