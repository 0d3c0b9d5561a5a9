"""Expected against true KL divergence of ten policies of one model, and the rank correlation of the two (Spearman).

    python -m benchmarks.policies MODEL --text valid.txt [--recipe search] [--measured-on 2048:2 512:1]

Policies: one format for all weights, the best choice for a budget, and formats drawn at random. What they cost is expected from
the calibration text, and measured on the text that is given: in torch, on the traced graph, with the quantized weights.
`--measured-on` compares how much is spent on the expectation: each way makes its own choices.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pocketphi.compiler.measure import Distance
from pocketphi.compiler.spend import measured_on
from pocketphi.compiler.text import tokens_of, windows
from pocketphi.compiler.text_check import check_text
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.formats import Affine, weight_of
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.trace import trace
from pocketphi.passes.allocate import Choice, allocate
from pocketphi.passes.calibrate import default_text, quantize_calibrated
from pocketphi.passes.expected import Costs
from pocketphi.passes.fisher import Fisher
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import Quantizer, make_quantizer
from pocketphi.passes.sensitivity import sensitivities
from pocketphi.passes.weight_cache import WeightCache

_FORMATS = [("int3", 32), ("int4", 64), ("int4", 32), ("affine4", 32), ("int5", 64), ("int6", 64), ("int8", 64)]
_SCALE_BITS = 16
_CHOSEN = (3.8, 4.5, 5.25)
_RANDOM = 2


class _Made:
    """Weights of a policy, as the evaluator asks for them."""

    def __init__(self, exact: Mapping[str, torch.Tensor], made: Mapping[str, torch.Tensor]) -> None:
        self._values = {**exact, **made}

    def __call__(self, target: str) -> torch.Tensor:
        return self._values[target]


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("--text", type=Path, required=True, help="to measure on")
    p.add_argument("--tokens", type=int, default=2048, help="of it (default %(default)s)")
    p.add_argument("--calibration-tokens", type=int, default=4096)
    p.add_argument("--recipe", choices=["rtn", "search"], default="search")
    p.add_argument(
        "--measured-on",
        nargs="+",
        default=["2048:2"],
        metavar="TOKENS:SAMPLES",
        help="what sensitivities are measured on (default: 2048:2, as a compile does)",
    )
    a = p.parse_args()

    source = HashedCheckpoint(open_checkpoint(a.model))
    files = check_text(source).files
    program = trace(source)
    calibration = tokens_of(None, default_text(), files, source.config, a.calibration_tokens)
    measured = windows(tokens_of(a.text.read_text("utf-8"), "", files, source.config, a.tokens), 512)
    shapes = source.config.matrices()
    choices = [make_quantizer(a.recipe, form, {"block": block}) for form, block in _FORMATS]
    ways = [_expected(program, windows(calibration, 512), way, choices, shapes) for way in a.measured_on]

    exact = {name: materialize(weight)[""] for name, weight in program.weights.items()}
    expected_logits = _logits(program, measured, _Made(exact, {}))
    values = sum(n * k for n, k in shapes.values())
    head = " ".join(f"{way:>9}" for way in a.measured_on)
    print(f"{'policy':<30} {'bits':>6} {'true':>9} {head}   KL, nats a token", flush=True)
    policies = _policies(shapes, choices)
    for way, costs in zip(a.measured_on, ways):
        policies += [(f"{title} by {way}", chosen) for title, chosen in _chosen(shapes, choices, costs)]
    known: list[tuple[str, float, list[float]]] = []
    for title, chosen in policies:
        policy = Policy(tuple(Rule(name, choices[i]) for name, i in zip(shapes, chosen)))
        made = _quantized(program, policy, source, exact, windows(calibration, 512))
        distance = Distance()
        distance.add(expected_logits, _logits(program, measured, _Made(exact, made)))
        expected = [sum(costs[name][i] for name, i in zip(shapes, chosen)) for costs in ways]
        known.append((title, distance.kl, expected))
        bits = sum(_bits(choices[i]) * n * k for (n, k), i in zip(shapes.values(), chosen)) / values
        row = " ".join(f"{one:>9.4f}" for one in expected)
        print(f"{title:<30} {bits:>6.3f} {distance.kl:>9.4f} {row}", flush=True)
    for i, way in enumerate(a.measured_on):
        of_way = [(kl, found[i]) for title, kl, found in known if " by " not in title or title.endswith(f" by {way}")]
        print(f"rank correlation of {len(of_way)} policies, {way}: {_spearman(*map(list, zip(*of_way))):.3f}")


def _expected(
    program: Program, rows: torch.Tensor, way: str, choices: Sequence[Quantizer], shapes: Mapping[str, tuple[int, int]]
) -> Costs:
    """What each choice for each weight is expected to cost, measured on some of the calibration text."""
    tokens, samples = map(int, way.split(":"))
    fisher = Fisher(program, measured_on(rows)[: tokens // 256], samples)
    return sensitivities(fisher, program.weights, dict.fromkeys(shapes, choices))


def _policies(shapes: Mapping[str, tuple[int, int]], choices: Sequence[Quantizer]) -> list[tuple[str, list[int]]]:
    """(title, number of the choice for each weight)."""
    found = [(choice.describe(), [i] * len(shapes)) for i, choice in enumerate(choices[:5])]
    generator = random.Random(0)
    return found + [
        (f"drawn at random, {i}", [generator.randrange(len(choices)) for _ in shapes]) for i in range(1, _RANDOM + 1)
    ]


def _chosen(
    shapes: Mapping[str, tuple[int, int]], choices: Sequence[Quantizer], costs: Costs
) -> list[tuple[str, list[int]]]:
    """The same of the best choices for some budgets."""
    tables = [
        [Choice(cost, int(_bits(choice) * n * k / 8)) for cost, choice in zip(costs[name], choices)]
        for name, (n, k) in shapes.items()
    ]
    values = sum(n * k for n, k in shapes.values())
    return [(f"{bits} bits", allocate(tables, int(bits * values / 8))) for bits in _CHOSEN]


def _bits(quantizer: Quantizer) -> float:
    numbers = 2 if issubclass(quantizer.format, Affine) else 1
    return quantizer.format.bits + numbers * _SCALE_BITS / quantizer.block


def _quantized(
    program: Program, policy: Policy, source: Checkpoint, exact: Mapping[str, torch.Tensor], rows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The values that the quantized weights stand for."""
    if not policy.calibrates:
        return {rule.pattern: rule.quantizer.quantize(exact[rule.pattern]).dequantize() for rule in policy.rules}
    assert isinstance(source, HashedCheckpoint)
    with tempfile.TemporaryDirectory() as folder:
        stored: Mapping[str, LazyWeight] = quantize_calibrated(program, rows, policy, WeightCache(Path(folder), source))
        return {name: weight_of(materialize(weight)).dequantize() for name, weight in stored.items()}


def _logits(program: Program, rows: torch.Tensor, weights: _Made) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([program.run(program.prefill_inputs(row[None]), weights)["logits"][0] for row in rows])  # type: ignore[arg-type]


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


if __name__ == "__main__":
    main()
