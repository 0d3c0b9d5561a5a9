"""Program: running, bookkeeping, and the checks after each pass."""

from __future__ import annotations

import operator
import weakref

import pytest
import torch
from tiny_phi3 import TINY, before, fused, inputs, normal, quantized, small, traced

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.lazy_weights import Constant
from pocketphi.graph.program import Program, Weights, evaluate, free_inputs, op_name, shape_of, split_target
from pocketphi.passes.fuse_attention import FuseAttention

aten = torch.ops.aten


def adds() -> Program:
    """y = x + w and z = y + y, of which only z goes out; x2 is unused."""
    feeds = {"x": normal(2, 3), "x2": normal(2, 3)}

    def body(call, x, x2, w):
        return {"z": call(aten.add.Tensor, *[call(aten.add.Tensor, x, w)] * 2)}

    return small(body, feeds, {"w": torch.arange(3.0)})


def test_run() -> None:
    x = normal(2, 3)
    seen = []

    def observe(node, args):
        seen.append((op_name(node), len(args)))

    result = adds().run({"x": x}, observe=observe)
    assert list(result) == ["z"]
    assert torch.equal(result["z"], (x + torch.arange(3.0)) * 2)
    assert seen == [("add", 2), ("add", 2)]


def test_an_observer_may_give_the_value() -> None:
    x = normal(2, 3)
    result = adds().run({"x": x}, observe=lambda node, args: args[0])
    assert torch.equal(result["z"], x)


def test_values_are_dropped_after_their_last_use() -> None:
    """A value that nobody will read again is gone when the next operator runs."""

    def body(call, x):
        for _ in range(4):
            x = call(aten.neg.default, x)
        return {"y": x}

    program = small(body, {"x": normal(4)})
    alive, counts = [], []

    def observe(node, args):
        counts.append(sum(1 for ref in alive if ref() is not None))
        alive.append(weakref.ref(args[0]))

    program.run({"x": normal(4)}, observe=observe)
    assert counts == [0, 1, 1, 1]  # the input, which the test does not hold, then one value at a time


def test_one_weight_at_a_time() -> None:
    """Weights stand at the beginning of a traced graph; each is made when its operator is about to run, and gone after it."""
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(Weights):
        def __call__(self, target: str) -> torch.Tensor:
            tensor = super().__call__(target)
            made.append(weakref.ref(tensor))
            return tensor

    def body(call, x, a, b, c):
        return {"y": call(aten.add.Tensor, call(aten.add.Tensor, call(aten.add.Tensor, x, a), b), c)}

    counts = []

    def observe(node, args):
        counts.append((len(made), sum(1 for ref in made if ref() is not None)))

    program = small(body, {"x": normal(4)}, {name: torch.zeros(4) for name in "abc"})
    program.run({"x": normal(4)}, Watched(program.weights, keep=False), observe)
    assert counts == [(1, 1), (2, 1), (3, 1)]


def test_an_output_may_be_an_input_or_come_twice() -> None:
    def body(call, x):
        y = call(aten.neg.default, x)
        return {"a": x, "b": y, "c": y}

    x = normal(2)
    result = small(body, {"x": x}).run({"x": x})
    assert [torch.equal(result[k], v) for k, v in (("a", x), ("b", -x), ("c", -x))] == [True] * 3


@pytest.mark.parametrize(("keep", "made"), [(True, ["a", "b"]), (False, ["a", "b", "a"])])
def test_weights(keep: bool, made: list[str]) -> None:
    asked = []

    class Counted(Constant):
        def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
            asked.append(self.origin)
            return super().read(start, stop)

    weights = Weights({name: Counted(torch.zeros(2), name) for name in "ab"}, keep)
    for name in ("a", "a", "b", "b", "a"):
        weights(name)
    assert asked == made


def test_split_target() -> None:
    assert split_target("model.norm.weight") == ("model.norm.weight", "")
    assert split_target("lm_head.weight:scale") == ("lm_head.weight", "scale")


