"""The claims that a bundle must meet: its verification, and the gates of the build file."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from typing import Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_file import Cell, Gates, Measure
from pocketphi.compiler.build_result import NOT_VERIFIED, Claim
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun
from pocketphi.graph.sealed import read_sealed, write_sealed


def claims_of(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> list[Claim]:
    """Every check that the manifest records, then every gate; `kl` and `ppl` are measured where they are asked for."""
    checks = bundle.manifest.checks
    claims = [Claim(check.name, check.measured, check.bound) for check in checks]
    gates = cell.gates
    if gates != Gates() and (reason := why_not_verified(bundle)):
        claims.append(Claim("gate: verified", None, 0, missing=f"{reason}; a gate is for a bundle that was verified"))
    if gates.max_bytes is not None:
        claims.append(Claim("gate max_bytes", bundle.manifest.bytes, gates.max_bytes, "bytes"))
    if gates.lowering is not None:
        measured = [check.measured for check in checks if check.name.split(": ")[-1].startswith("KL ")]
        claims.append(Claim("gate lowering", max(measured, default=None), gates.lowering, "nats/token"))
    quality, cannot = {}, ""
    if gates.kl is not None or gates.ppl is not None:
        try:
            quality = _quality(cell, bundle, measure, ui)
        except CannotRun as error:
            cannot = str(error)
    if gates.kl is not None:
        claims.append(Claim("gate kl", quality.get("kl"), gates.kl, "nats/token", cannot))
    if gates.ppl is not None:
        claims.append(Claim("gate ppl", quality.get("ppl"), gates.ppl, "", cannot))
    return claims


def _quality(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> dict[str, float]:
    """Perplexity of the bundle and its KL divergence to the float model, measured once for a text."""
    from pocketphi.compiler.text import read_text

    text = read_text(measure.text, "the text") if measure.text else None
    # without a text, what this Python says of itself
    digest = hashlib.sha256(text.encode()).hexdigest() if text else f"python {platform.python_version()}"
    asked: dict[str, Any] = {"tokens": measure.tokens, "window": measure.window, "text": digest}
    path = bundle.path.parent / f"{bundle.path.name}.quality"
    content, _ = read_sealed(path) or ([], None)
    kept: list[dict[str, Any]] = content if isinstance(content, list) else []
    for entry in kept:
        if entry["asked"] == asked:
            return dict(entry["found"])
    from pocketphi.compiler.evaluate import evaluate_model

    target = cell.options.target_names[0]
    tokens, window, options = measure.tokens, measure.window, cell.options
    result = evaluate_model(str(bundle.path), text, tokens, window, options.model, ui, target, options.lora)
    found = {"ppl": float(result.perplexity), "kl": float(result.kl or 0.0)}
    with contextlib.suppress(OSError):  # then it is measured again the next time
        write_sealed(path, [*kept, {"asked": asked, "found": found}])
    return found


def why_not_verified(bundle: Bundle) -> str | None:
    """None for a bundle whose checks were all run and met."""
    if bundle.manifest.verified:
        return None
    recorded = bundle.manifest.verification
    return (recorded and recorded.reason) or NOT_VERIFIED
