"""Ed25519 signatures of a bundle: `manifest.sig` beside the manifest, which in turn pins every other file.

Two lines, each in base64 with its padding: the public key (32 bytes) and the signature (64 bytes) of the bytes of
`manifest.json` (RFC 8032). Keys are PEM files as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from pocketphi.artifacts.manifest import MANIFEST, SIGNATURE
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import file_inside, read_whole
from pocketphi.graph.writing import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"


def sign_bundle(folder: Path, pem: bytes, where: str) -> str:
    """Sign a bundle's manifest with a private key. where: what the key is called in messages. Returns the public key."""
    key = private_key(pem, where)
    public = key.public_key().public_bytes_raw()
    text = _render(public, key.sign((folder / MANIFEST).read_bytes()))
    write_whole(folder / SIGNATURE, text)
    return base64.b64encode(public).decode()


def check_signature(folder: Path, trusted: Path | None = None) -> str:
    """Check a bundle's signature; returns the public key that made it, in base64.

    trusted: PEM file of the public key that it must be. Without it, the one in the signature is taken at its word: damage is
    found, a forgery is not. Raises InputError for a bundle that is not signed, signed by another key, or damaged.
    """
    path = folder / SIGNATURE
    if not path.exists():
        raise InputError(f"{folder}: is not signed: it has no {SIGNATURE}; sign it with 'pocketphi sign'")
    text = read_whole(file_inside(folder, SIGNATURE, str(folder)), limit=1000)
    try:
        public, signature = (base64.b64decode(line, validate=True) for line in text.splitlines())
    except (ValueError, binascii.Error):
        raise _damaged(path) from None
    if text != _render(public, signature) or (len(public), len(signature)) != (32, 64):
        raise _damaged(path)
    came = base64.b64encode(public).decode()
    if trusted is not None and public != public_key(trusted):
        raise InputError(f"{path}: signed with the key {came}, not with {trusted}")
    if not _is_valid(public, signature, (folder / MANIFEST).read_bytes()):
        raise InputError(f"{path}: the signature is not of this {MANIFEST}; copy the bundle again, or sign it again")
    return came


def private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """Raises InputError for anything but an unencrypted Ed25519 private key in PEM."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"{where}: expected an unencrypted Ed25519 private key in PEM; {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{where}: a key of another kind, expected Ed25519; {_MAKE}")
    return key


def public_key(path: Path) -> bytes:
    """The 32 bytes of an Ed25519 public key, from its PEM file."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    expected = "expected an Ed25519 public key in PEM: openssl pkey -in private.pem -pubout -out public.pem"
    try:
        key = load_pem_public_key(read_whole(path, expected))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path}: {expected}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: a key of another kind; {expected}")
    return key.public_bytes_raw()


def require_cryptography() -> None:
    """Raises InputError naming the extra to install where the package is missing."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "signatures need the package 'cryptography'; install it with: pip install 'pocketphi[build]'"
        ) from None


def _is_valid(public: bytes, signature: bytes, content: bytes) -> bool:
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _render(public: bytes, signature: bytes) -> bytes:
    return base64.b64encode(public) + b"\n" + base64.b64encode(signature) + b"\n"


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged: expected a public key and a signature in base64; copy or sign the bundle again"
    )
