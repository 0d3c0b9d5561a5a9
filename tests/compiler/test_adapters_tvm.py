"""Adapters in a TVM bundle, as an app has them: through the C interface of the library that lies in it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_folders import save_model
from peft import PeftModel
from peft_adapters import load_saved, save_adapter
from tvm_sessions import greedy

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.api import verify
from pocketphi.compiler.cli import main
from pocketphi.compiler.hosts import open_host
from pocketphi.graph.errors import InputError
from pocketphi.targets.base import switch
from pocketphi.targets.tvm_arm.host import TvmHost
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from tests.compiler.test_resealed import resealed

pytest.importorskip("tvm")

TEXT = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = save_model(folder / "base", "Phi3ForCausalLM", vocab_size=256, pad_token_id=0, eos_token_id=2)
    save_adapter(base, folder / "fr", seed=1, target_modules="all-linear", rank_pattern={"qkv_proj": 2, "o_proj": 7})
    save_adapter(base, folder / "tone", seed=2, target_modules=["down_proj"], r=9)
    named = ["--adapter", f"fr={folder / 'fr'}", "--adapter", f"tone={folder / 'tone'}"]
    target = ["--target", "tvm-arm", "--os", "host", "--recipe", "rtn", "--format", "int8", "--verify", "always"]
    assert main(["compile", str(base), "-o", str(folder / "b"), *target, *named]) == 0
    return folder


class App:
    """What an app does with the library: every call, and what it says of one that failed."""

    def __init__(self, bundle: Path) -> None:
        self.library = ctypes.CDLL(str(bundle / "libpocketphi.so"))
        for name in ("open", "error"):
            getattr(self.library, f"pocketphi_{name}").restype = ctypes.c_void_p
        error = ctypes.create_string_buffer(512)
        self.model = ctypes.c_void_p(
            self.library.pocketphi_open(str(bundle).encode(), b"", error, ctypes.c_size_t(512))
        )
        assert self.model.value, error.value

    def switch(self, name: str | None) -> str:
        """What is wrong, or nothing."""
        code = self.library.pocketphi_adapter(self.model, None if name is None else name.encode())
        return ctypes.string_at(self.library.pocketphi_error(self.model)).decode() if code else ""

    def prefill(self) -> np.ndarray:
        tokens = (ctypes.c_int32 * TEXT.numel())(*TEXT[0].tolist())
        logits = (ctypes.c_float * 256)()
        code = self.library.pocketphi_prefill(self.model, tokens, TEXT.numel(), logits)
        assert code == 0, ctypes.string_at(self.library.pocketphi_error(self.model))
        return np.array(logits)

    @property
    def length(self) -> int:
        return int(self.library.pocketphi_length(self.model))


@pytest.fixture
def app(work: Path) -> Iterator[App]:
    made = App(work / "b")
    yield made
    made.library.pocketphi_close(made.model)


def test_each_adapter_gives_what_peft_gives(work: Path) -> None:
    """PEFT on transformers' model with the weights that the files hold; computed in float32 on both sides."""
    bundle = Bundle.open(work / "b")
    host = open_host(bundle.path, bundle.manifest)
    model = PeftModel.from_pretrained(load_saved(work / "base", host), work / "fr", "fr")
    model.load_adapter(work / "tone", "tone")
    runner = host.runner(60, exact=True, every_position=True)
    with torch.no_grad():
        for name in ("fr", "tone"):
            model.set_adapter(name)
            expected = model.eval()(TEXT).logits
            switch(runner, name)
            tolerance = 2.0**-23 * 128 * 3 * float(expected.abs().max())  # ε for each of the sums of a layer
            assert float((runner.step(TEXT) - expected).abs().max()) <= tolerance
        with model.disable_adapter():
            plain = model(TEXT).logits
            assert float((plain - expected).abs().max()) > 100 * tolerance
            switch(runner, None)
            assert float((runner.step(TEXT) - plain).abs().max()) <= tolerance


