"""Tune forms one after the other. What is there already is not timed again: a search that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pocketphi.targets.tvm_arm.description import Description
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.kernels.matmul import KERNELS, Form
from pocketphi.targets.tvm_arm.tune.database import ANY, Record
from pocketphi.targets.tvm_arm.tune.space import space
from pocketphi.targets.tvm_arm.tune.spread import Measurer, spread


def search(
    measurers: Sequence[Measurer],
    forms: list[Form],
    known: list[Record],
    tell: Callable[[], None],
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Record]]:
    """For each form what was timed, as soon as it was; nothing for a form that `known` holds from the same kind of measurer.

    measurers: of one kind; tell: called for each form that is done; say: told of a board that was lost. Raises BoardLost where
    none is left.
    """
    platform, how = measurers[0].platform, measurers[0].how
    done = {
        (r.form, r.schedule)
        for r in known
        if (r.kernels, r.isa, r.cpu, r.how) == (KERNELS, platform.isa.name, platform.cpu or ANY, how)
    }
    todo = []
    for form in forms:
        missing = [schedule for schedule in space(platform.isa, form) if (form.key, schedule) not in done]
        if any(not schedule.prefetch for schedule in missing):
            todo.append((form, missing))
        else:
            tell()
    for form, times in spread(measurers, todo, say):
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
