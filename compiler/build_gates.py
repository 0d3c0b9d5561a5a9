"""The claims that a bundle must meet: its verification, and the gates of the build file."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable
from typing import Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_file import Cell, Gates, Measure
from pocketphi.compiler.build_result import NOT_VERIFIED, Claim
from pocketphi.compiler.suite.gates import SUITE_GATES
from pocketphi.compiler.suite.gates import measured as number_of
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun, CompilerBug
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
    return claims + _suite_claims(cell, bundle, measure, ui) if gates.suite else claims


def _suite_claims(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> list[Claim]:
    """Of the gates that are about what a suite finds."""
    found: dict[str, list[Any]] = {}
    cannot = ""
    try:
        found = _suite_numbers(cell, bundle, measure, ui)
    except CannotRun as error:
        cannot = str(error)
    claims = []
    for name, bound in cell.gates.suite.items():
        number, detail = found.get(name, (None, ""))
        gate = SUITE_GATES[name]
        claims.append(Claim(f"gate {name}", number, bound, gate.unit, cannot, gate.least, detail))
    return claims


def _suite_numbers(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> dict[str, list[Any]]:
    """[number, detail] of each gate that the suite has lines for."""
    suite = measure.suite
    if suite is None:
        raise CompilerBug("a gate is about a suite, and none was read")
    asked: dict[str, Any] = {"suite": suite.digest, "answer_tokens": measure.answer_tokens, "window": measure.window}

    def measured() -> dict[str, list[Any]]:
        from pocketphi.compiler.suite.run import evaluate_suite

        target, options = cell.options.target_names[0], cell.options
        limit, window = measure.answer_tokens, measure.window
        path = str(bundle.path)
        result = evaluate_suite(
            path, suite, options.model, ui, target, options.lora, None, limit, window, said=options.model
        )
        held = [name for name, gate in SUITE_GATES.items() if set(gate.kinds) & set(result.figures)]
        return {name: list(number_of(SUITE_GATES[name], result)) for name in held}

    return _kept(bundle, asked, measured)


def _quality(cell: Cell, bundle: Bundle, measure: Measure, ui: Ui) -> dict[str, float]:
    """Perplexity of the bundle and its KL divergence to the float model, measured once for a text."""
    from pocketphi.compiler.text import read_text

    text = read_text(measure.text, "the text") if measure.text else None
    # without a text, what this Python says of itself
    digest = hashlib.sha256(text.encode()).hexdigest() if text else f"python {platform.python_version()}"
    asked: dict[str, Any] = {"tokens": measure.tokens, "window": measure.window, "text": digest}

    def measured() -> dict[str, float]:
        from pocketphi.compiler.evaluate import evaluate_model

        target = cell.options.target_names[0]
        tokens, window, options = measure.tokens, measure.window, cell.options
        result = evaluate_model(str(bundle.path), text, tokens, window, options.model, ui, target, options.lora)
        return {"ppl": float(result.perplexity), "kl": float(result.kl or 0.0)}

    return _kept(bundle, asked, measured)


def _kept(bundle: Bundle, asked: dict[str, Any], measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured of a bundle, once for what was asked."""
    path = bundle.path.parent / f"{bundle.path.name}.quality"
    content, _ = read_sealed(path) or ([], None)
    kept: list[dict[str, Any]] = content if isinstance(content, list) else []
    for entry in kept:
        if entry["asked"] == asked:
            return dict(entry["found"])
    found = measured()
    with contextlib.suppress(OSError):  # then it is measured again the next time
        write_sealed(path, [*kept, {"asked": asked, "found": found}])
    return found


def why_not_verified(bundle: Bundle) -> str | None:
    """None for a bundle whose checks were all run and met."""
    if bundle.manifest.verified:
        return None
    recorded = bundle.manifest.verification
    return (recorded and recorded.reason) or NOT_VERIFIED
