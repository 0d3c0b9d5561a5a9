"""Commands around bundles: build a matrix of them, compare, sign, list what is in them.

Like `cli.py`: parse, call one function, show what it returns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketphi.compiler.footprint import RUNTIMES
from pocketphi.compiler.options import TARGETS, CompileOptions
from pocketphi.compiler.ui import PlainUi, Ui
from pocketphi.graph.errors import InputError

AddCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def add_build_commands(command: AddCommand) -> None:
    """command: makes a parser from a name, the function that runs it, and a help text."""
    build = command("build", _build, "build a matrix of bundles from a build file; exit 1 where a gate is not met")
    build.add_argument("file", type=Path, nargs="?", default=Path("pocketphi.toml"), help="default: %(default)s")
    build.add_argument("--only", metavar="TEXT", help="only bundles with this in their name, MODEL-TARGET-RECIPE")
    build.add_argument("--junit", type=Path, metavar="FILE", help="also write the results as JUnit XML")
    build.add_argument("--results", type=Path, metavar="FILE", help="also write the results as JSON")
    build.add_argument("--list", action="store_true", help="only name the bundles")

    diff = command("diff", _diff, "what changed from one bundle to another: sizes, errors, operators")
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)

    devices = command(
        "devices", _devices, "the table of devices; with a model: does it fit, and how fast can it be at best"
    )
    devices.add_argument("model", nargs="?", metavar="MODEL")
    devices.add_argument("--target", action="append", choices=TARGETS, help="default: all that run there")
    devices.add_argument("--block", type=int, default=32, help="weights that share a scale (default %(default)s)")
    devices.add_argument("--asymmetric", action="store_true", help="a zero point for each block")
    devices.add_argument("--context", type=int, help="longest sequence (default: the model's; Core ML at most 2048)")
    devices.add_argument(
        "--prompt-tokens", type=int, default=512, help="longest text that is read at once (%(default)s)"
    )
    device_arguments(devices, fit=False)

    kit = command("integrate", _integrate, "write code that runs a bundle in an app: Swift or Kotlin, with tests")
    kit.add_argument("bundle", type=Path)
    kit.add_argument("--platform", choices=["ios", "android"], required=True)
    kit.add_argument("-o", "--out", type=Path, required=True, help="folder to make")
    kit.add_argument(
        "--runtime",
        choices=["coreml", "genai", "tvm"],
        help="Core ML, onnxruntime-genai or TVM (default: the first of the platform's that the bundle has files for)",
    )
    kit.add_argument("--name", help="Swift module (default: from the model's name)")
    kit.add_argument("--package", help="Kotlin package (default: com.example.NAME)")
    kit.add_argument("--context", type=int, help="tokens of the cache (default: the bundle's, at most 2048)")

    sbom = command("sbom", _sbom, "a bundle's bill of materials, CycloneDX JSON")
    sbom.add_argument("bundle", type=Path)
    sbom.add_argument("-o", "--out", type=Path, metavar="FILE", help="write it there (default: print it)")

    sign = command("sign", _sign, "sign a bundle with an Ed25519 key")
    sign.add_argument("bundle", type=Path)
    sign.add_argument(
        "--key",
        metavar="PEM",
        help="private key: a PEM file, or env:NAME for a variable that holds one (default env:POCKETPHI_SIGNING_KEY)",
        default="env:POCKETPHI_SIGNING_KEY",
    )


def device_arguments(p: argparse.ArgumentParser, fit: bool = True) -> None:
    """`--device`, `--devices` and, for a compile, `--fit`."""
    p.add_argument(
        "--device", metavar="NAME", help="refuse what does not fit this device; 'pocketphi devices' lists them"
    )
    p.add_argument("--devices", type=Path, metavar="FILE", help="more devices, in TOML")
    if fit:
        p.add_argument("--fit", action="store_true", help="take the recipe and context that fit --device")


def for_device(a: argparse.Namespace, options: CompileOptions, ui: Ui) -> CompileOptions:
    """The options as `--device` and `--fit` allow them. Raises CheckFailed where the device is too small."""
    if not a.device:
        if a.fit:
            raise InputError("--fit: to what? name a --device; 'pocketphi devices' lists them")
        return options
    from pocketphi.compiler.device_plan import config_of, difference, fit, fit_options
    from pocketphi.compiler.devices import find_device

    device = find_device(a.device, a.devices)
    fitting = fit_options(options, device, a.fit)
    if fitting != options:
        ui.say(f"{device.title}: taking {difference(options, fitting)}")
    for target in fitting.targets:
        ui.say(f"{device.title}, {target}: {fit(config_of(fitting.model), fitting, target, device).described()}")
    return fitting


def _devices(a: argparse.Namespace) -> int:
    from pocketphi.compiler.device_plan import config_of, fit
    from pocketphi.compiler.devices import find_device, read_devices

    chosen = [find_device(a.device, a.devices)] if a.device else list(read_devices(a.devices).values())
    if a.model is None:
        lines = [
            f"{d.name:<20} {d.title:<38} {d.ram / 2**30:>2.0f} GiB, "
            f"an app {d.app / 2**30:.1f} GiB, {d.bandwidth / 1e9:.1f} GB/s"
            for d in chosen
        ]
        _print(a, [vars(device) for device in chosen], "\n".join(lines))
        return 0
    targets = tuple(a.target or TARGETS)
    options = CompileOptions(
        a.model, Path("-"), targets, block=a.block, symmetric=not a.asymmetric, context=a.context, recipe="rtn"
    )
    config = config_of(a.model)
    found = [
        fit(config, options, target, device, a.prompt_tokens)
        for device in chosen
        for target in targets
        if target in RUNTIMES and (target != "coreml" or device.platform == "ios" or len(chosen) == len(targets) == 1)
    ]
    lines = [
        f"{one.device:<20} {one.target:<11} {one.described()}; largest context {one.largest_context:,}" for one in found
    ]
    _print(a, [one.as_json() for one in found], "\n".join(lines))
    return 0 if any(one.ok for one in found) else 1


def _build(a: argparse.Namespace) -> int:
    from pocketphi.compiler.build import build_matrix
    from pocketphi.compiler.build_file import read_build_file
    from pocketphi.compiler.junit import to_junit

    file = read_build_file(a.file)
    if a.list:
        _print(a, [cell.name for cell in file.cells], "\n".join(cell.name for cell in file.cells))
        return 0
    for path in (a.junit, a.results):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: cannot be written: {path.absolute().parent} is not a folder")
    key = read_key(file.sign) if file.sign else None
    results = build_matrix(file, Ui() if a.json else PlainUi(), key, a.only)
    data = json.dumps([result.as_json() for result in results], indent=1) + "\n"
    if a.results:
        a.results.write_text(data, "utf-8")
    if a.junit:
        a.junit.write_text(to_junit(results), "utf-8")
    good = sum(result.exit_code == 0 for result in results)
    sys.stdout.write(data if a.json else f"{good} of {len(results)} bundles as they should be, in {file.out}\n")
    return max(result.exit_code for result in results)


def _diff(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.compiler.diff import changes

    found = changes(*(Bundle.open(path, check=False).manifest for path in (a.old, a.new)))
    human = "\n".join(change.described() for change in found) or "no difference in sizes, errors and operators"
    _print(a, [vars(change) for change in found], human)
    return 0


def _integrate(a: argparse.Namespace) -> int:
    from pocketphi.compiler.integrate import integrate

    files = integrate(a.bundle, a.platform, a.out, a.runtime, a.name, a.package, a.context)
    _print(
        a, {"kit": str(a.out), "files": files}, "\n".join([f"{a.out}: {len(files)} files", *(f"  {f}" for f in files)])
    )
    return 0


def _sbom(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.sbom import sbom

    text = sbom(a.bundle)
    if a.out:
        a.out.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _sign(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.signature import sign_bundle

    key = read_key(a.key)
    Bundle.open(a.bundle)
    public = sign_bundle(a.bundle, key, a.key)
    _print(a, {"bundle": str(a.bundle), "signed_by": public}, f"{a.bundle}: signed with the key {public}")
    return 0


def read_key(where: str) -> bytes:
    """The PEM text of a key from a file, or from the environment for `env:NAME`."""
    if where.startswith("env:"):
        text = os.environ.get(where[4:])
        if not text:
            raise InputError(f"--key {where}: the variable is not set; expected a private key in PEM")
        return text.encode()
    try:
        return Path(where).read_bytes()
    except OSError as error:
        raise InputError(f"--key {where}: cannot be read ({error.strerror})") from None


def _print(a: argparse.Namespace, data: Any, human: str) -> None:
    sys.stdout.write((json.dumps(data, indent=1, default=str) if a.json else human) + "\n")
