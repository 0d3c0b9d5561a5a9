"""The C runtime on a small real library, natively and under qemu: the same logits as numpy, and one line for each failure."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_tvm
import numpy as np
import pytest
import tvm
import tvm_small as small

from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.targets.tvm_arm.build_runtime import RuntimeFiles, build_runtime
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain, find_toolchain, host_arch

PROMPT = [(7 * i + 3) % small.VOCAB for i in range(20)]
SWITCH = 12
CORES = os.sched_getaffinity(0)


def cores_of(process: RuntimeProcess) -> list[set[int]]:
    """That each of a process's threads may run on."""
    return [os.sched_getaffinity(int(path.name)) for path in Path(f"/proc/{process.pid}/task").iterdir()]


@pytest.fixture(scope="session")
def machine() -> Callable[[str], tuple[Toolchain, RuntimeFiles]]:
    """A toolchain and the runtime built with it. Skips where its compiler or qemu is not installed."""
    built: dict[str, tuple[Toolchain, RuntimeFiles]] = {}

    def get(arch: str) -> tuple[Toolchain, RuntimeFiles]:
        if arch not in built:
            try:
                toolchain = find_toolchain("linux", arch)
                toolchain.command(Path("x"))
            except InputError as error:
                pytest.skip(str(error))
            built[arch] = toolchain, build_runtime(toolchain)
        return built[arch]

    return get


