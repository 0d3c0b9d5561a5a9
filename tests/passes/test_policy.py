"""Which weight gets which format: what the options say, the first rule that matches, and what can be asked without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pocketphi.artifacts.manifest import RecipeRecord, RuleRecord
from pocketphi.compiler.precision import recorded_policy, rule_records
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import FORMATS, Blocks
from pocketphi.passes.policy import Policy, Rule, default_block, policy_of
from pocketphi.passes.quantizers import QUANTIZERS, EightBits, KMeans, RoundToNearest, recipes

LAYER = "model.layers.3.mlp.down_proj.weight"
SAID = {
    "plain": ({}, "int4 search block 64 symmetric", "int4 search block 64 symmetric", "int4 search block 64 symmetric"),
    "head": (
        {"recipe": "rtn", "block": 32, "head_bits": 8},
        "int4 rtn block 32 symmetric",
        "int4 rtn block 32 symmetric",
        "int8 rtn block 32",
    ),
    "embedding": (
        {"embedding_bits": 8},
        "int4 search block 64 symmetric",
        "int8 rtn block 64",
        "int4 search block 64 symmetric",
    ),
    "tied head": (
        {"head_bits": 8, "tied": True},
        "int4 search block 64 symmetric",
        "int8 rtn block 64",
        "int4 search block 64 symmetric",  # a name that a tied model does not have
    ),
    "asymmetric": (
        {"recipe": "rtn", "block": 0, "symmetric": False},
        *["int4 rtn block row asymmetric"] * 3,
    ),
    "palette": ({"palette": 8}, *["int4 palette search, a table for 8 rows"] * 3),
    "palette, rounded": (
        {"recipe": "rtn", "palette": 16, "embedding_bits": 8, "head_bits": 8},
        "int4 palette rtn, a table for 16 rows",
        "int8 rtn block row",
        "int8 rtn block row",
    ),
    "keep": ({"recipe": "keep"}, *["int4 keep block 32 symmetric"] * 3),
    "keep, others in 8 bits": (
        {"recipe": "keep", "embedding_bits": 8, "head_bits": 8, "block": 64},
        "int4 keep block 64 symmetric",
        "int8 keep block 64",
        "int8 keep block 64",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_the_options_say(name: str) -> None:
    options, *expected = SAID[name]
    policy = policy_of(**{"recipe": "search", **options})  # type: ignore[arg-type]
    made = [policy.quantizer(weight) for weight in (LAYER, EMBEDDING, HEAD)]
    assert [one and one.describe() for one in made] == expected
    assert policy.calibrates == (options.get("recipe", "search") == "search")


def test_the_first_rule_that_matches_counts() -> None:
    first, second, third = RoundToNearest(16), RoundToNearest(32), KMeans(4)
    policy = Policy((Rule("model.layers.1?.*", first), Rule("model.layers.*.mlp.*", second), Rule("lm_head.*", third)))
    names = ["model.layers.12.mlp.x", "model.layers.1.mlp.x", "lm_head.weight", "model.layers.1.self_attn.x"]
    assert [policy.quantizer(name) for name in names] == [first, second, third, None]


def test_what_there_is_not() -> None:
    with pytest.raises(InputError, match="--recipe gptq: expected one of search, two-sided, rtn, keep"):
        policy_of("gptq")
    with pytest.raises(InputError, match="rtn of int4: block is 48, expected one of 0, 16, 32, 64, 128, 256"):
        policy_of("rtn", block=48)


def record(**more: object) -> RecipeRecord:
    plain = {"name": "rtn", "block": 32, "symmetric": True, "palette": None, "embedding_bits": 4, "head_bits": 8}
    rest = {"context": None, "all_logits": False, "accuracy_level": 4, "calibration": None, "calibration_tokens": None}
    return RecipeRecord(**{**plain, **rest, **more})  # type: ignore[arg-type]


def test_a_manifest_holds_rules_only_where_its_fields_cannot_say_them() -> None:
    assert rule_records(policy_of("rtn", 32, head_bits=8), record(), tied=False) == ()
    mix = Policy((Rule("*.mlp.*", EightBits(16)), Rule("*", RoundToNearest(32))))
    rules = rule_records(mix, record(), tied=False)
    assert rules[0] == RuleRecord("*.mlp.*", "int8", "rtn", {"block": 16, "scale_bits": 16})
    again = recorded_policy(record(rules=rules), tied=False)
    assert [(r.pattern, r.quantizer.describe()) for r in again.rules] == [
        ("*.mlp.*", "int8 rtn block 16"),
        ("*", "int4 rtn block 32 symmetric"),
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (RuleRecord("*", "int7", "rtn", {}), "--format int7: --recipe rtn rounds to nearest; choose another"),
        (RuleRecord("*", "int4", "x\ny", {}), "expected one of search, two-sided, rtn, keep"),
        (RuleRecord("*", "int4", "rtn", {"block": True}), "block is True, expected one of 0, 16"),
        (RuleRecord("*", "palette", "rtn", {"symmetric": True}), "symmetric is True, expected group, block only"),
    ],
)
def test_rules_of_a_manifest_that_cannot_be(rule: RuleRecord, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recorded_policy(record(rules=(rule,)), tied=False)


def test_every_recipe_says_what_it_is() -> None:
    assert recipes() == ["search", "two-sided", "rtn", "keep"]
    for name, form in FORMATS.items():
        more = {"keep": name in ("int2", "int4", "int8"), "two-sided": issubclass(form, Blocks)}
        assert set(recipes(name)) == {"rtn", "search", *(recipe for recipe, makes in more.items() if makes)}
    assert [default_block(recipe) for recipe in recipes()] == [64, 64, 64, 32]
    for made in QUANTIZERS:
        quantizer = made(**{name: parameter.default for name, parameter in made.parameters.items()})
        assert {name: getattr(quantizer, name) for name in made.parameters} == {
            name: parameter.default for name, parameter in made.parameters.items()
        }
        assert {parameter.default in parameter.choices for parameter in made.parameters.values()} == {True}


def test_nothing_heavy_is_loaded() -> None:
    """Formats, recipes, policies and codecs answer without torch, numpy or a runtime."""
    code = (
        "import sys\n"
        "from pocketphi.passes.policy import policy_of\n"
        "from pocketphi.targets.coreml.codecs import CODECS as a\n"
        "from pocketphi.targets.ort_mobile.codecs import CODECS as b\n"
        "from pocketphi.targets.tvm_arm.codecs import CODECS as c\n"
        "layout = policy_of('rtn', 32).quantizer('x').layout((64, 64))\n"
        "print([a['int4'].bytes_of(layout), b['int4'].bytes_of(layout), c['int4'].bytes_of(layout, 4)])\n"
        "print([list(one) for one in (a, b, c)])\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'tvm', 'coremltools') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[2304, 2560, 2304]",
        "[['int4', 'int8', 'affine4', 'int2', 'int3', 'int6', 'nl3', 'nl4', 'palette', 'palette2', 'palette3', 'palette6'], "
        "['int2', 'int4', 'int8', 'affine4'], "
        "['int2', 'int3', 'int4', 'int5', 'int6', 'int8', 'nl3', 'nl4', 'affine4']]",
        "[]",
    ]
