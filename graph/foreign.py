"""Parts of other libraries that those offer to nobody: an error in one line where a library is not the one that is extended.

Each library has one module: `graph/jinja_parts.py`, `targets/coreml/coremltools_parts.py`, `targets/tvm_arm/tvm_sources.py`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pocketphi.graph.errors import CannotRun, InputError


def check_version(package: str, expected: str, extra: str) -> None:
    """Raises CannotRun where `package` is not installed, InputError where it is another version. extra: that installs it."""
    try:
        found = version(package)
    except PackageNotFoundError:
        raise CannotRun(f"{package} is not installed: pip install 'pocketphi[{extra}]'") from None
    if found != expected:
        raise InputError(
            f"{package} {found}: pocketphi extends parts of {expected} alone; pip install '{package}=={expected}'"
        )


def other_parts(package: str, expected: str, what: str) -> InputError:
    """what: which part is not what pocketphi extends, and how it differs."""
    return InputError(f"{package} {expected}: {what}; pip install --force-reinstall '{package}=={expected}'")