@pytest.fixture(scope="session")
def bundle(machine: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A written bundle; not to be changed."""
    written: dict[tuple[Any, ...], Path] = {}

    def get(arch: str, long_after: int | None = None) -> Path:
        if (arch, long_after) not in written:
            folder = tmp_path_factory.mktemp(arch) / "bundle"
            toolchain, _ = machine(arch)
            written[arch, long_after] = small.write_small_bundle(folder, toolchain, small.small_params(), long_after)
        return written[arch, long_after]

    return get


@pytest.fixture
def start(machine: Any, bundle: Any) -> Any:
    """Open a bundle in a process; closed at the end of the test."""
    processes = []

    def run(
        folder: Path | None = None, arch: str = host_arch(), cpu: str | None = None, **options: Any
    ) -> RuntimeProcess:
        toolchain, files = machine(arch)
        processes.append(RuntimeProcess(toolchain.command(files.runner, cpu), folder or bundle(arch), **options))
        return processes[-1]

    yield run
    for process in processes:
        process.close()


@pytest.fixture
def copy(bundle: Any, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the host's bundle whose model.json is changed: dotted keys and values."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(bundle(host_arch()), folder)
        description = json.loads((folder / "model.json").read_text())
        for key, value in changes.items():
            *path, last = key.split("__")
            at = description
            for name in path:
                at = at[int(name) if isinstance(at, list) else name]
            if value is None:
                del at[last]
            else:
                at[last] = value
        (folder / "model.json").write_text(json.dumps(description))
        return folder

    return make


ARCHS = [host_arch()] if host_arch() == "aarch64" else [host_arch(), "aarch64"]


@pytest.mark.parametrize("mode", ["saved", "exact"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_logits_are_numpys(start: Any, arch: str, mode: str) -> None:
    process, model = start(arch=arch, mode=mode, threads=2), small.SmallModel(small.small_params(), mode)
    assert (process.vocab, process.context, process.length) == (small.VOCAB, small.CONTEXT, 0)
    got = [process.prefill(PROMPT)]
    wanted, bounds = [model.step(PROMPT)[-1]], [model.bound[-1]]
    for token in (5, 95, 0):
        got.append(process.decode(token))
        wanted.append(model.step([token])[-1])
        bounds.append(model.bound[-1])
    got.extend(process.every_position(PROMPT[:10]))
    wanted.extend(model.step(PROMPT[:10]))
    bounds.extend(model.bound)
    assert np.all(np.abs(np.array(got) - np.array(wanted)) <= np.array(bounds))
    assert process.length == 33
    other = small.SmallModel(small.small_params(seed=1), mode).step(PROMPT)[-1]
    assert np.abs(got[0] - other).max() > 10 * bounds[0].max()  # the bound is one that can be missed
    process.reset()
    assert process.length == 0
    np.testing.assert_array_equal(process.prefill(PROMPT), got[0])


@pytest.mark.parametrize("long_after", [None, SWITCH])
@pytest.mark.parametrize("arch", ARCHS)
def test_guessed_tokens_change_no_bit_and_save_calls(
    start: Any, bundle: Any, arch: str, long_after: int | None
) -> None:
    """A text that repeats itself, but for some tokens, up to the cache's last row; prompts between its tokens, and LongRoPE's
    switch."""
    text = [(5, 11, 17, 23)[i % 4] for i in range(small.CONTEXT)]
    text[13] = text[30] = 90
    plain, guessing, learning = (start(bundle(arch, long_after), arch, draft=d) for d in ("none", "always", "auto"))
    for _ in range(2):
        made: list[list[np.ndarray]] = [[], [], []]
        for process, logits in zip((plain, guessing, learning), made):
            process.reset()
            logits.append(process.prefill(text[:6]))
            logits.extend(process.decode(token) for token in text[6:20])
            logits.append(process.prefill(text[20:23]))
            logits.extend(process.every_position(text[23:25]))
            logits.extend(process.decode(token) for token in text[25:])
            assert process.length == small.CONTEXT
            with pytest.raises(InputError, match="the cache holds 48 tokens: 48 are in it, 1 more do not fit"):
                process.decode(5)
        assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(*made, strict=True))
    assert guessing.calls < 0.7 * plain.calls


def test_a_text_without_repetitions_is_not_guessed_at(start: Any) -> None:
    plain, guessing = (start(draft=draft) for draft in ("none", "always"))
    for process in (plain, guessing):
        process.prefill([1, 2])
        for token in range(3, small.CONTEXT):
            process.decode(token)
    assert guessing.calls == plain.calls == small.CONTEXT - 2


def test_an_unknown_way_to_guess_is_refused(start: Any) -> None:
    with pytest.raises(InputError, match=r'options\.draft: expected "none", "auto" or "always"'):
        start(draft="often")


@pytest.mark.parametrize("first", [SWITCH, 9, 1])
@pytest.mark.parametrize("every", [False, True])
def test_past_the_switch_of_longrope_everything_is_computed_again(
    start: Any, bundle: Any, first: int, every: bool
) -> None:
    process = start(bundle(host_arch(), SWITCH))
    model = small.SmallModel(small.small_params(), long_after=SWITCH)
    process.prefill(PROMPT[:first])
    rest = PROMPT[first:]
    got = process.every_position(rest) if every else process.prefill(rest)
    model.step(PROMPT[:first])
    wanted = model.step(rest)
    assert np.all(np.abs(got - (wanted if every else wanted[-1])) <= model.bound)
    short = small.SmallModel(small.small_params()).step(PROMPT)[-1]
    assert np.abs(got[-1] if every else got).max() > 1.5 * np.abs(short).max()  # keys are doubled: all of them were


def test_a_decode_crosses_the_switch_of_longrope(start: Any, bundle: Any) -> None:
    process = start(bundle(host_arch(), SWITCH))
    model = small.SmallModel(small.small_params(), long_after=SWITCH)
    process.prefill(PROMPT[:SWITCH])
    model.step(PROMPT[:SWITCH])
    for token in PROMPT[SWITCH : SWITCH + 3]:
        got, wanted = process.decode(token), model.step([token])[-1]
        assert np.all(np.abs(got - wanted) <= model.bound)


def test_threads(start: Any) -> None:
    one, two = start(threads=1), start(threads=2)
    np.testing.assert_array_equal(one.prefill(PROMPT), two.prefill(PROMPT))
    for process, workers in (one, 1), (two, min(2, len(CORES))):
        cores = cores_of(process)
        assert len(cores) == 1 + workers  # the program's own, and the handle's with the workers beside it
        assert all(may == CORES for may in cores)  # bound to none: they would wait for whatever else runs there


def test_threads_stay_on_the_cores_of_the_process(machine: Any, bundle: Any) -> None:
    toolchain, files = machine(host_arch())
    core = min(CORES)
    with RuntimeProcess(
        ["taskset", "-c", str(core), *toolchain.command(files.runner)], bundle(host_arch()), threads=2
    ) as process:
        process.prefill(PROMPT)
        assert cores_of(process) == [{core}, {core}]  # a second worker would only wait for the first


def test_max_tokens_is_the_size_of_the_cache(start: Any) -> None:
    process = start(max_tokens=12)
    assert process.context == 12
    process.prefill(PROMPT[:10])
    with pytest.raises(InputError, match=r"^the cache holds 12 tokens: 10 are in it, 3 more do not fit$"):
        process.prefill(PROMPT[:3])
    assert process.length == 10
    model = small.SmallModel(small.small_params())
    model.step(PROMPT[:10])
    assert np.all(np.abs(process.prefill([1, 2]) - model.step([1, 2])[-1]) <= model.bound)  # nothing was appended


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, r"options\.threads: -1 is not within 0 to 1024"),
        ({"threads": "two"}, r"options\.threads: expected a whole number"),
        ({"thread": 1}, 'options: no option "thread"; there are threads, mode, max_tokens, check, draft and prefix'),
        ({"mode": "fast"}, 'mode "fast": the library was built without it'),
        ({"max_tokens": 49}, "max_tokens 49 is more than the model's context of 48"),
        ({"check": 1.5}, r"options\.check: expected true or false"),
    ],
)
def test_options_that_are_refused(start: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        start(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "model.json: format 2; this runtime reads format 1: update it"),
        ({"vocab": None}, 'model.json: no "vocab"'),
        ({"vocab": 0}, "model.json: vocab: 0 is not within 1 to"),
        (
            {"vocab": 95},
            "^model.json: vocab: the library was built for 96: model.json was changed, or is of another build",
        ),
        ({"context": 100_000}, "^model.json: context: the library was built for 48"),
        ({"context": 47}, "^model.json: context: the library was built for 48"),
        ({"context": 2**40}, "^model.json: context: the library was built for 48"),
        ({"context": True}, "model.json: context: expected a whole number"),
        ({"chunk": 9}, "^model.json: chunk: the library was built for 8"),
        ({"cache__count": 1}, r"^model.json: cache\.count: the library was built for 2"),
        ({"cache__multiple": 1 << 20}, "^model.json: cache: the library was built for 3 entries"),
        ({"cache__shape__exact": [2, 48, 9]}, r"^model.json: cache\.shape\.exact\[2\]: the library was built for 8"),
        ({"params__1__offset": 0}, r"^model.json: params\[1\]\.offset: the library was built for"),
        ({"params__0__offset": 1 << 40}, "^model.json: embed ends beyond params_bytes"),
        ({"params__0__shape": [1 << 40, 1 << 40]}, "^model.json: a tensor larger than memory can be"),
        ({"target__features": []}, r"^model.json: target\.features: the library was built for \d of them"),
        (
            {"cache__shape__saved": [2, 48]},
            r"model.json: cache.shape.saved: expected \[heads, rows, elements of a row\]",
        ),
        ({"cache__dtype__saved": "half"}, r'model.json: cache.dtype.saved: "half" is no type of number'),
        (
            {"functions__saved__decode": "decode_exact"},
            r'^model.json: functions\.saved\.decode: the library .* "decode":',
        ),
        (
            {"functions__saved__prefill_all": None},
            r"^model.json: functions\.saved: the library was built for 3 entries",
        ),
        (
            {"params_bytes": 14337},
            r"model.params: 14336 bytes, expected 14337: the copy is not complete, or of another",
        ),
        ({"long_rope_after": 5}, "^model.json: long_rope_after: the library was built for null"),
        ({"params_digest": "0" * 64}, "model.so and model.json are of two builds: their parameters' digests differ"),
        ({"params": []}, "^model.json: params: the library was built for 4 of them"),
        (
            {"target__arch": "riscv64"},
            f"the library was built for riscv64 and linux; this runtime is for {host_arch()}",
        ),
        ({"target__os": "ios"}, f"the library was built for {host_arch()} and ios; this runtime is for {host_arch()}"),
        ({"target__features": ["neon9"]}, "this CPU lacks neon9, which the library was built for: compile for this"),
        ({"system_lib": "other_"}, '^no library "other_" is linked into this program$'),
    ],
)
def test_a_bundle_that_does_not_fit_is_one_line(start: Any, copy: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        start(copy(**changes)).every_position([1, 2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("model.json", b"{\x00\xff", "model.json: not valid JSON"),
        ("model.json", b"[]", "model.json: expected an object"),
        ("model.json", b"", "model.json: not valid JSON"),
        ("model.json", None, "model.json: No such file or directory"),
        ("model.json", b"[" * 100_000, "model.json: not valid JSON: nested deeper than 32"),
        ("model.json", b'{"a":' * 1_000_000, "model.json: not valid JSON: nested deeper than 32"),
        (
            "model.json",
            b'{"a": "[[' + b"[" * 100 + b'\\"[", "b": {}}',
            r'model.json: no "format"',
        ),  # brackets in a text
        ("model.json", b'{"format": ' + b"9" * 5000 + b"}", "model.json: not valid JSON"),
        ("model.json", b'{"format": 1.0}', "model.json: format: expected a whole number"),
        ("model.params", None, "model.params: No such file or directory"),
        ("model.params", b"12345", "model.params: 5 bytes, expected 14336"),
        ("model.so", None, "model.so: No such file or directory"),
        ("model.so", b"\x7fELF" + bytes(100), "model.so"),
        ("model.so", b"", "model.so: file too short"),
    ],
)
def test_damaged_files(start: Any, copy: Any, file: str, data: bytes | None, message: str) -> None:
    folder = copy()
    (folder / file).unlink()
    if data is not None:
        (folder / file).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        start(folder)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_cut(start: Any, copy: Any) -> None:
    """The loader would map what is not there, and end the process when it is touched."""
    library = copy() / "model.so"
    size = library.stat().st_size
    for left in (size - 1, size // 2, 4096, 64, 63, 1):
        os.truncate(library, left)
        with pytest.raises(InputError, match=r"/model.so: ") as caught:
            start(library.parent)
        assert left < 64 or str(caught.value).endswith(
            f"{left} bytes, expected {size}: the copy is not complete, or of another model"
        )


@pytest.mark.parametrize("file", ["model.json", "model.params", "model.so"])
def test_what_is_no_file(start: Any, copy: Any, file: str) -> None:
    folder = copy()
    (folder / file).unlink()
    os.mkfifo(folder / file)  # whose reader would wait for ever
    with pytest.raises(InputError, match=f"/{file}: expected a file$"):
        start(folder)
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(InputError, match=f"/{file}: expected a file$"):
        start(folder)


def test_a_description_of_any_size_is_not_read(start: Any, copy: Any) -> None:
    folder = copy()
    os.truncate(folder / "model.json", 1 << 40)
    with pytest.raises(InputError, match=r"model.json: 1099511627776 bytes are too many$"):
        start(folder)


def test_a_library_of_an_older_version(start: Any, copy: Any, machine: Any) -> None:
    folder, toolchain = copy(), machine(host_arch())[0]
    executable = tvm.compile(small.small_module(""), tvm.target.Target(small.CPU[host_arch()][0]))
    executable.export_library(str(folder / "model.so"), fcompile=toolchain.fcompile)
    with pytest.raises(
        InputError, match=r"^the library does not say what it was built for, .*: compile the model again$"
    ):
        start(folder)


def in_place(folder: Path, data: bytes, at: int = 0) -> None:
    """Write into model.params and hide it: the file's times stay."""
    path = folder / "model.params"
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def head(folder: Path) -> tuple[int, bytes]:
    """Where the weight behind the caches lies in model.params, and its bytes."""
    row = json.loads((folder / "model.json").read_text())["params"][-1]
    size = 4 * int(np.prod(row["shape"]))
    return row["offset"], (folder / "model.params").read_bytes()[row["offset"] : row["offset"] + size]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("call", ["prefill", "every_position", "decode"])
def test_logits_that_are_no_numbers_are_an_error(start: Any, copy: Any, value: float, call: str) -> None:
    folder = copy()
    offset, right = head(folder)
    process = start(folder)
    expected = process.prefill(PROMPT)
    in_place(folder, np.float32(value).tobytes(), offset + 4 * 5)  # one weight: one logit
    with pytest.raises(
        InputError,
        match=r"^a logit is no finite number: a value is too large for the cache, or model.params is damaged$",
    ):
        getattr(process, call)(3 if call == "decode" else PROMPT[:3])
    in_place(folder, right, offset)
    process.reset()
    np.testing.assert_array_equal(process.prefill(PROMPT), expected)


def test_a_failure_past_the_switch_of_longrope_leaves_the_cache_as_it_was(
    start: Any, bundle: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle(host_arch(), SWITCH), tmp_path / "bundle")
    offset, right = head(folder)
    process, model = start(folder), small.SmallModel(small.small_params(), long_after=SWITCH)
    process.prefill(PROMPT[:9])
    in_place(folder, np.float32(np.nan).tobytes(), offset)
    with pytest.raises(InputError, match="no finite number"):
        process.prefill(PROMPT[9:])  # the first nine rows of the cache are the long ones by now
    in_place(folder, right, offset)
    model.step(PROMPT[:9])
    assert process.length == 9
    for token in (4, 5):
        assert np.all(np.abs(process.decode(token) - model.step([token])[-1]) <= model.bound)


def test_parameters_that_change_while_they_are_mapped(start: Any, copy: Any) -> None:
    folder = copy()
    path = folder / "model.params"
    process, data, status = start(folder), path.read_bytes(), path.stat()
    expected = process.prefill(PROMPT)
    message = r"model.params: it was changed while the model is open: close the model and open it again$"
    with path.open("r+b") as file:
        file.truncate(4096)  # the pages behind it would end the process
    with pytest.raises(InputError, match=message):
        process.decode(1)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match=message):
        process.decode(1)
    assert process.length == len(PROMPT)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    process.reset()
    np.testing.assert_array_equal(process.prefill(PROMPT), expected)
    replaced = folder / "new.params"
    replaced.write_bytes(bytes(len(data)))
    replaced.rename(path)  # the mapped file is still there
    process.reset()
    np.testing.assert_array_equal(process.prefill(PROMPT), expected)


