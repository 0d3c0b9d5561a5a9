"""The ONNX bundle on aarch64: the wheel's ARM kernels under qemu give what the x86 kernels give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "aarch64"))
import run as aarch64

PROMPT, STEPS = list(range(3, 60)), 12  # past the tiny model's window of 48
SAVED, EXACT = 1e-2, 1e-6
"""Bounds of the KL divergence, as `verify` has them: int8 activations, float32. Both sides are that far from the program."""

pytestmark = pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aarch64") / "bundle"
    compile_model(compile_options("random:tiny", out, recipe="rtn", verify="never"))
    return out


def test_the_greedy_reply(bundle: Path) -> None:
    """As saved; where another token is the most likely one, the host held both to be equally good (a tie of 4 sigma)."""
    host, guest, apart = aarch64.compare(bundle, PROMPT, STEPS, "cortex-a76")
    assert (host.machine != "aarch64", guest.machine) == (True, "aarch64")
    assert apart.kl <= 2 * SAVED
    tie = 4 * (2 * SAVED) ** 0.5
    gaps = host.logits.max(-1).values - host.logits[range(STEPS), guest.tokens]
    assert float(gaps.max()) <= tie
    assert apart.top1 >= 0.5


@pytest.mark.parametrize("cpu", aarch64.CPUS)
def test_in_float32(bundle: Path, tmp_path: Path, cpu: str) -> None:
    exact = aarch64.exact_copy(bundle, tmp_path / "exact")
    host, guest, apart = aarch64.compare(exact, PROMPT, STEPS, cpu)
    assert apart.kl <= 2 * EXACT
    assert guest.tokens == host.tokens