def test_remove_dead_keeps_the_interface() -> None:
    def body(call, x, x2, w, v):
        call(aten.mul.Tensor, call(aten.neg.default, x), v)
        return {"y": call(aten.add.Tensor, x, w)}

    program = small(body, {"x": normal(2), "x2": normal(2)}, {"w": normal(2), "v": normal(2)})
    assert program.remove_dead() == 3  # neg, mul and the read of v
    assert list(program.weights) == ["w"]
    assert [str(n.target) for n in program.inputs] == ["x", "x2"]
    assert program.remove_dead() == 0


def test_check_wants_a_recipe() -> None:
    program = adds()
    weight = program.weights.pop("w")
    with pytest.raises(CompilerBug, match=r"w reads 'w', which has no recipe"):
        program.check()
    program.weights["w"] = weight
    next(n for n in program.graph.nodes if n.op == "get_attr").target = "w:scale"
    with pytest.raises(CompilerBug, match=r"w reads 'w:scale', which has no recipe"):
        program.check()


def test_check_wants_shapes() -> None:
    program = adds()
    node = next(n for n in program.graph.nodes if op_name(n) == "add")
    del node.meta["val"]
    with pytest.raises(CompilerBug, match=r"add\w* \(add\) has no inferred shape"):
        program.check()


def test_call_infers_dynamic_shapes() -> None:
    program = fused()
    assert all("val" in n.meta for n in program.graph.nodes if n.op == "call_function")
    attention = next(n for n in program.graph.nodes if op_name(n) == "edge.attention")
    old = before(FuseAttention)
    merged = next(n for n in old.graph.nodes if op_name(n) == "scaled_dot_product_attention")
    present = old.outputs["present.0.key"]
    out, keys, _ = attention.meta["val"]
    assert [str(s) for s in keys.shape] == [str(s) for s in shape_of(present)]
    assert str(out.shape[1]) == str(shape_of(merged)[2])
    assert out.shape[2] == TINY.heads * TINY.head_dim


def test_same_sizes() -> None:
    batch, length = shape_of(traced().inputs[0])
    assert [batch, 3] == [*shape_of(traced().inputs[0])[:1], 3]
    assert batch != length
    assert batch != 2
    assert length + 1 == 1 + length
    assert length + batch == batch + length
    assert length + 1 != length


def test_names() -> None:
    program = quantized()
    names = {op_name(n) for n in program.graph.nodes}
    assert {"input", "weight", "edge.attention", operator.getitem.__name__} <= names
    assert {op_name(n) for n in traced().graph.nodes} >= {"mul", "linear", "scaled_dot_product_attention"}
    assert sum(program.operators().values()) == sum(1 for n in program.graph.nodes if n.op == "call_function")


def test_dump_shows_shapes_outputs_and_weights() -> None:
    text = quantized().dump()
    assert "%input_ids: int64[" in text
    assert "return logits = %" in text
    assert "weight lm_head.weight: lm_head.weight [bf16] → float32 → int4 rtn block 32 symmetric" in text
    assert "edge.rms_norm(" in text


def test_free_inputs_and_partial_evaluation() -> None:
    program = adds()
    y = program.outputs["z"].args[0]
    assert free_inputs(y) == {"x"}
    assert evaluate([], {}, Weights({}, keep=False)) == {}
    x = normal(2, 3)
    assert torch.equal(evaluate([y], {"x": x}, Weights(program.weights, keep=False))[y], x + torch.arange(3.0))


def test_prefill_inputs() -> None:
    program = traced()
    tokens = inputs(TINY, 4, 0, 2)["input_ids"]
    made = program.prefill_inputs(tokens, past=3)
    assert set(made) == {str(n.target) for n in program.inputs}
    assert made["attention_mask"].shape == (2, 7)
    assert made["position_ids"].tolist() == [[3, 4, 5, 6]] * 2
    assert made["past_key_values.2.value"].shape == (2, TINY.kv_heads, 0, TINY.head_dim)
    assert program.run(program.prefill_inputs(tokens))["logits"].shape == (2, 4, TINY.vocab_size)
