"""The command line: what it prints, and one clear line with exit code 2 for bad input, with nothing half-written."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pocketphi.compiler.cli import main, parser
from pocketphi.graph.reading import place_of


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def tiny_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "tiny"
    assert run(capsys, "make-checkpoint", "random:tiny", "-o", str(folder))[0] == 0
    return folder


def compile_fails(capsys: pytest.CaptureFixture[str], model: str, out: Path, *options: str, code: int = 2) -> str:
    """Compile, expect failure, and check that nothing was left; returns the one line of the message."""
    before = set(out.parent.iterdir()) if out.parent.exists() else set()
    came, stdout, stderr = run(capsys, "compile", model, "-o", str(out), *options, "--json")
    assert came == code
    assert stdout == ""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1
    after = set(out.parent.iterdir()) if out.parent.exists() else set()
    assert after == before
    return lines[0]


def test_compile_prints_the_manifest_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code, stdout, _ = run(capsys, "compile", "random:tiny", "-o", str(out), "--recipe", "rtn", "--json")
    assert code == 0
    manifest = json.loads(stdout)
    assert manifest["operators"]["edge.attention"] == 3
    assert manifest["verification"]["ok"]
    assert (out / "model.onnx.data").stat().st_size == manifest["files"]["model.onnx.data"]["bytes"]


def test_two_compiles_give_the_same_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, cache in (("a", "cache-a"), ("b", "cache-b")):  # the second one computes again
        arguments = ("-o", str(tmp_path / name), "--cache", str(tmp_path / cache), "--verify", "always")
        assert run(capsys, "compile", "random:tiny", *arguments)[0] == 0
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_block_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, stderr = run(capsys, "compile", "random:tiny", "--block", "big")
    assert (code, stderr) == (2, "pocketphi: --block big: expected one of 16, 32, 64, 128, 256, or row\n")


def test_the_plan_of_each_target(capsys: pytest.CaptureFixture[str]) -> None:
    """Core ML keeps keys and values in float16, for as many tokens as its cache has rows; and who is fit for what."""
    targets = ("--target", "ort-mobile", "--target", "coreml", "--embedding-bits", "8", "--head-bits", "8")
    arguments = ("compile", "random:phi-3-mini-4k", "--dry-run", "--block", "32", *targets)
    plan = json.loads(run(capsys, *arguments, "--json")[1])
    assert {name: (r["kv_cache"], r["context"]) for name, r in plan["run"].items()} == {
        "ort-mobile": (786_432 * 4096, 4096),
        "coreml": (393_216 * 2048, 2048),
    }
    assert plan["applied"]["quantize-weights"] == {"embedding_int8": 1, "matmul_int8": 1, "matmul_nbits": 128}
    printed = run(capsys, *arguments)[1]
    assert "of weights, 805.31 MB of K/V cache at 2,048 tokens" in printed
    assert "coreml: GPU (cpuAndGPU): fit, the one to choose" in printed
    assert "coreml: Neural Engine (cpuAndNeuralEngine): not fit: the weight file has 2,2" in printed


@pytest.mark.parametrize(("bits", "values"), [("4", 0.5), ("8", 1.0)])
def test_the_plan_has_the_size_of_the_embedding(capsys: pytest.CaptureFixture[str], bits: str, values: float) -> None:
    arguments = ("compile", "random:phi-3-mini-4k", "--dry-run", "--json", "--target", "coreml", "--block", "row")
    plan = json.loads(run(capsys, *arguments, "--embedding-bits", bits)[1])
    embedding, rest = 32064 * 3072, 3_723_000_000
    assert plan["artifact"] == pytest.approx(embedding * values + rest / 2, rel=0.002)


def test_without_coremltools_the_extra_is_named(tmp_path: Path) -> None:
    arguments = ["compile", "random:tiny", "-o", "out", "--target", "coreml"]
    script = (
        "import sys; sys.modules['coremltools'] = None; from pocketphi.compiler.cli import main; sys.exit(main({}))"
    )
    command = [sys.executable, "-c", script.format(arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "needs the package 'coremltools'; install it with: pip install 'pocketphi[coreml]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_commands_on_a_bundle_of_palettes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "b")
    options = ("--recipe", "rtn", "--palette", "8", "--head-bits", "8", "--target", "coreml", "--verify", "never")
    assert run(capsys, "compile", "random:tiny", "-o", out, *options)[0] == 0
    printed = run(capsys, "inspect", out)[1]
    assert "int4 rtn, palettes of 8 rows, int8 head" in printed
    assert "256 tokens, 384 bytes of K/V cache each" in printed
    assert "Neural Engine (cpuAndNeuralEngine): not fit: state keyCache [3, 1, 2, 192, 16]" in printed
    evaluated = run(capsys, "eval", out, "--reference", "random:tiny", "--tokens", "64", "--window", "32", "--json")[1]
    assert 0 < json.loads(evaluated)["kl"] < 0.5
    short = ("--threads", "1", "--prompt-tokens", "8", "--generate", "2", "--rounds", "1", "--json")
    assert json.loads(run(capsys, "bench", out, *short)[1])[0]["decode"] > 0


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code, stdout, _ = run(capsys, "compile", "random:phi-3-mini-4k", "-o", str(out), "--dry-run", "--json")
    plan = json.loads(stdout)
    assert code == 0
    assert not out.exists()
    assert plan["applied"]["fuse-attention"] == {"attention": 32}
    assert plan["applied"]["quantize-weights"] == {"embedding_nbits": 1, "matmul_nbits": 129}
    assert 2.14e9 < plan["artifact"] < 2.16e9
    assert "model.ort" in plan["notes"][0]


@pytest.mark.parametrize("name", ["phi-3-mini-128k", "phi-3-medium-4k", "phi-3.5-mini", "phi-4-mini"])
def test_every_published_shape_can_be_planned(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, stdout, _ = run(capsys, "compile", f"random:{name}", "--dry-run", "--json", "--strict")
    plan = json.loads(stdout)
    assert code == 0
    assert plan["refused"] == []
    assert plan["operators"]["edge.attention"] == plan["layers"]


def test_dump_graphs_writes_one_file_a_pass(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    arguments = ("-o", str(tmp_path / "b"), "--recipe", "rtn", "--verify", "never", "--dump-graphs", str(dumps))
    assert run(capsys, "compile", "random:tiny", *arguments)[0] == 0
    assert [p.name for p in sorted(dumps.iterdir())] == [
        "00-traced.txt",
        "01-canonicalize.txt",
        "02-fuse-rms-norm.txt",
        "03-fuse-attention.txt",
        "04-fuse-residual-norm.txt",
        "05-fuse-gated-mlp.txt",
        "06-fuse-gegelu.txt",
        "07-quantize-weights.txt",
        "08-last-logits.txt",
    ]
    assert "edge.attention" in (dumps / "03-fuse-attention.txt").read_text()
    assert "int4 rtn block 64" in (dumps / "08-last-logits.txt").read_text()


def texts_of(command: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Each argument that takes a name or a text, with a command line on which it alone is empty."""
    needed = [a for a in command._actions if a.required]
    given = {a.dest: [*a.option_strings[:1], str((a.choices or ["x"])[0])] for a in needed}
    for a in command._actions:
        if a.type in (None, str, Path, place_of) and not a.choices and a.nargs in (None, "?"):
            line = {**given, a.dest: [f"{a.option_strings[-1]}="] if a.option_strings else [""]}
            yield a.dest, [word for words in line.values() for word in words]


