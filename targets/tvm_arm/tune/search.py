"""Tune forms one after the other. What is there already is not timed again: a search that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pocketphi.targets.tvm_arm.description import Description
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.kernels.matmul import KERNELS, Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.database import ANY, Record
from pocketphi.targets.tvm_arm.tune.space import space


class Measurer(Protocol):
    """Times schedules. how: what a record says of it."""

    @property
    def platform(self) -> Platform: ...

    @property
    def how(self) -> str: ...

    def times(self, form: Form, schedules: list[Schedule]) -> dict[Schedule, float]:
        """Microseconds of those that it can time."""


def search(
    measurer: Measurer, forms: list[Form], known: list[Record], tell: Callable[[], None]
) -> Iterator[list[Record]]:
    """For each form what was timed, as soon as it was; nothing for a form that `known` holds from the same measurer."""
    platform, how = measurer.platform, measurer.how
    done = {
        (r.form, r.schedule)
        for r in known
        if (r.kernels, r.isa, r.cpu, r.how) == (KERNELS, platform.isa.name, platform.cpu or ANY, how)
    }
    for form in forms:
        missing = [schedule for schedule in space(platform.isa, form) if (form.key, schedule) not in done]
        if any(not schedule.prefetch for schedule in missing):
            times = measurer.times(form, missing)
            yield [Record.of(platform, form.key, schedule, us, how) for schedule, us in times.items()]
        tell()


def forms_of(described: Description) -> list[Form]:
    """The products of a bundle, from its model.json: each matrix in decode and in prefill, but for the head, which serves the
    last token alone."""
    parts = described.parts()
    made = []
    for name, m in described.matrices.items():
        held = parts[name]
        matrix = Interleaved.of(m.parts(held), described.isa)
        for single in (True, False):
            if single or m.rows != described.vocab:
                made.append(Form(matrix, "zero" in held, "offset" in held, single=single))
    return list(dict.fromkeys(made))
