"""A budget is met, as well as it can be, and what cannot be met is refused before the work."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler import spend
from pocketphi.compiler.candidates import candidates_of
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.plan import plan
from pocketphi.compiler.policy_file import check_policy, read_policy
from pocketphi.compiler.precision import policy_of_bundle, recorded_policy, records
from pocketphi.compiler.spend import _fitted, measured_on
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.allocate import Choice, allocate, smallest
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets.coreml.vectors import VECTORS, vectors_bytes

SHAPE = dataclasses.replace(PUBLISHED["tiny"], hidden_size=128, intermediate_size=256, vocab_size=8192, layers=16)
BOTH = ("ort-mobile", "coreml")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(RandomWeights("random:small", SHAPE), folder, "fp32", lambda done: None)
    return str(folder)


def options(model: str, targets: tuple[str, ...] = BOTH, **given: object) -> CompileOptions:
    return compile_options(model, Path("-"), targets, **{"calibration_tokens": 256, "context": 64, **given})


@pytest.mark.parametrize("target", BOTH)
def test_budgets_are_met_and_used(model: str, target: str) -> None:
    lower = 4.6 if target == "ort-mobile" else 4.1
    for part in (0, 0.3, 0.5, 0.9):
        bits = lower + (6.5 - lower) * part
        rows = plan(options(model, (target,), bits=bits, recipe="rtn")).formats
        assert 0.99 * bits <= rows[-1].bits <= bits + 0.0005  # shown with three digits


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_choice_whose_bundle_fits(seed: int) -> None:
    """Tables at random, and bundles that take up to a third more than their weights: never over the limit, and as
    good as any allowance that is tried one by one, but for what may be left."""
    draw = random.Random(seed)
    tables = [
        [Choice(draw.random() * 100 / size, size) for size in draw.sample(range(1000, 9000), 5)] for _ in range(12)
    ]
    quantizers = [make_quantizer("rtn", "int4", {"block": block}) for block in (16, 32, 64, 128, 256)]
    candidates = {f"w{i}": quantizers for i in range(len(tables))}
    more = draw.uniform(0.05, 0.33)
    around = [[int(one.size * more) for one in table] for table in tables]

    def whole(chosen: Sequence[int]) -> int:
        return sum(tables[i][one].size + around[i][one] for i, one in enumerate(chosen))

    def bundle_bytes(policy: Policy) -> int:
        return whole([quantizers.index(rule.quantizer) for rule in policy.rules])

    def cost(chosen: Sequence[int]) -> float:
        return sum(tables[i][one].cost for i, one in enumerate(chosen))

    low = smallest(tables)
    tried = [allocate(tables, allowed) for allowed in range(low, 100_000, 250)]
    least = whole(tried[0])
    for limit in range(least, whole(tried[-1]) + 3000, 4000):
        found = _fitted(tables, candidates, limit, tried[0], least - low, bundle_bytes)
        assert whole(found) <= limit
        assert cost(found) <= min(cost(one) for one in tried if whole(one) <= max(least, (1 - _SLACK) * limit)) + 1e-9


_SLACK = 0.01
"""What a choice is larger by than the next: these have few weights."""


def test_what_is_measured_on() -> None:
    """Whole windows of the first tokens, in their order."""
    assert torch.equal(measured_on(torch.arange(10_000).view(1, -1)), torch.arange(2048).view(8, 256))
    assert torch.equal(measured_on(torch.arange(300).view(3, 100)), torch.arange(300).view(3, 100))
    assert torch.equal(measured_on(torch.arange(700).view(1, 700)), torch.arange(512).view(2, 256))


def test_no_format_is_chosen_that_a_target_runs_slowly(model: str) -> None:
    """ONNX Runtime has no int8 kernel for blocks of 16; Core ML has no slow ones; where both are asked for, neither is slow."""
    blocks = {}
    for targets in (("ort-mobile",), ("coreml",), BOTH):
        found = candidates_of(SHAPE, options(model, targets, bits=5.0))
        blocks[targets] = {one.block for made in found.values() for one in made if issubclass(one.format, Blocks)}
    assert blocks[("ort-mobile",)] == blocks[BOTH] == {32, 64, 128, 256}
    assert blocks[("coreml",)] == {16, 32, 64, 128, 256}


def test_sensitivities_are_measured_once_and_give_the_same(model: str) -> None:
    heard = Heard()
    first, second = (plan(options(model, bits=5.2, recipe="rtn"), heard) for _ in range(2))
    assert heard.tasks.count("measure sensitivities") <= 1
    assert first.as_json()["formats"] == second.as_json()["formats"]
    assert first.expected == second.expected
    assert first.expected is not None
    more = plan(options(model, bits=6.2, recipe="rtn")).expected
    assert more is not None
    assert 0 < more.kl < first.expected.kl


def test_a_bundle_keeps_to_its_bytes_and_its_rules_can_be_used_again(model: str, tmp_path: Path) -> None:
    limit = 9_000_000
    made = compile_model(
        dataclasses.replace(options(model, max_bytes=limit), out=tmp_path / "a", verify="never"),
    )
    held = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    small = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.suffix not in (".data", ".bin"))
    assert 0.99 * limit - 0.2 * small <= held <= limit  # what lies around the weights is estimated
    recipe = made.manifest.recipe
    assert recipe.expected is not None
    assert recipe.expected.budget == f"--max-bytes {limit}"
    file = tmp_path / "policy.toml"
    file.write_text(policy_of_bundle(Bundle.open(tmp_path / "a")))
    again = read_policy(options(model, policy=file))
    assert records(again) == recipe.rules == records(recorded_policy(recipe, SHAPE.tied_embeddings))
    check_policy(again, SHAPE, options(model, policy=file))


def test_what_verification_adds_is_in_the_budget(tmp_path: Path) -> None:
    """Core ML's test vectors, here 6 % of the bundle."""
    (tmp_path / "m").mkdir()
    write_checkpoint(
        RandomWeights("random:x", dataclasses.replace(SHAPE, layers=2)), tmp_path / "m", "fp32", lambda _: None
    )
    asked = options(str(tmp_path / "m"), ("coreml",), max_bytes=1_500_000, verify="always")
    compile_model(dataclasses.replace(asked, out=tmp_path / "b"))
    held = sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert 0.97 * 1_500_000 <= held <= 1_500_000
    assert vectors_bytes(SHAPE.vocab_size) == pytest.approx((tmp_path / "b" / VECTORS).stat().st_size, rel=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 5.0, "block": 32}, "--bits and --block: each decides the formats of weights; leave out one"),
        ({"bits": 5.0, "preset": "small"}, "--bits and --preset: each decides"),
        ({"policy": Path("x"), "head_bits": 8}, "--policy and --head-bits: each decides"),
        ({"bits": 5.0, "recipe": "keep"}, "--bits: --recipe keep takes the formats of the file"),
        (
            {"policy": Path("x"), "recipe": "keep"},
            "--policy: --recipe keep takes the formats of the file; leave out one",
        ),
        (
            {"policy": Path("x"), "recipe": "rtn"},
            "--policy: its rules say the recipe of each weight; leave out --recipe rtn",
        ),
        ({"bits": 0.5}, "--bits 0.5: expected 1 to 16 bits a weight"),
        ({"preset": "finest"}, "--preset finest: expected one of small, balanced, best"),
    ],
)
def test_options_that_contradict_each_other(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options("random:tiny", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 2.0}, r"--bits 2: the smallest possible for ort-mobile and coreml is 4\.\d+ bits a weight"),
        ({"max_bytes": 1000}, r"--max-bytes 1000: the smallest possible for ort-mobile and coreml is [\d,]+ bytes"),
        ({"max_read": 1000}, r"--max-read 1000: the smallest possible for ort-mobile and coreml is [\d,]+ bytes"),
    ],
)
def test_a_budget_below_the_smallest(model: str, given: dict[str, object], message: str) -> None:
    heard = Heard()
    with pytest.raises(InputError, match=message):
        plan(options(model, **given), heard)
    assert "measure sensitivities" not in heard.tasks


