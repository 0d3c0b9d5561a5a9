"""Lowering rules and kernels of TVM are broken, as bugs would: the checks of the bundle have to say so.

A build takes long. The functions of a bundle share no kernel here, so that several of them are broken in one build, each in
another way, and each is seen by the check that runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tvm_sessions import check_goes_on, check_guesses_for_itself

pytest.importorskip("tvm")

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph import random_weights
from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.targets.tvm_arm import lower
from pocketphi.targets.tvm_arm.kernels import elementwise, matmul
from pocketphi.targets.tvm_arm.kernels.attention import _Body
from pocketphi.targets.tvm_arm.kv_cache import cache_rows

WINDOW, SWITCH, CONTEXT = 20, 32, 44
Broken = tuple[str, Any, str, Callable[[Any], Any]]
"""The function that is broken, and of what owner which name becomes what, made from what it was."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> str:
    rope = LongRope((1.0,) * 4, (1.0, 2.0, 3.0, 4.0), SWITCH)
    shape = replace(PUBLISHED["tiny"], layers=1, vocab_size=64, max_position=60, rotary_dim=8)
    monkeypatch.setitem(random_weights.PUBLISHED, "sabotage", replace(shape, sliding_window=WINDOW, long_rope=rope))
    return "random:sabotage"


def built(model: str, out: Path, **options: Any) -> Bundle:
    asked = {"recipe": "rtn", "os": "host", "verify": "never", "context": CONTEXT, **options}
    return compile_model(compile_options(model, out, ("tvm-arm",), **asked))


def break_each(patch: pytest.MonkeyPatch, *steps: Broken) -> None:
    """Break steps of single functions, which have kernels of their own for that."""
    current = [""]
    build, get = lower.Function.build, lower._Kernels.get

    def build_one(self: lower.Function) -> None:
        current[0] = self.way.name
        build(self)

    patch.setattr(lower.Function, "build", build_one)

    def get_one(self: Any, kind: str, make: Callable[..., Any], *given: Any) -> Any:
        return get(self, kind, lambda name, isa, *rest: make(name, isa, *rest[:-1]), *given, current[0])

    patch.setattr(lower._Kernels, "get", get_one)
    for way, owner, name, make in steps:
        right = getattr(owner, name)
        wrong = make(right)

        def either(*given: Any, way: str = way, right: Any = right, wrong: Any = wrong) -> Any:
            return (wrong if current[0] == way else right)(*given)

        patch.setattr(owner, name, either)


def keys_a_row_further(old: Any) -> Any:
    return lambda body, head, new, past, table, *rest: old(body, head, new, past, table + 1, *rest)


def keys_of_the_first_head(old: Any) -> Any:
    return lambda body, tile, *rest: old(body, replace(tile, kv=tile.kv * 0), *rest)


def no_zero_points(old: Any) -> Any:
    return lambda body, step, rows: old(body, replace(step, zero=None), rows)


def form(**changes: Any) -> Callable[[Any], Any]:
    return lambda old: lambda *given: replace(old(*given), **changes)


def no_residual(old: Any) -> Any:
    return lambda f, inputs, weight, eps: old(f, [inputs[0]] * len(inputs), weight, eps)


def row_before(old: Any) -> Any:
    def last_row(*given: Any) -> Any:
        load = elementwise.load
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(elementwise, "load", lambda buffer, at, lanes: load(buffer, [at[0] - 1, *at[1:]], lanes))
            return old(*given)

    return last_row


BUILDS: list[tuple[dict[str, Any], dict[str, Broken]]] = [
    (
        {"symmetric": False},
        {
            "KL prefill, exact": ("prefill_exact_all", _Body, "_append", keys_a_row_further),
            "KL decode, exact": ("decode_exact", _Body, "_score", keys_of_the_first_head),
            "KL prefill, as saved": ("prefill_all", matmul.Body, "_rounded", no_zero_points),
            "KL decode, as saved": ("decode", lower, "AttentionForm", form(scale=1.0)),
        },
    ),
    (
        {},
        {
            f"KL prefill past the window of {WINDOW}": (
                "prefill_exact_all",
                lower,
                "AttentionForm",
                form(window=WINDOW + 1),
            ),
            f"KL LongRoPE at {SWITCH} tokens": ("prefill_exact", lower, "last_row", row_before),
            "KL prefill, as saved": ("prefill_all", lower, "AttentionForm", form(long_after=SWITCH + 9)),
            "KL decode, as saved": ("decode", lower, "_norm", no_residual),
        },
    ),
]


@pytest.mark.parametrize(("options", "steps"), BUILDS, ids=["numbers", "positions"])
def test_a_broken_step_is_seen(
    options: dict[str, Any], steps: dict[str, Broken], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_each(patch, *steps.values())
        bundle = built(model, tmp_path / "b", **options)
    checks = verify_folder(bundle.path, bundle.manifest, Ui()).checks
    assert set(steps) <= {check.name for check in checks if not check.ok}
    assert checks[0].ok  # the weights, in the file, are right


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_another_epsilon_is_seen(epsilon: float, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves no logit here, and is read in the kernels."""
    norm = lower.rms_norm
    wrong = lambda name, isa, size, eps, *more: norm(name, isa, size, epsilon, *more)  # noqa: E731
    monkeypatch.setattr(lower, "rms_norm", wrong)
    with pytest.raises(CompilerBug, match=r"norm_\w+ adds .* the model's epsilon is 1e-05"):
        built(model, tmp_path / "b")


def beginning_of_the_ring(old: Any) -> Any:
    return lambda body, span, i, keys: old(body, replace(span, held=0), i, keys)


def test_a_ring_goes_around_and_a_broken_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has room for the window and a chunk; short texts do not meet its end. Prompts read it wrongly here, steps do
    not."""
    shape = replace(PUBLISHED["tiny"], layers=1, vocab_size=64, max_position=320, sliding_window=WINDOW)
    monkeypatch.setitem(random_weights.PUBLISHED, "ring", shape)
    with monkeypatch.context() as patch:
        break_each(patch, ("prefill_exact_all", _Body, "_held", beginning_of_the_ring))
        bundle = built("random:ring", tmp_path / "b", context=320, kv_cache="int8")
    described = json.loads((bundle.path / "model.json").read_text("utf-8"))
    assert (described["context"], cache_rows(shape, 320)) == (320, 288)
    assert {sizes[1] for sizes in described["cache"]["shape"].values()} == {288}
    checks = verify_folder(bundle.path, bundle.manifest, Ui()).checks
    assert [check.ok for way in ("prefill", "decode") for check in checks if f"{way} past the" in check.name] == [0, 1]
    for tokens in (250, 300):  # before it went around, and after
        check_goes_on(bundle.path, tmp_path / "talk", tokens)
    check_guesses_for_itself(bundle.path, 300)
