"""A short run over every reader, always with the same mutations, and a fuzzer that finds what there is to find.

A long run is made by hand: `python -m tests.fuzz`; see docs/reliability.md.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from pocketphi.graph.errors import InputError
from tests.fuzz import harness, mutate, readers, seeds

MUTATIONS = 24


@pytest.mark.parametrize(
    "reader", [reader for reader in readers.READERS if reader.required], ids=lambda reader: reader.name
)
def test_a_reader_keeps_the_rules(reader: harness.Reader) -> None:
    for package in reader.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    result = harness.fuzz(reader, MUTATIONS)
    assert [(found, f"--reader '{reader.name}' --first {found.number} --mutations 1") for found in result.found] == []
    assert result.mutations == MUTATIONS
    assert result.refused > MUTATIONS // 10


def seed() -> Path:
    folder = seeds.place("words")
    (folder / "word").write_bytes(b"good")
    return folder


def word(rng: Random, base: harness.Files) -> harness.Files:
    return {"word": rng.choice([b"refused", b"broken", b"long", b"large", b"dead", b"a page", b"fine"])}


def read(folder: Path) -> None:
    said = (folder / "word").read_bytes()
    if said == b"refused":
        raise InputError("no")
    if said == b"a page":
        raise InputError("word " * 400)
    if said == b"broken":
        raise KeyError("x")
    if said == b"large":
        bytearray(2 * harness._ROOM)
    if said == b"dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    while said == b"long":
        pass


def test_what_is_against_the_rules_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "LIMIT", 0.5)
    reader = harness.Reader("words", seed, word, read)
    result = harness.fuzz(reader, 40, keep=tmp_path)
    words = [harness.mutated(reader, {}, 0, number)["word"] for number in range(40)]
    wanted = {b"broken": "exception", b"long": "slow", b"large": "memory", b"dead": "crash", b"a page": "lines"}
    assert set(words) == {*wanted, b"refused", b"fine"}
    assert {found.number: found.kind for found in result.found} == {
        number: wanted[word] for number, word in enumerate(words) if word in wanted
    }
    assert (result.mutations, result.accepted) == (40, words.count(b"fine"))
    assert {path.read_bytes() for path in tmp_path.rglob("word")} == set(wanted)


def test_memory_in_use_is_measured() -> None:
    """Also where the process holds free memory, from which a reading can take without growing it."""
    freed = [bytearray(b"x") * 4096 for _ in range(100_000)]
    del freed

    def large(folder: Path) -> None:
        held = bytearray(b"x") * (harness.CONSTANT + (192 << 20))
        assert held.endswith(b"x")

    result = harness.fuzz(harness.Reader("words", seed, word, large), 9)
    assert {found.kind for found in result.found} == {"memory"}
    assert len(result.found) > 4
    assert result.memory > harness.CONSTANT


def test_the_same_seed_gives_the_same_files() -> None:
    base = {"word": b"good"}
    reader = harness.Reader("any", seed, lambda rng, files: {"word": mutate.anything(rng, files["word"])}, read)
    made = [[harness.mutated(reader, base, s, number) for number in range(20)] for s in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_a_message_stays_one_where_it_is_not_spoiled() -> None:
    """The fields that the mutator sees, written again, are the same bytes."""
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"], axis=3, alpha=0.5, name="n")]
    content = onnx.helper.make_graph(nodes, "g", [], []).SerializeToString()
    fields = mutate._fields(content)
    again = b"".join(mutate._varint(tag << 3 | kind) + mutate._written(kind, value) for tag, kind, value in fields)
    assert again == content
    assert len(fields) == 2
