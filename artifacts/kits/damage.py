"""Random damage to a bundle, as steps that any language can repeat: for our own tests and for those of the app kits."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from pocketphi.artifacts.bundle import seal
from pocketphi.artifacts.manifest import MANIFEST

Files = dict[str, bytes]
Step = list[Any]
"""`["flip", name, byte, bit]`, `["truncate", name, bytes]`, `["remove", name]`, `["add", name, text]`, `["swap", name, name]`,
`["write", name, byte, text]` (over what is there), `["seal"]` (make the manifest's last line fit again)."""


def apply(files: Mapping[str, bytes], steps: list[Step]) -> Files:
    """The files of a bundle after some damage. files: name → content."""
    made = dict(files)
    for kind, *arguments in steps:
        _STEPS[kind](made, *arguments)
    return made


def random_damage(files: Mapping[str, bytes], count: int, seed: int = 0) -> list[list[Step]]:
    """`count` different ways to spoil a bundle, of every kind in turn, each of which changes it."""
    rng = random.Random(seed)
    kinds = [_flip, _truncate, _remove, _add, _swap, _edit, _reseal]
    found: list[list[Step]] = []
    seen = set()
    while len(found) < count:
        steps = kinds[len(found) % len(kinds)](files, rng)
        key = json.dumps(steps)
        if key not in seen and apply(files, steps) != dict(files):
            seen.add(key)
            found.append(steps)
    return found


def _flip(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    name = rng.choice([name for name, data in files.items() if data])
    return [["flip", name, rng.randrange(len(files[name])), rng.randrange(8)]]


def _truncate(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    name = rng.choice([name for name, data in files.items() if data])
    return [["truncate", name, rng.randrange(len(files[name]))]]


def _remove(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    """Files, as many as make this different from what was before: a folder has few."""
    return [["remove", name] for name in rng.sample(sorted(files), rng.randint(1, len(files)))]


def _add(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    folder = rng.choice(sorted({name.rpartition("/")[0] for name in files}))
    name = f"{folder}/{rng.getrandbits(32):x}".removeprefix("/")
    return [["add", name, "" if rng.random() < 0.3 else f"{rng.getrandbits(64):x}"]]


def _swap(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    """Two files change places, in a bundle of few files again and again."""
    names = sorted(files)
    return [["swap", *rng.sample(names, 2)] for _ in range(rng.randint(1, 6))]


def _edit(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    """Some characters of the manifest become others."""
    text = files[MANIFEST].decode()
    start = rng.randrange(len(text) - 8)
    return [["write", MANIFEST, start, _other(text[start : start + rng.randint(1, 8)], rng)]]


def _reseal(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    """A digest in the manifest becomes another one, and the manifest's own is made to fit."""
    name = rng.choice([name for name in files if name != MANIFEST])
    digest = hashlib.sha256(files[name]).hexdigest()
    start = files[MANIFEST].index(digest.encode()) + rng.randrange(60)
    return [["write", MANIFEST, start, _other(digest[:4], rng)], ["seal"]]


def forgery(files: Mapping[str, bytes], rng: random.Random) -> list[Step]:
    """A file is changed and every digest made to fit: nothing but a signature, or a pinned manifest, can tell."""
    name = rng.choice([name for name, data in files.items() if data and name != MANIFEST])
    steps = _flip({name: files[name]}, rng)
    digest = hashlib.sha256(files[name]).hexdigest()
    forged = hashlib.sha256(apply(files, steps)[name]).hexdigest()
    return [*steps, ["write", MANIFEST, files[MANIFEST].index(digest.encode()), forged], ["seal"]]


def _other(old: str, rng: random.Random) -> str:
    """Text of the same length that differs from the old one in every place."""
    return "".join(rng.choice([c for c in "0123456789abcdef" if c != one]) for one in old)


def _write(files: Files, name: str, start: int, text: str) -> None:
    data = bytearray(files[name])
    data[start : start + len(text)] = text.encode()
    files[name] = bytes(data)


def _flip_bit(files: Files, name: str, byte: int, bit: int) -> None:
    data = bytearray(files[name])
    data[byte] ^= 1 << bit
    files[name] = bytes(data)


_STEPS: dict[str, Callable[..., Any]] = {
    "flip": _flip_bit,
    "truncate": lambda files, name, size: files.update({name: files[name][:size]}),
    "remove": lambda files, name: files.pop(name),
    "add": lambda files, name, text: files.update({name: text.encode()}),
    "swap": lambda files, a, b: files.update({a: files[b], b: files[a]}),
    "write": _write,
    "seal": lambda files: files.update({MANIFEST: seal(files[MANIFEST][: files[MANIFEST].rindex(b',\n "sha256"')])}),
}
