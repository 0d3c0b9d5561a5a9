"""The canonical int4 form: its worked example, and packing against plain Python."""

from __future__ import annotations

import doctest

import pytest
import torch

from pocketphi.graph.formats import Int4, int4
from pocketphi.graph.packing import pack_nibbles, unpack_nibbles


def test_the_worked_example_runs() -> None:
    results = doctest.testmod(int4, extraglobs={"torch": torch})
    assert (results.attempted, results.failed) == (2, 0)


def test_the_example_dequantizes_to_its_weights() -> None:
    w = torch.tensor([[-8.0, 7.0, 0.0, 1.0]])
    made = Int4.pack(torch.tensor([[0, 15, 8, 9]]), torch.tensor([[1.0]]))
    assert made.block == 4
    assert torch.equal(made.dequantize(), w)


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_nibbles(count: int) -> None:
    values = torch.randint(0, 16, (5, count), generator=torch.Generator().manual_seed(count))
    packed = pack_nibbles(values)
    rows = [[*row, 0] if count % 2 else row for row in values.tolist()]
    assert packed.tolist() == [[low + 16 * high for low, high in zip(row[::2], row[1::2])] for row in rows]
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, count), values.byte())


@pytest.mark.parametrize("block", [16, 32, 64, 96])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantize(block: int, symmetric: bool) -> None:
    """Against the definition, value by value; 96 gives two blocks, 64 three: a ragged last byte of zero points."""
    rows, columns = 3, 192
    generator = torch.Generator().manual_seed(block)
    q = torch.randint(0, 16, (rows, columns), generator=generator)
    scale = torch.randn(rows, columns // block, generator=generator)
    zero = None if symmetric else torch.randint(0, 16, scale.shape, generator=generator)
    made = Int4.pack(q, scale, zero)
    point = [[8] * scale.shape[1]] * rows if zero is None else zero.tolist()
    want = [
        [(q[n, k].item() - point[n][k // block]) * scale[n, k // block].item() for k in range(columns)]
        for n in range(rows)
    ]
    assert made.block == block
    assert torch.equal(made.dequantize(), torch.tensor(want))
    zeros = made.zeros()
    assert (zeros is None) if zero is None else torch.equal(zeros, zero.byte())
