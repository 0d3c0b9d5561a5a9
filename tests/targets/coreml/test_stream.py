"""Stored weights: each kind decoded by rows as a whole is, and products in pieces equal to those with the decoded matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pocketphi.targets.coreml.raw import Raw, unpack
from pocketphi.targets.coreml.stream import Streamer, is_nibbles
from pocketphi.targets.coreml.weights import Blockwise, Known, Lut, Stored, Weight, affine, palette, sparse

N, K = 70, 64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(dtype: str, *shape: int) -> Stored:
    bits = {"int4": 4, "uint4": 4, "uint2": 2, "uint3": 3, "int8": 8, "uint8": 8, "fp16": 16, "fp32": 32}[dtype]
    if dtype in ("fp16", "fp32"):
        data = random(*shape).to({"fp16": torch.float16, "fp32": torch.float32}[dtype]).view(-1).view(torch.uint8)
        return Stored(Raw(dtype, shape, data))
    count = -(-int(np.prod(shape)) * bits // 8)
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Stored(Raw(dtype, shape, data))


def blockwise(data: str, scales: tuple[int, int], offset: str | None = None, half: bool = True) -> Blockwise:
    shift = stored(offset, *scales) if offset else None
    return Blockwise(stored(data, N, K), stored("fp16", *scales), shift, "fp16", half)


WEIGHTS: dict[str, Weight] = {
    "fp16": stored("fp16", N, K),
    "fp32": stored("fp32", N, K),
    "int4 rounded": blockwise("int4", (N, 4)),
    "int4 exact": blockwise("int4", (N, 4), half=False),
    "int4 with offsets": blockwise("int4", (N, 4), "int4"),
    "uint4 with offsets": blockwise("uint4", (N, 2), "uint4"),
    "uint4 without": blockwise("uint4", (N, 2)),
    "a scale for all rows": blockwise("int4", (1, 4)),
    "a scale for five rows": blockwise("int4", (14, 4), "int4"),
    "blocks of one": blockwise("int4", (N, K)),
    "int8": blockwise("int8", (N, 1), "int8"),
    "palette": Lut(stored("uint4", N, K), Known(random(7, 1, 16, 1).half(), "fp16"), -1, "fp16"),
    "palette of 3 bits": Lut(stored("uint3", N, K), Known(random(1, 1, 8, 1).half(), "fp16"), -1, "fp16"),
    "vectors along rows": Lut(stored("uint2", N, K // 2), Known(random(1, 1, 4, 2).half(), "fp16"), 1, "fp16"),
    "vectors along columns": Lut(stored("uint2", N // 2, K), Known(random(1, 1, 4, 2).half(), "fp16"), 0, "fp16"),
    "affine": affine(stored("int8", N, K), stored("fp16", N), stored("int8", N), 0, "fp16", True),
    "affine along columns": affine(stored("uint8", N, K), stored("fp16", K), stored("uint8", 1), 1, "fp16", False),
    "computed": Known(random(N, K), "fp32"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_rows_are_those_of_the_whole(name: str) -> None:
    weight = WEIGHTS[name]
    whole = weight.dense()
    assert tuple(whole.shape) == weight.shape == (N, K)
    assert torch.equal(weight.rows(3, 41), whole[3:41])
    index = torch.tensor([69, 0, 5, 5])
    assert torch.equal(weight.pick(index), whole[index])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", WEIGHTS)
def test_products_in_pieces(monkeypatch: pytest.MonkeyPatch, name: str, rows: int, threads: int) -> None:
    """Sums of 64 float32 products, in another order: 64 · 2⁻²⁴ of the sum of magnitudes."""
    monkeypatch.setattr("pocketphi.targets.coreml.stream._PIECE", 9 * K)  # 70 rows: pieces of nine and a rest
    monkeypatch.setattr("pocketphi.targets.coreml.stream._ALONE", 0)
    weight, streamer = WEIGHTS[name], Streamer(threads, 0, keep_products=False)
    dense = weight.dense().double()
    for x, product, expected in (
        (random(2, rows, K), streamer.product, dense.T),
        (random(2, rows, N), streamer.product_of_rows, dense),
    ):
        came = product(weight, x)
        assert came.dtype == torch.float32
        bound = N * 2**-24 * float((x.abs().double() @ expected.abs()).max())
        assert float((came - x.double() @ expected).abs().max()) <= bound


def test_the_fast_product_is_that_of_four_bits_in_even_blocks() -> None:
    fast = {name for name, weight in WEIGHTS.items() if is_nibbles(weight)}
    assert fast == {name for name in WEIGHTS if "int4" in name} | {"a scale for all rows", "a scale for five rows"}


def test_a_decoded_weight_is_rounded_to_its_declared_type() -> None:
    exact, rounded = WEIGHTS["int4 exact"].dense(), WEIGHTS["int4 rounded"].dense()
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.float16)
    assert torch.equal(exact.half(), rounded)
    assert not torch.equal(exact, rounded.float())


def test_weights_are_kept_once_for_all_functions_that_share_them() -> None:
    streamer = Streamer(1, 2 * N * K * 4, keep_products=True)
    first, second = blockwise("int4", (N, 4)), WEIGHTS["fp16"]
    again = Blockwise(first.data, first.scale, None, "fp16", True)
    assert streamer.dense(first).data_ptr() == streamer.dense(again).data_ptr()
    assert streamer.dense(second).data_ptr() == streamer.dense(second).data_ptr()
    third = WEIGHTS["int8"]  # beyond the budget: decoded at each use
    assert streamer.dense(third).data_ptr() != streamer.dense(third).data_ptr()


@pytest.mark.parametrize(
    ("dtype", "data", "expected"),
    [
        ("uint1", [0b10], [0, 1]),
        ("uint2", [0b11100100], [0, 1, 2, 3]),
        ("uint3", [0b10001000, 0b11000110, 0b11111010], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("uint6", [0b01000000, 0b00100000, 0b00001100], [0, 1, 2, 3]),
        ("uint4", [0x21, 0x03], [1, 2, 3]),
        ("int4", [0x8F, 0x07], [-1, -8, 7]),
    ],
)
def test_values_of_few_bits(dtype: str, data: list[int], expected: list[int]) -> None:
    """The bytes of the uint3 and uint6 rows are those that coremltools' own writer gives for 0, 1, 2, …"""
    assert unpack(torch.tensor(data, dtype=torch.uint8), dtype, len(expected)).tolist() == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blockwise("int4", (N, 5)), r"scales \[70, 5\] do not divide data \[70, 64\]"),
        (
            lambda: Blockwise(stored("int4", 4, 4), stored("fp16", 4, 1), stored("int4", 1, 1), "fp16", True),
            r"offsets \[1, 1\] do not match scales \[4, 1\]",
        ),
        (
            lambda: Lut(stored("uint4", 4, 4), Known(random(1, 1, 8, 1), "fp32"), -1, "fp32"),
            "a table of 8 for indices of 4",
        ),
        (lambda: Lut(stored("uint4", 4, 4), Known(random(3, 1, 16, 1), "fp32"), -1, "fp32"), "do not fit indices"),
        (
            lambda: palette(stored("uint8", 3).raw, Known(random(16), "fp32"), [4], "fp32"),
            "3 bytes of indices for 4 values",
        ),
        (lambda: sparse(Known(random(2), "fp32"), torch.tensor([1, 0, 0]), [3], "fp32"), "2 values for 1 places"),
        (lambda: stored("int4", 3, 3).raw.rows(0, 1), "no whole number of bytes"),
        (lambda: Streamer(1, 0, False).product(WEIGHTS["fp16"], random(1, 3)), r"a product of \[1, 3\] with a weight"),
        (lambda: Streamer(1, 0, False).product_of_rows(WEIGHTS["fp16"], random(1, 3)), r"a product of \[1, 3\]"),
    ],
)
def test_parts_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
