"""Spread the forms to time over measurers: the boards of one kind at a tracker take turns, each with a form of its own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform

Times = dict[Schedule, float]


class BoardLost(InputError):
    """The board went away. What was timed before is kept. why: which one, and what it said"""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; what was timed is kept: run the command again to go on")
        self.why = why


class Measurer(Protocol):
    """Times schedules. how: what a record says of it."""

    @property
    def platform(self) -> Platform: ...

    @property
    def how(self) -> str: ...

    def times(self, form: Form, schedules: list[Schedule]) -> Times:
        """Microseconds of those that it can time. Raises BoardLost where it cannot go on."""


def spread(
    measurers: Sequence[Measurer], todo: Iterable[tuple[Form, list[Schedule]]], say: Callable[[str], None]
) -> Iterator[tuple[Form, Times]]:
    """What each form takes, as it is timed. All schedules of a form are timed by one measurer, so that they can be compared.

    A measurer that is lost costs its own form, which another one times. Raises BoardLost where none is left.
    """
    if len(measurers) == 1:  # in this thread, whose settings and clock some of them use
        for form, schedules in todo:
            yield form, measurers[0].times(form, schedules)
        return
    idle, left, running = deque(measurers), deque(todo), 0
    ended: queue.SimpleQueue[tuple[Measurer, tuple[Form, list[Schedule]], Any]] = queue.SimpleQueue()
    while left or running:
        while left and idle:
            # nobody waits for such a thread when the program stops
            threading.Thread(target=_time, args=(idle.popleft(), left.popleft(), ended), daemon=True).start()
            running += 1
        measurer, item, outcome = ended.get()
        running -= 1
        if isinstance(outcome, BoardLost) and (idle or running):
            left.appendleft(item)
            say(f"{outcome.why}; {len(idle) + running} of the boards are left, and one of these times its schedules")
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            idle.append(measurer)
            yield item[0], outcome


def _time(measurer: Measurer, item: tuple[Form, list[Schedule]], ended: queue.SimpleQueue[Any]) -> None:
    try:
        ended.put((measurer, item, measurer.times(*item)))
    except BaseException as error:
        ended.put((measurer, item, error))
