"""write_weights: the bytes at the planned places are those of the whole weights, and errors come through."""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_phi3 import normal, quantized

from pocketphi.artifacts import stream
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.stream import Layout, Written, plan_layout, write_weights
from pocketphi.graph.lazy_weights import Constant, digest, materialize


@dataclass(frozen=True)
class Chunked(Constant):
    """A constant in chunks of some rows, which fails when it comes to one of them."""

    step: int = 3
    fails_at: int | None = None

    def chunks(self) -> Iterator[tuple[int, int]]:
        rows = len(self.value)
        return ((start, min(start + self.step, rows)) for start in range(0, rows, self.step))

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        if self.fails_at is not None and start >= self.fails_at:
            raise KeyError(f"{self.origin} at {start}")
        return super().read(start, stop)


def ignore(amount: int) -> None:
    pass


@pytest.fixture(params=["threads", "processes"], autouse=True)
def _workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both kinds of workers, which the size of a file decides."""
    monkeypatch.setattr(stream, "_WORTH_A_PROCESS", 0 if request.param == "processes" else sys.maxsize)


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_lie_where_they_were_planned(tmp_path: Path, symmetric: bool) -> None:
    weights = quantized(symmetric=symmetric).weights
    weights |= {"large": Chunked(normal(301, 100), "large"), "whole": Constant(torch.arange(7), "whole")}
    layout = plan_layout(weights)
    written: list[int] = []
    made = write_weights(tmp_path / "data", weights, layout, written.append)
    data = (tmp_path / "data").read_bytes()
    whole = {name: materialize(weight) for name, weight in weights.items()}
    wrong = [
        (name, part)
        for name, parts in whole.items()
        for part, tensor in parts.items()
        if data[layout.offsets[name, part] :][: tensor.nbytes] != tensor.numpy().tobytes()
    ]
    assert wrong == []
    assert len(data) == layout.size
    assert sum(written) == sum(t.nbytes for parts in whole.values() for t in parts.values())
    assert made.digests == {name: digest(parts) for name, parts in whole.items()}
    assert list(made.digests) == list(weights)
    assert made.sha256 == hashlib.sha256(data).hexdigest()


def test_layout() -> None:
    """Large parts start on 16 KiB, small ones on 64 bytes; nothing overlaps and no more is left free."""
    weights = {
        "a": Constant(torch.zeros(3), ""),
        "b": Constant(torch.zeros(1 << 14), ""),  # 64 KiB
        "c": Constant(torch.zeros((1 << 14) - 1), ""),
        "d": Constant(torch.zeros(1, dtype=torch.uint8), ""),
    }
    layout = plan_layout(weights)
    assert layout.offsets == {("a", ""): 0, ("b", ""): 16384, ("c", ""): 16384 + 65536, ("d", ""): 16384 + 2 * 65536}
    assert layout.size == 16384 + 2 * 65536 + 1
    assert plan_layout({}).size == 0


def test_gaps_are_zeros_and_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    weights = {"odd": Constant(torch.arange(3.0), "odd"), **quantized().weights}
    layout = plan_layout(weights)
    (tmp_path / "b").write_bytes(b"\xff" * (layout.size + 99))  # what stood there before
    for name in "ab":
        write_weights(tmp_path / name, weights, layout, ignore)
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    used = sorted((at, at + weights[n].parts[p].bytes) for (n, p), at in layout.offsets.items())
    gaps = [data[end:start] for (_, end), (start, _) in itertools.pairwise(used)]
    assert max(map(len, gaps)) > 0
    assert b"".join(gaps).strip(b"\0") == b""


def test_a_digest_is_of_names_and_bytes() -> None:
    a, b = normal(2, 3), normal(2, 3, seed=1)
    assert digest({"q": a, "scale": b}) == digest({"scale": b, "q": a})
    assert len({digest({"q": a, "scale": b}), digest({"q": b, "scale": a}), digest({"q": a}), digest({"": a})}) == 4


def test_a_target_may_write_other_bytes_than_it_vouches_for(tmp_path: Path) -> None:
    """Parts of other sizes at offsets of its own, and bytes between them; the digest stays that of the canonical rows."""
    values = normal(10, 6)
    weights = {"w": Chunked(values, "w")}
    layout = Layout({("w", "half"): 64, ("w", "sums"): 8}, 200)
    written: list[int] = []

    def encode(name: str, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"half": rows[""].half(), "sums": rows[""].sum(1)}

    made = write_weights(tmp_path / "data", weights, layout, written.append, encode, {0: b"begin", 190: b"end"})
    data = (tmp_path / "data").read_bytes()
    assert made.digests == {"w": digest({"": values})}
    assert made.sha256 == hashlib.sha256(data).hexdigest()
    assert data[64:184] == values.half().numpy().tobytes()
    assert data[8:48] == values.sum(1).numpy().tobytes()
    assert (len(data), sum(written)) == (200, 160)
    assert (data[:8], data[48:64], data[184:]) == (b"begin" + bytes(3), bytes(16), bytes(6) + b"end" + bytes(7))


@pytest.mark.parametrize("fails_at", [0, 6])
def test_an_error_in_a_worker_comes_out_and_leaves_nothing(tmp_path: Path, fails_at: int) -> None:
    weights = {f"w{i}": Chunked(normal(40, 8), f"w{i}", fails_at=fails_at if i == 5 else None) for i in range(20)}
    threads, count = threading.active_count(), torch.get_num_threads()
    with pytest.raises(KeyError, match=f"w5 at {fails_at}"), new_folder(tmp_path / "out", 0) as folder:
        write_weights(folder / "data", weights, plan_layout(weights), ignore)
    assert list(tmp_path.iterdir()) == []
    assert (threading.active_count(), torch.get_num_threads()) == (threads, count)


def test_an_error_in_progress_comes_out(tmp_path: Path) -> None:
    def stop(amount: int) -> None:
        raise KeyboardInterrupt

    weights = {"w": Constant(normal(4), "w")}
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path / "data", weights, plan_layout(weights), stop)


def test_the_hash_follows_a_layout_in_any_order(tmp_path: Path) -> None:
    """The last weight lies first: nothing can be hashed until it is written."""
    weights = {name: Chunked(normal(40, 8, seed=i), name) for i, name in enumerate("abcd")}
    layout = Layout({(name, ""): 1280 * place for name, place in zip("abcd", (1, 3, 2, 0))}, 4 * 1280)
    made = write_weights(tmp_path / "data", weights, layout, ignore)
    data = (tmp_path / "data").read_bytes()
    assert data == b"".join(weights[name].value.numpy().tobytes() for name in "dacb")
    assert made.sha256 == hashlib.sha256(data).hexdigest()


def test_no_weights(tmp_path: Path) -> None:
    made = write_weights(tmp_path / "data", {}, plan_layout({}), ignore)
    assert made == Written({}, hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "data").stat().st_size == 0
