"""Commands around a bundle: sign it.

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

from pocketphi.graph.errors import InputError

AddCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def add_build_commands(command: AddCommand) -> None:
    """command: makes a parser from a name, the function that runs it, and a help text."""
    sign = command("sign", _sign, "sign a bundle with an Ed25519 key")
    sign.add_argument("bundle", type=Path)
    sign.add_argument(
        "--key",
        metavar="PEM",
        help="private key: a PEM file, or env:NAME for a variable that holds one (default env:POCKETPHI_SIGNING_KEY)",
        default="env:POCKETPHI_SIGNING_KEY",
    )


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
