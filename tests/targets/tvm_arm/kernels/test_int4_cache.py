"""The attention kernel over a cache of int4, against numpy's reading of its bytes and against attention over what they hold."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tvm_kernels import check_chunks, here

tvm = pytest.importorskip("tvm")

from pocketphi.graph.edge_ops import attend  # noqa: E402 - only where TVM is installed
from pocketphi.targets.tvm_arm.isa import ISAS, Isa  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES  # noqa: E402
from pocketphi.targets.tvm_arm.rounded_cache import TurnedInt4  # noqa: E402

INT4 = KV_CACHES["int4"]
CAPACITY = 48
SHAPES = {"full": (4, 4, 32, 32), "grouped": (6, 2, 64, 64), "partial": (8, 2, 96, 72)}
"""heads, key/value heads, dimensions, rotated ones"""
ROUNDING = 40 * 16 * torch.finfo(torch.float32).eps
"""Scores up to 40 in float32, of which e^x takes an absolute error as a relative one."""


class Cached:
    """The kernels for prompts and for single tokens, over one cache. seen: qkv of all tokens so far."""

    def __init__(self, isa: Isa, shape: str, window: int = 0, rows: int = CAPACITY) -> None:
        heads, self.kv, self.dim, rotary = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        angles = torch.rand(4 * CAPACITY, rotary // 2, generator=generator)
        self.tables = [angles.cos().contiguous(), angles.sin().contiguous()]
        self.width, self.out = (heads + 2 * self.kv) * self.dim, heads * self.dim
        self.arguments = (heads, self.kv, self.dim**-0.5, window, 0)
        forms = [
            AttentionForm(heads, self.kv, self.dim, rotary, 4 * CAPACITY, self.dim**-0.5, window, 0, INT4, single)
            for single in (False, True)
        ]
        target = tvm.target.Target(isa.target())
        self.kernels = [tvm.compile(tvm.IRModule({"f": attention("f", isa, f)}), target=target)["f"] for f in forms]
        empty = np.zeros((self.kv, rows, INT4.row(self.dim)), INT4.dtype)
        self.cache = [tvm.runtime.tensor(empty) for _ in range(2)]
        self.centre = torch.randn(self.kv, self.dim, generator=generator)
        self.seen = torch.zeros(0, self.width)

    def tokens(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.width, generator=torch.Generator().manual_seed(len(self.seen)))

    def run(self, qkv: torch.Tensor) -> torch.Tensor:
        """Append tokens; what they attend to, float32 [S, H·D]."""
        position = torch.tensor([len(self.seen)], dtype=torch.int32)
        out = tvm.runtime.tensor(np.zeros((len(qkv), self.out), np.float32))
        held = [tvm.runtime.tensor(t.numpy()) for t in (*self.tables, self.centre, position)]
        self.kernels[len(qkv) == 1](tvm.runtime.tensor(qkv.numpy()), *self.cache, *held, out)
        self.seen = torch.cat([self.seen, qkv])
        return torch.from_numpy(out.numpy())

    def exact(self) -> list[torch.Tensor]:
        """Keys, rotated, and values of all tokens without rounding: float32 [KV, S, D]."""
        return [part[0] for part in self._attend(lambda keys, values: (keys, values))[1:]]

    def expected(self) -> torch.Tensor:
        """Attention over the keys and values that the kernel's cache holds, of all tokens."""
        kept = [torch.from_numpy(one)[None] for one in self.kept()]
        return self._attend(lambda keys, values: (kept[0], kept[1]))[0][0]

    def _attend(self, kept: object) -> tuple[torch.Tensor, ...]:
        empty, at = torch.zeros(1, self.kv, 0, self.dim), torch.arange(len(self.seen))[None]
        return attend(self.seen[None], empty, empty, at, *self.tables, *self.arguments, kept=kept)  # type: ignore[arg-type]

    def numbers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of keys and of values: q int [KV, S, D] and scales float32 [KV, S, D/32], by the words of `kernels/cache.py`."""
        made, size = [], len(self.seen)
        for which, stored in enumerate(self.cache):
            whole = stored.numpy().reshape(self.kv, -1)
            numbers, scales = np.split(whole, [CAPACITY * self.dim // 2], axis=1)
            q, s = np.zeros((self.kv, size, self.dim), int), np.zeros((self.kv, size, self.dim // 32), np.float32)
            for at in range(size):
                for d in range(self.dim):
                    if which == 0:
                        byte, upper = (at // 16 * self.dim // 2 + d // 2) * 16 + at % 16, d % 2
                    else:
                        byte, upper = (at * (self.dim // 32) + d // 32) * 16 + d % 16, d % 32 // 16
                    q[:, at, d] = (numbers[:, byte] >> 4 * upper & 15).astype(int) - 8
                for g in range(self.dim // 32):
                    groups = self.dim // 32
                    byte = (at // 16 * groups + g) * 16 + at % 16 if which == 0 else at * groups + g
                    # a float16 without its sign and its lowest seven bits
                    s[:, at, g] = (scales[:, byte].astype(np.uint16) << 7).view(np.float16)
            made.append((q, s))
        return made

    def kept(self) -> list[np.ndarray]:
        """Keys and values that the cache's numbers stand for, turned back: float32 [KV, S, D]."""
        keys, values = ((q * np.repeat(s, 32, axis=2)) for q, s in self.numbers())
        return [(turned(keys) + self.centre[:, None].numpy()).astype(np.float32), turned(values).astype(np.float32)]


def turned(x: np.ndarray) -> np.ndarray:
    """Every 32 dimensions times the Hadamard matrix over √32: entry (i, j) is (-1)^(bits that both have)."""
    signs = np.array([[(-1.0) ** (i & j).bit_count() for j in range(32)] for i in range(32)])
    return (x.reshape(*x.shape[:-1], -1, 32) @ (signs / 32**0.5)).reshape(x.shape)