@pytest.mark.parametrize("flag", ["--system", "--prompt"])
def test_a_text_of_other_bytes_is_said_before_the_bundle_is_opened(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "nowhere", flag, "caf\udce9"]) == 2
    assert capsys.readouterr().err == f"pocketphi: {flag}: the text is no UTF-8 at its character 3\n"


def test_an_empty_name_is_not_the_current_folder(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle)
    before = sorted(tiny_bundle.parent.rglob("*"))
    (commands,) = (a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    tried = [(name, *one) for name, command in commands.items() for one in texts_of(command)]
    assert {"model", "bundle", "package", "file", "old", "reference", "key", "out"} < {name for _, name, _ in tried}
    for command, name, line in tried:
        if name in ("prompt", "system", "question"):  # an empty message is a message
            continue
        code, out, err = run(capsys, command, *line)
        assert (code, out) == (2, "")
        said = f"pocketphi: {name.replace('_', '-')}: an empty text was given; is a variable of the shell not set?\n"
        assert err == said
    assert sorted(tiny_bundle.parent.rglob("*")) == before


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("compile", "verify", "eval", "chat", "bench", "inspect", "make-checkpoint"):
        assert name in text


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("nowhere", (), "nowhere: no such model; expected a Hugging Face folder"),
        ("random:phi-9", (), "unknown shape 'phi-9'; expected one of phi-3-mini-4k"),
        ("random:tiny", ("--recipe", "magic"), "--recipe magic: expected one of search, two-sided, rtn, keep"),
        ("random:tiny", ("--block", "48"), "--block 48: expected one of 16, 32, 64, 128, 256, or row"),
        ("random:tiny", ("--palette", "5"), "--palette 5: expected one of 1, 2, 4, 8, 16, 32, 64 rows"),
        ("random:tiny", ("--palette",), "ort-mobile: model.embed_tokens.weight is a palette, which the target cannot"),
        ("random:tiny", ("--block", "128"), "K=64 is not a multiple of block 128; choose --block 16 or 32 or 64"),
        ("random:tiny", ("--context", "0"), "--context 0: expected 2 or more tokens"),
        (
            "random:tiny",
            ("--target", "tvm-arm", "--kv-cache", "q4"),
            "--kv-cache q4: tvm-arm has no such cache, only fp16",
        ),
        (
            "random:tiny",
            ("--kv-cache", "fp16"),
            "--kv-cache fp16: ort-mobile has no such cache, only fp32 or int8 or int4; coreml and tvm-arm can",
        ),
        (
            "random:tiny",
            ("--target", "coreml", "--target", "ort-mobile", "--kv-cache", "int8"),
            "--kv-cache int8: coreml has no such cache, only fp16; ort-mobile and tvm-arm can",
        ),
        ("random:tiny", ("--context", "257"), "--context 257: the model has 256 positions"),
        (
            "random:tiny",
            ("--recipe", "rtn", "--accuracy-level", "0", "--strict"),
            "slow path: MatMulNBits at this accuracy",
        ),
    ],
)
def test_bad_requests(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str, options: tuple[str, ...], message: str
) -> None:
    cache = ("--cache", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    assert message in compile_fails(capsys, model, tmp_path / "out", *options, *cache)


def test_an_existing_bundle_needs_force(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("compile", "random:tiny", "-o", str(out), "--recipe", "rtn", "--verify", "never")
    assert run(capsys, *arguments)[0] == 0
    kept = (out / "manifest.json").read_bytes()
    assert "exists; choose another -o or pass --force" in compile_fails(capsys, "random:tiny", out)
    assert (out / "manifest.json").read_bytes() == kept
    around = tmp_path / "missing" / ".." / "out"  # a folder that is not there, and back
    assert "exists; choose another -o or pass --force" in compile_fails(capsys, "random:tiny", around)
    assert (out / "manifest.json").read_bytes() == kept
    assert run(capsys, *arguments, "--force")[0] == 0


def test_an_output_around_a_folder_that_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    around = tmp_path / "missing" / ".." / "out"
    code, stdout, _ = run(
        capsys, "compile", "random:tiny", "-o", str(around), "--recipe", "rtn", "--verify", "never", "--json"
    )
    assert (code, json.loads(stdout)["bundle"]) == (0, str(tmp_path.resolve() / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_bundles_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "is not a bundle; --force replaces bundles only" in compile_fails(capsys, "random:tiny", out, "--force")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_an_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, stderr = run(capsys, "compile", "random:tiny", "-o", str(tmp_path / "file" / "out"), "--recipe", "rtn")
    assert code == 2
    assert f"cannot be written: {tmp_path / 'file'} is not a folder; choose another -o" in stderr


CLOSED = """
import os, sys
from pocketphi.compiler import cli, start
def told():
    opened = os.open("told", os.O_CREAT | os.O_WRONLY)
    os.write(1, b"a library's own words"), os.write(2, b"a library's own words")
    print("to a stream"), print("to another", file=sys.stderr)
    os.write(opened, f"{opened} {sys.stdin.read()!r} {os.get_inheritable(1)}".encode())
    return 0
cli.entry = told
sys.exit(start.entry())
"""


def test_closed_streams_are_no_files(tmp_path: Path) -> None:
    """`<&- >&- 2>&-`: a file that is opened first would get the number of a stream, and what is written to it."""
    command = [sys.executable, "-c", CLOSED]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert (tmp_path / "told").read_text() == "3 '' True"


def test_the_exit_code_where_nothing_can_be_said(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m pocketphi.compiler inspect nothing 2>/dev/full"
    assert subprocess.run(command, cwd=tmp_path, shell=True, stdout=subprocess.DEVNULL).returncode == 2


def test_in_a_folder_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    code, _, stderr = run(capsys, "inspect", "random:tiny")
    assert (code, stderr) == (2, "pocketphi: the current folder was deleted; go to another one and start again\n")
    tmp_path.mkdir()


def test_a_file_limit_in_the_middle_of_writing(tmp_path: Path) -> None:
    """The disk is full: simulated by a limit on the size of files, which fails the same calls."""
    command = [sys.executable, "-m", "pocketphi.compiler", "compile", "random:tiny", "--recipe", "rtn", "-o", "out"]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2
    assert "out: cannot be written: File too large; choose another -o" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_not_enough_space(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("pocketphi.artifacts.folder.shutil.disk_usage", lambda path: usage)
    message = compile_fails(capsys, "random:tiny", tmp_path / "out", "--recipe", "rtn")
    assert "the disk has 1,000 free; choose another -o" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "calibration text is empty"),
        (b" \n", "calibration text is empty"),
        (b"caf\xe9", "not UTF-8 text (byte 3)"),
    ],
)
def test_bad_calibration_text(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(content)
    assert message in compile_fails(capsys, "random:tiny", tmp_path / "out", "--calibration", str(text))


def test_a_missing_calibration_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = compile_fails(capsys, "random:tiny", tmp_path / "out", "--calibration", "nowhere.txt")
    assert "nowhere.txt: --calibration cannot be read: No such file" in message


@pytest.mark.parametrize("recipe", ["rtn", "search"])
def test_a_weight_that_is_not_finite_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, recipe: str
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors[name][7, 3] = float("nan")
    save_file(tensors, tiny_folder / "model.safetensors")
    cache = tmp_path / "cache"
    cache.mkdir()
    message = compile_fails(capsys, str(tiny_folder), tmp_path / "out", "--recipe", recipe, "--cache", str(cache))
    assert f"{name}: row 7 holds a value that is not finite" in message
    assert not list(cache.glob("*.partial"))


def test_a_truncated_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path) -> None:
    shard = tiny_folder / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 10)
    assert "model.safetensors: truncated" in compile_fails(capsys, str(tiny_folder), tmp_path / "out")


def test_budgets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rtn = ("--recipe", "rtn")
    message = compile_fails(capsys, "random:tiny", tmp_path / "out", *rtn, "--max-bytes", "10kB", code=1)
    assert "over --max-bytes; choose a larger --block" in message
    message = compile_fails(capsys, "random:tiny", tmp_path / "out", *rtn, "--max-memory", "1MB", code=1)
    assert "over --max-memory" in message


def test_a_size_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, stderr = run(capsys, "compile", "random:tiny", "--max-bytes", "much")
    assert code == 2
    assert "'much' is not a size; expected bytes, or a number with kB, MB, GB" in stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_compile_leaves_no_bundle(tmp_path: Path, how: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "pocketphi.compiler",
        "compile",
        "random:phi-3-mini-4k",
        "--recipe",
        "rtn",
        "-o",
        "out",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.*.partial/new/model.onnx.data")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "out").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped; nothing was left half-written" in stderr
        assert list(tmp_path.iterdir()) == []
    else:  # what a kill leaves is removed by the next compile
        assert (
            main(["compile", "random:tiny", "--recipe", "rtn", "-o", str(tmp_path / "out"), "--verify", "never"]) == 0
        )
        assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_commands_refuse_what_is_no_bundle(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in ("verify", "chat", "bench"):
        code, _, stderr = run(capsys, command, str(tmp_path))
        assert code == 2
        assert "not a bundle: it has no manifest.json" in stderr


def test_verify_and_chat_refuse_a_changed_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    data = copy / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1234] ^= 1
    data.write_bytes(content)
    for arguments in (("verify", str(copy)), ("chat", str(copy), "--prompt", "x"), ("bench", str(copy))):
        code, _, stderr = run(capsys, *arguments)
        assert code == 2
        assert "model.onnx.data: content differs from its SHA-256" in stderr


def test_chat_needs_a_tokenizer(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    code, _, stderr = run(capsys, "chat", str(tiny_bundle), "--prompt", "hello")
    assert code == 2
    assert "tokenizer" in stderr


def test_inspect(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    assert json.loads(run(capsys, "inspect", str(tiny_bundle), "--json")[1])["model"]["layers"] == 3
    assert "random:tiny: 0 M parameters" in run(capsys, "inspect", "random:tiny")[1]
    assert "int4 rtn, block 64, symmetric" in run(capsys, "inspect", str(tiny_bundle))[1]


def test_eval_of_a_bundle_against_its_model(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    arguments = ("--tokens", "256", "--window", "64", "--json")
    own = json.loads(run(capsys, "eval", "random:tiny", "--reference", "random:tiny", *arguments)[1])
    assert own["kl"] == 0
    assert own["top1"] == 1
    came = json.loads(run(capsys, "eval", str(tiny_bundle), "--reference", "random:tiny", *arguments)[1])
    assert 0 < came["kl"] < 0.5
    assert came["reference_perplexity"] == own["perplexity"]


def test_names_that_no_file_can_have(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in (["inspect"], ["verify"], ["chat"], ["compile"], ["eval"], ["sbom"], ["build"]):
        code, _, stderr = run(capsys, *command, str(tmp_path / ("x" * 300)))
        assert (code, len(stderr.splitlines())) == (2, 1)
        assert "File name too long" in stderr


def test_eval_refuses_a_window_beyond_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, stderr = run(capsys, "eval", "random:tiny", "--window", "512")
    assert code == 2
    assert "--window 512: random:tiny has 256 positions" in stderr
    for option in ("--window", "--tokens"):
        assert f"{option} 1: expected 2 to" in run(capsys, "eval", "random:tiny", option, "1")[2]


def test_bench(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    arguments = ("--threads", "1", "--prompt-tokens", "32", "--generate", "8", "--rounds", "2", "--json")
    (speed,) = json.loads(run(capsys, "bench", str(tiny_bundle), *arguments)[1])
    assert speed["prefill"] > 0
    assert speed["decode"] > 0


def test_a_lowering_that_is_wrong_fails_the_compile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketphi.targets.ort_mobile import lower

    def swapped(emitter: Any, node: Any) -> None:
        """Adds where it should multiply."""
        right(emitter, node)
        emitter.lowered.nodes[-1].op_type = "Add"

    right = lower._RULES["edge.gated_silu"]
    monkeypatch.setitem(lower._RULES, "edge.gated_silu", swapped)
    out = tmp_path / "b"
    message = compile_fails(capsys, "random:tiny", out, "--recipe", "rtn", "--verify", "always", code=1)
    assert "verification: KL prefill, exact" in message
    assert "exceeds 1e-06" in message
    assert run(capsys, "compile", "random:tiny", "-o", str(out), "--recipe", "rtn", "--verify", "never")[0] == 0
    code, stdout, _ = run(capsys, "verify", str(out), "--json")
    assert code == 1
    assert not json.loads(stdout)["ok"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--max-memory", "1MB"), 1, "over --max-memory"),
        (("--strict", "--accuracy-level", "0"), 2, "slow path"),
        (("-o", "/proc/none/here"), 2, "cannot be written"),
        (("--dump-graphs", "/proc/none"), 2, "--dump-graphs /proc/none: cannot be written"),
    ],
)
def test_what_can_be_refused_early_is(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("pocketphi.compiler.compile.quantize_calibrated", None)  # would fail if it were called
    out = () if "-o" in options else ("-o", str(tmp_path / "out"))
    came, _, stderr = run(capsys, "compile", "random:tiny", *out, *options, "--cache", str(tmp_path / "cache"))
    assert came == code
    assert message in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--calibration", "x", "--recipe", "rtn"), "--calibration: --recipe rtn has no use for it"),
        (("--recipe", "keep", "--palette"), "--palette: --recipe keep keeps the file's blocks; choose search or rtn"),
        (("--palette", "--asymmetric"), "--palette: a table has no zero points; leave out --asymmetric"),
        (("--cache", "/proc/none"), "/proc/none: the cache cannot be made"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in compile_fails(capsys, "random:tiny", tmp_path / "out", *options)


def test_a_text_means_nothing_without_a_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("some words")
    for arguments in (("eval", str(tiny_bundle), "--text", str(text), "--window", "64"),):
        code, _, stderr = run(capsys, *arguments)
        assert code == 2
        assert "no tokenizer, so that a text means nothing to it" in stderr


def test_bench_and_eval_keep_to_the_bundles_context(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    code, _, stderr = run(capsys, "bench", str(tiny_bundle))
    assert code == 2
    assert "--prompt-tokens 512 and --generate 64" in stderr
    assert "holds 256 tokens" in stderr
    code, _, stderr = run(capsys, "eval", str(tiny_bundle))
    assert code == 2
    assert "has 256 positions" in stderr
    code, _, stderr = run(capsys, "eval", str(tiny_bundle), "--window", "64", "--reference", "sample")
    assert code == 2
    assert "--reference sample: 49152 tokens" in stderr


@pytest.mark.parametrize("recipe", ["rtn", "search"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_every_weight_is_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path, recipe: str, name: str
) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors[name][5] = float("inf")
    save_file(tensors, tiny_folder / "model.safetensors")
    cache = tmp_path / "cache"
    cache.mkdir()
    message = compile_fails(capsys, str(tiny_folder), tmp_path / "out", "--recipe", recipe, "--cache", str(cache))
    assert f"{name}: row 5 holds a value that is not finite" in message


def test_all_logits_are_verified_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--recipe", "rtn", "--all-logits", "--ort-file", "--verify", "always", "--json")
    code, stdout, _ = run(capsys, "compile", "random:tiny", "-o", str(tmp_path / "b"), *arguments)
    assert code == 0
    names = [check["name"] for check in json.loads(stdout)["verification"]["checks"]]
    assert "KL model.ort, past the window" in names
    assert "KL onnxruntime-genai, prefill and decode" in names


def test_force_through_a_link_replaces_what_it_points_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--recipe", "rtn", "--verify", "never", "--force")
    assert run(capsys, "compile", "random:tiny", "-o", str(tmp_path / "v1"), *arguments)[0] == 0
    (tmp_path / "current").symlink_to("v1")
    assert run(capsys, "compile", "random:tiny@1", "-o", str(tmp_path / "current"), *arguments)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "v1"]
    assert json.loads((tmp_path / "v1" / "manifest.json").read_text())["source"]["model"] == "random:tiny@1"


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("PYTHONIOENCODING=ascii {} > /dev/null", 0, ""),
        ("{} > /dev/full", 2, "pocketphi: No space left on device: not all could be written; free some space"),
        (
            "ulimit -f 0; {} > file",
            2,
            "pocketphi: File too large: not all could be written; raise the limit (ulimit -f)",
        ),
    ],
)
def test_what_a_command_writes_to(shell: str, code: int, said: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """A reader that has enough, a terminal without Greek letters, a disk that is full, a limit."""
    command = f"'{sys.executable}' -m pocketphi.compiler inspect '{tiny_bundle.resolve()}'"
    done = subprocess.run(
        ["bash", "-c", shell.format(command)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()[: len(said)]) == (code, said), done.stderr
    assert len(done.stderr.splitlines()) == bool(said)


SHORT = """
import ctypes, resource, sys
from pocketphi.compiler import cli
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20),) * 2)
try:
    ctypes.CDLL(sys.argv[1])
except OSError as error:
    print(cli.lack(error))
"""


def test_a_library_that_memory_is_too_short_for() -> None:
    package = importlib.util.find_spec("onnxruntime")
    assert package
    assert package.origin
    (library,) = (Path(package.origin).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    done = subprocess.run([sys.executable, "-c", SHORT, str(library)], capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"{re.escape(str(library))}: failed to map segment .*: is there enough memory, .*\n", done.stdout
    )
