"""FuseAttention: on every kind of model, against transformers with padding, and every reason to refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_phi3 import (
    SWITCH,
    TINY,
    VARIANTS,
    before,
    checkpoint,
    differing,
    fused,
    hf_model,
    hf_run,
    inputs,
    rounding,
    runs,
    twice,
)
from torch import fx

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.program import Program, op_name
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.passes.canonicalize import Canonicalize
from pocketphi.passes.fuse_attention import FuseAttention

aten = torch.ops.aten
SDPA = "scaled_dot_product_attention"


def nodes(program: Program, name: str) -> list[fx.Node]:
    return [node for node in program.graph.nodes if op_name(node) == name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_model(variant: str) -> None:
    program = before(FuseAttention, variant)
    config = program.config
    want = runs(program)
    report = twice(FuseAttention(), program)
    assert (dict(report.applied), report.refused) == ({"attention": 3}, [])
    assert differing(want, runs(program)) == []
    left = {SDPA, "cos", "sin", "expand", "transpose", "view", "reshape", "cat", "slice", "arange"}
    assert {name: program.operators()[name] for name in left if program.operators()[name]} == {"slice": 6}  # gated MLPs
    found = [node.args[6:] for node in nodes(program, "edge.attention")]
    long_after = SWITCH if config.long_rope else 0
    assert found == [(config.heads, config.kv_heads, config.head_dim**-0.5, config.sliding_window or 0, long_after)] * 3
    rows = config.max_position + long_after
    assert program.weights["rope.cos"].parts[""].shape == (rows, config.rotary_dim // 2)
    assert [name for name in program.weights if "inv_freq" in name] == []


def test_the_tables_switch_at_the_original_length() -> None:
    """Row SWITCH - 1 is the last with short factors; one more token, and every position takes the long ones."""
    program, float_program = fused("longrope"), before(FuseAttention, "longrope")
    cases = [(SWITCH, 0, 1), (SWITCH + 1, 0, 1), (1, SWITCH - 1, 2), (1, SWITCH, 2), (3, SWITCH - 2, 1)]
    want, got = runs(float_program, cases), runs(program, cases)
    assert differing(want, got) == []
    short, long = (program.run(inputs(TINY, length))["present.0.key"] for length in (SWITCH, SWITCH + 1))
    assert not torch.equal(short[0, 0, 5], long[0, 0, 5])


@pytest.mark.parametrize(
    ("context", "rows", "long_after"), [(32, 32, 0), (SWITCH, SWITCH, 0), (100, SWITCH + 100, SWITCH)]
)
def test_context_bounds_the_tables(context: int, rows: int, long_after: int) -> None:
    program = before(FuseAttention, "longrope")
    want = runs(program, [(20, 0, 1), (3, 29, 1)])
    twice(FuseAttention(context), program)
    assert program.weights["rope.sin"].parts[""].shape[0] == rows
    assert nodes(program, "edge.attention")[0].args[10] == long_after
    assert differing(want, runs(program, [(20, 0, 1), (3, 29, 1)])) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_right_padded_rows_equal_transformers(variant: str) -> None:
    """A prompt of 60 and one of 23 tokens, then three tokens each, which go to each row's own place."""
    source, program = checkpoint(variant), fused(variant)
    config, lengths = source.config, torch.tensor([60, 23])
    model = hf_model(source)
    feeds = inputs(config, 60, 0, 2)
    feeds["attention_mask"] = (torch.arange(60) < lengths[:, None]).long()
    ours, theirs = program.run(feeds), hf_run(model, feeds)
    assert torch.equal(ours["logits"][0], theirs["logits"][0])
    assert torch.equal(ours["logits"][1, :23], theirs["logits"][1, :23])

    # each row alone and whole: transformers counts a window in columns, the padding between among them
    new = torch.tensor([[5, 6, 7], [9, 8, 7]])
    rows = [torch.cat([feeds["input_ids"][b, : lengths[b]], new[b]])[None] for b in (0, 1)]
    alone = [hf_run(model, empty_cache(config, row))["logits"][0] for row in rows]
    bound = rounding(config, max(float(logits.abs().max()) for logits in alone), tokens=63)
    apart = []
    for step in range(3):
        mask = (torch.arange(61 + step) < lengths[:, None] + step + 1).long()
        position_ids = lengths[:, None] + step
        common = {"input_ids": new[:, step : step + 1], "position_ids": position_ids, "attention_mask": mask}
        ours = program.run({**common, **as_past(ours)})
        apart += [float((ours["logits"][b, 0] - alone[b][lengths[b] + step]).abs().max()) for b in (0, 1)]
    assert max(apart) <= bound


