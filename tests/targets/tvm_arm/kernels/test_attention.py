"""The attention kernel against the reference of `edge.attention`: prompts, steps, windows, grouped heads, LongRoPE; caches of
float32, float16 and int8."""

from __future__ import annotations

import re
from unittest import mock

import numpy as np
import pytest
import torch
from tvm_kernels import check_chunks, here, in_turn

tvm = pytest.importorskip("tvm")

from pocketphi.graph import edge_ops  # noqa: E402 - only where TVM is installed
from pocketphi.targets.tvm_arm.isa import ISAS, Isa  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402
from pocketphi.targets.tvm_arm.kv_cache import EXACT_CACHE, KV_CACHES, KvCache  # noqa: E402

CAPACITY = 48
SHAPES = {
    "full": (4, 4, 32, 32),
    "grouped": (6, 2, 64, 64),
    "partial": (8, 2, 96, 72),
    "odd group": (9, 3, 64, 64),
    "group of 8": (8, 1, 32, 32),
}
EPS = torch.finfo(torch.float32).eps
ROUNDING = 40 * 16 * EPS
"""Scores up to 40 in float32, of which e^x takes an absolute error as a relative one."""


class Cached:
    """A kernel for prompts and one for single tokens, over one cache; and the reference with its own.

    reference: keys and values float32 [1, KV, P, D] as they are without rounding; ring: rows of the kernel's cache, where it
    has fewer than a text
    """

    def __init__(
        self,
        isa: Isa,
        shape: str,
        window: int = 0,
        long_after: int = 0,
        cache: KvCache = EXACT_CACHE,
        ring: int | None = None,
    ) -> None:
        heads, self.kv, self.dim, rotary = SHAPES[shape]
        rows = 2 * CAPACITY if long_after else 320 if ring else CAPACITY
        generator = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(rows, rotary // 2, generator=generator) for _ in range(2)]
        self.width, self.out, self.long_after = (heads + 2 * self.kv) * self.dim, heads * self.dim, long_after
        forms = [
            AttentionForm(heads, self.kv, self.dim, rotary, rows, self.dim**-0.5, window, long_after, cache, single)
            for single in (False, True)
        ]
        target = tvm.target.Target(isa.target())
        self.kernels = [tvm.compile(tvm.IRModule({"f": attention("f", isa, f)}), target=target)["f"] for f in forms]
        empty = np.zeros((self.kv, ring or CAPACITY, cache.row(self.dim)), cache.dtype)
        self.cache = [tvm.runtime.tensor(empty) for _ in range(2)]
        self.reference = (torch.zeros(1, self.kv, 0, self.dim), torch.zeros(1, self.kv, 0, self.dim))
        self.arguments = (heads, self.kv, self.dim**-0.5, window, long_after)
        self.past = 0

    def tokens(self, count: int) -> torch.Tensor:
        """Queries, keys and values of the next tokens: float32 [count, width]."""
        return torch.randn(count, self.width, generator=torch.Generator().manual_seed(self.past))

    def run(self, qkv: torch.Tensor, total: int | None = None) -> torch.Tensor:
        """Append tokens to the kernel's cache, of `total` in all; what they attend to, float32 [S, H·D]."""
        count = len(qkv)
        position = [self.past, total or self.past + count][: 2 if self.long_after else 1]
        out = tvm.runtime.tensor(np.zeros((count, self.out), np.float32))
        held = [tvm.runtime.tensor(t.numpy()) for t in (*self.tables, torch.tensor(position, dtype=torch.int32))]
        self.kernels[count == 1](tvm.runtime.tensor(qkv.numpy()), *self.cache, *held, out)
        self.past += count
        return torch.from_numpy(out.numpy())

    def step(self, count: int) -> float:
        """Append `count` random tokens on both sides; the largest difference of what they attend to."""
        qkv, at = self.tokens(count), self.past
        return float((self.run(qkv) - self.expected(qkv, at)).abs().max())

    def expected(self, qkv: torch.Tensor, past: int) -> torch.Tensor:
        """The reference's side of a step."""
        at = torch.arange(past, past + len(qkv))[None]
        out, *self.reference = edge_ops.attention(qkv[None], *self.reference, at, *self.tables, *self.arguments)
        return out[0]

    def expected_of_kept(self, qkv: torch.Tensor, past: int) -> torch.Tensor:
        """The same over the keys and values that the kernel's int8 cache holds, once the tokens are in it."""
        kept = [part[None, :, : past + len(qkv)] for part in self.kept()]
        at = torch.arange(past, past + len(qkv))[None]
        with mock.patch.object(edge_ops, "_append", side_effect=kept):
            empty = [torch.zeros(1, self.kv, 0, self.dim)] * 2
            return edge_ops.attention(qkv[None], *empty, at, *self.tables, *self.arguments)[0][0]

    def int8(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of keys and of values: q int8 [KV, C, D] and scales float32 [KV, C], read as `kernels/cache.py` describes them."""
        made = []
        for number, stored in enumerate(self.cache):
            q, scales = np.split(stored.numpy().reshape(self.kv, -1), [CAPACITY * self.dim], axis=1)
            if number == 0:
                q = q.reshape(self.kv, -1, self.dim, 16).transpose(0, 1, 3, 2)
            scales = np.ascontiguousarray(scales).view(np.float32)
            made.append((q.reshape(self.kv, CAPACITY, self.dim), scales))
        return made

    def kept(self) -> list[torch.Tensor]:
        """Keys and values of the int8 cache: float32 [KV, C, D]."""
        return [torch.from_numpy(q.astype(np.float32) * scales[..., None]) for q, scales in self.int8()]


def int8(isa: Isa, shape: str, window: int = 0, long_after: int = 0) -> Cached:
    return Cached(isa, shape, window, long_after, KV_CACHES["int8"])


@pytest.mark.parametrize(("shape", "window", "isa"), in_turn([*SHAPES], [0, 5, 17]))
def test_prompts_and_steps_see_the_same_cache(isa: Isa, shape: str, window: int) -> None:
    cached = Cached(isa, shape, window)
    steps = [cached.step(count) for count in (7, 1, 2, 5, 6, 1, 1, 20)]
    assert max(steps) <= ROUNDING


@pytest.mark.parametrize(("shape", "window", "isa"), in_turn([*SHAPES], [17, 29]))
def test_a_ring_keeps_what_its_window_sees(isa: Isa, shape: str, window: int) -> None:
    """Three times around, by prompts as long as there is room for beside the window, and by single tokens on both sides of the
    ring's end and of the window's edge."""
    cached = Cached(isa, shape, window, ring=64)
    most = 64 - window + 1
    steps = [window - 1, 1, 1, 64 - window - 3, 1, 2, 1, 5, 1, most, 6, most, most, 7, most, 2, 1]
    assert max(map(cached.step, steps)) <= ROUNDING
    assert cached.past > 3 * 64


@pytest.mark.parametrize(("cache", "isa"), in_turn(["fp16", "int8"]))
def test_a_ring_gives_the_bits_of_a_whole_cache(isa: Isa, cache: str) -> None:
    ring = Cached(isa, "grouped", 17, cache=KV_CACHES[cache], ring=64)
    whole = Cached(isa, "grouped", 17, cache=KV_CACHES[cache], ring=320)
    for count in (48, 1, 20, 1, 48, 1, 1, 33):
        assert torch.equal(ring.run(ring.tokens(count)), whole.run(whole.tokens(count)))
    assert ring.past > 2 * 64


@pytest.mark.parametrize("isa", here())
def test_a_float16_cache_rounds_keys_and_values(isa: Isa) -> None:
    cached = Cached(isa, "grouped", cache=KV_CACHES["fp16"])
    steps = [cached.step(count) for count in (9, 1, 20)]
    assert 0 < max(steps) <= 40 * 2**-11  # the same, with keys in eleven bits


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("shape", SHAPES)
def test_an_int8_cache_rounds_by_the_largest_of_a_row(isa: Isa, shape: str) -> None:
    """Scales are max/127; a value is the nearest multiple of its scale; rows that nothing was written to stay zero."""
    cached = int8(isa, shape)
    for count in (7, 1, 13):
        cached.step(count)
    for (q, scales), exact in zip(cached.int8(), cached.reference):
        written, rows = q[:, : cached.past], scales[:, : cached.past]
        largest = exact[0].abs().amax(-1).numpy()
        # rotary adds two products, which may be fused or not; a division and a product follow
        assert np.abs(rows * 127 - largest).max() <= 4 * EPS * largest.max()
        assert np.abs(written.astype(int)).max(-1).min() == 127
        error = np.abs(written * rows[..., None] - exact[0].numpy())
        assert (error <= (0.5 + 127 * 4 * EPS) * rows[..., None]).all()
        assert not q[:, cached.past :].any()
        assert not scales[:, cached.past :].any()


@pytest.mark.parametrize("isa", here())
def test_values_are_rounded_as_numpy_does(isa: Isa) -> None:
    """Values come without arithmetic before them: bit for bit, halves to even."""
    cached = int8(isa, "partial")
    qkv = cached.tokens(20)
    qkv[:, -96:-32] = torch.arange(64) / 2  # halves of a scale of 1 …
    qkv[:, -32] = 127  # … where this is the largest
    qkv[:, -31:] = -3.5
    cached.run(qkv)
    values = qkv[:, -2 * 96 :].view(20, 2, 96).transpose(0, 1).numpy()
    largest = np.abs(values).max(-1, keepdims=True)
    q, scales = cached.int8()[1]
    assert np.array_equal(scales[:, :20], (largest / np.float32(127))[..., 0])
    assert np.array_equal(q[:, :20], np.rint(values * (np.float32(127) / largest)).astype(np.int8))
    assert q[1, 0, :4].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("shape", "window", "isa"), in_turn([*SHAPES], [0, 17]))
def test_attention_over_an_int8_cache(isa: Isa, shape: str, window: int) -> None:
    """What is attended to are the values that the cache holds, by the keys that it holds, to float rounding."""
    cached = int8(isa, shape, window)
    for count in (7, 1, 2, 5, 6, 1, 1, 20):
        qkv, past = cached.tokens(count), cached.past
        assert (cached.run(qkv) - cached.expected_of_kept(qkv, past)).abs().max() <= ROUNDING


@pytest.mark.parametrize("isa", here())
def test_int8_is_as_far_off_as_its_rounding(isa: Isa) -> None:
    """A score moves by at most e = ‖q‖₁·max|k|/254, a weight by a factor within exp(±2e), a value by max|v|/254."""
    cached = int8(isa, "grouped")
    heads, kv, scale = cached.arguments[:3]
    qkv = 0.25 * cached.tokens(30)
    out, expected = cached.run(qkv), cached.expected(qkv, 0)
    query = qkv[:, : heads * cached.dim].view(30, heads, cached.dim).transpose(0, 1)
    turned = edge_ops.rotated(query[None], *(table[None, :30] for table in cached.tables))[0]
    keys, values = (part[0].abs().amax((1, 2)).repeat_interleave(heads // kv) for part in cached.reference)
    moved = scale * turned.abs().sum(-1) * keys[:, None] / 254
    bound = ((2 * moved).exp() - 1 + 1 / 254) * values[:, None]
    error = (out - expected).abs().view(30, heads, cached.dim).amax(-1).T
    assert (error > 0).all()
    assert (error <= bound + ROUNDING).all()
    assert bound.max() < values.max()  # it says something


@pytest.mark.parametrize("isa", here())
def test_where_a_byte_of_an_int8_cache_lies(isa: Isa) -> None:
    """The example in `kernels/cache.py`: D = 32, C = 48, position 19."""
    cached = int8(isa, "full")
    cached.run(cached.tokens(20))
    keys, values = (stored.numpy().reshape(4, -1)[1] for stored in cached.cache)
    (key, key_scales), (value, value_scales) = cached.int8()
    assert (keys[547], values[610]) == (key[1, 19, 2], value[1, 19, 2])
    assert keys[1612:1616].tobytes() == key_scales[1, 19].tobytes()
    assert values[1612:1616].tobytes() == value_scales[1, 19].tobytes()
    assert key_scales[1, 19] > 0


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("single", [False, True])
def test_int8_is_widened_in_vectors_on_every_instruction_set(name: str, single: bool) -> None:
    """Integers become floats by one instruction for a vector, in the loops that multiply; a scalar is never converted."""
    isa = ISAS[name]
    form = AttentionForm(4, 4, 96, 96, 64, 1.0, 0, 0, KV_CACHES["int8"], single)
    target = tvm.target.Target(isa.target())
    assembly = tvm.compile(tvm.IRModule({"f": attention("f", isa, form)}), target=target).mod.inspect_source("asm")
    convert = {"aarch64": "scvtf", "x86_64": r"vcvt\w*2ps"}[isa.arch]
    vectors = {4: r"v\d+\.4s", 8: "%ymm", 16: "%zmm"}[isa.lanes]
    found = re.findall(rf"\t{convert}\t.*", assembly)
    assert len(found) >= 96 // isa.lanes  # all dimensions of a value
    assert [line for line in found if not re.search(vectors, line)] == []


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30])
def test_rows_of_zeros_and_of_nearly_nothing(isa: Isa, size: float) -> None:
    """Where there is no scale to divide by, a row is zeros."""
    cached = int8(isa, "grouped")
    qkv = cached.tokens(9)
    qkv[3:5] = size
    assert cached.run(qkv).isfinite().all()
    largest = sum(float(table.abs().max()) for table in cached.tables) * size  # of a rotated key
    for q, scales in cached.int8():
        assert q[:, 3:5].any() == (size == 1e-30)
        assert (scales[:, 3:5] <= largest / 127).all()


@pytest.mark.parametrize("isa", here())
def test_an_outlier_costs_its_own_row_alone(isa: Isa) -> None:
    plain, odd = (int8(isa, "grouped") for _ in range(2))
    qkv = plain.tokens(9)
    plain.run(qkv)
    qkv[4, 6 * 64 + 5] = 1000.0
    odd.run(qkv)
    before, after = plain.kept()[0], odd.kept()[0]
    assert [(n, t) for n in range(2) for t in range(9) if not torch.equal(before[n, t], after[n, t])] == [(0, 4)]


@pytest.mark.parametrize(("window", "cache", "isa"), in_turn([0, 5], ["fp16", "int8"]))
def test_a_prompt_in_chunks_is_the_prompt_at_once(isa: Isa, window: int, cache: str) -> None:
    whole, chunked = (Cached(isa, "grouped", window, cache=KV_CACHES[cache]) for _ in range(2))
    check_chunks(whole, chunked)


@pytest.mark.parametrize("isa", here())
def test_long_factors_once_the_total_is_beyond_the_switch(isa: Isa) -> None:
    short = Cached(isa, "grouped", long_after=20)
    assert max(short.step(12), short.step(6), short.step(2)) <= ROUNDING  # position 19 is the last
    assert Cached(isa, "grouped", long_after=4).step(6) <= ROUNDING
    long = Cached(isa, "grouped", long_after=20)
    assert long.step(21) <= ROUNDING


@pytest.mark.parametrize("isa", here())
def test_a_chunk_of_a_longer_prompt_takes_the_long_factors(isa: Isa) -> None:
    """Position alone would say short; the total of the whole prompt says long."""
    whole, chunked = (Cached(isa, "grouped", long_after=20) for _ in range(2))
    qkv = whole.tokens(30)
    whole.run(qkv)
    for piece in qkv.split([12, 18]):
        chunked.run(piece, total=30)
    assert (chunked.cache[0].numpy() == whole.cache[0].numpy()).all()
