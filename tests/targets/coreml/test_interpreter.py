"""Running programs: states, updates in place, rounding, partial evaluation, errors that name the operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import get_new_symbol  # noqa: E402
from mil_programs import cached_attention, int4, mb, merge, program, save  # noqa: E402 - only where coremltools is

from pocketphi.graph.errors import InputError  # noqa: E402
from pocketphi.targets.coreml.interpreter import Interpreter  # noqa: E402
from pocketphi.targets.coreml.mlpackage import MLPackage  # noqa: E402
from pocketphi.targets.coreml.ranges import headroom, largest, tight  # noqa: E402

LENGTH, CONTEXT = 4, 16
TOKENS = torch.tensor([[7, 1, 40, 3, 3, 22, 0, 47]])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> MLPackage:
    """Two layers with states; functions prefill (four tokens) and decode (one)."""
    folder = tmp_path_factory.mktemp("decoder")
    parts = {
        name: save(cached_attention(2, 2, CONTEXT, 32, length), folder / f"{name}.mlpackage")
        for name, length in (("decode", 1), ("prefill", LENGTH))
    }
    return MLPackage.open(merge(folder / "both.mlpackage", **parts))


def feeds(tokens: torch.Tensor, position: int, last: int) -> dict[str, torch.Tensor]:
    return {"ids": tokens, "position": torch.tensor([position]), "last": torch.tensor([last])}


def reference(package: MLPackage, tokens: torch.Tensor, half: bool) -> torch.Tensor:
    """The decoder written in plain torch, all positions at once: logits float64 [S, 48].

    half: weights rounded to float16, as fp16 mode decodes them.
    """

    def weight(rows: int, seed: int) -> torch.Tensor:
        values, scale = (torch.from_numpy(np.array(a)).double() for a in int4(rows, 64, 16, seed))
        decoded = values * scale.repeat_interleave(16, dim=1)
        return decoded.half().double() if half else decoded

    x = weight(48, 1)[tokens[0]]
    mask = torch.ones(len(x), len(x)).tril().bool()
    for layer in range(2):
        q, k, v = (part.view(-1, 2, 32).transpose(0, 1) for part in (x @ weight(192, 10 + layer).T).chunk(3, dim=-1))
        scores = (q @ k.transpose(1, 2) / 32**0.5).masked_fill(~mask, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(-1, 64)
    return x @ weight(48, 2).T


def test_prefill_and_decode_share_states_and_agree_with_torch(decoder: MLPackage) -> None:
    """fp32 with float32 states: sums of at most 64 float32 products, so 64 · 2⁻²⁴ of the magnitude, through five products."""
    interpreter = Interpreter(decoder, "fp32")
    states = interpreter.make_states(torch.float32)
    expected = reference(decoder, TOKENS, half=False)
    came = interpreter.run("prefill", feeds(TOKENS[:, :4], 0, 3), states)["logits"][0, 0]
    assert came.dtype == torch.float32
    bound = 5 * 64 * 2**-24 * float(expected.abs().max())
    assert float((came - expected[3]).abs().max()) < bound
    for n in range(4, 8):
        came = interpreter.run("decode", feeds(TOKENS[:, n : n + 1], n, 0), states)["logits"][0, 0]
        assert float((came - expected[n]).abs().max()) < bound


def test_fp16_mode_rounds_every_result(decoder: MLPackage) -> None:
    """Ten roundings of 2⁻¹¹ on the way to a logit, each of a value no larger than the largest that the run reports."""
    interpreter = Interpreter(decoder, "fp16", ranges=True)
    states = interpreter.make_states()
    assert {state.dtype for state in states.values()} == {torch.float16}
    expected = reference(decoder, TOKENS[:, :4], half=True)[3]
    came = interpreter.run("prefill", feeds(TOKENS[:, :4], 0, 3), states)["logits"][0, 0]
    assert came.dtype == torch.float16
    error = float((came - expected).abs().max())
    assert 0 < error < 10 * 2**-11 * max(interpreter.ranges.values())


@pytest.mark.parametrize("mode", ["fp16", "fp32"])
@pytest.mark.parametrize("keep", [0, 1 << 30])
def test_streamed_and_kept_weights_give_the_same(decoder: MLPackage, mode: Any, keep: int) -> None:
    interpreter = Interpreter(decoder, mode, threads=2, keep_bytes=keep)
    plain = Interpreter(decoder, mode, threads=1)
    came, expected = (
        i.run("prefill", feeds(TOKENS[:, :4], 0, 3), i.make_states())["logits"] for i in (interpreter, plain)
    )
    torch.testing.assert_close(came, expected, rtol=2**-10, atol=2**-10)  # an ulp of float16, where sums round apart


def test_a_cache_is_updated_where_it_lies(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder)
    updates = [s for s in interpreter.plan(decoder.function("decode")).steps if s.op.kind == "slice_update"]
    assert [step.in_place for step in updates] == [True] * 4
    states = interpreter.make_states()
    before = {name: state.data_ptr() for name, state in states.items()}
    interpreter.run("decode", feeds(TOKENS[:, :1], 5, 0), states)
    assert {name: state.data_ptr() for name, state in states.items()} == before
    assert [int(row) for row in states["keys"][1, 0, 0].abs().sum(-1).nonzero()] == [5]


def test_an_update_past_the_cache_is_an_error(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder)
    with pytest.raises(
        InputError, match=r"function decode: slice_update_0 \(slice_update\): an update \[1, 1, 2, 1, 32\] for"
    ):
        interpreter.run("decode", feeds(TOKENS[:, :1], CONTEXT, 0), interpreter.make_states())


def test_a_token_outside_the_vocabulary_is_an_error(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder)
    embedding = next(
        o.name for o in decoder.functions["decode"].operations if o.kind == "gather"
    )  # numbered by coremltools
    with pytest.raises(InputError, match=rf"function decode: {embedding} \(gather\): index 48 is outside 0 … 47"):
        interpreter.run("decode", feeds(torch.tensor([[48]]), 0, 0), interpreter.make_states())


# partial evaluation


def test_rerun_gives_the_logits_of_every_position(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder, "fp32")
    states = interpreter.make_states(torch.float32)
    session = interpreter.start("prefill", feeds(TOKENS[:, :4], 0, 3), states, vary=["last"])
    after = {name: state.clone() for name, state in states.items()}
    expected = reference(decoder, TOKENS[:, :4], half=False)
    rows = [session.rerun({"last": torch.tensor([n])})["logits"][0, 0] for n in range(4)]
    assert float((torch.stack(rows) - expected).abs().max()) < 5 * 64 * 2**-24 * float(expected.abs().max())
    assert torch.equal(rows[3], session.outputs["logits"][0, 0])
    assert all(torch.equal(states[name], after[name]) for name in states)


def test_rerun_refuses_to_write_a_state(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder)
    session = interpreter.start(
        "prefill", feeds(TOKENS[:, :4], 0, 3), interpreter.make_states(), vary=["position", "last"]
    )
    with pytest.raises(InputError, match="position reaches a write of a state"):
        session.rerun({"position": torch.tensor([1])})
    with pytest.raises(InputError, match=r"started to vary \['last', 'position'\], not \['ids'\]"):
        session.rerun({"ids": TOKENS[:, :4]})
    with pytest.raises(InputError, match="a changed input: 'length' is none of"):
        session.rerun({"length": torch.tensor([1])})


# states in general: each program also run with every update copied, as it is written

STATE = ("state", (2, 3))


def both_ways(path: Path, build: Any, **inputs: Any) -> tuple[list[bool], list[dict[str, torch.Tensor]]]:
    """Run twice with one state set, in place as planned and with copies; asserts that all is equal. Passes off."""
    save(program(build, memory=STATE, **inputs), path, pass_pipeline=ct.PassPipeline.EMPTY)
    package = MLPackage.open(path)
    planned, copied = Interpreter(package), Interpreter(package)
    marks = [s.in_place for s in planned.plan(package.function()).steps if s.op.kind == "slice_update"]
    for step in copied.plan(package.function()).steps:
        step.in_place = False
    states = [i.make_states() for i in (planned, copied)]
    results = []
    for n in range(3):
        feed = {name: torch.full(shape, n + 1.0) for name, (_, shape) in inputs.items()}
        outputs = [i.run(None, feed, s) for i, s in zip((planned, copied), states)]
        held = {name: value.clone() for name, value in outputs[0].items()}
        assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in held)
        assert torch.equal(states[0]["memory"], states[1]["memory"])
        results.append(held)
    return marks, results


def row(x: Any, n: int, update: Any) -> Any:
    return mb.slice_update(x=x, update=update, begin=[n, 0], end=[n + 1, 3])


X = {"x": ("fp16", (1, 3))}


def test_a_written_update_happens_in_place(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        return mb.coreml_update_state(state=memory, value=row(mb.read_state(input=memory), 0, x))

    marks, results = both_ways(tmp_path / "p.mlpackage", build, **X)
    assert marks == [True]
    assert [float(next(iter(r.values()))[0, 0]) for r in results] == [1, 2, 3]


def test_a_chain_that_is_written_at_its_end_happens_in_place(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        first = row(mb.read_state(input=memory), 0, x)
        return mb.coreml_update_state(state=memory, value=row(first, 1, mb.add(x=x, y=np.float16(1))))

    assert both_ways(tmp_path / "p.mlpackage", build, **X)[0] == [True, True]


def test_an_update_whose_input_is_used_later_is_copied(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        old = mb.read_state(input=memory)
        new = mb.coreml_update_state(state=memory, value=row(old, 0, x))
        return mb.sub(x=new, y=old)

    marks, results = both_ways(tmp_path / "p.mlpackage", build, **X)
    assert marks == [False]
    assert [float(next(iter(r.values()))[0, 0]) for r in results] == [1, 1, 1]


def test_a_view_of_the_old_value_that_is_used_later_counts(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        old = mb.read_state(input=memory)
        view = mb.slice_by_index(x=old, begin=[0, 0], end=[1, 3])
        new = mb.coreml_update_state(state=memory, value=row(old, 0, x))
        return mb.sub(x=mb.slice_by_index(x=new, begin=[0, 0], end=[1, 3]), y=view)

    marks, results = both_ways(tmp_path / "p.mlpackage", build, **X)
    assert marks == [False]
    assert [float(next(iter(r.values()))[0, 0]) for r in results] == [1, 1, 1]


def test_an_update_that_is_never_written_leaves_the_state(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        return row(mb.read_state(input=memory), 0, x)

    marks, results = both_ways(tmp_path / "p.mlpackage", build, **X)
    assert marks == [False]
    assert [float(next(iter(r.values()))[1, 0]) for r in results] == [0, 0, 0]


def test_a_state_read_again_before_it_is_written_keeps_its_value(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        changed = row(mb.read_state(input=memory), 0, x)
        again = mb.read_state(input=memory)
        return mb.sub(x=mb.coreml_update_state(state=memory, value=changed), y=again)

    marks, results = both_ways(tmp_path / "p.mlpackage", build, **X)
    assert marks == [False]
    assert [float(next(iter(r.values()))[0, 0]) for r in results] == [1, 1, 1]


def test_an_output_does_not_change_with_the_next_run(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        return mb.coreml_update_state(state=memory, value=row(mb.read_state(input=memory), 0, x))

    path = save(program(build, memory=STATE, **X), tmp_path / "p.mlpackage")
    interpreter = Interpreter(MLPackage.open(path))
    states = interpreter.make_states()
    (first,) = interpreter.run(None, {"x": torch.ones(1, 3)}, states).values()
    interpreter.run(None, {"x": torch.zeros(1, 3)}, states)
    assert float(first[0, 0]) == 1


def test_an_input_that_is_written_to_a_state_stays_the_callers(tmp_path: Path) -> None:
    def build(memory: Any, x: Any) -> Any:
        whole = mb.coreml_update_state(state=memory, value=x)
        return mb.coreml_update_state(state=memory, value=row(whole, 0, np.full((1, 3), 9, np.float16)))

    save(program(build, memory=STATE, x=("fp16", (2, 3))), tmp_path / "p.mlpackage")
    interpreter = Interpreter(MLPackage.open(tmp_path / "p.mlpackage"))
    given = torch.ones(2, 3, dtype=torch.float16)
    (out,) = interpreter.run(None, {"x": given}, interpreter.make_states()).values()
    assert out.tolist() == [[9, 9, 9], [1, 1, 1]]
    assert given.tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("view", ["reshape", "identity", "resize"])
def test_a_view_of_a_constant_is_updated_in_a_copy(tmp_path: Path, view: str) -> None:
    """The constant has another reader, and serves the next run. `resize` of no axes gives what it got."""
    zeros = np.zeros((2, 3), np.float32)

    def build(x: Any) -> Any:
        constant = mb.const(val=zeros)
        seen = {
            "reshape": lambda: mb.reshape(x=constant, shape=[2, 3]),
            "identity": lambda: mb.identity(x=constant),
            "resize": lambda: mb.resize(x=constant, shape=np.int32([2, 3]), resized_dims=np.uint32(0)),
        }[view]()
        return row(seen, 0, x), mb.add(x=constant, y=np.float32(0), name="untouched")

    none = ct.PassPipeline.EMPTY
    path = save(program(build, x=("fp32", (1, 3))), tmp_path / "p.mlpackage", pass_pipeline=none)
    interpreter = Interpreter(MLPackage.open(path))
    for value in (9.0, 7.0):
        changed, untouched = interpreter.run(None, {"x": torch.full((1, 3), value)}).values()
        assert (changed[0].tolist(), changed[1].tolist()) == ([value] * 3, [0, 0, 0])
        assert not untouched.any()


# inputs, integers, flexible shapes, ranges


def test_inputs_that_do_not_fit(decoder: MLPackage) -> None:
    interpreter = Interpreter(decoder)
    states = interpreter.make_states()
    good = feeds(TOKENS[:, :1], 0, 0)
    for change, message in (
        ({"ids": TOKENS}, r"function decode: input 'ids' is int32\[1, 1\], got \[1, 8\]"),
        ({"ids": TOKENS[:, :1].float()}, r"input 'ids' is int32\[1, 1\], got floats"),
        ({"ids": TOKENS[:, :1] + 2**31}, "2147483655 does not fit int32"),
        (
            {"more": TOKENS},
            r"expected the inputs \['ids', 'last', 'position'\], got \['ids', 'last', 'more', 'position'\]",
        ),
    ):
        with pytest.raises(InputError, match=message):
            interpreter.run("decode", {**good, **change}, states)
    with pytest.raises(InputError, match=r"state 'keys' is state fp16.*got none; see make_states"):
        interpreter.run("decode", good)
    with pytest.raises(InputError, match="no function 'train'; there are decode, prefill"):
        interpreter.run("train", good, states)


def test_integers_have_their_declared_width(tmp_path: Path) -> None:
    path = save(program(lambda x: mb.mul(x=x, y=np.int32([3])), x=("int32", (1,))), tmp_path / "p.mlpackage")
    interpreter = Interpreter(MLPackage.open(path))
    (out,) = interpreter.run(None, {"x": torch.tensor([715827882])}).values()
    assert (out.dtype, out.tolist()) == (torch.int32, [2147483646])
    with pytest.raises(InputError, match=r"\(mul\): 2147483649 does not fit int32"):
        interpreter.run(None, {"x": torch.tensor([715827883])})


def test_a_flexible_size_comes_from_the_input(tmp_path: Path) -> None:
    """A causal mask whose size is computed by shape, range_1d and comparisons."""

    @mb.program(input_specs=[mb.TensorSpec((1, get_new_symbol()))])
    def flexible(x: Any) -> Any:
        size = mb.squeeze(x=mb.slice_by_index(x=mb.shape(x=x), begin=[1], end=[2]), axes=[0])
        places = mb.range_1d(start=0, end=size, step=1)
        lower = mb.greater_equal(x=mb.expand_dims(x=places, axes=[1]), y=mb.expand_dims(x=places, axes=[0]))
        return mb.matmul(x=x, y=mb.cast(x=lower, dtype="fp32"), name="sums")

    path = tmp_path / "p.mlpackage"
    shape = ct.Shape((1, ct.RangeDim(2, 8, default=3)))
    save(flexible, path, inputs=[ct.TensorType("x", shape)], compute_precision=ct.precision.FLOAT32)
    package = MLPackage.open(path)
    assert package.function().inputs["x"].shape == (1, None)
    assert package.function().allowed["x"].default == (1, 3)
    for size in (2, 5):
        x = torch.arange(1.0, size + 1)[None]
        came = Interpreter(package, "fp32").run(None, {"x": x})["sums"]
        assert torch.equal(came, x.flip(1).cumsum(1).flip(1))


def test_ranges_tell_how_near_float16s_end_a_value_comes(tmp_path: Path) -> None:
    path = save(program(lambda x: mb.square(x=x, name="squared"), x=("fp16", (3,))), tmp_path / "p.mlpackage")
    interpreter = Interpreter(MLPackage.open(path), ranges=True)
    interpreter.run(None, {"x": torch.tensor([1.0, -200.0, torch.inf])})
    assert interpreter.ranges == {"main/squared": 40000.0}
    assert tight(interpreter.ranges) == {"main/squared": pytest.approx(65504 / 40000)}
    assert tight(interpreter.ranges, 1.5) == {}
    (out,) = interpreter.run(None, {"x": torch.tensor([300.0, 0.0, 0.0])}).values()
    assert out[0] == torch.inf
    assert interpreter.ranges == {"main/squared": 90000.0}
    assert largest(torch.tensor([torch.nan])) == 0
    assert headroom(0) == torch.inf


def test_an_operator_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    path = save(program(lambda x: mb.random_normal(shape=mb.shape(x=x)), x=("fp16", (3,))), tmp_path / "p.mlpackage")
    with pytest.raises(InputError, match=r"function main uses operators that cannot be run: random_normal \(1×\)"):
        Interpreter(MLPackage.open(path))
