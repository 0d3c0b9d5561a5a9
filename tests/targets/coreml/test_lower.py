"""The rules: what each operator becomes, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_package import finished, functions, package, spec, with_offsets
from tiny_phi3 import VARIANTS, Call, small, traced
from torch import fx

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import op_name

pytest.importorskip("coremltools")

from pocketphi.targets.coreml.form import Form
from pocketphi.targets.coreml.lower import lower
from pocketphi.targets.coreml.mil import FunctionBuilder, Input, identifier, to_proto
from pocketphi.targets.coreml.weightfile import plan_weights

FORM = Form(100, 16)


def counts(folder: Path, function: str) -> Counter[str]:
    return Counter(op.type for op in functions(spec(folder))[function])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_two_attentions(tmp_path: Path, variant: str) -> None:
    layers = VARIANTS[variant].layers
    for name, attention in (("a", "sdpa"), ("b", "decomposed")):
        (tmp_path / name).mkdir()
        package(finished(variant), tmp_path / name, attention=attention)
    fused, spelled = (counts(tmp_path / name, "prefill") for name in "ab")
    assert (fused["scaled_dot_product_attention"], fused["softmax"], fused["matmul"]) == (layers, 0, 0)
    assert (spelled["scaled_dot_product_attention"], spelled["softmax"], spelled["matmul"]) == (0, layers, 2 * layers)
    assert spelled["logical_not"] == 1  # one mask for all layers


def test_the_two_norms(tmp_path: Path) -> None:
    for name, norm in (("a", "max-scaled"), ("b", "fp32")):
        (tmp_path / name).mkdir()
        package(finished(), tmp_path / name, norm=norm)
    scaled, wide = (counts(tmp_path / name, "decode") for name in "ab")
    assert (scaled["rsqrt"], scaled["reduce_max"], scaled["cast"]) == (7, 7, 0)
    assert (wide["rsqrt"], wide["reduce_max"], wide["cast"]) == (7, 0, 14)


def test_a_window_that_the_cache_cannot_leave_is_not_asked_for(tmp_path: Path) -> None:
    for name, context in (("a", 48), ("b", 49)):  # the window is 48
        (tmp_path / name).mkdir()
        package(finished(), tmp_path / name, context=context)
    assert [counts(tmp_path / name, "decode")["logical_and"] for name in "ab"] == [0, 1]


def test_states_are_updated_in_order(tmp_path: Path) -> None:
    """Every layer writes its keys, then reads them from what was written; the first one reads the states as they came."""
    package(finished(), tmp_path)
    for operations in functions(spec(tmp_path)).values():
        kinds = [
            op.type for op in operations if op.type in ("read_state", "write_state", "scaled_dot_product_attention")
        ]
        update = ["write_state", "read_state"]
        first = ["read_state", *update, "read_state", *update, "scaled_dot_product_attention"]
        other = [*update, *update, "scaled_dot_product_attention"]
        assert kinds == [*first, *other, *other]


@pytest.mark.parametrize("options", [{}, {"attention": "decomposed", "norm": "fp32"}, {"flavor": "swift-transformers"}])
@pytest.mark.parametrize("variant", ["tiny", "longrope"])
def test_nothing_is_computed_in_vain(tmp_path: Path, variant: str, options: dict[str, Any]) -> None:
    """Every value is read, and every input: coremltools' pass that would clean up is not run."""
    package(with_offsets(finished(variant)), tmp_path, **options)
    model = spec(tmp_path)
    for name, operations in functions(model).items():
        function = model.mlProgram.functions[name]
        read = {b.name for op in operations for a in op.inputs.values() for b in a.arguments}
        made = {out.name for op in operations for out in op.outputs} | {x.name for x in function.inputs}
        assert made - read == {"logits"}


def test_offsets_take_a_product_of_block_sums(tmp_path: Path) -> None:
    package(with_offsets(finished()), tmp_path)
    found = counts(tmp_path, "decode")
    assert (found["reduce_sum"], found["linear"]) == (13, 26)


def test_an_operator_without_a_rule() -> None:
    program = traced()
    with pytest.raises(CompilerBug, match=r"no Core ML rule for \w+ \(\w+\)"):
        lower(program, FORM, plan_weights(program, FORM))


def test_a_value_that_no_rule_made() -> None:
    def body(call: Call, **nodes: fx.Node) -> dict[str, fx.Node]:
        return {"logits": call(torch.ops.aten.add.Tensor, nodes["position_ids"], nodes["position_ids"])}

    program = small(body, {"position_ids": torch.zeros(1, 4)})
    with pytest.raises(CompilerBug, match=r"position_ids \(input\) has no value in the Core ML function"):
        lower(program, FORM, plan_weights(program, FORM))


def test_a_cache_that_belongs_to_no_layer() -> None:
    program = finished()
    node = next(n for n in program.graph.nodes if op_name(n) == "edge.attention")
    node.args = (node.args[0], program.inputs[0], *node.args[2:])
    with pytest.raises(CompilerBug, match="reads its cache from input_ids, which is no layer's"):
        lower(program, FORM, plan_weights(program, FORM))


def builder() -> FunctionBuilder:
    return FunctionBuilder(plan_weights(finished(), FORM), {"x": Input((1, 20), "fp16")})


def test_a_constant_must_be_planned() -> None:
    made = builder()
    with made.function:
        with pytest.raises(CompilerBug, match=r"const\.other was not planned in the weight file"):
            made.constant("const.other", np.zeros(20, np.float16))
        with pytest.raises(CompilerBug, match=r"const\.positions was not planned in the weight file, or otherwise"):
            made.constant("const.positions", np.zeros(112, np.int32))
        with pytest.raises(CompilerBug, match=r"x\.weight was not planned in the weight file"):
            made.weight("x.weight", "x_weight")


def test_a_large_constant_does_not_slip_into_the_model() -> None:
    made = builder()
    with made.function as function:
        function.set_outputs([made.op("add", "y", x=made.inputs["x"], y=np.ones(20, np.float16))])
    with pytest.raises(CompilerBug, match="a constant of 20 values was not planned"):
        to_proto({"main": function}, "main", {})


def test_a_name_is_given_once() -> None:
    made = builder()
    with made.function:
        made.op("abs", "y", x=made.inputs["x"])
        with pytest.raises(CompilerBug, match="two values of a function are called y"):
            made.op("abs", "y", x=made.inputs["x"])


def test_names_of_weights_are_identifiers() -> None:
    assert identifier("model.layers.0.mlp.down_proj.weight") == "model_layers_0_mlp_down_proj_weight"
