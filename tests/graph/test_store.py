"""A store of files behind the cache: what is read is what was kept, and nothing depends on it. Here in a folder (`file://`), so
that a test can look at every object; tests/compiler/test_shared_cache.py has a server."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.registry import _registry as loaded

from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.graph.places import Cache, default_cache, default_folder, parse_cache
from pocketphi.graph.sealed import seal
from pocketphi.graph.store import Ref, Store
from pocketphi.graph.stores import shown, without_secrets


class Machine:
    """One that shares a store with others. said: what its user was told"""

    def __init__(self, place: Path, folder: Path) -> None:
        self.said: list[str] = []
        self.folder = folder
        folder.mkdir()
        self.store = Store(f"file://{place}", self.said.append)

    def keep(self, name: str, **files: bytes) -> None:
        for file, content in files.items():
            (self.folder / file).write_bytes(content)
        self.store.keep(name, self.folder, files)

    def fetched(self, name: str) -> dict[str, bytes] | None:
        ref = self.store.find(name)
        if ref is None or not self.store.fetch(ref, self.folder):
            return None
        return {file: (self.folder / file).read_bytes() for file in ref.files}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def one(place: Path, tmp_path: Path) -> Machine:
    return Machine(place, tmp_path / "one")


@pytest.fixture
def two(place: Path, tmp_path: Path) -> Machine:
    return Machine(place, tmp_path / "two")


def object_of(place: Path, content: bytes) -> Path:
    return place / "files" / hashlib.sha256(content).hexdigest()


def test_what_one_machine_keeps_another_finds(one: Machine, two: Machine, place: Path) -> None:
    large = bytes(range(256)) * 10_000
    assert two.fetched("bundles/k") is None
    one.keep("bundles/k", a=b"first", b=large, empty=b"")
    assert two.fetched("bundles/k") == {"a": b"first", "b": large, "empty": b""}
    assert two.said == one.said == []
    assert sorted(path.name for path in (place / "files").iterdir()) == sorted(
        hashlib.sha256(content).hexdigest() for content in (b"first", large, b"")
    )


def test_a_name_gets_something_else(one: Machine, two: Machine) -> None:
    one.keep("k", a=b"first")
    one.keep("k", a=b"second", b=b"more")
    assert two.fetched("k") == {"a": b"second", "b": b"more"}


def test_the_same_content_is_written_once(one: Machine, two: Machine, place: Path) -> None:
    one.keep("k", a=b"same")
    written = object_of(place, b"same").stat()
    two.keep("other", b=b"same")
    assert object_of(place, b"same").stat().st_mtime_ns == written.st_mtime_ns
    assert object_of(place, b"same").stat().st_ino == written.st_ino


@pytest.mark.parametrize("damage", [b"sam_", b"sa", b"same and more", b""])
def test_a_damaged_file_is_refused_and_replaced(one: Machine, two: Machine, place: Path, damage: bytes) -> None:
    one.keep("k", a=b"same")
    damaged = object_of(place, b"same")
    damaged.write_bytes(damage)
    assert two.fetched("k") is None
    (said,) = two.said
    assert said.startswith(f"file://{place}/files/{damaged.name}: damaged: its content is not what was kept under this")
    assert list(two.folder.iterdir()) == []
    two.keep("k", a=b"same")
    assert damaged.read_bytes() == b"same"
    assert one.fetched("k") == {"a": b"same"}


def test_a_damaged_file_that_nobody_has_read_is_replaced_too(one: Machine, two: Machine, place: Path) -> None:
    """Its size tells nothing."""
    place.joinpath("files").mkdir(parents=True)
    object_of(place, b"same").write_bytes(b"sam_")
    one.keep("k", a=b"same")
    assert two.fetched("k") == {"a": b"same"}


def test_a_damaged_file_of_the_same_size_is_replaced_where_nothing_can_be_removed(
    one: Machine, two: Machine, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.keep("k", a=b"same")
    object_of(place, b"same").write_bytes(b"sam_")
    monkeypatch.setattr(Store, "_remove", lambda self, at: None)
    assert two.fetched("k") is None
    two.keep("k", a=b"same")
    assert object_of(place, b"same").read_bytes() == b"same"


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no seal" * 9,
        b"".join(seal("no ref")),
        b"".join(seal({"name": "other", "files": {}})),
        b"".join(seal({"name": "k", "files": {"a": {"sha256": "x"}}})),
    ],
)
def test_a_damaged_name_is_refused(one: Machine, two: Machine, place: Path, damaged: bytes) -> None:
    one.keep("k", a=b"same")
    (place / "refs" / "k").write_bytes(damaged)
    assert two.fetched("k") is None
    assert [line.partition(": ")[0] for line in two.said] == [f"file://{place}/refs/k"]
    assert two.fetched("k") is None
    assert len(two.said) == 1  # it was removed
    two.keep("k", a=b"same")
    assert one.fetched("k") == {"a": b"same"}


@pytest.mark.parametrize("name", ["../out", "/out", "a\n"])
def test_a_name_that_leads_out_of_the_folder_is_refused(one: Machine, two: Machine, place: Path, name: str) -> None:
    one.keep("k", a=b"same")
    ref = one.store.find("k")
    assert ref is not None
    with pytest.raises(InputError, match=r"refs/k: names '"):
        two.store.fetch(Ref("k", {name: ref.files["a"]}), two.folder)
    assert not (two.folder.parent / "out").exists()


def test_a_file_that_is_gone_counts_as_missing(one: Machine, two: Machine, place: Path) -> None:
    """As where a store forgets what is old."""
    one.keep("k", a=b"same")
    object_of(place, b"same").unlink()
    assert two.fetched("k") is None
    assert two.said == []


def test_two_write_the_same_at_once(one: Machine, two: Machine, place: Path) -> None:
    content = bytes(range(256)) * 4000
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda machine: [machine.keep("k", a=content) for _ in range(20)], (one, two)))
    assert one.fetched("k") == two.fetched("k") == {"a": content}
    assert sorted(path.name for path in place.rglob("*") if path.is_file()) == sorted(
        [object_of(place, content).name, "k"]
    )


def test_two_write_different_things_under_one_name(one: Machine, two: Machine) -> None:
    """One of the two is found, whole."""
    with ThreadPoolExecutor(2) as pool:
        for machine, word in ((one, b"one"), (two, b"two")):
            pool.submit(lambda m, w: [m.keep("k", a=w * 1000, b=w) for _ in range(20)], machine, word)
    found = one.fetched("k")
    assert found in ({"a": b"one" * 1000, "b": b"one"}, {"a": b"two" * 1000, "b": b"two"})
    assert one.said == two.said == []


def test_a_store_that_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    machine = Machine(tmp_path / "file", tmp_path / "m")
    machine.keep("k", a=b"x")
    machine.keep("l", a=b"x")
    assert [line.partition(" (")[0] for line in machine.said] == [f"file://{tmp_path}/file: cannot be written"]
    assert machine.said[0].endswith("); what is made stays in the cache of this machine")
    assert machine.fetched("k") is None
    assert machine.fetched("l") is None
    reading = [line for line in machine.said if "cannot be read" in line]
    assert len(reading) == 1
    assert reading[0].endswith("); going on with the cache of this machine alone")


def test_a_local_disk_that_is_full_is_no_fault_of_the_store(one: Machine, two: Machine) -> None:
    one.keep("k", a=b"same")
    ref = one.store.find("k")
    assert ref is not None
    (two.folder / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        two.store.fetch(ref, two.folder)
    assert two.said == []


def test_passwords_are_not_shown() -> None:
    url = "ssh://me:hush@host:22/cache?key=hush2"
    assert shown(url) == "ssh://me@host:22/cache"
    assert without_secrets(f"cannot open {url}", url) == "cannot open ssh://me:***@host:22/cache?***"
    assert "hush" not in repr(Cache(store=url))
    assert shown("s3://bucket/folder/") == "s3://bucket/folder"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s9://b/c", r"--cache s9://b/c: fsspec knows no s9://; expected s3://"),
        ("s3://", r"--cache s3:.*: expected a place in it, such as s3://BUCKET/FOLDER"),
        ("file://\n", r"expected a place in it"),
    ],
)
def test_a_url_that_leads_nowhere(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_cache(url)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(loaded, "s3", raising=False)  # where another test has loaded it
    with pytest.raises(CannotRun, match=r"--cache s3:// needs .*: pip install 'pocketphi\[s3\]'"):
        parse_cache("s3://bucket/x").check()


def test_the_variable_names_a_folder_or_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("POCKETPHI_CACHE", "file:///shared")
    assert default_cache() == Cache(store="file:///shared")
    assert default_folder() == default_cache().folder == tmp_path / "pocketphi"
    monkeypatch.setenv("POCKETPHI_CACHE", str(tmp_path / "own"))
    assert default_cache() == Cache()
    assert default_cache().folder == tmp_path / "own"
