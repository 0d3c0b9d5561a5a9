"""Before: `logits = linear(hidden, head)` for all S positions.  After: `linear(edge.last_token(hidden, …), head)`, for one.

A phone never reads the others: over a 512-token prompt the head is a fifth of a small model's work.
"""

from __future__ import annotations

import torch

from pocketphi.graph.program import Program, op_name
from pocketphi.passes.base import Pass, PassReport


class LastLogits(Pass):
    """Computes logits for the last real token of each row only."""

    name = "last-logits"

    def rewrite(self, program: Program, report: PassReport) -> None:
        head = program.outputs["logits"]
        if op_name(head) not in ("linear", "edge.matmul_nbits", "edge.matmul_int8", "edge.matmul_palette"):
            report.refuse(head.name, f"logits come from {op_name(head)}, not from a projection")
            return
        hidden = head.args[0]
        if op_name(hidden) == "edge.last_token":  # type: ignore[arg-type]
            return
        inputs = {str(node.target): node for node in program.inputs}
        arguments = (hidden, inputs["attention_mask"], inputs["position_ids"])
        last = program.call(torch.ops.edge.last_token.default, arguments, before=head)
        remade = program.call(head.target, (last, *head.args[1:]), before=head)  # type: ignore[arg-type]
        head.replace_all_uses_with(remade)
        report.applied["last_token"] += 1