@pytest.mark.parametrize("target", ["ort-mobile", "coreml", "tvm-arm"])
def test_what_is_named_as_the_smallest_is_possible(model: str, target: str, tmp_path: Path) -> None:
    """To the byte, with files that turn out larger than planned."""
    with pytest.raises(InputError) as refused:
        plan(options(model, (target,), max_bytes=1000))
    least = int(str(refused.value).split(" is ")[1].split(" bytes")[0].replace(",", ""))
    with pytest.raises(InputError, match=f"is {least:,} bytes"):
        plan(options(model, (target,), max_bytes=least - 1))
    made = compile_model(
        dataclasses.replace(options(model, (target,), max_bytes=least), out=tmp_path / "b", verify="never")
    )
    assert 0.97 * least <= made.manifest.bytes <= least


RULE = '[[rules]]\npattern = "*"\nformat = "int4"\nrecipe = "search"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RULE.replace("int4", "int9"), "rule 1: format int9: expected one of int4, int2"),
        (RULE.replace("search", "serch"), "rule 1: --recipe serch: expected one of search, two-sided, rtn, keep"),
        (RULE + "blok = 32\n", "rule 1: search of int4: blok is 32, expected block, symmetric, scale_bits only"),
        (RULE + "block = 31\n", "rule 1: search of int4: block is 31, expected one of 0, 16"),
        (
            RULE.replace("int4", "int3"),
            r"is to be int3, which .* cannot hold; choose another format \(it holds int2, int4, int8, affine4\)",
        ),
        (RULE.replace('"*"', '"head*"'), r"head\* matches no weight; there is model.embed_tokens.weight"),
        (RULE.replace('"*"', '"lm_head*"'), "no rule matches model.embed_tokens.weight"),
        (
            RULE + RULE.replace('"*"', '"lm_head*"').replace("int4", "int8"),
            r"no weight follows lm_head\*: the first rule that matches counts, which is \* for lm_head.weight; put it before",
        ),
        (
            RULE.replace('"*"', '"model.*"') + RULE.replace('"*"', '"*mlp*"') + RULE,
            r"no weight follows \*mlp\*: .* model\.\*",
        ),
        ("rules = 3\n", "expected a list of rules"),
        ("rules = [3]\n", "rule 1 is 3, expected pattern, format and recipe"),
        (RULE.replace('pattern = "*"', "pattern = 3"), "rule 1: pattern is 3, expected a text"),
    ],
)
def test_a_policy_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    asked = options("random:tiny", ("ort-mobile",), policy=file)
    with pytest.raises(InputError, match=message):
        check_policy(read_policy(asked), SHAPE, asked)


