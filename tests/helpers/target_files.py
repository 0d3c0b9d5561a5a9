"""Programs packaged by a target, without a bundle around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketphi.artifacts.stream import Progress
from pocketphi.graph.program import Program
from pocketphi.targets import find_target
from pocketphi.targets.base import Packaged, Prepared, check_formats
from pocketphi.targets.target import Asked, TargetOptions


def prepared(program: Program, options: TargetOptions, **asked: Any) -> Prepared:
    """asked: of `Asked`."""
    target = find_target(options.target)
    check_formats(target, options, program)
    return target.prepare(program, options, Asked(**asked))


def package(
    program: Program, options: TargetOptions, folder: Path, progress: Progress = lambda amount: None, **asked: Any
) -> Packaged:
    return prepared(program, options, **asked).write(folder, progress)