def empty_cache(config: ModelConfig, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**inputs(config, tokens.shape[1]), "input_ids": tokens}


def as_past(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("present", "past_key_values"): v for name, v in outputs.items() if name != "logits"}


def first(program: Program, name: str) -> fx.Node:
    return nodes(program, name)[0]


def insert(program: Program, target: Any, *args: Any, at: fx.Node) -> fx.Node:
    return program.call(target, args, before=at)


def no_mask(program: Program) -> None:
    node = first(program, SDPA)
    node.args = node.args[:3]


def dropout(program: Program) -> None:
    first(program, SDPA).update_kwarg("dropout_p", 0.1)


def dropout_by_place(program: Program) -> None:
    node = first(program, SDPA)
    node.args = (*node.args, 0.1)


def float_mask(program: Program) -> None:
    node = first(program, SDPA)
    node.update_arg(3, insert(program, aten.to.dtype, node.args[3], torch.float32, at=node))


def inverted_mask(program: Program) -> None:
    node = first(program, SDPA)
    node.update_arg(3, insert(program, aten.logical_not.default, node.args[3], at=node))


def mask_without_padding(program: Program) -> None:
    last = first(program, SDPA).args[3]
    last.replace_all_uses_with(last.args[0])


def other_order(program: Program) -> None:
    """Keys before queries: full heads have parts of the same width."""
    q, k = nodes(program, "slice")[:2]
    q.args, k.args = (*q.args[:2], *k.args[2:]), (*k.args[:2], *q.args[2:])


def overlap(program: Program) -> None:
    k = nodes(program, "slice")[1]
    k.args = (*k.args[:2], 32, 64)


def tables_of_tokens(program: Program) -> None:
    cos = first(program, "cos")
    ids = next(n for n in program.inputs if n.target == "input_ids")
    tokens = insert(program, aten.unsqueeze.default, ids, 2, at=cos)
    cos.args = (insert(program, aten.add.Tensor, cos.args[0], tokens, at=cos),)


def uneven_tables(program: Program) -> None:
    cos = first(program, "cos")
    ramp = insert(program, aten.arange.default, 16, at=cos)
    cos.args = (insert(program, aten.mul.Tensor, cos.args[0], ramp, at=cos),)


def tables_of_all_positions(program: Program) -> None:
    cos = first(program, "cos")
    total = insert(program, aten.amax.default, cos.args[0], [1], True, at=cos)
    cos.args = (insert(program, aten.add.Tensor, cos.args[0], total, at=cos),)


def tables_of_a_long_prompt(program: Program) -> None:
    """As dynamic scaling does it: positions are closer to each other once there are more than 100."""
    cos = first(program, "cos")
    angles = cos.args[0]
    last = insert(program, aten.amax.default, insert(program, aten.abs.default, angles, at=cos), [1, 2], True, at=cos)
    scale = insert(program, aten.add.Tensor, insert(program, aten.gt.Scalar, last, 100.0, at=cos), 1.0, at=cos)
    cos.args = (insert(program, aten.mul.Tensor, angles, scale, at=cos),)


def quarter_turns(program: Program) -> None:
    """Pairs 4 apart instead of 8."""
    for upper, lower in zip(nodes(program, "slice")[4::2], nodes(program, "slice")[3::2]):
        if upper.args[1] == 3 and upper.args[2] == 8:
            upper.args, lower.args = (upper.args[0], 3, 4, 2**63 - 1), (lower.args[0], 3, 0, 4)


def subtracts(program: Program) -> None:
    rotated = first(program, SDPA).args[0]
    rotated.target = aten.sub.Tensor


def factor(program: Program) -> None:
    first(program, SDPA).args[0].kwargs = {"alpha": 2}


def tiled_heads(program: Program) -> None:
    """0 1 0 1 instead of 0 0 1 1."""
    unsqueeze = first(program, SDPA).args[1].args[0].args[0]
    unsqueeze.update_arg(1, 1)
    expand = next(iter(unsqueeze.users))
    expand.update_arg(1, [*expand.args[1][:2], 2, *expand.args[1][3:]])


