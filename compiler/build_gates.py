"""The claims that a bundle must meet: its verification, and the gates of the build file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_file import Cell, Measure
from pocketphi.compiler.build_result import Claim
from pocketphi.compiler.ui import Ui


def claims_of(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> list[Claim]:
    """Every check that the manifest records, then every gate; `kl` and `ppl` are measured where they are asked for."""
    checks = bundle.manifest.checks
    claims = [Claim(check.name, check.measured, check.bound) for check in checks]
    gates = cell.gates
    if gates.max_bytes is not None:
        claims.append(Claim("gate max_bytes", bundle.manifest.bytes, gates.max_bytes, "bytes"))
    if gates.lowering is not None:
        measured = [check.measured for check in checks if check.name.split(": ")[-1].startswith("KL ")]
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