def test_an_app_switches_them_without_loading_again(app: App, work: Path) -> None:
    plain = app.prefill()
    assert app.switch("fr") == ""
    assert app.length == 0
    french = app.prefill()
    assert app.switch(str(work / "b" / "adapters" / "tone.tvm_adapter")) == ""  # a path
    tone = app.prefill()
    assert min(abs(french - plain).max(), abs(tone - plain).max(), abs(french - tone).max()) > 0.1
    for name, expected in ((None, plain), ("fr", french), (None, plain)):
        assert app.switch(name) == ""
        assert np.array_equal(app.prefill(), expected)


def test_a_failure_changes_nothing(app: App, work: Path, tmp_path: Path) -> None:
    assert app.switch("fr") == ""
    french = app.prefill()
    content = (work / "b" / "adapters" / "fr.tvm_adapter").read_bytes()
    digest = content.index(b'"params_digest": "') + 18
    other = content[:digest] + (b"0" if content[digest:][:1] != b"0" else b"1") + content[digest + 1 :]
    wrong = {
        "cut": (content[:-8], "is cut"),
        "longer": (content + bytes(64), "is longer than it says"),
        "short": (content[:20], "is no adapter of a bundle"),
        "length": (content[:16] + b"\xff" * 8 + content[24:], "is cut"),
        "other": (other, "was made for the weights of another bundle"),
        "rank": (content.replace(b'"ranks": [2', b'"ranks": [9'), "is cut"),
        "ranks": (content.replace(b'"ranks": [2', b'"ranks": [-'), "expected"),
    }
    for name, (data, said) in wrong.items():
        (tmp_path / name).write_bytes(data)
        told = app.switch(str(tmp_path / name))
        assert told.startswith(f"{tmp_path / name}: "), told
        assert said in told or name == "ranks"
    assert "none.tvm_adapter: No such file" in app.switch("none")
    assert app.switch("") == "no name of an adapter: expected one, or NULL for none"
    assert app.length == TEXT.numel()
    app.library.pocketphi_reset(app.model)
    assert np.array_equal(app.prefill(), french)


def test_verify_sees_an_exchanged_one(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "b", tmp_path / "b")
    one, two = (tmp_path / "b" / "adapters" / f"{name}.tvm_adapter" for name in ("fr", "tone"))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    resealed(tmp_path / "b")
    found = verify(tmp_path / "b")
    assert [check.name for check in found.checks if not check.ok] == ["adapters that are not as they were made"]
    two.write_bytes(first[:-64])
    resealed(tmp_path / "b")
    with pytest.raises(
        InputError, match=r"tone\.tvm_adapter: holds other than 12 pairs of factors; copy or compile it"
    ):
        verify(tmp_path / "b")


def test_a_rank_that_the_kernels_have_no_room_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_adapter(work / "base", work / "wide", target_modules=["o_proj"], r=2049)
    target = ["--target", "tvm-arm", "--os", "host", "--recipe", "rtn", "--adapter", f"wide={work / 'wide'}"]
    assert main(["compile", str(work / "base"), "-o", str(work / "x"), *target]) == 2
    assert (
        "rank 2049 of model.layers.0.self_attn.o_proj.weight, its kernels take 2048 at most" in capsys.readouterr().err
    )


def test_a_draft_model_beside_an_adapter(work: Path) -> None:
    """It guesses without one; tokens are those of the adapter, and where it is off, all guesses are right."""
    host = open_host(work / "b", Bundle.open(work / "b").manifest)
    assert isinstance(host, TvmHost)
    prompt = TEXT[0, :20].tolist()
    with (
        RuntimeProcess(host._command(), work / "b") as plain,
        RuntimeProcess(host._command(), work / "b", draft="always") as guessing,
    ):
        guessing.draft(work / "b")
        for name in ("fr", None):
            plain.adapter(name)
            guessing.adapter(name)
            (wanted, _), (got, calls) = (greedy(one, prompt, 16) for one in (plain, guessing))
            assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert calls == 2