def computed_cache(program: Program) -> None:
    cat = first(program, SDPA).args[1].args[0].args[0].args[0]
    past, new = cat.args[0]
    cat.update_arg(0, [insert(program, aten.neg.default, past, at=cat), new])


def cache_behind(program: Program) -> None:
    cat = first(program, SDPA).args[1].args[0].args[0].args[0]
    cat.update_arg(0, list(reversed(cat.args[0])))


def heads_not_merged(program: Program) -> None:
    merged = next(iter(first(program, SDPA).users))
    merged.target, merged.args = aten.permute.default, (merged.args[0], [0, 2, 1, 3])


def used_twice(program: Program) -> None:
    """The attention's own output has another reader, which needs it unmerged."""
    node = first(program, SDPA)
    program.graph.output_node().args = ({**program.outputs, "attended": node},)


OPERATORS = "the operators around it are not a packed projection, heads, rotary and cache"
NEAR: list[tuple[Callable[[Program], None], str]] = [
    (no_mask, "it has no mask"),
    (dropout, "it has dropout, or a mask beside its own causal one"),
    (dropout_by_place, "it has dropout, or a mask beside its own causal one"),
    (float_mask, "its mask is torch.float32, expected bool"),
    (inverted_mask, "its mask for 1 tokens after 256 is not causal with a window of 209"),
    (mask_without_padding, "its mask for 5 tokens after 7 is not causal with a window of 48"),
    (overlap, "q, k and v do not tile the 128 columns of the projection in this order"),
    (tables_of_tokens, "the rotary embedding depends on ['input_ids'], not on position_ids alone"),
    (uneven_tables, "the two halves of the rotary table differ"),
    (tables_of_all_positions, "the rotary embedding of a position depends on the other positions"),
    (tables_of_a_long_prompt, "the rotary embedding of a position depends on the other positions"),
    (quarter_turns, "rotary pairs are 4 apart, the tables have 8 columns"),
    (subtracts, OPERATORS),
    (factor, OPERATORS),
    (tiled_heads, OPERATORS),
    (computed_cache, OPERATORS),
    (cache_behind, OPERATORS),
    (heads_not_merged, OPERATORS),
    (used_twice, OPERATORS),
]


@pytest.mark.parametrize(("change", "reason"), NEAR, ids=[change.__name__ for change, _ in NEAR])
def test_refuses(change: Callable[[Program], None], reason: str) -> None:
    """What is refused stays as it was; other layers are fused as ever."""
    program = before(FuseAttention)
    change(program)
    torch.manual_seed(0)  # for the one with dropout
    want = runs(program, [(5, 9, 1)])
    report = twice(FuseAttention(), program)
    assert {why for _, why in report.refused} == {reason}
    assert len(report.refused) + report.applied["attention"] == 3
    assert program.operators()[SDPA] == len(report.refused)
    torch.manual_seed(0)
    assert differing(want, runs(program, [(5, 9, 1)])) == []


def test_refuses_another_order() -> None:
    program = before(FuseAttention, "full")
    other_order(program)
    report = FuseAttention()(program)
    reason = "q, k and v do not tile the 192 columns of the projection in this order"
    assert [why for _, why in report.refused] == [reason]


def test_a_scale_of_its_own() -> None:
    program = before(FuseAttention)
    first(program, SDPA).update_kwarg("scale", 0.5)
    nodes(program, SDPA)[1].kwargs = {}
    want = runs(program, [(5, 9, 1)])
    assert FuseAttention()(program).applied == {"attention": 3}
    assert [node.args[8] for node in nodes(program, "edge.attention")] == [0.5, 0.25, 0.25]
    assert differing(want, runs(program, [(5, 9, 1)])) == []


def test_the_window_is_found_at_any_size() -> None:
    found = {}
    for window in (1, 256, 257):
        program = trace(RandomWeights("random:w", replace(TINY, layers=1, sliding_window=window)))
        Canonicalize()(program)
        report = FuseAttention()(program)
        found[window] = nodes(program, "edge.attention")[0].args[9] if report.applied else report.refused
    assert found == {1: 1, 256: 256, 257: 0}  # wider than all positions: no window
