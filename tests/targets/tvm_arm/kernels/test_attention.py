"""The attention kernel against the reference of `edge.attention`: prompts, steps, windows, grouped heads, LongRoPE."""

from __future__ import annotations

import pytest
import torch
from tvm_kernels import here

tvm = pytest.importorskip("tvm")

from pocketphi.graph import edge_ops  # noqa: E402 - only where TVM is installed
from pocketphi.targets.tvm_arm.isa import Isa  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402

CAPACITY = 48
SHAPES = {"full": (4, 4, 32, 32), "grouped": (6, 2, 64, 64), "partial": (8, 2, 96, 72), "odd group": (9, 3, 64, 64)}


class Cached:
    """A kernel for prompts and one for single tokens, over one cache; and the reference with its own."""

    def __init__(self, isa: Isa, shape: str, window: int = 0, long_after: int = 0, cache: str = "float32") -> None:
        heads, kv, dim, rotary = SHAPES[shape]
        rows = 2 * CAPACITY if long_after else CAPACITY
        generator = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(rows, rotary // 2, generator=generator) for _ in range(2)]
        self.width, self.out, self.long_after = (heads + 2 * kv) * dim, heads * dim, long_after
        forms = [
            AttentionForm(heads, kv, dim, rotary, rows, dim**-0.5, window, long_after, cache, single)
            for single in (False, True)
        ]
        target = tvm.target.Target(isa.target())
        self.kernels = [tvm.compile(tvm.IRModule({"f": attention("f", isa, f)}), target=target)["f"] for f in forms]
        empty = torch.zeros(kv, CAPACITY, dim, dtype=getattr(torch, cache))
        self.cache = [tvm.runtime.tensor(empty.numpy()) for _ in range(2)]
        self.reference = (torch.zeros(1, kv, 0, dim), torch.zeros(1, kv, 0, dim))
        self.arguments = (heads, kv, dim**-0.5, window, long_after)
        self.past = 0

    def step(self, count: int) -> float:
        """Append `count` random tokens on both sides; the largest difference of what they attend to."""
        qkv = torch.randn(1, count, self.width, generator=torch.Generator().manual_seed(self.past))
        at = torch.arange(self.past, self.past + count)[None]
        expected, *self.reference = edge_ops.attention(qkv, *self.reference, at, *self.tables, *self.arguments)
        position = [self.past, self.past + count][: 2 if self.long_after else 1]
        out = tvm.runtime.tensor(torch.zeros(count, self.out).numpy())
        held = [tvm.runtime.tensor(t.numpy()) for t in (*self.tables, torch.tensor(position, dtype=torch.int32))]
        self.kernels[count == 1](tvm.runtime.tensor(qkv[0].numpy()), *self.cache, *held, out)
        self.past += count
        return float((torch.from_numpy(out.numpy()) - expected[0]).abs().max())


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [0, 5, 17])
def test_prompts_and_steps_see_the_same_cache(isa: Isa, shape: str, window: int) -> None:
    cached = Cached(isa, shape, window)
    steps = [cached.step(count) for count in (7, 1, 13, 1, 1, 20)]
    # scores up to 40 in float32, of which e^x takes an absolute error as a relative one
    assert max(steps) <= 40 * 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("isa", here())
def test_a_float16_cache_rounds_keys_and_values(isa: Isa) -> None:
    cached = Cached(isa, "grouped", cache="float16")
    steps = [cached.step(count) for count in (9, 1, 20)]
    assert 0 < max(steps) <= 40 * 2**-11  # the same, with keys in eleven bits


@pytest.mark.parametrize("isa", here())
def test_long_factors_once_the_total_is_beyond_the_switch(isa: Isa) -> None:
    short = Cached(isa, "grouped", long_after=20)
    assert max(short.step(12), short.step(8)) <= 40 * 16 * torch.finfo(torch.float32).eps  # position 19 is the last
    long = Cached(isa, "grouped", long_after=20)
    assert long.step(21) <= 40 * 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("isa", here())
def test_a_chunk_of_a_longer_prompt_takes_the_long_factors(isa: Isa) -> None:
    """Position alone would say short; the total of the whole prompt says long."""
    whole, chunked = (Cached(isa, "grouped", long_after=20) for _ in range(2))
    whole.step(30)
    qkv = torch.randn(1, 30, whole.width, generator=torch.Generator().manual_seed(0))[0]
    held = [tvm.runtime.tensor(t.numpy()) for t in chunked.tables]
    for start, stop in ((0, 12), (12, 30)):
        position = tvm.runtime.tensor(torch.tensor([start, 30], dtype=torch.int32).numpy())
        out = tvm.runtime.tensor(torch.zeros(stop - start, chunked.out).numpy())
        chunked.kernels[0](tvm.runtime.tensor(qkv[start:stop].numpy()), *chunked.cache, *held, position, out)
    assert (chunked.cache[0].numpy() == whole.cache[0].numpy()).all()