@pytest.mark.parametrize("isa", here())
def test_a_ring_gives_the_bits_of_a_whole_cache(isa: Isa) -> None:
    ring, whole = Cached(isa, "grouped", 17, rows=64), Cached(isa, "grouped", 17, rows=4 * CAPACITY)
    for count in (48, 1, 20, 1, 48, 1, 1, 33):
        assert torch.equal(ring.run(ring.tokens(count)), whole.run(whole.tokens(count)))
    assert len(ring.seen) > 2 * 64


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize(("shape", "window"), [("full", 17), ("grouped", 0), ("partial", 0)])
def test_attention_is_over_what_the_cache_holds(isa: Isa, shape: str, window: int) -> None:
    cached, came = Cached(isa, shape, window), []
    for count in (7, 1, 13, 1, 20):
        came.append(cached.run(cached.tokens(count)))
    assert (torch.cat(came) - cached.expected()).abs().max() <= ROUNDING


@pytest.mark.parametrize("isa", here())
def test_scales_are_those_of_least_error(isa: Isa) -> None:
    """Of four bytes, from the least that reaches max|x|/7.5 on downwards: none of the others would lose clearly less. In the
    range that a scale reaches, no number is off by more than half of it."""
    cached = Cached(isa, "partial")
    for count in (7, 1, 20):
        cached.run(cached.tokens(count))
    keys, values = (one.numpy() for one in cached.exact())
    for (q, s), exact in zip(cached.numbers(), (turned(keys - cached.centre[:, None].numpy()), turned(values))):
        parts, numbers = exact.reshape(*s.shape, 32), q.reshape(*s.shape, 32)
        error = np.abs(numbers * s[..., None] - parts)
        assert (error <= np.maximum(s[..., None] * 0.5, np.abs(parts) - 7 * s[..., None]) * (1 + 1e-4)).all()
        wanted = (np.abs(parts).max(-1) / 7.5).astype(np.float16).view(np.uint16).astype(int)
        first, chosen = (wanted + 127) >> 7, s.astype(np.float16).view(np.uint16).astype(int) >> 7
        assert ((chosen <= first) & (chosen >= first - 3)).all()
        assert set((first - chosen).ravel()) >= {0, 1}
        lost = []
        for smaller in range(4):
            scale = ((first - smaller) << 7).astype(np.uint16).view(np.float16).astype(np.float32)[..., None]
            lost.append(np.square(np.clip(np.rint(parts / scale), -8, 7) * scale - parts).sum(-1))
        assert (np.square(error).sum(-1) <= np.min(lost, 0) * (1 + 1e-3)).all()


@pytest.mark.parametrize("isa", here())
def test_the_reference_of_verification_keeps_the_same(isa: Isa) -> None:
    """But for numbers on an edge, and scales that lose as much: both may fall either way in another order of sums."""
    cached = Cached(isa, "partial")
    qkv = cached.tokens(20)
    qkv[3, -96:] = 0  # a row of zeros
    qkv[4, -96:-64] = 1e-9  # one whose scale is no number of a byte
    came = cached.run(qkv)
    assert came.isfinite().all()
    expected = TurnedInt4([cached.centre]).kept(0, *cached.exact())
    for kept, wanted in zip(cached.kept(), expected):
        assert (np.abs(kept - wanted.numpy()) > 1e-5).mean() < 0.01
    assert np.abs(cached.kept()[1][1, 3]).max() == 0


@pytest.mark.parametrize("isa", here())
def test_a_prompt_in_chunks_is_the_prompt_at_once(isa: Isa) -> None:
    whole, chunked = Cached(isa, "grouped", 5), Cached(isa, "grouped", 5)
    check_chunks(whole, chunked)


@pytest.mark.parametrize("isa", here())
def test_where_a_byte_lies(isa: Isa) -> None:
    """The example in `kernels/cache.py`: D = 64, C = 48, position 19."""
    cached = Cached(isa, "grouped")
    cached.run(cached.tokens(20))
    keys, values = (stored.numpy().reshape(2, -1)[1].astype(int) for stored in cached.cache)
    (key, key_scale), (value, value_scale) = ((q[1, 19] + 8, s[1, 19]) for q, s in cached.numbers())
    assert keys[787] == key[34] + 16 * key[35]
    assert values[626] == value[34] + 16 * value[50]
    for byte, scale in ((keys[1587], key_scale[1]), (values[1575], value_scale[1])):
        assert np.array([byte << 7], np.uint16).view(np.float16)[0] == scale > 0


@pytest.mark.parametrize("name", ISAS)
def test_numbers_become_floats_in_vectors_on_every_instruction_set(name: str) -> None:
    """One instruction for a vector, and more of them than there are vectors in a row: bytes are never widened one by one in
    the loops over dimensions."""
    isa = ISAS[name]
    form = AttentionForm(4, 4, 96, 96, 64, 1.0, 0, 0, INT4, single=True)
    target = tvm.target.Target(isa.target())
    assembly = tvm.compile(tvm.IRModule({"f": attention("f", isa, form)}), target=target).mod.inspect_source("asm")
    convert = {"aarch64": "scvtf", "x86_64": r"vcvtdq2ps"}[isa.arch]
    vectors = {4: r"v\d+\.4s", 8: "%ymm", 16: "%zmm"}[isa.lanes]
    found = re.findall(rf"\t{convert}\t.*", assembly)
    assert len(found) >= 96 // isa.lanes
    assert [line for line in found if not re.search(vectors, line)] == []
