"""Inputs as the package declares them: sizes in a range or of a set, kinds of numbers, values that need not be given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ct = pytest.importorskip("coremltools")

from mil_programs import save  # noqa: E402 - only where coremltools is

from pocketphi.graph.errors import InputError  # noqa: E402
from pocketphi.targets.coreml.declared import Allowed  # noqa: E402
from pocketphi.targets.coreml.interpreter import Interpreter  # noqa: E402
from pocketphi.targets.coreml.mlpackage import MLPackage  # noqa: E402
from pocketphi.targets.coreml.run_package import run_mlpackage  # noqa: E402


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def double(path: Path, kind: Any) -> Interpreter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Double(), torch.ones(1, 3, 4, 4))
    options = {"outputs": [ct.TensorType("y")], "compute_precision": ct.precision.FLOAT32}
    return Interpreter(MLPackage.open(save(traced, path, inputs=[kind], **options)), "fp32")


SIZES = ct.EnumeratedShapes([(1, 3, 4, 4), (1, 3, 8, 6)], default=(1, 3, 4, 4))
CASES = {
    "range": (
        lambda: ct.TensorType("x", (1, 3, ct.RangeDim(2, 5, default=4), ct.RangeDim(2, 9, default=4))),
        ([(2, 9), (5, 2), (4, 4)], [(1, 4), (6, 4), (4, 10)], r"allowed is \[1, 3, 2 … 5, 2 … 9\], got \[1, 3, "),
    ),
    "set": (
        lambda: ct.TensorType("x", SIZES),
        ([(4, 4), (8, 6)], [(4, 6), (8, 4), (5, 5)], r"allowed are \[1, 3, 4, 4\] or \[1, 3, 8, 6\], got \[1, 3, "),
    ),
    "image, range": (
        lambda: ct.ImageType("x", (1, 3, ct.RangeDim(2, 5, default=4), ct.RangeDim(2, 9, default=4))),
        ([(2, 9), (5, 2)], [(1, 4), (4, 10)], r"allowed is \[2 … 5, 2 … 9\], got \[1, 3, "),
    ),
    "image, set": (
        lambda: ct.ImageType("x", SIZES),
        ([(4, 4), (8, 6)], [(4, 6)], r"allowed are \[4, 4\] or \[8, 6\], got \[1, 3, 4, 6\]"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_outside_of_what_is_declared_are_refused(tmp_path: Path, name: str) -> None:
    kind, (right, wrong, message) = CASES[name]
    interpreter = double(tmp_path / "p.mlpackage", kind())
    for size in right:
        x = torch.randn(1, 3, *size)
        assert torch.equal(interpreter.run(None, {"x": x})["y"], x * 2)
    for size in wrong:
        with pytest.raises(InputError, match=message):
            interpreter.run(None, {"x": torch.randn(1, 3, *size)})
    assert run_mlpackage(tmp_path / "p.mlpackage").inputs["x"].shape == [1, 3, 4, 4]


def test_a_range_may_have_no_end() -> None:
    allowed = Allowed(ranges=((2, None), (4, 4)))
    allowed.check([1, 3, 10**9, 4])
    with pytest.raises(ValueError, match=r"allowed is \[2 or more, 4\], got \[1, 4\]"):
        allowed.check([1, 4])
    with pytest.raises(ValueError, match=r"got \[4\]"):
        allowed.check([4])


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    interpreter = double(tmp_path / "p.mlpackage", ct.TensorType("x", (2,)))
    for value, got in ((torch.ones(2, dtype=torch.int32), "int32"), (torch.ones(2, dtype=torch.bool), "bool")):
        with pytest.raises(InputError, match=rf"input 'x' is fp32\[2\], got {got}"):
            interpreter.run(None, {"x": value})
    np.save(tmp_path / "x.npy", np.int64([1, 2]))
    with pytest.raises(InputError, match=r"expected floats, fp32\[2\], got torch.int64"):
        run_mlpackage(tmp_path / "p.mlpackage", inputs=[f"x={tmp_path}/x.npy"])
    assert run_mlpackage(tmp_path / "p.mlpackage", inputs=["x=[1, 2]"]).outputs["y"].first == [2, 4]


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("]
)
def test_damaged_arrays_are_our_error(tmp_path: Path, content: bytes) -> None:
    double(tmp_path / "p.mlpackage", ct.TensorType("x", (2,)))
    (tmp_path / "x.npy").write_bytes(content)
    for text in (f"{tmp_path}/x.npy", "[" * 100_000, '["a"]', "[1, [2]]", "9" * 5000):
        with pytest.raises(InputError, match="--input x="):
            run_mlpackage(tmp_path / "p.mlpackage", inputs=[f"x={text}"])


def test_an_input_with_a_default_need_not_be_given(tmp_path: Path) -> None:
    kind = ct.TensorType("x", (2,), default_value=np.full((2,), 3, np.float32))
    interpreter = double(tmp_path / "p.mlpackage", kind)
    assert interpreter.run(None, {})["y"].tolist() == [6, 6]
    assert interpreter.run(None, {"x": torch.ones(2)})["y"].tolist() == [2, 2]
    ran = run_mlpackage(tmp_path / "p.mlpackage")
    assert (ran.inputs["x"].source, ran.outputs["y"].first) == ("the default, 3", [6, 6])


class Decoder(nn.Module):
    """A layer with a cache: length and position follow from the shapes of both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.register_buffer("cache", torch.zeros(1, 16, 8))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        end = mask.shape[-1]
        past = end - ids.shape[-1]
        x = self.embed(ids)
        x = x * torch.arange(past, end).float().add(1.0)[None, :, None].rsqrt()
        self.cache[:, past:end, :] = x
        keys = self.cache[:, :end, :]
        return self.head((x @ keys.transpose(1, 2) + mask).softmax(-1) @ keys)


def test_a_decoder_with_a_cache_and_a_range_of_lengths(tmp_path: Path) -> None:
    """In one go and in steps: sizes are read from flexible inputs, as values without axes."""
    torch.manual_seed(0)
    module = Decoder().eval()
    ids, mask = torch.randint(0, 20, (1, 6)), torch.full((1, 6, 6), -1e4).triu(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (ids, mask), check_trace=False)
    query, end = ct.RangeDim(1, 16, default=1), ct.RangeDim(1, 16, default=1)
    state = ct.StateType(wrapped_type=ct.TensorType(shape=(1, 16, 8), dtype=np.float16), name="cache")
    save(
        traced,
        tmp_path / "p.mlpackage",
        inputs=[
            ct.TensorType("ids", (1, query), dtype=np.int32),
            ct.TensorType("mask", (1, query, end), dtype=np.float16),
        ],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[state],
    )
    interpreter = Interpreter(MLPackage.open(tmp_path / "p.mlpackage"), "fp32")
    module.cache.zero_()
    expected = module(ids, mask).detach()
    whole = interpreter.run(None, {"ids": ids.int(), "mask": mask}, interpreter.make_states(torch.float32))["y"]
    torch.testing.assert_close(whole, expected, rtol=2e-3, atol=2e-3)
    states, steps = interpreter.make_states(torch.float32), []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        given = {"ids": ids[:, start:stop].int(), "mask": mask[:, start:stop, :stop]}
        steps.append(interpreter.run(None, given, states)["y"])
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=2e-3, atol=2e-3)
