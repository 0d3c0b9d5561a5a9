"""Conversations in files: what is computed after one was read has the bits that it had, and a file that is none is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_small as small

pytest.importorskip("tvm")

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import Toolchain, find_toolchain, host_arch

PROMPT = [(7 * i + 3) % small.VOCAB for i in range(20)]
HEAD = 16  # bytes before the numbers, of eight bytes each
FIELDS = ("bundle", "adapter", "tokens", "rows", "numbers", "scales", "note", "pieces")
MASK = 2**64 - 1
PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def xxh64(data: bytes) -> int:
    """By the words of xxHash's specification, seed 0."""

    def turned(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & MASK

    def mixed(total: int, lane: int) -> int:
        return turned((total + lane * PRIMES[1]) & MASK, 31) * PRIMES[0] & MASK

    sums = [(PRIMES[0] + PRIMES[1]) & MASK, PRIMES[1], 0, -PRIMES[0] & MASK]
    stripes = len(data) // 32
    for i in range(stripes):
        sums = [mixed(s, lane) for s, lane in zip(sums, struct.unpack_from("<4Q", data, 32 * i))]
    h = PRIMES[4]
    if stripes:
        h = sum(turned(s, by) for s, by in zip(sums, (1, 7, 12, 18))) & MASK
        for s in sums:
            h = ((h ^ mixed(0, s)) * PRIMES[0] + PRIMES[3]) & MASK
    h, rest = (h + len(data)) & MASK, data[32 * stripes :]
    while len(rest) >= 8:
        h = (turned(h ^ mixed(0, int.from_bytes(rest[:8], "little")), 27) * PRIMES[0] + PRIMES[3]) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        h = (turned(h ^ int.from_bytes(rest[:4], "little") * PRIMES[0] & MASK, 23) * PRIMES[1] + PRIMES[2]) & MASK
        rest = rest[4:]
    for byte in rest:
        h = turned(h ^ byte * PRIMES[4] & MASK, 11) * PRIMES[0] & MASK
    h = (h ^ h >> 33) * PRIMES[1] & MASK
    h = (h ^ h >> 29) * PRIMES[2] & MASK
    return h ^ h >> 32


def test_the_reference_of_the_sum() -> None:
    """Published values."""
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("linux", host_arch())


@pytest.fixture(scope="module")
def bundles(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of one shape."""
    folder = tmp_path_factory.mktemp("sessions")
    return [small.write_small_bundle(folder / str(seed), toolchain, small.small_params(seed)) for seed in (0, 1)]


@pytest.fixture
def start(toolchain: Toolchain, bundles: list[Path]) -> Any:
    opened: list[RuntimeProcess] = []

    def make(bundle: int = 0, **options: Any) -> RuntimeProcess:
        command = toolchain.command(build_runtime(toolchain).runner)
        opened.append(RuntimeProcess(command, bundles[bundle], **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


Start = Callable[..., RuntimeProcess]


@pytest.mark.parametrize("mode", ["saved", "exact"])
@pytest.mark.parametrize("draft", ["none", "always"])
def test_it_goes_on_with_the_same_bits(start: Start, tmp_path: Path, mode: str, draft: str) -> None:
    """In another process, with more room or less, after other tokens, and twice from one file."""
    path = tmp_path / "a talk"
    first = start(mode=mode, draft=draft)
    first.prefill(PROMPT)
    first.decode(5)
    note = 'Fünf "Wörter" \N{SLIGHTLY SMILING FACE}\n{}'
    first.save(path, note)
    rest = [first.decode(token).copy() for token in (1, 2, 3, 10, 17, 24)]
    for room in (None, 30):
        other = start(mode=mode, **({"max_tokens": room} if room else {}))
        other.prefill(PROMPT[5:12])
        for _ in range(2):
            assert other.load(path) == note
            assert other.length == 21
            got = [other.decode(token) for token in (1, 2, 3, 10, 17, 24)]
            assert all(np.array_equal(a, b) for a, b in zip(rest, got))
    assert [file.name for file in tmp_path.iterdir()] == ["a talk"]
    data = path.read_bytes()
    assert int.from_bytes(data[-8:], "little") == xxh64(data[:-8])
    head = dict(zip(FIELDS, struct.unpack_from("<8Q", data, HEAD)))
    size = {"saved": 2, "exact": 4}[mode]
    wanted = {
        "adapter": 0,
        "tokens": 21,
        "rows": 21,
        "numbers": small.DIM * size,
        "scales": 0,
        "pieces": 2 * small.HEADS,
    }
    assert {name: head[name] for name in wanted} == wanted
    assert list(struct.unpack_from("<21i", data, HEAD + 64)) == [*PROMPT, 5]


def test_an_empty_conversation_and_no_note(start: Start, tmp_path: Path) -> None:
    process = start()
    process.save(tmp_path / "none", "")
    process.prefill(PROMPT)
    assert process.load(tmp_path / "none") == ""
    assert process.length == 0


def summed(data: bytes) -> bytes:
    return data[:-8] + xxh64(data[:-8]).to_bytes(8, "little")


def with_field(name: str, value: int) -> Callable[[bytes], bytes]:
    at = HEAD + 8 * FIELDS.index(name)
    return lambda data: summed(data[:at] + value.to_bytes(8, "little", signed=value < 0) + data[at + 8 :])


BAD: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"", "is no session"),
    (lambda data: b"POCKETPHI LORA 1" + data[16:], "is no session"),
    (lambda data: b"POCKETPHI TALK 2" + data[16:], "is a session of another version"),
    (lambda data: data[:40], "is cut"),
    (lambda data: data[:-1], "is cut"),
    (lambda data: data[: len(data) // 2], "is cut"),
    (lambda data: data + b"\0", "is longer than it says"),
    (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "is damaged"),
    (lambda data: data[:90] + bytes([data[90] ^ 4]) + data[91:], "is damaged"),
    (with_field("pieces", -1), "is damaged"),
    (with_field("rows", 2**63 - 1), "is damaged"),
    (with_field("note", 2**39), "is cut"),
    (with_field("bundle", 1), "is a session of another bundle"),
    (with_field("adapter", 1), "is a session with another adapter: switch to that first"),
    (
        lambda data: summed(data[: HEAD + 64] + b"\xff\xff\xff\x7f" + data[HEAD + 68 :]),
        "token 2147483647 is not within 0 to 95",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=range(len(BAD)))
def test_what_is_no_session_is_refused_and_nothing_is_lost(
    start: Start, tmp_path: Path, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path, process = tmp_path / "talk", start()
    process.prefill(PROMPT)
    process.save(path, "a note")
    after = process.decode(1).copy()
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        process.load(path)
    assert message in str(caught.value)
    assert process.length == len(PROMPT) + 1
    process.reset()
    process.prefill(PROMPT)
    assert np.array_equal(process.decode(1), after)


def test_a_session_of_another_bundle_mode_or_size(start: Start, tmp_path: Path) -> None:
    path, process = tmp_path / "talk", start()
    process.prefill(PROMPT)
    process.save(path, "")
    for other, message in (
        (start(1), "is a session of another bundle"),
        (start(mode="exact"), "is a session of another mode"),
        (start(max_tokens=12), "has 20 tokens, for which the cache has no room: open the model with more max_tokens"),
    ):
        with pytest.raises(InputError, match=message):
            other.load(path)
        assert other.length == 0


def test_where_a_file_cannot_be(start: Start, tmp_path: Path) -> None:
    process = start()
    process.prefill(PROMPT)
    with pytest.raises(InputError, match=r"none/talk: cannot be written: No such file or directory"):
        process.save(tmp_path / "none/talk", "")
    with pytest.raises(InputError, match=r"talk: No such file or directory"):
        process.load(tmp_path / "talk")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe: expected a file"):
        process.load(tmp_path / "pipe")
    assert process.length == len(PROMPT)


@pytest.fixture
def shipped(start: Start, bundles: list[Path], tmp_path: Path) -> Path:
    """A bundle whose file says that a start was computed, of other tokens: what is taken from it is seen."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for file in bundles[0].iterdir():
        (folder / file.name).symlink_to(file)
    process = start(prefix=False)
    process.prefill([(token + 1) % small.VOCAB for token in PROMPT])
    process.save(folder / "prefix.session", "")
    path = folder / "prefix.session"
    data = path.read_bytes()
    tokens = struct.pack("<20i", *PROMPT)
    path.write_bytes(summed(data[: HEAD + 64] + tokens + data[HEAD + 64 + len(tokens) :]))
    return folder


def opened(toolchain: Toolchain, folder: Path, **options: Any) -> RuntimeProcess:
    return RuntimeProcess(toolchain.command(build_runtime(toolchain).runner), folder, **options)


def test_a_prompt_takes_its_start_from_the_bundle(start: Start, shipped: Path, toolchain: Toolchain) -> None:
    """Where it begins with all of it in an empty cache; then, and only then, logits are those of the file's cache."""
    other = start()
    other.prefill([(token + 1) % small.VOCAB for token in PROMPT])
    of_file, computed = other.prefill([5]).copy(), start().prefill([*PROMPT, 5]).copy()
    assert not np.array_equal(of_file, computed)
    with opened(toolchain, shipped) as process:
        for _ in range(2):  # after a reset as well
            assert np.array_equal(process.prefill([*PROMPT, 5]), of_file)
            assert process.length == len(PROMPT) + 1
            process.reset()
        assert process.calls == 2
        assert np.array_equal(process.every_position([*PROMPT, 5])[-1], computed)
        process.reset()
        first = process.prefill(PROMPT).copy()  # nothing would be left to compute
        assert np.array_equal(first, start().prefill(PROMPT))
        assert np.array_equal(process.prefill([5]), computed)
        process.reset()
        process.prefill(PROMPT[:1])
        assert np.array_equal(process.prefill([*PROMPT[1:], 5]), computed)
        process.reset()
        changed = [*PROMPT[:-1], 4, 5]
        assert np.array_equal(process.prefill(changed), start().prefill(changed))
    for options in ({"prefix": False}, {"mode": "exact"}):
        with opened(toolchain, shipped, **options) as process, start(**options) as plain:
            assert np.array_equal(process.prefill([*PROMPT, 5]), plain.prefill([*PROMPT, 5]))


def test_what_fails_behind_a_start_appends_nothing(shipped: Path, toolchain: Toolchain) -> None:
    params = shipped / "model.params"
    content = params.read_bytes()
    params.unlink()
    params.write_bytes(content)
    with opened(toolchain, shipped) as process:
        os.utime(params, (1, 1))
        with pytest.raises(InputError, match="it was changed while the model is open"):
            process.prefill([*PROMPT, 5])
        assert process.length == 0
    with opened(toolchain, shipped, max_tokens=20) as process:
        with pytest.raises(InputError, match="the cache holds 20 tokens: 0 are in it, 21 more do not fit"):
            process.prefill([*PROMPT, 5])
        assert process.length == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], "prefix.session: is cut"),
        (lambda data: b"POCKETPHI TALK 2" + data[16:], "prefix.session: is a session of another version"),
        (
            with_field("bundle", 1),
            'prefix.session: is of another bundle: compile it again, or open it with "prefix": false',
        ),
        (lambda data: summed(data[:80] + b"\xff\xff\xff\x7f" + data[84:]), "token 2147483647 is not within 0 to 95"),
    ],
)
def test_a_start_that_is_none_is_told_when_the_bundle_is_opened(
    shipped: Path, toolchain: Toolchain, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = shipped / "prefix.session"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        opened(toolchain, shipped)
    assert message in str(caught.value)
    with opened(toolchain, shipped, prefix=False) as process:
        process.prefill([*PROMPT, 5])


def test_a_damaged_start_is_told_and_nothing_is_lost(shipped: Path, toolchain: Toolchain) -> None:
    path = shipped / "prefix.session"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with opened(toolchain, shipped) as process:
        with pytest.raises(InputError, match=r"prefix\.session: is damaged"):
            process.prefill([*PROMPT, 5])
        assert process.length == 0
        process.prefill([*PROMPT[1:], 5])


def test_where_long_rope_computes_all_anew(toolchain: Toolchain, tmp_path: Path) -> None:
    """The file is not read: its keys were rotated with other factors."""
    folder, rest = small.write_small_bundle(tmp_path / "long", toolchain, small.small_params(), long_after=24), [7] * 10
    with opened(toolchain, folder) as process:
        process.prefill(PROMPT)
        process.save(folder / "prefix.session", "")
        one_more = process.prefill([5]).copy()
        process.reset()
        beyond = process.prefill([*PROMPT, *rest]).copy()
    with opened(toolchain, folder) as process:
        assert np.array_equal(process.prefill([*PROMPT, 5]), one_more)
        assert process.calls == 1
        process.reset()
        assert np.array_equal(process.prefill([*PROMPT, *rest]), beyond)
        assert process.calls == 1 + 4


def test_sessions_for_a_library_of_another_cpu(shipped: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    """What model.json says that sessions belong to stands in the file."""
    path = shipped / "model.json"
    described = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**described, "sessions_of": "0123456789abcdef"}))
    with opened(toolchain, shipped, prefix=False) as process:
        process.prefill(PROMPT)
        process.save(tmp_path / "talk", "")
    assert struct.unpack_from("<Q", (tmp_path / "talk").read_bytes(), HEAD) == (0x0123456789ABCDEF,)
    for name in ("12", "0123456789abcdeg"):
        path.write_text(json.dumps({**described, "sessions_of": name}))
        with pytest.raises(InputError, match="sessions_of: expected 16 hex digits"):
            opened(toolchain, shipped, prefix=False)
