"""The single file for minimal builds: it runs, and says so when it cannot exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import InputError


def test_the_single_file_computes_the_same(tmp_path: Path) -> None:
    options = compile_options("random:tiny", tmp_path / "b", recipe="rtn", verify="never", ort_file=True)
    folder = compile_model(options).path
    sessions = [onnxruntime.InferenceSession(str(folder / name)) for name in ("model.onnx", "model.ort")]
    feeds = {"input_ids": np.arange(9)[None], "attention_mask": np.ones((1, 9), np.int64)}
    for value in sessions[0].get_inputs():
        if value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    first, second = (session.run(["logits"], feeds)[0] for session in sessions)
    np.testing.assert_array_equal(first, second)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["compile", "random:phi-3-mini-4k", "-o", str(tmp_path / "b"), "--recipe", "rtn", "--ort-file"])
    message = capsys.readouterr().err
    assert code == 2
    assert "it would take 2.152 GB and the format ends at 2.147 GB" in message
    assert "choose --block 128" in message
    assert list(tmp_path.iterdir()) == []


def test_block_128_fits(tmp_path: Path) -> None:
    from pocketphi.compiler.plan import plan

    options = compile_options("random:phi-3-mini-4k", tmp_path / "b", recipe="rtn", block=128, ort_file=True)
    made = plan(options)
    assert made.notes == []
    assert made.artifact < 2 * 2.04e9
    fine = compile_options("random:phi-3-mini-4k", tmp_path / "b", recipe="rtn", ort_file=True)
    with pytest.raises(InputError, match=r"2\.152 GB"):
        plan(fine)