def test_a_last_rule_for_what_is_left_may_have_nothing_left(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(RULE.replace('"*"', '"model.*"') + RULE.replace('"*"', '"lm_head*"') + RULE)
    asked = options("random:tiny", ("ort-mobile",), policy=file)
    check_policy(read_policy(asked), SHAPE, asked)


def test_a_policy_in_json(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"rules": [{"pattern": "*", "format": "int8", "recipe": "rtn", "block": 32}]}')
    (rule,) = read_policy(options("random:tiny", policy=file)).rules
    assert rule.quantizer.describe() == "int8 rtn block 32"


def test_measuring_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the head: the next command measures the rest, chooses the same, and leaves nothing behind."""
    real, begun = spend.sensitivities, []

    def measured(*given: Any, **named: Any) -> Any:
        *first, resumed, keep = given
        begun.append(resumed and resumed[0].parts)

        def stop(reached: Any, costs: Any) -> None:
            keep(reached, costs)
            if reached.parts == 2 and resumed is None and tmp_path / "a" == asked.cache_folder:
                raise KeyboardInterrupt

        return real(*first, resumed, stop, **named)

    monkeypatch.setattr(spend, "sensitivities", measured)
    asked = compile_options(
        "random:tiny", Path("-"), ("ort-mobile",), bits=5.5, calibration_tokens=256, cache=tmp_path / "a"
    )
    with pytest.raises(KeyboardInterrupt):
        plan(asked)
    (entry,) = (tmp_path / "a/known").glob("sensitivity-begun-*")
    stopped = plan(asked).formats
    assert not entry.exists()
    asked = dataclasses.replace(asked, cache=tmp_path / "b")
    assert plan(asked).formats == stopped
    assert begun == [None, 2, None]
