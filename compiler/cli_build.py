"""Commands around bundles: build a matrix of them, compare, sign, list what is in them.

Like `cli.py`: parse, call one function, show what it returns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pocketphi.compiler.cli_devices import AddCommand, add_device_command, print_result
from pocketphi.compiler.cli_options import add_options
from pocketphi.compiler.options import Limits, ProgramOptions
from pocketphi.compiler.ui import PlainUi, Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import place_of
from pocketphi.graph.writing import check_writable, write_whole
from pocketphi.targets import all_targets

_LOOKED_AT = 1 << 22
"""Bytes in which a file of ours says what it is."""


def add_build_commands(command: AddCommand) -> None:
    """command: makes a parser from a name, the function that runs it, and a help text."""
    build = command("build", _build, "build a matrix of bundles from a build file; exit 1 where a gate is not met")
    build.add_argument("file", type=Path, nargs="?", default=Path("pocketphi.toml"), help="default: %(default)s")
    build.add_argument("--only", metavar="TEXT", help="only bundles with this in their name, MODEL-TARGET-RECIPE")
    build.add_argument("--junit", type=Path, metavar="FILE", help="also write the results as JUnit XML")
    build.add_argument("--results", type=Path, metavar="FILE", help="also write the results as JSON")
    build.add_argument(
        "--executor",
        metavar="WHERE",
        default="serial",
        help="serial (default): one after the other; local:N: in N processes; dask://HOST:PORT: on a Dask cluster",
    )
    build.add_argument("--list", action="store_true", help="only name the bundles")

    diff = command("diff", _diff, "what changed from one bundle to another: files, errors, operators")
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)

    add_device_command(command)

    report = command(
        "report", _report, "a bundle on one page to look at: bytes, errors, memory, devices, graph, checks"
    )
    report.add_argument("bundle", type=Path)
    report.add_argument("--against", type=Path, metavar="BUNDLE", help="also what changed from this bundle to it")
    report.add_argument("-o", "--out", type=place_of, metavar="FILE", help="HTML file (default: BUNDLE.html)")
    report.add_argument(
        "--reference", metavar="MODEL", help="the model that was compiled: also measure the error of each weight"
    )
    add_options(report, ProgramOptions, ["lora"])
    add_options(report, Limits, ["cache"])
    report.add_argument("--devices", type=Path, metavar="FILE", help="more devices, in TOML")

    kit = command("integrate", _integrate, "write code that runs a bundle in an app: Swift or Kotlin, with tests")
    kit.add_argument("bundle", type=Path)
    kits = [made for target in all_targets() for made in target.kits]
    kit.add_argument("--platform", choices=sorted({made.platform for made in kits}), required=True)
    kit.add_argument("-o", "--out", type=place_of, required=True, help="folder to make")
    kit.add_argument(
        "--runtime",
        choices=sorted({made.runtime for made in kits}),
        help="default: the first of the platform's that the bundle has files for",
    )
    kit.add_argument("--name", help="Swift module (default: from the model's name)")
    kit.add_argument("--package", help="Kotlin package (default: com.example.NAME)")
    kit.add_argument("--context", type=int, help="tokens of the cache (default: the bundle's, at most 2048)")

    sbom = command("sbom", _sbom, "a bundle's bill of materials, CycloneDX JSON")
    sbom.add_argument("bundle", type=Path)
    sbom.add_argument("-o", "--out", type=place_of, metavar="FILE", help="write it there (default: print it)")

    sign = command("sign", _sign, "sign a bundle with an Ed25519 key")
    sign.add_argument("bundle", type=Path)
    sign.add_argument(
        "--key",
        metavar="PEM",
        help="private key: a PEM file, or env:NAME for a variable that holds one (default env:POCKETPHI_SIGNING_KEY)",
        default="env:POCKETPHI_SIGNING_KEY",
    )


def _build(a: argparse.Namespace) -> int:
    from pocketphi.compiler.build import build_matrix
    from pocketphi.compiler.build_file import read_build_file
    from pocketphi.compiler.executors import find_executor
    from pocketphi.compiler.junit import to_junit

    file = read_build_file(a.file)
    if a.list:
        print_result(a, [cell.name for cell in file.cells], "\n".join(cell.name for cell in file.cells))
        return 0
    for what, path in (("--junit", a.junit), ("--results", a.results)):
        if path is not None:
            check_writable(path, what)
    key = read_key(file.sign) if file.sign else None
    results = build_matrix(file, Ui() if a.json else PlainUi(), key, a.only, find_executor(a.executor))
    data = json.dumps([result.as_json() for result in results], indent=1) + "\n"
    if a.results:
        write_whole(a.results, data, "--results")
    if a.junit:
        write_whole(a.junit, to_junit(results), "--junit")
    good = sum(result.exit_code == 0 for result in results)
    sys.stdout.write(data if a.json else f"{good} of {len(results)} bundles as they should be, in {file.out}\n")
    return max(result.exit_code for result in results)


def _diff(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.compiler.diff import changes

    found = changes(*(Bundle.open(path, check=False).manifest for path in (a.old, a.new)))
    human = "\n".join(change.described() for change in found) or "no difference in files, errors and operators"
    print_result(a, [vars(change) for change in found], human)
    if not a.json:
        sys.stderr.write("as compiled; the files were not checked here: 'pocketphi verify --files-only' does that\n")
    return 0


def _report(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.compiler.report.make import Asked, report

    bundle = Bundle.open(a.bundle, check=False)
    against = Bundle.open(a.against, check=False) if a.against else None
    lora, cache = tuple(getattr(a, "lora", ())), getattr(a, "cache", None)
    if lora and a.reference is None:
        raise InputError("--lora: of what? it belongs to a --reference")
    out = a.out or bundle.path.resolve().with_name(f"{bundle.path.resolve().name}.html")
    _check_ours(out, '<meta name="generator" content="pocketphi report">', "a report")
    asked = Asked(against, a.reference, lora, a.devices, cache.own if cache else None)
    page = report(bundle, asked, Ui() if a.json else PlainUi()).encode()
    write_whole(out, page, "-o")
    print_result(a, {"report": str(out), "bytes": len(page)}, f"{out}: {len(page) / 1e6:.1f} MB; open it in a browser")
    return 0


def _check_ours(out: Path, mark: str, what: str) -> None:
    """Raise InputError for a file that cannot be written, and for one that is there and does not hold `mark`, as ours do."""
    check_writable(out, "-o")
    if not out.is_file():
        return
    try:
        with out.open("rb") as file:
            if mark.encode() in file.read(_LOOKED_AT):
                return
    except OSError:
        pass
    raise InputError(f"-o {out}: exists and is not {what} of pocketphi's; choose another -o, or remove it")


def _integrate(a: argparse.Namespace) -> int:
    from pocketphi.compiler.integrate import integrate

    files = integrate(a.bundle, a.platform, a.out, a.runtime, a.name, a.package, a.context)
    told = [f"{a.out}: {len(files)} files", *(f"  {file}" for file in files)]
    print_result(a, {"kit": str(a.out), "files": files}, "\n".join(told))
    return 0


def _sbom(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.sbom import sbom

    if a.out:
        _check_ours(a.out, '"bomFormat": "CycloneDX"', "a bill of materials")
    text = sbom(Bundle.open(a.bundle))
    if a.out:
        write_whole(a.out, text, "-o")
    else:
        sys.stdout.write(text)
    return 0


def _sign(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.artifacts.signature import sign_bundle

    key = read_key(a.key)
    Bundle.open(a.bundle)
    public = sign_bundle(a.bundle, key, a.key)
    print_result(a, {"bundle": str(a.bundle), "signed_by": public}, f"{a.bundle}: signed with the key {public}")
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
