"""`pocketphi tune` on a bundle for this machine: what is written, that it goes on, that the bundle is built anew; bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tuning import few_forms, few_schedules

from pocketphi.artifacts.bundle import Bundle, file_digest
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import tools
from pocketphi.targets.tvm_arm.tune.tune import TuneOptions, apply, tune


@pytest.fixture(autouse=True)
def three_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    few_schedules(monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For this machine's CPU; tuned and built anew by the tests below."""
    out = tmp_path_factory.mktemp("tune") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        model = few_forms(patch)
        compile_model(compile_options(model, out, ("tvm-arm",), recipe="rtn", os="host", verify="never"))
    return out


def test_tune_apply_and_go_on(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Bundle.open(bundle).manifest.files
    file = tmp_path / "mine.jsonl"
    assert main(["tune", str(bundle), "-o", str(file), "--rounds", "1", "--apply", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["timed"] == len(file.read_text().splitlines()) == 3 * len(said["forms"])
    assert {form["form"].split()[0] for form in said["forms"]} == {"decode", "prefill"}
    assert [form for form in said["forms"] if not 0 < form["us"] <= form["default"]] == []

    after = Bundle.open(bundle)  # every checksum again
    assert after.manifest.files["model.params"] == before["model.params"]
    assert set(after.manifest.files) == set(before)
    used = [json.loads(line) for line in (bundle / "tuning.jsonl").read_text().splitlines()]
    best = {form["form"]: form["schedule"] for form in said["forms"]}
    assert {row["form"]: row["schedule"] for row in used} == best
    assert main(["verify", str(bundle)]) == 0

    again = tune(TuneOptions(bundle, file, rounds=1), tools(Ui()))
    assert again.timed == 0
    assert {form.form: form.schedule for form in again.forms} == best


def test_a_library_built_anew_keeps_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, model = tmp_path / "tiny", few_forms(monkeypatch)
    compile_model(compile_options(model, out, ("tvm-arm",), recipe="rtn", os="host", verify="never", kv_cache="int8"))
    library = file_digest(out / "model.so")
    TuneOptions(out).database.write_text("")  # of no schedules: the same library
    apply(TuneOptions(out), tools(Ui()))
    assert file_digest(out / "model.so") == library


def test_compile_takes_a_database_and_says_when_it_does_not_fit(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "old.jsonl"
    row = {"kernels": 0, "isa": "neon", "cpu": "any", "form": "decode 1x1 block 32 q+scale", "us": 1, "how": "host"}
    file.write_text(json.dumps({**row, "schedule": {"units": 1}}) + "\n")
    options = compile_options(
        "random:tiny", tmp_path / "b", ("tvm-arm",), recipe="rtn", os="host", tuning=file, verify="never"
    )
    notes = compile_model(options).manifest.targets["tvm-arm"].notes
    assert [note for note in notes if note.startswith(f"{file} was ignored: it was made for version 0")] != []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rpc", "host:9190"], "--rpc and --key: a board takes both"),
        (["--rpc", "host", "--key", "pi"], "--rpc host: expected HOST:PORT of a tracker"),
        (["--rpc", "h:1", "--key", "pi", "--model", "cortex-a76"], "--rpc and --model: kernels are timed in one way"),
        (["--rounds", "0"], "--rounds 0: expected 1 to"),
        (["--threads", "0"], "--threads 0: expected 1 to 1,024"),
        (["--rpc", "127.0.0.1:1", "--key", "pi"], "no RPC tracker at 127.0.0.1:1"),
        (["--model", "cortex-z9"], "no cost model for CPU 'cortex-z9'"),
    ],
)
def test_bad_arguments(bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["tune", str(bundle), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not TuneOptions(bundle).database.exists()


def test_a_bundle_without_tvm(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tiny_bundle)]) == 2
    assert "holds ort-mobile; only a bundle of --target tvm-arm has schedules to tune" in capsys.readouterr().err


def test_an_instruction_set_is_no_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "any"
    options = compile_options("random:tiny", out, ("tvm-arm",), recipe="rtn", os="android", verify="never")
    compile_model(options)
    assert main(["tune", str(out)]) == 2
    assert "the bundle is for any CPU with dotprod: name a core by --model" in capsys.readouterr().err


def test_validate_prints_a_rank_for_each_matrix(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["tune", str(bundle), "--validate", "--rounds", "1", "--json"])
    captured = capsys.readouterr()
    if code == 2:  # llvm-mca is missing, or too old for the host's core
        assert "llvm" in captured.err
        return
    ranks = json.loads(captured.out)
    assert {r["form"].split()[0] for r in ranks} == {"decode", "prefill"}
    assert [r for r in ranks if not 0 < r["choice"] <= 1] == []
