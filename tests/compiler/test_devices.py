"""The device plan: sizes against real bundles, refusals in bytes, what would fit; quick for every device and model."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocketphi.compiler.cli import main
from pocketphi.compiler.device_plan import Fit, config_of, difference, fit, fit_options
from pocketphi.compiler.devices import Device, find_device, read_devices
from pocketphi.compiler.footprint import footprint, kept_weights
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.pipeline import fusions, quantization, run_passes
from pocketphi.compiler.plan import plan, prepare
from pocketphi.compiler.precision import asked_policy
from pocketphi.graph.config import EMBEDDING, HEAD, LongRope
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.trace import trace
from pocketphi.targets import TARGETS, find_target
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.memory import Matrix, footprint_of
from pocketphi.targets.ort_mobile.options import OrtMobile
from pocketphi.targets.tvm_arm.options import TvmArm

MINI = compile_options("random:phi-3-mini-4k", Path("x"), recipe="rtn", block=32)


def device(app: int, platform: str = "ios") -> Device:
    return Device("test", "A test", platform, 2 * app, app, 50e9, (), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", "0"], "--context 0: expected 2 or more tokens"),
        (["--context", "257"], "--context 257: expected 2 to 256; random:tiny has no more positions"),
        (["--prompt-tokens", "0"], "--prompt-tokens 0: expected 1 to 256"),
        (["--prompt-tokens", "-7"], "--prompt-tokens -7: expected 1 to 256"),
        (["--prompt-tokens", "300"], "--prompt-tokens 300: expected 1 to 256; random:tiny has no more positions"),
        (
            ["--prompt-tokens", "65", "--context", "64"],
            "--prompt-tokens 65: expected 1 to 64; the context holds no more",
        ),
    ],
)
def test_lengths_that_the_model_does_not_have(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["devices", "random:tiny", *options]) == 2
    assert capsys.readouterr().err.startswith(f"pocketphi: {message}")


def test_the_table_is_complete() -> None:
    devices = read_devices()
    assert {"iphone-14", "iphone-15-pro", "iphone-16", "pixel-8", "galaxy-s24", "raspberry-pi-5"} <= set(devices)
    for one in devices.values():
        assert one.app <= one.ram * 7 / 8, one.name
        assert 10e9 < one.bandwidth < 100e9, one.name
        assert "asimddp" in one.features, one.name


def test_every_number_has_a_source_or_says_that_it_is_an_estimate() -> None:
    for one in read_devices().values():
        looked_up = {text.partition(": ")[0]: text.partition(": ")[2] for text in one.sources}
        derived = {text.partition(": ")[0]: text.partition(": ")[2] for text in one.estimates}
        assert looked_up.keys() | derived.keys() == {"ram", "app", "bandwidth", "features"}, one.name
        assert not looked_up.keys() & derived.keys(), one.name
        assert all(re.match(r"https?://[^ ]+ \(.+\)$", text) for text in looked_up.values()), one.name
        assert all(derived.values()), one.name
        assert one.estimated == derived.keys()


def test_estimates_are_marked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["devices", "--device", "raspberry-pi-5"]) == 0
    printed = capsys.readouterr().out
    assert " 8 GiB, an app ~7.0 GiB, 17.1 GB/s, ~asimddp fphp\n" in printed
    assert "  source    bandwidth: https://" in printed
    assert "  estimate  app: all but " in printed
    own = tmp_path / "own.toml"
    own.write_text('[kiosk]\nram = "2GiB"\nbandwidth = 12.8e9\nsources = ["ram: the box"]\n')
    assert main(["devices", "--device", "kiosk", "--devices", str(own)]) == 0
    assert " 2 GiB, an app ~1.0 GiB, ~12.8 GB/s" in capsys.readouterr().out


def test_every_device_and_family_config() -> None:
    for name in PUBLISHED:
        options = dataclasses.replace(MINI, model=f"random:{name}")
        for one in read_devices().values():
            for target in ("ort-mobile", *(["coreml"] if one.platform == "ios" else [])):
                found = fit(config_of(options.model), options, target, one)
                assert found.ok == (found.largest_context >= found.context)


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from pocketphi.compiler.cli import main; main(['devices', 'random:phi-4-mini']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.sample
@pytest.mark.parametrize("target", ["ort-mobile", "coreml"])
def test_files_are_as_large_as_planned(target: str, tmp_path: Path) -> None:
    """Within 2 %: what the plan leaves out is alignment, and Core ML's few constants."""
    from pocketphi.compiler.compile import compile_model

    options = compile_options("sample", tmp_path / "bundle", (target,), recipe="rtn", verify="never")
    files = compile_model(options).manifest.files
    planned = footprint(config_of("sample"), target, options).files
    assert planned == pytest.approx(files[find_target(target).weights_file].bytes, rel=0.02)


STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("ort-mobile", {}),
    "asymmetric": ("ort-mobile", {"symmetric": False, "block": 64}),  # one block a row: half of each byte is left out
    "embedding": ("ort-mobile", {"embedding_bits": 8}),
    "head": ("ort-mobile", {"head_bits": 8, "block": 16}),
    "both": ("ort-mobile", {"embedding_bits": 8, "head_bits": 8}),
    "coreml": ("coreml", {}),
    "coreml asymmetric": ("coreml", {"symmetric": False, "block": 64}),
    "row": ("coreml", {"block": 0}),
    "row asymmetric": ("coreml", {"block": 0, "symmetric": False}),
    "row, embedding": ("coreml", {"block": 0, "embedding_bits": 8}),
    "palette": ("coreml", {"palette": 8}),
    "palette of single rows": ("coreml", {"palette": 1}),
    "palette, head": ("coreml", {"palette": 8, "head_bits": 8}),
    "cut": ("coreml", {"context": 100, "chunk": 48}),
    "tvm": ("tvm-arm", {}),
    "tvm asymmetric": ("tvm-arm", {"symmetric": False, "block": 16}),
    "tvm of 16 lanes": ("tvm-arm", {"cpu": "avx512vnni"}),
    "tvm, embedding and head": ("tvm-arm", {"embedding_bits": 8, "head_bits": 8}),
}
TINY = PUBLISHED["tiny"]
SHAPES = {
    "tiny": TINY,
    "tied": dataclasses.replace(TINY, tied_embeddings=True),
    "long": dataclasses.replace(TINY, long_rope=LongRope((1.0,) * 8, (4.0,) * 8, 64), vocab_size=264),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", STORED)
def test_the_weights_of_each_option_are_as_planned(stored: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction from a config against the layout of the program's file: what is between them is at most the alignment of
    each tensor (16 KiB for those from 64 KiB, else 64 bytes, and a record of 64 for Core ML) and Core ML's constants."""
    monkeypatch.setitem(PUBLISHED, shape, SHAPES[shape])
    target, chosen = STORED[stored]
    options = compile_options(f"random:{shape}", Path("x"), (target,), recipe="rtn", **chosen)
    planned, tensors = planned_weights(options)
    assert 0 <= planned - footprint(SHAPES[shape], target, options).files <= tensors


def test_a_table_whose_scales_are_multiplied_when_it_is_loaded_is_in_memory() -> None:
    """Of an embedding that is not the head, tokens read some rows of the mapped file. What is multiplied is whole in memory."""
    config, runtime = PUBLISHED["tiny"], find_target("ort-mobile").runtime(PUBLISHED["tiny"], OrtMobile(), 64, 64)
    head = Matrix(1000, 900, 10, 0)
    plain, by_row = (
        footprint_of(config, runtime, {HEAD: head, EMBEDDING: Matrix(1000, 900, 10, count)}, 64, 64, 64)
        for count in (0, 10)
    )
    assert not config.tied_embeddings
    assert by_row.weights - plain.weights == 10 * runtime.float_bytes
    assert by_row.read_per_token == plain.read_per_token


@functools.cache
def fused(model: str, context: int | None) -> Program:
    """The float program: a trace takes longer than all that is asked of it."""
    program = trace(open_checkpoint(model))
    run_passes(program, fusions(context))
    return program


def planned_weights(options: CompileOptions) -> tuple[int, int]:
    """Bytes of the weights' file, and how many of them may be something else than weights."""
    program = fused(options.model, options.context).copy()
    run_passes(program, quantization(asked_policy(options, program.config.tied_embeddings), {}, False))
    (target,), (prepared,) = options.of_targets, prepare(program, options).values()
    config = program.config
    specs = [spec for recipe in program.weights_read().values() for spec in recipe.parts.values()]
    slack = sum(16384 if spec.bytes >= 65536 else 64 for spec in specs)
    if isinstance(target, CoreML):
        positions = config.max_position + (target.chunk or 64)
        widths = {config.vocab_size, config.qkv_size, config.hidden_size, 2 * config.intermediate_size}
        steps = (target.chunk or 64) * (1 + config.heads // config.kv_heads)
        constants = 4 * positions + 2 * sum(widths) + 4 * steps
        return prepared.bytes, 128 * (len(specs) + 8) + constants
    return prepared.bytes, slack


@pytest.mark.sample
@pytest.mark.parametrize("target", TARGETS)
def test_blocks_with_an_offset_are_kept_as_planned(target: str) -> None:
    """`--recipe keep` of a file in Q4_1: an offset for each block, which only the file knows of."""
    options = compile_options("sample", Path("x"), (target,), recipe="keep")
    source = open_checkpoint("sample")
    planned, slack = planned_weights(options)
    made = footprint(source.config, target, options, kept=kept_weights(source))
    assert 0 <= planned - made.files <= slack
    assert planned - footprint(source.config, target, options).files > slack
    assert plan(options).run[target] == made
    assert fit(source.config, options, target, device(9 * 10**9)).footprint == made


def test_the_runtimes_are_as_their_targets_have_them() -> None:
    from pocketphi.targets.tvm_arm.kv_cache import CHUNK, KEYS
    from pocketphi.targets.tvm_arm.params import PARAMS_FILE

    target = find_target("tvm-arm")
    tvm = target.runtime(TINY, target.options(), 256, 256)
    assert (tvm.chunk, tvm.kv_multiple, target.weights_file) == (CHUNK, KEYS, PARAMS_FILE)
    made = footprint(TINY, "coreml", compile_options("-", Path("-"), ("coreml",), context=100, chunk=48))
    assert (made.kv_multiple, made.kv_cache(), made.context) == (48, 144 * 384, 100)


@pytest.mark.parametrize(
    ("target", "rows", "token"),
    [("tvm-arm", 2304, 393_216), ("coreml", 2112 + 64, 393_216), ("ort-mobile", 4096, 786_432)],
)
def test_a_window_bounds_the_cache_where_it_is_a_ring(target: str, rows: int, token: int) -> None:
    """Phi-3-mini-4k sees 2,047 tokens; a chunk has 256 of them, or 64, of which a padded one more may be written."""
    made = footprint(PUBLISHED["phi-3-mini-4k"], target, compile_options("-", Path("-"), (target,), context=4096))
    assert made.kv_cache() == rows * token
    assert made.kv_cache(1000) == made.kv_per_token * (1000 + -1000 % made.kv_multiple)


def test_a_mask_of_sparse_layers_is_counted() -> None:
    """32 heads: 4 bytes and a flag for each new token, of which a chunk has 128, and each token so far."""
    small = PUBLISHED["phi-3-small-8k"]
    dense = dataclasses.replace(small, sparse=None)
    options = compile_options("-", Path("-"), ("ort-mobile",), context=8192)
    found = [footprint(config, "ort-mobile", options).activations for config in (small, dense)]
    assert found[0] - found[1] == 128 * 8192 * 32 * 5


def test_the_full_size_as_measured() -> None:
    """2.39 GB on disk; 3.34 GB at the peak of loading, 3.73 GB after a prompt of 512 in a cache of 520 tokens."""
    made = footprint(PUBLISHED["phi-3-mini-4k"], "ort-mobile", MINI)
    assert made.files == pytest.approx(2.39e9, rel=0.01)
    assert made.weights + made.fixed + made.packing == pytest.approx(3.340e9, rel=0.03)
    assert made.total(520) == pytest.approx(3.733e9, rel=0.03)


def test_the_roofline_is_bandwidth_over_bytes() -> None:
    found = fit(PUBLISHED["phi-3-mini-4k"], MINI, "ort-mobile", device(9 * 10**9))
    # every matrix but the embedding once: 3.72e9 weights of 4 bits, a float32 scale for each 32; norms
    reads = (3_821_079_552 - 32064 * 3072 - 65 * 3072) * (0.5 + 4 / 32) + 65 * 3072 * 4
    assert found.decode == pytest.approx(50e9 / reads, rel=1e-6)
    assert found.decode_full == pytest.approx(50e9 / (reads + 4096 * 786432), rel=1e-6)


@pytest.mark.parametrize("target", ["ort-mobile", "coreml", "tvm-arm"])
def test_a_cache_of_int8_is_planned_where_there_is_one(target: str) -> None:
    """Phi-3-mini has 2·32·32 rows of 96 values a token; a row's scale takes four bytes."""
    options = dataclasses.replace(MINI, targets=(TvmArm(kv_cache="int8"), "ort-mobile"))
    width = {"ort-mobile": 4 * 96, "coreml": 2 * 96, "tvm-arm": 96 + 4}[target]
    found = fit(PUBLISHED["phi-3-mini-4k"], options, target, device(9 * 10**9))
    plain = fit(PUBLISHED["phi-3-mini-4k"], MINI, target, device(9 * 10**9))
    assert found.footprint.kv_per_token == 2 * 32 * 32 * width
    saved = (192 - 100) * 2 * 32 * 32 * 2304 if target == "tvm-arm" else 0  # its window, and a chunk
    assert plain.needed - found.needed == saved
    assert (found.decode_full > plain.decode_full) == (target == "tvm-arm")


def test_what_is_too_large_is_refused_in_bytes_with_what_would_fit() -> None:
    found = fit(PUBLISHED["phi-3-mini-4k"], MINI, "ort-mobile", device(4 * 10**9))
    message = (
        f"A test: ort-mobile needs {found.needed:,} bytes with 4,096 tokens, {found.needed - 4 * 10**9:,} more than the "
        "4,000,000,000 that an app may use; would fit: --block 64 --kv-cache int8; --fit takes that"
    )
    with pytest.raises(CheckFailed, match=re.escape(message)):
        fit_options(MINI, device(4 * 10**9), choose=False)
    chosen = fit_options(MINI, device(4 * 10**9), choose=True)
    assert (chosen.block, chosen.context, chosen.targets) == (64, None, (OrtMobile(kv_cache="int8"),))
    assert fit(PUBLISHED["phi-3-mini-4k"], chosen, "ort-mobile", device(4 * 10**9)).ok


@pytest.mark.parametrize(
    ("targets", "then"),
    [
        ((OrtMobile(),), "--block 64 --kv-cache int8"),
        ((OrtMobile(kv_cache="fp32"), "coreml"), "--block 128 --context 2048"),  # which has no such cache
        ((OrtMobile(kv_cache="int4"),), ""),  # what somebody chose stays
    ],
)
def test_a_smaller_cache_is_taken_where_all_targets_have_it(targets: Any, then: str) -> None:
    options = dataclasses.replace(MINI, targets=targets)
    assert difference(options, fit_options(options, device(4 * 10**9), choose=True)) == then


@pytest.mark.parametrize("chosen", [{"palette": 16}, {"block": 0, "head_bits": 8}])
def test_palettes_and_whole_rows_get_a_shorter_context(chosen: dict[str, Any]) -> None:
    """Blocks would be no coarser recipe than they are."""
    options = dataclasses.replace(MINI, targets=("coreml",), **chosen)
    small = device(2_700_000_000)
    chosen_options = fit_options(options, small, choose=True)
    assert chosen_options == dataclasses.replace(options, context=chosen_options.context)
    assert chosen_options.context == 1024
    with pytest.raises(CheckFailed, match=r"nothing would fit: the weights alone take \d,\d{3},\d{3},\d{3} bytes"):
        fit_options(options, device(10**9), choose=True)


def test_what_fits_stays_as_it_is() -> None:
    assert fit_options(MINI, device(9 * 10**9), choose=True) is MINI
    assert fit_options(MINI, device(9 * 10**9), choose=False) is MINI


def test_where_nothing_fits() -> None:
    with pytest.raises(
        CheckFailed, match=r"nothing would fit: with --block 256 the weights alone take 2,\d{3},\d{3},\d{3} bytes"
    ):
        fit_options(MINI, device(10**9), choose=True)


def test_core_ml_is_of_apple() -> None:
    with pytest.raises(InputError, match="--device test: has no Core ML; compile for --target ort-mobile"):
        fit(PUBLISHED["phi-3-mini-4k"], MINI, "coreml", device(9 * 10**9, "android"))


def test_an_unknown_device_has_a_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--device pixel8: not in the table; did you mean pixel-8\?"):
        find_device("pixel8")
    own = tmp_path / "own.toml"
    own.write_text('[kiosk]\nram = "2GiB"\nbandwidth = 12.8e9\n')
    assert find_device("kiosk", own).app == 2**30
    assert find_device("pixel-8", own).platform == "android"


BAD = {
    "[x]\nram = 1\n": "x lacks bandwidth; expected at least ram and bandwidth",
    "[x]\nram = 1\nbandwidth = 0\n": "x.bandwidth is 0, expected a positive number",
    "[x]\nram = '8 apples'\nbandwidth = 1\n": "x.ram: '8 apples' is not a size",
    "[x]\nram = 1\nbandwith = 1\n": "unknown key x.bandwith; did you mean bandwidth?",
    "[x]\nram = 1\nbandwidth = 1\nplatform = 'dos'\n": "x.platform is 'dos', expected one of ios, android, linux",
    "[x]\nram = 1\nbandwidth = 1\nfeatures = 'neon'\n": "x.features is 'neon', expected a list of texts",
    "defaults = 1\n": "defaults is 1, expected tables, [defaults.ios]",
    "[defaults]\nios = 1\n": "defaults is {'ios': 1}, expected tables, [defaults.ios]",
    "x = 1\n": "x: expected a table, [x], got 1",
    "[x": "not valid TOML",
    "x = " + "[" * 5000 + "]" * 5000: "nested too deeply",
    "[x]\nram = 1\nbandwidth = inf\n": "x.bandwidth is inf, expected a positive number",
    "[x]\nram = 1\nbandwidth = " + "9" * 400 + "\n": "x.bandwidth is a number of",
    "[x]\nram = '1e9GB'\nbandwidth = 1\n": "x.ram: '1e9GB' is not a size",
    "[x]\nram = '" + "9" * 500 + "'\nbandwidth = 1\n": "x.ram: '9999",
    "[x]\nram = 1\nbandwidth = 1\ntitle = 3\n": "x.title is [3], expected a list of texts",
    "['a b']\nram = 1\nbandwidth = 1\n": "'a b': expected a name of letters",
    "[defaults.iso]\nsources = []\n": "unknown key defaults.iso; did you mean ios?",
    "[defaults.ios]\nsource = []\n": "unknown key defaults.ios.source; did you mean sources?",
    '[x]\n"ra\\nm" = 1\n': r"unknown key x.'ra\nm'; did you mean ram?",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(BAD[text])):
        read_devices(path)


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert main(["compile", "random:phi-3-mini-4k", "-o", str(out), "--recipe", "rtn", "--device", "iphone-15"]) == 1
    captured = capsys.readouterr()
    assert (
        "more than the 3,221,225,472 that an app may use; would fit: --block 128 --kv-cache int8; --fit takes"
        in captured.err
    )
    assert not out.exists()
    assert main(["compile", "random:tiny", "-o", str(out), "--fit"]) == 2
    assert "--fit: to what? name a --device" in capsys.readouterr().err
    for speed in ("1e-320", "0", "nan", "inf"):
        slow = ["--device", "pixel-8", "--min-tokens-per-second", speed]
        assert main(["compile", "random:tiny", "-o", str(out), *slow, "--dry-run"]) == 2
        assert f"--min-tokens-per-second {speed}: expected a number, 0.001 or more" in capsys.readouterr().err.replace(
            "9.99989e-321", speed
        )
    assert (
        main(
            ["compile", "random:tiny", "-o", str(out), "--recipe", "rtn", "--device", "pixel-8", "--dry-run", "--json"]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["devices", "random:phi-3-mini-4k", "--device", "iphone-16", "--json"]) == 0
    found = {row["target"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["ok"] for name, row in found.items()} == {"ort-mobile": False, "coreml": True, "tvm-arm": True}
    command = ["devices", "random:phi-3-mini-4k", "--device", "iphone-16", "--target", "tvm-arm", "--json"]
    assert main([*command, "--kv-cache", "int8"]) == 0
    smaller = json.loads(capsys.readouterr().out)[0]["needed"]
    assert found["tvm-arm"]["needed"] - smaller == 2 * 32 * 32 * (192 - 100) * 2304
    coreml = found["coreml"]
    assert set(coreml) == {f.name for f in dataclasses.fields(Fit)} | {"ok"}


def test_a_budget_on_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is chosen is judged before anything is written."""
    table = '[{}]\nram = "{}"\nbandwidth = 10_000_000_000\n'
    (tmp_path / "own.toml").write_text(table.format("large", "8GB") + table.format("small", "1MB"))
    out, cache = tmp_path / "b", tmp_path / "cache"
    asked = ["--bits", "6", "--devices", str(tmp_path / "own.toml"), "--cache", str(cache), "-o", str(out), "--dry-run"]
    assert main(["compile", "random:tiny", *asked, "--device", "large"]) == 0
    assert "large, ort-mobile: fits: 0.02 GB of 4.00 GB, 256 tokens; at most" in capsys.readouterr().err
    asked.remove("--dry-run")
    assert main(["compile", "random:tiny", *asked, "--device", "small"]) == 1
    refusal = "more than the 500,000 that an app may use; choose a smaller budget or --context"
    assert refusal in capsys.readouterr().err
    assert not out.exists()


def test_a_target_that_a_device_cannot_run_is_refused_before_a_budget_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketphi.compiler.plan.spend", None)  # would fail if it were called
    arguments = ["-o", str(tmp_path / "b"), "--bits", "6", "--device", "pixel-8", "--target", "coreml"]
    assert main(["compile", "random:tiny", *arguments]) == 2
    assert "--device pixel-8: has no Core ML; compile for --target ort-mobile" in capsys.readouterr().err
