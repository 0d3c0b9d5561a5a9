"""What a package may look like, and what it may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_phi3 import TINY

from pocketphi.graph.errors import InputError
from pocketphi.targets.coreml.form import Form, make_form
from pocketphi.targets.coreml.options import CoreML


@pytest.mark.parametrize(
    ("positions", "context", "chunk", "expected"),
    [
        (4096, None, None, (2048, 64, 2048)),
        (256, None, None, (256, 64, 256)),
        (4096, 100, 16, (100, 16, 112)),
        (4096, 4096, 100, (4096, 100, 4100)),
        (4096, 20, None, (20, 20, 20)),
        (4096, 2, 2, (2, 2, 2)),
    ],
)
def test_the_cache_holds_whole_chunks(
    positions: int, context: int | None, chunk: int | None, expected: tuple[int, int, int]
) -> None:
    form = make_form(replace(TINY, max_position=positions), CoreML(chunk=chunk), context)
    assert (form.context, form.chunk, form.positions) == expected
    assert form.functions == {"prefill": expected[1], "decode": 1}


def test_swift_transformers_wants_one_function_of_any_length() -> None:
    assert Form(100, 16, flavor="swift-transformers").functions == {"main": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 257}, "a context of 257 tokens; the model has 256 positions, choose 2 to 256"),
        ({"context": 1}, "a context of 1 tokens"),
        ({"context": 100, "chunk": 101}, "prefill chunks of 101 tokens in a context of 100; choose 2 to 100"),
        ({"chunk": 1}, "prefill chunks of 1 tokens in a context of 256; choose 2 to 256"),
        ({"attention": "flash"}, "--attention flash: expected sdpa or decomposed"),
        ({"norm": "naive"}, "--norm naive: expected max-scaled or fp32"),
        ({"flavor": "x"}, "--flavor x: expected functions or swift-transformers"),
    ],
)
def test_what_cannot_be(options: dict[str, object], message: str) -> None:
    context = options.pop("context", None)
    with pytest.raises(InputError, match=message):
        make_form(TINY, CoreML(**options), context)
