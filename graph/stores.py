"""URLs of stores, as a user gives them: which there are, what each needs, and how one is shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.graph.reading import named

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_EXTRAS = {"s3": "s3", "s3a": "s3", "ssh": "ssh", "sftp": "ssh"}
"""What of pocketphi's extras brings the package for a kind of URL; any other kind that fsspec knows is served as well."""


def is_url(text: str) -> bool:
    """Whether it is a URL and no name of a file."""
    return _URL.fullmatch(text) is not None


def kind_of(url: str) -> str:
    """What stands before `://`."""
    return url.partition("://")[0].lower()


def check_url(url: str) -> None:
    """Raises InputError for a URL that fsspec does not know, or that names no place."""
    from fsspec.registry import known_implementations, registry

    kind, place = kind_of(url), url.partition("://")[2]
    if not url.isprintable() or not place.strip("/"):
        raise InputError(f"--cache {named(shown(url))}: expected a place in it, such as s3://BUCKET/FOLDER")
    if kind not in known_implementations and kind not in registry:
        raise InputError(
            f"--cache {named(shown(url))}: fsspec knows no {named(kind)}://; expected s3://, ssh://, file:// or another of its "
            "kinds"
        )


def check_package(url: str) -> None:
    """Raises CannotRun where the package for this kind of URL is missing."""
    from fsspec.registry import get_filesystem_class

    kind = kind_of(url)
    try:
        get_filesystem_class(kind)
    except ImportError as error:
        what = f"pip install 'pocketphi[{_EXTRAS[kind]}]'" if kind in _EXTRAS else named(str(error).splitlines()[0])
        raise CannotRun(f"--cache {kind}:// needs a package that is not installed; install it with: {what}") from None


def shown(url: str) -> str:
    """A URL as it stands in messages: without what may be secret in it, passwords and parameters."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    user = parts.username
    return urlunsplit((parts.scheme, f"{user}@{place}" if user else place, parts.path, "", "")).rstrip("/")


def without_secrets(text: str, url: str) -> str:
    """A text of somebody else's about a URL, without its password and parameters."""
    parts = urlsplit(url)
    for secret in sorted(filter(None, (parts.password, parts.query)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
