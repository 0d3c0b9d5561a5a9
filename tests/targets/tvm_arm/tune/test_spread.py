"""Forms spread over boards: each is timed once, and again only where its board was lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.spread import BoardLost, Times, spread

FORMS = [Form(Interleaved(64 * n, 64, 32, 4, False), single=True) for n in range(1, 7)]
TODO = [(form, [Schedule(1), Schedule(2)]) for form in FORMS]


@dataclass
class Board:
    """before: called with the number of a form that it is about to time."""

    before: Callable[[int], None] = lambda number: None
    asked: list[Form] = field(default_factory=list)
    platform = Platform("linux", ISAS["dotprod"])
    how = "rpc x, 1 thread"

    def times(self, form: Form, schedules: list[Schedule]) -> Times:
        self.asked.append(form)
        self.before(len(self.asked))
        return dict.fromkeys(schedules, float(form.matrix.rows))


def spread_over(*boards: Board) -> tuple[dict[Form, Times], list[str]]:
    said: list[str] = []
    found = list(spread(boards, TODO, said.append))
    assert len(found) == len(dict(found))
    return dict(found), said


WHOLE = {form: dict.fromkeys([Schedule(1), Schedule(2)], float(form.matrix.rows)) for form in FORMS}


def test_one_does_all_in_order() -> None:
    board = Board()
    assert spread_over(board) == (WHOLE, [])
    assert board.asked == FORMS


def test_three_work_at_once() -> None:
    together = threading.Barrier(3, timeout=60)
    boards = [Board(lambda number: (together.wait(), None)[1] if number == 1 else None) for _ in range(3)]
    assert spread_over(*boards) == (WHOLE, [])
    assert sorted(form.key for board in boards for form in board.asked) == sorted(form.key for form in FORMS)
    assert all(board.asked for board in boards)


def lose(number: int) -> None:
    raise BoardLost("the board 'x' went away (power)")


def test_a_board_that_is_lost_costs_its_own_form() -> None:
    good, bad = Board(), Board(lose)
    found, said = spread_over(good, bad)
    assert found == WHOLE
    assert len(bad.asked) == 1
    assert set(good.asked) == set(FORMS)
    assert said == ["the board 'x' went away (power); 1 of the boards are left, and one of these times its schedules"]


def test_where_the_last_one_is_lost_what_was_timed_is_there() -> None:
    timed = spread([Board(lambda n: lose(n) if n == 3 else None), Board(lose)], TODO, lambda text: None)
    assert {next(timed)[0], next(timed)[0]} <= set(FORMS)
    with pytest.raises(BoardLost, match=r"went away \(power\); what was timed is kept: run the command again"):
        next(timed)


def test_another_error_ends_it() -> None:
    def fail(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spread_over(Board(fail), Board(fail))
