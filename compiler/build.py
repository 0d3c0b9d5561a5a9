"""Build a matrix of bundles, each once: what was built before is found by its content address.

A bundle is made in the cache, under the digest of all that decides its bytes (`build_key.py`), and linked to where the build
file wants it. Measurements are kept beside it. A bundle that fails does not stop the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import MANIFEST, SIGNATURE, Bundle
from pocketphi.artifacts.folder import new_folder
from pocketphi.compiler.build_file import BuildFile, Cell, Measure
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.diff import Change, changes
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError, PocketphiError


@dataclass(frozen=True)
class Claim:
    """A check of the verification or a gate: `measured` must not exceed `bound`; None where it was not measured."""

    name: str
    measured: float | None
    bound: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        return self.measured is not None and self.measured <= self.bound

    def described(self) -> str:
        """What came, and by how much it is over."""
        if self.measured is None:
            return f'{self.name}: not measured: the bundle was not verified; build with verify = "always"'
        unit = f" {self.unit}" if self.unit else ""
        if self.ok:
            return f"{self.name}: {self.measured:,.6g}{unit}, at most {self.bound:,.6g}"
        return f"{self.name}: {self.measured:,.6g}{unit}, {self.measured - self.bound:,.6g} over {self.bound:,.6g}"


@dataclass
class Result:
    """One bundle of the matrix. seconds: of wall time; error: why there is none; exit_code: as of the command line."""

    name: str
    bundle: Path
    key: str = ""
    cached: bool = False
    seconds: float = 0.0
    bytes: int = 0
    claims: list[Claim] = field(default_factory=list)
    changes: list[Change] | None = None
    error: str | None = None
    exit_code: int = 0

    def as_json(self) -> dict[str, Any]:
        data = {**vars(self), "bundle": str(self.bundle), "seconds": round(self.seconds, 3)}
        data["claims"] = [{**vars(claim), "ok": claim.ok} for claim in self.claims]
        data["changes"] = None if self.changes is None else [vars(change) for change in self.changes]
        return data


def build_matrix(file: BuildFile, ui: Ui, key: bytes | None = None, only: str | None = None) -> list[Result]:
    """Build every bundle of a matrix. key: private key (PEM) to sign with; only: a part of the names to build.

    Raises InputError where nothing is to be built.
    """
    cells = [cell for cell in file.cells if only is None or only in cell.name]
    if not cells:
        raise InputError(f"--only {only}: builds none of {', '.join(cell.name for cell in file.cells)}")
    sources = SourceDigests()
    results = []
    for i, cell in enumerate(cells):
        ui.say(f"[{i + 1}/{len(cells)}] {cell.name}")
        begin = time.perf_counter()
        result = Result(cell.name, file.out / cell.name)
        try:
            _build(file, cell, result, sources, ui, key)
        except PocketphiError as error:
            result.error, result.exit_code = str(error), error.exit_code
        result.seconds = time.perf_counter() - begin
        results.append(result)
        ui.say(_summary(result))
    return results


def cache_folder(file: BuildFile) -> Path:
    if file.cache:
        return file.cache
    return Path(os.environ.get("POCKETPHI_CACHE") or Path.home() / ".cache" / "pocketphi")


def _build(file: BuildFile, cell: Cell, result: Result, sources: SourceDigests, ui: Ui, key: bytes | None) -> None:
    if file.device:
        from pocketphi.compiler.device_plan import fit_options
        from pocketphi.compiler.devices import find_device

        fit_options(cell.options, find_device(file.device), choose=False)
    result.key = bundle_key(cell.options, sources)
    store = cache_folder(file) / "bundles" / result.key
    bundle, result.cached = _find(store), True
    if bundle is None:
        bundle, result.cached = _compile(cell, store, cache_folder(file), ui), False
    result.bytes = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    previous = _manifest((file.baseline or file.out) / cell.name)
    result.changes = None if previous is None else changes(previous, bundle.manifest)
    _place(bundle, result.bundle)
    _write_sbom(result.bundle)
    if key is not None:
        from pocketphi.artifacts.signature import sign_bundle

        sign_bundle(result.bundle, key, file.sign or "the key")
    result.claims = _claims(cell, bundle, file.measure, ui)
    if not all(claim.ok for claim in result.claims):
        result.exit_code = 1


def _find(store: Path) -> Bundle | None:
    """A bundle from the cache, if it is whole."""
    try:
        return Bundle.open(store)
    except InputError:
        shutil.rmtree(store, ignore_errors=True)
        return None


def _compile(cell: Cell, store: Path, cache: Path, ui: Ui) -> Bundle:
    from pocketphi.compiler.compile import compile_model

    store.parent.mkdir(parents=True, exist_ok=True)
    return compile_model(dataclasses.replace(cell.options, out=store, cache=cache), ui)


def _place(bundle: Bundle, path: Path) -> None:
    """Links, or copies on another disk, unless the same bundle is there already."""
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another out, or remove it")
    if _is_same(bundle, path):
        return
    with new_folder(path, 0) as folder:
        for name in (MANIFEST, *bundle.manifest["files"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.path / name, folder / name)


def _is_same(bundle: Bundle, path: Path) -> bool:
    """Whether what stands at `path` is this bundle, whole."""
    if _manifest(path) != bundle.manifest:
        return False
    held = [found for found in path.rglob("*") if found.is_file() and found.name != SIGNATURE]
    if len(held) != len(bundle.manifest["files"]) + 1:
        return False
    names = [MANIFEST, *bundle.manifest["files"]]
    if all((path / name).is_file() and os.path.samefile(path / name, bundle.path / name) for name in names):
        return True  # the very files, checked in the cache
    try:
        Bundle.open(path)
    except InputError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        return Bundle.open(path, check=False).manifest
    except InputError:
        return None


def _write_sbom(bundle: Path) -> None:
    """Beside the bundle, so that its bytes stay those of `pocketphi compile`."""
    from pocketphi.artifacts.sbom import sbom

    path = bundle.parent / f"{bundle.name}.cdx.json"
    text = sbom(bundle)
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def _claims(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> list[Claim]:
    checks = (bundle.manifest["verification"] or {"checks": []})["checks"]
    claims = [Claim(check["name"], check["measured"], check["bound"]) for check in checks]
    gates, files = cell.gates, bundle.manifest["files"].values()
    if gates.max_bytes is not None:
        claims.append(Claim("gate max_bytes", sum(entry["bytes"] for entry in files), gates.max_bytes, "bytes"))
    if gates.lowering is not None:
        measured = [check["measured"] for check in checks if check["name"].split(": ")[-1].startswith("KL ")]
        claims.append(Claim("gate lowering", max(measured, default=None), gates.lowering, "nats/token"))
    quality = _quality(cell, bundle, measure, ui) if gates.kl is not None or gates.ppl is not None else {}
    if gates.kl is not None:
        claims.append(Claim("gate kl", quality["kl"], gates.kl, "nats/token"))
    if gates.ppl is not None:
        claims.append(Claim("gate ppl", quality["ppl"], gates.ppl))
    return claims


def _quality(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> dict[str, float]:
    """Perplexity of the bundle and its KL divergence to the float model, measured once for a text."""
    from pocketphi.compiler.text import read_text

    text = read_text(measure.text, "the text") if measure.text else None
    asked: dict[str, Any] = {"tokens": measure.tokens, "window": measure.window, "text": text and _digest(text)}
    path = bundle.path.parent / f"{bundle.path.name}.quality.json"
    kept: list[dict[str, Any]] = _read_json(path)
    for entry in kept:
        if entry["asked"] == asked:
            return dict(entry["found"])
    from pocketphi.compiler.evaluate import evaluate_model

    target = cell.options.targets[0]
    result = evaluate_model(str(bundle.path), text, measure.tokens, measure.window, cell.options.model, ui, target)
    found = {"ppl": float(result.perplexity), "kl": float(result.kl or 0.0)}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([*kept, {"asked": asked, "found": found}]), "utf-8")
    os.replace(partial, path)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return []


def _summary(result: Result) -> str:
    if result.error:
        return f"  failed: {result.error}"
    how = "found in the cache" if result.cached else "built"
    lines = [f"  {how} in {result.seconds:.1f} s: {result.bytes:,} bytes, {result.bundle}"]
    lines += [f"  not met: {claim.described()}" for claim in result.claims if not claim.ok]
    if result.changes is not None:
        lines.append("  the same as before" if not result.changes else "  against the one before:")
        lines += [f"    {change.described()}" for change in result.changes]
    return "\n".join(lines)
