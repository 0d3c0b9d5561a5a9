"""Signatures: made, checked, and every wrong key or file refused in one line."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path

import pytest
from manifests import a_manifest

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.artifacts.manifest import SIGNATURE
from pocketphi.artifacts.signature import check_signature, private_key, public_key, sign_bundle
from pocketphi.graph.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"weights")
    write_manifest(made, a_manifest())
    return made


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """PEM files as openssl writes them: two pairs, and a key of another kind."""
    made = {}
    for name in ("ours", "theirs"):
        made[name] = tmp_path / f"{name}.pem"
        openssl("genpkey", "-algorithm", "ed25519", "-out", str(made[name]))
        made[f"{name} public"] = tmp_path / f"{name}-public.pem"
        openssl("pkey", "-in", str(made[name]), "-pubout", "-out", str(made[f"{name} public"]))
    made["ec"] = tmp_path / "ec.pem"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(made["ec"]))
    made["ec public"] = tmp_path / "ec-public.pem"
    openssl("pkey", "-in", str(made["ec"]), "-pubout", "-out", str(made["ec public"]))
    return made


def test_a_signature_is_of_the_manifest_as_openssl_makes_it(
    folder: Path, keys: dict[str, Path], tmp_path: Path
) -> None:
    public = sign_bundle(folder, keys["ours"].read_bytes(), "ours.pem")
    lines = (folder / SIGNATURE).read_text().splitlines()
    assert lines[0] == public == base64.b64encode(public_key(keys["ours public"])).decode()
    want = openssl("pkeyutl", "-sign", "-inkey", str(keys["ours"]), "-rawin", "-in", str(folder / "manifest.json"))
    assert base64.b64decode(lines[1]) == want
    assert check_signature(folder, keys["ours public"]) == public
    assert check_signature(folder) == public
    assert Bundle.open(folder).manifest.recipe.name == "rtn"
    again = (folder / SIGNATURE).read_bytes()
    sign_bundle(folder, keys["ours"].read_bytes(), "ours.pem")
    assert (folder / SIGNATURE).read_bytes() == again
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "manifest.sig", "model.onnx"]


def test_another_key_is_refused(folder: Path, keys: dict[str, Path]) -> None:
    public = sign_bundle(folder, keys["theirs"].read_bytes(), "theirs.pem")
    with pytest.raises(InputError, match=re.escape(f"signed with the key {public}, not with {keys['ours public']}")):
        check_signature(folder, keys["ours public"])


def test_a_bundle_without_a_signature_is_refused(folder: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=re.escape(f"{folder}: is not signed: it has no manifest.sig; sign it with")):
        check_signature(folder, keys["ours public"])


@pytest.mark.parametrize("text", [b"", b"x", b"AAAA\n", b"AAAA\nAAAA\n", b"\xff\n\xff\n"])
def test_a_damaged_signature_is_refused(folder: Path, text: bytes) -> None:
    (folder / SIGNATURE).write_bytes(text)
    with pytest.raises(InputError, match=r"manifest\.sig: damaged: expected a public key and a signature in base64"):
        Bundle.open(folder)


def test_what_is_no_key_is_refused(keys: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ec\.pem: a key of another kind, expected Ed25519; make one with: openssl"):
        private_key(keys["ec"].read_bytes(), "ec.pem")
    with pytest.raises(InputError, match=r"x\.pem: expected an unencrypted Ed25519 private key in PEM; make one with"):
        private_key(b"no key", "x.pem")
    with pytest.raises(InputError, match="expected an unencrypted Ed25519 private key"):
        private_key(keys["ours public"].read_bytes(), "public.pem")
    with pytest.raises(InputError, match="a key of another kind; expected an Ed25519 public key in PEM"):
        public_key(keys["ec public"])
    with pytest.raises(InputError, match=r"ours\.pem: expected an Ed25519 public key in PEM"):
        public_key(keys["ours"])
    with pytest.raises(InputError, match=r"nowhere\.pem: no such file"):
        public_key(tmp_path / "nowhere.pem")
