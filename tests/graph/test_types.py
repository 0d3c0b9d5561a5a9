"""Types without a tracer: sizes as sums, and what a call gives, against torch itself at other lengths."""

from __future__ import annotations

import operator
import sys
from typing import Any

import pytest
import torch
from tiny_phi3 import SWITCH, VARIANTS, inputs, quantized, traced

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.types import Size, TensorType, infer

aten = torch.ops.aten
BATCH, SEQUENCE, PAST = (Size(((name, 1),)) for name in ("batch", "sequence", "past"))


def floats(*shape: int | Size) -> TensorType:
    return TensorType(shape, torch.float32)


def test_sizes_read_as_sums() -> None:
    assert str(PAST + SEQUENCE) == "past + sequence"
    assert str(PAST + SEQUENCE + SEQUENCE + 3) == "past + 2*sequence + 3"
    assert str(floats(BATCH, 4)) == "float32[batch, 4]"
    assert Size.of({"past": 0}, 5) == 5
    assert (PAST + 2 + SEQUENCE) == (SEQUENCE + PAST + 2)


def test_a_size_is_no_number() -> None:
    with pytest.raises(
        CompilerBug, match=r"past \+ sequence is known only when the model runs, where a number is expected"
    ):
        int(PAST + SEQUENCE)


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (aten.linear.default, (floats(BATCH, SEQUENCE, 64), floats(7, 64)), "float32[batch, sequence, 7]"),
        (aten.slice.Tensor, (floats(BATCH, SEQUENCE, 64), 1, -1, sys.maxsize), "float32[batch, 1, 64]"),
        (
            aten.cat.default,
            ([floats(2, PAST), floats(2, SEQUENCE), floats(2, 1)], 1),
            "float32[2, past + sequence + 1]",
        ),
        (aten.cat.default, ([floats(PAST), floats(PAST)],), "float32[2*past]"),
        (aten.gt.Tensor, (floats(SEQUENCE, 1), floats(1, PAST)), "bool[sequence, past]"),
        (aten.sym_size.int, (floats(BATCH, SEQUENCE), 1), "sequence"),
        (operator.add, (SEQUENCE, PAST), "past + sequence"),
        (operator.getitem, ((floats(3), floats(BATCH)), 1), "float32[batch]"),
    ],
)
def test_what_a_call_gives(function: Any, args: tuple[Any, ...], expected: str) -> None:
    assert str(infer(function, args)) == expected


def test_a_size_that_is_a_product_is_refused() -> None:
    with pytest.raises(
        CompilerBug, match=r"view\.default: a size of what it gives is not linear in batch, sequence, past"
    ):
        infer(aten.view.default, (floats(BATCH, SEQUENCE), [-1]))


def wrong_types(program: Program, length: int, past: int, batch: int) -> list[str]:
    """The nodes whose value, when the program runs, has another type than theirs."""
    lengths, wrong = {"batch": batch, "sequence": length, "past": past}, []

    def look(node: Any, args: tuple[Any, ...]) -> Any:
        value = node.target(*args, **node.kwargs)
        if not has_type(value, node.meta["val"], lengths):
            wrong.append(f"{node.name}: {node.meta['val']}")
        return value

    weights = Weights(program.weights, keep=True)
    program.run(inputs(program.config, length, past, batch), weights, look)
    return wrong


def has_type(value: Any, kind: Any, lengths: dict[str, int]) -> bool:
    if isinstance(kind, TensorType):
        shape = [size if isinstance(size, int) else size.at(lengths) for size in kind.shape]
        return list(value.shape) == shape and value.dtype is kind.dtype
    if isinstance(kind, list | tuple):
        return len(value) == len(kind) and all(has_type(one, k, lengths) for one, k in zip(value, kind))
    return bool(value == (kind.at(lengths) if isinstance(kind, Size) else kind))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_have_the_types_of_their_nodes(variant: str) -> None:
    """Traced and rewritten, for lengths that neither the tracer nor `infer` has seen."""
    for program in (traced(variant), quantized(variant)):
        for case in ((6, 9, 3), (1, SWITCH + 4, 2)):
            assert wrong_types(program, *case) == []


def test_the_check_sees_a_wrong_type() -> None:
    program = traced()
    node = next(n for n in program.graph.nodes if n.target is aten.embedding.default)
    node.meta["val"] = floats(BATCH, PAST, 64)
    assert wrong_types(program, 6, 9, 3) == [f"{node.name}: float32[batch, past, 64]"]
