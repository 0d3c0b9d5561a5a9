"""What measuring takes of memory, measured in processes of its own, against what is planned for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pocketphi.compiler.candidates import candidates_of
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.plan import compile_memory, lighter
from pocketphi.compiler.smoothing import smoothed, smoothing_bytes
from pocketphi.compiler.spend import known_costs, measuring_bytes
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.resident import forget_peak, give_back, resident_now, resident_peak
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import ScaleSearch

ROOT = Path(__file__).parents[2]
SHAPES = {
    "many words": {"hidden_size": 128, "intermediate_size": 256, "layers": 2, "vocab_size": 24000, "heads": 4},
    "wide layers": {"hidden_size": 768, "intermediate_size": 2048, "layers": 2, "vocab_size": 500, "heads": 12},
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no more than a peak")
@pytest.mark.parametrize(
    ("step", "shape"),
    [("sensitivities", "many words"), ("sensitivities", "wide layers"), ("channels", "wide layers")],
)
def test_measuring_takes_what_is_planned(step: str, shape: str, tmp_path: Path) -> None:
    """At most that, and not much less: a plan that is too large refuses what would work. What two threads hold at once is
    planned, and on a busy machine each may have ended before the other begins."""
    graphs_of(shape, tmp_path)  # a child that traced would take more than what it measures
    code = f"from tests.compiler.test_memory import measure; measure({step!r}, {shape!r}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    taken, planned = map(int, done.stdout.split())
    assert taken <= planned <= 2 * taken + 50_000_000


def graphs_of(shape: str, folder: Path) -> tuple[HashedCheckpoint, Program, Program]:
    """The weights, and the graphs before and after the float rewrites, kept in a folder."""
    changes = {**SHAPES[shape], "kv_heads": 4, "head_dim": 64, "rotary_dim": 16}
    config = replace(PUBLISHED["tiny"], **changes)  # type: ignore[arg-type]
    source = HashedCheckpoint(RandomWeights("random:x", config))
    graphs = KnownGraphs(source, folder)
    return source, graphs.traced, graphs.fused(None)[0]


def measure(step: str, shape: str, folder: str) -> None:
    """In a child process: prints what a step takes, and what is planned for it."""
    options = compile_options("random:x", Path(folder, "out"), cache=Path(folder), bits=6.0)
    source, traced, fused = graphs_of(shape, Path(folder))
    config = source.config
    candidates = candidates_of(config, options)
    source.digest_all()
    give_back()  # what is freed and kept would be taken again, unseen
    forget_peak()
    before = resident_now()
    if step == "sensitivities":
        known_costs(source, lambda: traced, candidates, options, Ui())
    else:
        smoothed(source, fused, options, Ui())
    print(resident_peak() - before, {"sensitivities": measuring_bytes, "channels": smoothing_bytes}[step](config))  # noqa: T201


def test_a_budget_is_refused_before_its_measuring_where_memory_is_short(tmp_path: Path) -> None:
    limit = resident_now() + measuring_bytes(PUBLISHED["tiny"]) // 2
    options = compile_options("random:tiny", tmp_path / "b", cache=tmp_path / "c", bits=5.0, max_memory=limit)
    with pytest.raises(
        CheckFailed, match=r"over --max-memory; a budget measures sensitivities; say the format yourself"
    ):
        compile_model(options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0.75, "try --calibration-tokens 4096"),
        (0.12, "try --recipe rtn"),
        (0.001, "the least that any recipe takes is "),
    ],
)
def test_a_refusal_says_what_would_be_enough(factor: float, said: str) -> None:
    config, policy = PUBLISHED["phi-3-mini-4k"], Policy.of(ScaleSearch(64))
    now = resident_now()
    options = compile_options("random:phi-3-mini-4k", Path("-"), calibration_tokens=16384, verify="never")
    needed = compile_memory(config, options, policy) - now
    assert lighter(config, options, policy, now + int(factor * needed)).startswith(said)


def test_smoothing_is_refused_where_memory_is_short(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('smooth = true\n[[rules]]\npattern = "*"\nformat = "int4"\nrecipe = "rtn"\nblock = 32\n', "utf-8")
    limit = resident_now() + smoothing_bytes(PUBLISHED["tiny"]) // 2
    options = compile_options("random:tiny", tmp_path / "b", cache=tmp_path / "c", policy=rules, max_memory=limit)
    with pytest.raises(CheckFailed, match="over --max-memory; leave out smooth = true"):
        compile_model(options)
