#!/usr/bin/env python3
"""Check model.mlpackage on a Mac against what the compiling host computed: pip install coremltools, then run this file.

    python3 verify_on_mac.py [--units cpu|gpu|ane|all] [--json]

A package for iOS 18 takes macOS 15, one that was compiled with --ios 26 takes macOS 26 and coremltools 9.

Runs the prompt of test_vectors.npz through `prefill` (or `main`), then each further token through `decode`, with one state,
and compares the logits. Exit code 1 where they are further apart than the tolerance in that file.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[str, Mapping[str, Any]], Any]
"""(function, inputs by name) → logits; keeps the state from call to call."""


def kl(expected: Any, came: Any) -> float:
    """KL divergence in nats of the last position's distributions; logits [..., V]."""
    p, q = (x.reshape(-1, x.shape[-1])[-1].astype(np.float64) for x in (expected, came))
    p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum())


def compare(vectors: Mapping[str, Any], call: Call) -> list[dict[str, Any]]:
    """Run every call of the test vectors in order; one result each: function, kl, same (top token), seconds, ok."""
    results = []
    for step in json.loads(str(vectors["calls"])):
        inputs = {name: vectors[key] for name, key in step["inputs"].items()}
        begin = time.perf_counter()
        came = np.asarray(call(step["function"], inputs))
        seconds = time.perf_counter() - begin
        expected = vectors[step["logits"]]
        apart = kl(expected, came)
        same = bool(
            expected.reshape(-1, expected.shape[-1])[-1].argmax() == came.reshape(-1, came.shape[-1])[-1].argmax()
        )
        ok = apart <= float(vectors["tolerance"])  # false for NaN as well
        results.append({"function": step["function"], "kl": apart, "same": same, "seconds": seconds, "ok": ok})
    return results


def needed_macos(manifest: Path) -> int:
    """The oldest release of macOS that runs the package, by the bundle's manifest; 15 for a package without one."""
    told = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {"targets": {"coreml": {}}}
    ios = int(told["targets"]["coreml"].get("ios", 18))
    return {18: 15}.get(ios, ios)  # from 26 on they count alike


def on_this_mac(package: Path, units: str, functions: list[str]) -> Call:
    import coremltools as ct

    chosen = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL"}[units]
    unit = getattr(ct.ComputeUnit, chosen)
    named = functions != ["main"]
    models = {
        f: ct.models.MLModel(str(package), compute_units=unit, function_name=f if named else None) for f in functions
    }
    state = models[functions[0]].make_state()  # one for all functions

    def call(function: str, inputs: Mapping[str, Any]) -> Any:
        return models[function].predict(dict(inputs), state=state)["logits"]

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description="Check model.mlpackage on a Mac.")
    parser.add_argument("--units", choices=["cpu", "gpu", "ane", "all"], default="gpu", help="default %(default)s")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = Path(__file__).resolve().parent
    if sys.platform != "darwin":
        sys.stderr.write("verify_on_mac.py: Core ML runs on a Mac only; elsewhere use 'pocketphi verify'\n")
        return 2
    if not (folder / "test_vectors.npz").is_file():
        sys.stderr.write("verify_on_mac.py: no test_vectors.npz here: the bundle was compiled with --verify never\n")
        return 2
    needed = needed_macos(folder / "manifest.json")
    if int(platform.mac_ver()[0].partition(".")[0]) < needed:
        sys.stderr.write(
            f"verify_on_mac.py: this package takes macOS {needed}; this is macOS {platform.mac_ver()[0]}\n"
        )
        return 2
    vectors = np.load(folder / "test_vectors.npz")
    functions = list(dict.fromkeys(step["function"] for step in json.loads(str(vectors["calls"]))))
    results = compare(vectors, on_this_mac(folder / "model.mlpackage", arguments.units, functions))
    if arguments.json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    else:
        for r in results:
            mark, same = "ok" if r["ok"] else "FAILED", "same" if r["same"] else "other"
            sys.stdout.write(f"{mark:7}{r['function']:9} KL {r['kl']:.1e}  {same} token  {r['seconds']:.2f} s\n")
    return 0 if all(r["ok"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
