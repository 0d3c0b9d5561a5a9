"""One bundle after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pocketphi.compiler.build_one import Job, make_bundle
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.ui import Ui


@dataclass(frozen=True)
class Serial:
    """An `Executor`."""

    def run(self, jobs: Sequence[Job], ui: Ui) -> Generator[Result]:
        for i, job in enumerate(jobs):
            ui.say(f"[{i + 1}/{len(jobs)}] {job.name}")
            yield make_bundle(job, ui)
