"""A thousand random ways to spoil a bundle are all refused, and so is a forgery where the bundle is signed."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from manifests import a_manifest

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.artifacts.kits.damage import Files, apply, forgery, random_damage
from pocketphi.artifacts.manifest import MANIFEST, SIGNATURE
from pocketphi.artifacts.signature import check_signature, sign_bundle
from pocketphi.graph.errors import InputError

CONTENT = {
    "model.onnx": bytes(range(256)) * 3,
    "model.onnx.data": random.Random(1).randbytes(5000),
    "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": 0, "\xc3\xa9": 1}}}\n',
    "model.mlpackage/Data/weight.bin": random.Random(2).randbytes(999),
    "model.mlpackage/Manifest.json": b"{}",
    "empty": b"",
}
CHECK = {"name": "\xe9\x1f", "measured": 4.1e-11, "bound": 1e-06, "ok": True, "detail": ""}
CHECKED = {"ok": True, "checks": [CHECK], "quantization_error": {"kl": 2.5}}


def lay(folder: Path, files: Files) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = lay(tmp_path / "bundle", CONTENT)
    write_manifest(made, a_manifest(verification=CHECKED))
    return made


@pytest.fixture
def key(tmp_path: Path) -> tuple[bytes, Path]:
    """A private key, and the file of its public key."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = tmp_path / "public.pem"
    public.write_bytes(private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()), public


def refusals(folder: Path, files: Files, damage: list[list[list[object]]]) -> list[str]:
    messages = []
    for steps in damage:
        lay(folder, apply(files, steps))
        try:
            Bundle.open(folder)
            messages.append("")
        except InputError as error:
            messages.append(str(error).replace(str(folder), ""))
    return messages


def test_a_thousand_are_refused(folder: Path) -> None:
    files = read(folder)
    damage = random_damage(files, 1000, seed=5)
    messages = refusals(folder, files, damage)
    assert len(messages) == 1000
    assert [damage[i] for i, message in enumerate(messages) if not message] == []
    kinds = Counter(steps[0][0] for steps in damage)
    assert {
        kind: kinds[kind] > 100 for kind in ("flip", "truncate", "remove", "add", "swap", "write")
    } == dict.fromkeys(("flip", "truncate", "remove", "add", "swap", "write"), True)
    ends = Counter(
        message.partition(": ")[2].partition(" the manifest says")[0].lstrip("0123456789") for message in messages
    )
    assert len(ends) >= 6  # each kind of refusal is among them
    lay(folder, files)
    assert Bundle.open(folder).manifest.recipe.block == 32


def test_damage_to_a_signed_bundle_is_refused_with_its_signature(folder: Path, key: tuple[bytes, Path]) -> None:
    sign_bundle(folder, key[0], "private.pem")
    files = read(folder)
    assert refusals(folder, files, [[]]) == [""]
    flips = [[["flip", SIGNATURE, byte, byte % 8]] for byte in range(len(files[SIGNATURE]))]
    cuts = [[["truncate", SIGNATURE, size]] for size in range(0, len(files[SIGNATURE]), 5)]
    assert "" not in refusals(folder, files, [*flips, *cuts])


def test_only_a_signature_tells_a_forgery(folder: Path, key: tuple[bytes, Path]) -> None:
    rng = random.Random(3)
    files = read(folder)
    forged = [forgery(files, rng) for _ in range(20)]
    assert refusals(folder, files, forged) == [""] * 20
    lay(folder, files)
    sign_bundle(folder, key[0], "private.pem")
    check_signature(folder, key[1])
    wanted = f"/{SIGNATURE}: the signature is not of this {MANIFEST}; copy the bundle again, or sign it again"
    assert refusals(folder, read(folder), forged) == [wanted] * 20


def test_the_same_seed_gives_the_same_damage(folder: Path) -> None:
    files = read(folder)
    assert random_damage(files, 50, seed=1) == random_damage(files, 50, seed=1)
    assert random_damage(files, 50, seed=1) != random_damage(files, 50, seed=2)