def test_a_library_that_pocketphi_did_not_build(start: Any, copy: Any, machine: Any) -> None:
    folder = copy()
    shutil.copy(machine(host_arch())[1].library, folder / "model.so")
    with pytest.raises(InputError, match=r"^model.so: not a library that pocketphi built$"):
        start(folder)


def test_a_flipped_bit_is_found_when_asked_for(start: Any, copy: Any) -> None:
    folder = copy()
    start(folder, check=True)
    data = bytearray((folder / "model.params").read_bytes())
    data[9000] ^= 16
    (folder / "model.params").write_bytes(data)
    start(folder)
    with pytest.raises(
        InputError, match=r"model.params: its SHA-256 is not the one in model.json: the file is damaged$"
    ):
        start(folder, check=True)


def test_a_folder_that_is_not_there(start: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/model.json: No such file or directory$"):
        start(tmp_path / "nowhere")


def test_a_cpu_without_the_librarys_features_is_refused_before_its_code_runs(start: Any) -> None:
    with pytest.raises(InputError, match=r"^this CPU lacks dotprod, which the library was built for: compile for this"):
        start(arch="aarch64", cpu="cortex-a53")
    assert start(arch="aarch64", cpu="cortex-a76").prefill(PROMPT).shape == (small.VOCAB,)


@pytest.mark.parametrize("tokens", [[96], [-1], [1, 2, 1000]])
def test_tokens_outside_the_vocabulary(start: Any, tokens: list[int]) -> None:
    process = start()
    with pytest.raises(InputError):
        process.prefill(tokens)
    assert process.prefill(PROMPT).shape == (small.VOCAB,)
    assert process.length == len(PROMPT)


def test_parameters_are_mapped_and_not_read(machine: Any, start: Any, tmp_path: Path) -> None:
    extra, params = 200 << 20, small.small_params()
    folder = small.write_small_bundle(tmp_path / "bundle", machine(host_arch())[0], params, extra_bytes=extra)
    process, model = start(folder, threads=1), small.SmallModel(params)
    assert np.all(np.abs(process.prefill(PROMPT) - model.step(PROMPT)[-1]) <= model.bound[-1])
    process.decode(1)
    assert process.last.peak_bytes < 16 << 20
    mapped = [line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if "model.params" in line]
    assert [line.split()[1] for line in mapped] == ["r--s"]
    checked = start(folder, check=True)
    assert checked.opened.peak_bytes < 16 << 20


def test_a_process_that_ends_is_an_error_with_the_reason(start: Any) -> None:
    process = start()
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is gone for sure: the request meets a closed pipe
    with pytest.raises(CheckFailed, match=r"^the TVM runtime ended \(signal 9, Killed\)$"):
        process.prefill(PROMPT)
    with pytest.raises(InputError, match=r"^/nowhere/runner: cannot be run: No such file or directory$"):
        RuntimeProcess(["/nowhere/runner"], Path("x"))
    with pytest.raises(CheckFailed, match=r"ended \(exit code 3\): last words$"):
        RuntimeProcess(["sh", "-c", "echo first >&2; echo last words >&2; exit 3"], Path("x"))


def test_requests_that_are_none(machine: Any, bundle: Any) -> None:
    requests = b"prefill\nprefill 1 x\ndecode 1 2\nfly 1\n\nprefill 99999999999\n\xff\xfe\nreset\n"
    command = [str(machine(host_arch())[1].runner), str(bundle(host_arch()))]
    done = subprocess.run(command, input=requests, capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    known = "prefill ID…, prefill_all ID…, decode ID, reset, adapter NAME, draft PATH, save HEX PATH or load PATH"
    assert lines[1:-1] == [f"error expected: {known}"] * 7
    assert lines[-1].startswith("ok 0 ")


def test_requests_longer_than_the_cache_take_no_memory(machine: Any, bundle: Any) -> None:
    """The logits of three million tokens would take more than the process may have."""
    command = [str(machine(host_arch())[1].runner), str(bundle(host_arch()))]
    limits = f"ulimit -v {1 << 20}; exec {shlex.join(command)}"
    requests = b"prefill_all" + b" 1" * 3_000_000 + b"\nreset\n"
    done = subprocess.run(["bash", "-c", limits], input=requests, capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert lines[1].startswith(f"error the cache holds {small.CONTEXT} tokens: 0 are in it, 3000000 more do not fit")
    assert lines[-1].startswith("ok 0 ")


def test_chat_prints_greedy_tokens_up_to_a_stop(machine: Any, bundle: Any) -> None:
    model, greedy = small.SmallModel(small.small_params()), []
    logits = model.step([1, 2, 3])
    for _ in range(6):
        greedy.append(int(logits[-1].argmax()))
        logits = model.step([greedy[-1]])
    command = [str(machine(host_arch())[1].runner), str(bundle(host_arch())), "--chat", "--max", "6"]
    assert run(command, "1 2 3\n") == (0, " ".join(map(str, greedy)), "")
    stop = next(i for i, token in enumerate(greedy) if token != greedy[0])
    text = " ".join(map(str, greedy[:stop]))
    assert run([*command, "--stop", str(greedy[stop])], "1 2 3\n") == (0, text, "")
    assert run(command, "hello\n") == (2, "", "expected a line of token ids")
    assert run(command[:1], "")[2].startswith("usage: pocketphi-runner BUNDLE")


def run(command: list[str], text: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_the_c_api_from_c_threads_and_a_local_dlopen(machine: Any, bundle: Any, tmp_path: Path) -> None:
    """As an app does it: the library is loaded by a name that stays local, two handles are used from other threads."""
    files = machine(host_arch())[1]
    program = tmp_path / "app"
    source = tmp_path / "app.c"
    source.write_text(textwrap.dedent(C_PROGRAM))
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    compiler = shutil.which("cc") or "gcc"
    command = [compiler, *strict, f"-I{SOURCES}", str(source), "-o", str(program), "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    code, said, wrong = run([str(program), str(files.library), str(bundle(host_arch()))], "", LD_BIND_NOW="1")
    assert (code, wrong) == (0, "")
    values = np.array([float(word) for word in said.split()])
    for value, mode in zip(values, ("saved", "exact"), strict=True):
        model = small.SmallModel(small.small_params(), mode)
        model.step([1, 2, 3])
        wanted = model.step([4])[-1]
        assert abs(value - wanted[7]) <= model.bound[-1][7] + 1e-5 * abs(wanted[7])  # six digits are printed


C_PROGRAM = r"""
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <pthread.h>
    #include <stdio.h>
    #include <string.h>

    #include "pocketphi_runtime.h"

    static void *library;
    static const char *folder;
    static float results[2];

    static void *use(void *index) {
      int i = *(int *)index;
      float logits[96];
      int32_t tokens[3] = {1, 2, 3};
      char error[64];
      pocketphi *(*open)(const char *, const char *, char *, size_t);
      int (*prefill)(pocketphi *, const int32_t *, int32_t, float *);
      int (*decode)(pocketphi *, int32_t, float *);
      void (*reset)(pocketphi *);
      void (*close)(pocketphi *);
      *(void **)&open = dlsym(library, "pocketphi_open");
      *(void **)&prefill = dlsym(library, "pocketphi_prefill");
      *(void **)&decode = dlsym(library, "pocketphi_decode");
      *(void **)&reset = dlsym(library, "pocketphi_reset");
      *(void **)&close = dlsym(library, "pocketphi_close");
      if (open("/nowhere", NULL, error, 9) || strcmp(error, "/nowhere")) return "not cut to its size";
      if (open("/nowhere", NULL, NULL, 0)) return "opened nothing";
      pocketphi *model = open(folder, i ? "{\"mode\": \"exact\", \"threads\": 2}" : "", error, sizeof error);
      if (!model) return "not opened";
      for (int n = 0; n < 200; ++n) {
        reset(model);
        if (prefill(model, tokens, 3, logits) || decode(model, 4, logits)) return "failed";
      }
      if (!prefill(model, tokens, 0, logits)) return "no tokens were accepted";
      results[i] = logits[7];
      close(model);
      close(NULL);
      return NULL;
    }

    int main(int argc, char **argv) {
      int indices[2] = {0, 1}, failed = argc != 3;
      pthread_t threads[2];
      library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
      folder = argv[2];
      if (!library) return 1;
      for (int i = 0; i < 2; ++i) pthread_create(&threads[i], NULL, use, &indices[i]);
      for (int i = 0; i < 2; ++i) {
        void *problem;
        pthread_join(threads[i], &problem);
        if (problem) fprintf(stderr, "%s\n", (char *)problem), failed = 1;
      }
      printf("%.6g %.6g\n", results[0], results[1]);
      return failed;
    }
"""


def test_the_c_api_used_wrongly(machine: Any, bundle: Any) -> None:
    """NULL, counts, closed handles, calls at once: each fails or waits, none takes the process with it."""
    program = Path(small.__file__).with_name("misuse_runtime.py")
    command = [sys.executable, str(program), str(machine(host_arch())[1].library), str(bundle(host_arch()))]
    assert run(command, "") == (0, "ok", "")


def test_damaged_bundles_under_the_sanitizers(machine: Any, bundle: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle(host_arch()), tmp_path / "bundle")
    counts, wrong = fuzz_tvm.fuzz(fuzz_tvm.build_driver(tmp_path), folder, range(250))
    assert wrong == []
    assert counts["model.json refused"] > 125
    assert counts["options refused"] > 12
    assert counts["model.params refused"] > 4


def test_memory_that_ends(machine: Any, bundle: Any, tmp_path: Path) -> None:
    """At each allocation in turn: a call fails in one line, and the next one is right."""
    source, program = Path(small.__file__).with_name("short_of_memory.cc"), tmp_path / "short"
    toolchain, runtime = machine(host_arch())
    archive = [str(runtime.archive), "-Wl,--wrap=posix_memalign", "-rdynamic", "-ldl", "-pthread"]
    toolchain.run("-std=c++17", f"-I{SOURCES}", str(source), *archive, "-o", str(program))
    assert run([str(program), str(bundle(host_arch()))], "") == (0, "ok", "")


def test_sha256_is_hashlibs(machine: Any, tmp_path: Path) -> None:
    source, program = tmp_path / "sha.cc", tmp_path / "sha"
    source.write_text(
        '#include "sha256.h"\n#include <cstdio>\nint main() { pocketphi_runtime::Sha256 h; unsigned char b[37]; size_t n;'
        " while ((n = fread(b, 1, sizeof b, stdin))) h.update(b, n); puts(h.hex().c_str()); }"
    )
    machine(host_arch())[0].run("-std=c++17", f"-I{SOURCES}", str(source), "-o", str(program))
    data = np.random.default_rng(0).bytes(100_000)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 100_000):
        done = subprocess.run([str(program)], input=data[:size], capture_output=True, check=True)
        assert done.stdout.decode().strip() == hashlib.sha256(data[:size]).hexdigest(), size
