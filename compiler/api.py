"""The Python interface, which `import pocketphi` gives: what the commands do, as functions.

`compile` and `plan` take the arguments of `CompileOptions`, so that each of them is declared in one place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.plan import Plan
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import Verification, verify_folder
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.options import declared
from pocketphi.graph.reading import path_of

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["compile", "open_bundle", "open_checkpoint", "plan", "verify"]


def _with_arguments_of(
    options: Callable[P, CompileOptions],
) -> Callable[[Callable[[CompileOptions], T]], Callable[P, T]]:
    """Makes a function of options one of their arguments."""

    def made(run: Callable[[CompileOptions], T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return run(options(*args, **kwargs))

        call.__doc__, call.__name__ = run.__doc__, run.__name__
        call.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]  # for help()
        return call

    return made


@_with_arguments_of(CompileOptions)
def compile(options: CompileOptions) -> Bundle:
    """Compile a model to a bundle; the arguments are those of `CompileOptions`, see docs/options.md.

    Raises InputError for bad input, CheckFailed where a budget or a check is not met, CannotRun where a package is missing.
    """
    from pocketphi.compiler.compile import compile_model

    return compile_model(options)


@_with_arguments_of(CompileOptions)
def plan(options: CompileOptions) -> Plan:
    """What `compile` would do with the same arguments: sizes, memory, what is fused. No weight is read."""
    from pocketphi.compiler.plan import plan

    return plan(options)


def open_bundle(path: str | Path) -> Bundle:
    """A bundle whose files are all as its manifest says. Raises InputError naming the first one that is not."""
    return Bundle.open(path_of(path))


def verify(
    bundle: Bundle | str | Path,
    reference: str | None = None,
    target: str | None = None,
    lora: str | Sequence[str | Lora] = (),
) -> Verification:
    """Check a bundle's files and numbers on this machine; `ok` of the result says whether all is well.

    reference: a model, to measure the quantization error against; target: only this one of the bundle's; lora: adapters of the
    reference, which have to be those of the bundle. Raises InputError for files that are damaged, CannotRun for what this
    machine cannot run.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    adapters = declared(CompileOptions)["lora"].check(lora)
    return verify_folder(opened.path, opened.manifest, Ui(), reference, target, lora=adapters)
