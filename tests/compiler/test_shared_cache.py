"""A cache that machines share, by a real S3 server: what one built another finds, with nothing quantized again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from heard import Heard
from s3_server import MISSING, SECRET, Bucket, s3_bucket

from pocketphi.artifacts.bundle import Bundle, file_digest
from pocketphi.compiler.build import build_matrix
from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_result import Result
from pocketphi.graph.errors import InputError
from pocketphi.graph.store import Store

FILE = """
[build]
out = "{out}"
cache = "{cache}"

[models]
tiny = "random:tiny"

[targets.ort-mobile]
verify = "never"
all_logits = {all_logits}

[recipes.search]
calibration_tokens = 64
"""


@dataclass
class Machine:
    """One with a folder of its own. said: by its last build"""

    folder: Path
    cache: str
    said: tuple[str, ...] = ()

    def build(self, all_logits: bool = False) -> Result:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "pocketphi.toml"
        path.write_text(FILE.format(out=self.folder / "out", cache=self.cache, all_logits=str(all_logits).lower()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POCKETPHI_CACHE", str(self.folder / "cache"))
            ui = Heard()
            (result,) = build_matrix(read_build_file(path), ui)
        self.said = tuple(ui.lines)
        assert result.error is None
        assert SECRET not in "".join(self.said)
        return result

    @property
    def quantized(self) -> str:
        """What was said of weights: how many were computed."""
        return next((line for line in self.said if line.startswith("int4 weights")), "none")

    @property
    def notices(self) -> list[str]:
        return [line for line in self.said if line.startswith(self.cache)]

    def forget(self) -> None:
        """All that it has, but the place where its bundles lie."""
        shutil.rmtree(self.folder / "cache")


def bytes_of(result: Result) -> dict[str, str]:
    return {path.name: file_digest(path) for path in result.bundle.iterdir()}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    if MISSING:
        pytest.skip("no S3 server: make build/s3")
    with s3_bucket() as made:
        yield made


@pytest.fixture
def other_servers(bucket: Bucket) -> Iterator[None]:
    """fsspec keeps what it has connected to."""
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_machine_that_starts_empty_finds_what_another_built(bucket: Bucket, tmp_path: Path) -> None:
    one, two = (Machine(tmp_path / name, f"{bucket.url}/first") for name in ("one", "two"))
    made = one.build()
    assert not made.cached
    assert one.quantized == f"int4 weights: 14 computed, 0 found in the cache, 0 of them in {one.cache}"
    held = bucket.objects()
    found = two.build()
    assert (found.cached, two.quantized) == (True, "none")
    assert bytes_of(found) == bytes_of(made)
    assert bucket.objects() == held  # nothing is written again
    assert two.notices == []

    other = two.build(all_logits=True)  # another bundle of the same weights
    assert not other.cached
    assert two.quantized == f"int4 weights: 0 computed, 14 found in the cache, 14 of them in {two.cache}"

    # damage: every file of weights and bundles, as no name says what it is
    for path, size in bucket.objects().items():
        if path.startswith("first/files/"):
            bucket.put(path, b"x" * size)
    three = Machine(tmp_path / "three", f"{bucket.url}/first")
    again = three.build()
    assert not again.cached
    assert three.quantized.startswith("int4 weights: 14 computed, 0 found in the cache")
    assert [line for line in three.notices if "damaged: its content is not what was kept" not in line] == []
    assert three.notices
    assert bytes_of(again) == bytes_of(made)
    two.forget()
    assert two.build().cached
    assert two.notices == []


def test_a_name_that_leads_to_another_bundle_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    """A whole bundle under another's name would be seen by nobody who trusts the store."""
    one, two = (Machine(tmp_path / name, f"{bucket.url}/second") for name in ("one", "two"))
    keys = [one.build(all_logits).key for all_logits in (False, True)]
    bucket.put(f"second/refs/bundles/{keys[0]}", bucket.get(f"second/refs/bundles/{keys[1]}"))
    assert not two.build().cached
    assert len(two.notices) == 1
    assert Bundle.open(two.folder / "out" / "tiny-ort-mobile-search").manifest.recipe.all_logits is False


@pytest.mark.usefixtures("other_servers")
def test_a_build_goes_on_without_its_store(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is not there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    machine = Machine(tmp_path / "m", "s3://gone/x")
    assert machine.build().exit_code == 0
    (said,) = machine.notices
    assert said.startswith("s3://gone/x: cannot be read (Could not connect to the endpoint URL")
    assert machine.build().cached


def test_a_bucket_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    said: list[str] = []
    store = Store("s3://elsewhere/x", said.append)
    (tmp_path / "a").write_bytes(b"a")
    assert store.find("k") is None
    store.keep("k", tmp_path, ["a"])
    store.keep("l", tmp_path, ["a"])
    (line,) = said
    assert line.startswith("s3://elsewhere/x: cannot be written (The specified bucket does not exist)")


@pytest.mark.usefixtures("other_servers")
def test_a_server_that_denies(tmp_path: Path) -> None:
    if MISSING:
        pytest.skip("no S3 server: make build/s3")
    with s3_bucket() as own:
        own.deny()
        said: list[str] = []
        store = Store(f"{own.url}/denied", said.append)
        (tmp_path / "a").write_bytes(b"a")
        assert store.find("k") is None
        store.keep("k", tmp_path, ["a"])
    (line,) = said
    assert line.startswith(f"{own.url}/denied: cannot be read (")
    assert SECRET not in line


def test_a_build_file_with_a_url_that_leads_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "pocketphi.toml"
    path.write_text(FILE.format(out="out", cache="s9://bucket/x", all_logits="false"))
    with pytest.raises(InputError, match=r"pocketphi.toml: build.cache: --cache s9://bucket/x: fsspec knows no s9://"):
        read_build_file(path)
