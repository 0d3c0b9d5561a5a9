"""Which formats the weights of each kind have, in short rows for people."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pocketphi.compiler.candidates import bytes_by_target
from pocketphi.graph.config import ModelConfig
from pocketphi.passes.policy import Policy
from pocketphi.targets.target import TargetOptions

_ALL = "all"


@dataclass(frozen=True)
class FormatRow:
    """The weights of one kind, such as all `mlp.down_proj`. bits: of a weight, scales counted, in the largest target's file;
    bytes: there; formats: `int4 ×28, int8 ×2`"""

    kind: str
    bits: float
    bytes: int
    formats: str


def format_rows(policy: Policy, config: ModelConfig, targets: Sequence[TargetOptions]) -> list[FormatRow]:
    """One row a kind, then one for all; none where all weights have one format."""
    values: Counter[str] = Counter()
    held: Counter[str] = Counter()
    formats: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, shape in config.matrices().items():
        quantizer = policy.quantizer(name)
        if quantizer is None:
            return []
        kind = re.sub(r"^(model\.)?(layers\.\d+\.)?", "", name).removesuffix(".weight")
        for key in (kind, _ALL):
            values[key] += shape[0] * shape[1]
            held[key] += max(bytes_by_target(quantizer, shape, targets))
            formats[key][quantizer.format.name] += 1
    if len(formats[_ALL]) < 2 and len({rule.quantizer.describe() for rule in policy.rules}) < 2:
        return []
    return [
        FormatRow(
            kind,
            round(8 * held[kind] / values[kind], 3),
            held[kind],
            ", ".join(f"{form} ×{n}" for form, n in sorted(formats[kind].items())),
        )
        for kind in [*(kind for kind in values if kind != _ALL), _ALL]
    ]
