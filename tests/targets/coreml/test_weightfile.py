"""The plan of weight.bin and the encoding of its parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from coreml_package import Whole, constant, finished, replaced, with_offsets
from tiny_phi3 import SWITCH, fused, normal

from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import Int4
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.packing import pack_nibbles
from pocketphi.graph.types import TensorType
from pocketphi.targets.coreml.blob import ALIGN, BlobType
from pocketphi.targets.coreml.form import Form
from pocketphi.targets.coreml.weightfile import AsHalf, EvenChunks, encode, plan_weights

FORM = Form(100, 16)


def random_int4(rows: int, columns: int, block: int, zeros: bool = False) -> Int4:
    generator = torch.Generator().manual_seed(rows + columns)
    scale = normal(rows, columns // block).half().float()
    zero = torch.randint(0, 16, scale.shape, generator=generator) if zeros else None
    return Int4.pack(torch.randint(0, 16, (rows, columns), generator=generator), scale, zero)


def test_the_example_of_a_symmetric_byte() -> None:
    q = torch.tensor([[240]], dtype=torch.uint8)  # 0, then 15: -8 and 7
    stored = encode("w", {"q": q, "scale": torch.ones(1, 1)})["q"]
    assert stored.tolist() == [[0x78]]
    nibbles = [int(stored) & 15, int(stored) >> 4]
    assert [n - 16 if n > 7 else n for n in nibbles] == [-8, 7]


def test_two_complement_of_every_value() -> None:
    weight = random_int4(4, 64, 32)
    stored = encode("w", weight.tensors())["q"]
    both = torch.stack((stored & 15, stored >> 4), -1).view(4, 64).int()
    assert torch.equal(torch.where(both > 7, both - 16, both), weight.values().int() - 8)


def test_zero_points_of_odd_rows_lie_without_gaps() -> None:
    weight = random_int4(4, 96, 32, zeros=True)  # 3 blocks a row: a nibble of padding in the canonical form
    stored = encode("w", weight.tensors())
    zeros = weight.zeros()
    assert zeros is not None
    assert torch.equal(stored["zero"].flatten(), pack_nibbles(zeros.reshape(1, -1)).flatten())
    assert torch.equal(stored["q"], weight.q)


def test_odd_rows_come_in_even_chunks() -> None:
    weight = Whole(random_int4(23, 96, 32, zeros=True))
    chunks = list(EvenChunks(weight).chunks())
    assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
    assert [start % 2 for start, _ in chunks] == [0] * len(chunks)
    assert (chunks[-1][1], len(chunks)) == (23, 4)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 14])
def test_even_chunks_cover_everything(rows: int) -> None:
    chunks = list(EvenChunks(Whole(random_int4(rows, 96, 32, zeros=True))).chunks())
    assert [row for start, stop in chunks for row in range(start, stop)] == list(range(rows))


def test_a_scale_that_float16_has_not_is_our_fault() -> None:
    parts = {"q": torch.zeros(1, 16, dtype=torch.uint8), "scale": torch.tensor([[1 / 3]])}
    with pytest.raises(CompilerBug, match=r"lm_head.weight: a scale is 0.3333.*, which float16 does not have"):
        encode("lm_head.weight", parts)


def test_int8_and_palettes_as_they_are_written() -> None:
    q8 = torch.tensor([[0, 127, 128, 255]], dtype=torch.uint8)
    stored = encode("w", {"q8": q8, "scale": torch.ones(1, 1)})["q8"]
    assert stored.view(torch.int8).tolist() == [[-128, -1, 0, 127]]
    index, lut = torch.randint(0, 256, (2, 4, 8), dtype=torch.uint8), normal(2, 16).half().float()
    stored_palette = encode("w", {"index": index, "lut": lut})
    assert torch.equal(stored_palette["index"], index)
    assert torch.equal(stored_palette["lut"], lut.half())
    with pytest.raises(CompilerBug, match=r"w: a value is 0.3333.*, which float16 does not have"):
        encode("w", {"index": index, "lut": lut.fill_(1 / 3)})


def test_offsets_come_back() -> None:
    program = with_offsets(finished())
    parts = materialize(program.weights["lm_head.weight"])
    lowest = encode("lm_head.weight", parts)["offset"]
    assert lowest.dtype == torch.float16
    assert torch.equal(lowest.float() + 8 * parts["scale"], parts["offset"])


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (1.0, 8 + 1 / 3, "w: a block's smallest value is 0.3333.*, which float16 does not have"),
        (-2047 / 8, 1 + 2.0**-23, "w: offset - 8 · scale is not exact in float32"),  # 2048 + 2^-23 → 2048
    ],
)
def test_an_offset_that_would_not_come_back(scale: float, offset: float, message: str) -> None:
    q = torch.zeros(1, 16, dtype=torch.uint8)
    with pytest.raises(InputError, match=message):
        encode("w", {"q": q, "scale": torch.tensor([[scale]]), "offset": torch.tensor([[offset]])})


def test_zero_points_and_offsets_at_once_are_refused() -> None:
    program = finished()
    weight = random_int4(256, 64, 32, zeros=True)
    odd = Whole(Int4(weight.q, weight.scale, weight.zero, weight.scale))
    with pytest.raises(CompilerBug, match="zero points and offsets"):
        plan_weights(replaced(program, {"lm_head.weight": odd}), FORM)


def test_float_weights_are_rounded_before_their_digest() -> None:
    values = normal(5, 3)
    half = AsHalf(constant(values), "w", 4)
    assert half.parts[""].shape == (4, 3)
    assert list(half.chunks()) == [(0, 4)]
    assert torch.equal(materialize(half)[""], values[:4].half().float())


@pytest.mark.parametrize("value", [65520.0, -1e9])
def test_a_float_weight_beyond_float16(value: float) -> None:
    half = AsHalf(constant(torch.tensor([[1.0], [value]])), "lm_head.weight", 2)
    with pytest.raises(InputError, match=r"lm_head.weight: .* is beyond the range of float16 \(65504\)"):
        materialize(half)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("variant", ["tiny", "tied", "partial"])
def test_blobs_lie_one_after_the_other(variant: str, symmetric: bool) -> None:
    program = finished(variant, symmetric=symmetric)
    file = plan_weights(program, FORM)
    spans = [(s.record_offset, s.blob.offset + s.blob.nbytes) for s in file.blobs.values()]
    assert spans[0][0] == ALIGN
    assert [a % ALIGN for a, _ in spans] == [0] * len(spans)
    gaps = [start - end for (_, end), (start, _) in itertools.pairwise(spans)]
    assert (min(gaps) >= 0, max(gaps) < ALIGN) == (True, True)
    assert 0 <= file.size - spans[-1][1] < ALIGN
    kinds = {s.blob.type for key, s in file.blobs.items() if key.endswith(":q")}
    assert kinds == {BlobType.INT4 if symmetric else BlobType.UINT4}


@pytest.mark.parametrize(("context", "rows"), [(40, 48), (SWITCH, SWITCH), (SWITCH + 1, SWITCH + 80)])
def test_rotary_tables_end_where_the_cache_does(context: int, rows: int) -> None:
    """Up to the switch only the short table is kept, and none of its rows beyond."""
    file = plan_weights(finished("longrope"), Form(context, 16))
    assert file.blobs["rope.cos"].shape == (rows, 8)


def test_a_context_beyond_the_rotary_tables() -> None:
    program = finished()
    table = constant(materialize(program.weights["rope.cos"])[""][:50])
    node = next(n for n in program.graph.nodes if n.target == "rope.cos")
    program.weights["rope.cos"] = table
    node.meta["val"] = TensorType((50, 8), torch.float32)
    with pytest.raises(
        InputError, match="a context of 100 tokens, but rotary tables for 50; compile with --context 100"
    ):
        plan_weights(program, FORM)


def test_a_weight_of_integers_has_no_blob() -> None:
    program = finished()
    program.weights["rope.cos"] = constant(torch.zeros(256, 8, dtype=torch.int64))
    with pytest.raises(CompilerBug, match=r"no blob type for a weight of torch\.int64"):
        plan_weights(program, FORM)


def test_an_unquantized_program_has_float16_matrices() -> None:
    file = plan_weights(fused(), FORM)
    assert file.blobs["lm_head.weight"].blob.type == BlobType.FLOAT16
