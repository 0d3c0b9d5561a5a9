"""The database: stable lines, which row counts, what is refused and what is ignored with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import KERNELS, Schedule, decode_schedule, prefill_schedule
from pocketphi.targets.tvm_arm.platform import CORES, Platform
from pocketphi.targets.tvm_arm.tune.database import SHARED, Record, Tuning, fitting, read, write

A76 = Platform("linux", ISAS["dotprod"], "cortex-a76")
DOTPROD = Platform("linux", ISAS["dotprod"])
FORM = "decode 64x64 block 32 q+scale"
DEFAULT = decode_schedule(ISAS["dotprod"])


def record(
    us: float, schedule: Schedule = DEFAULT, how: str = "rpc rpi5", platform: Platform = A76, form: str = FORM
) -> Record:
    return Record.of(platform, form, schedule, us, how)


def test_rows_come_back_sorted_whatever_their_order(tmp_path: Path) -> None:
    rows = [record(3.14159), record(1.0, Schedule(4)), record(2.0, form="decode 9x9 block 32 q+scale")]
    write(tmp_path / "a", rows)
    write(tmp_path / "b", [*reversed(rows), rows[0]])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(read(tmp_path / "a"), key=lambda r: r.order) == sorted(rows, key=lambda r: r.order)
    assert json.loads((tmp_path / "a").read_text().splitlines()[0]) == {
        "kernels": KERNELS,
        "isa": "dotprod",
        "cpu": "cortex-a76",
        "form": FORM,
        "schedule": {"units": 4, "rows": 1, "prefetch": 0, "unroll": 1},
        "us": 1.0,
        "how": "rpc rpi5",
    }
    assert list(tmp_path.iterdir()) != []
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_measured_counts_before_modelled() -> None:
    rows = [record(1.0, Schedule(8), "model cortex-a76"), record(9.0, Schedule(4)), record(10.0)]
    assert fitting(rows, A76)[FORM].schedule == Schedule(4)


def test_a_model_has_to_promise_five_percent() -> None:
    how, form = "model cortex-a76", "prefill 64x64 block 32 q+scale"
    default = record(100.0, prefill_schedule(ISAS["dotprod"]), how, form=form)
    assert fitting([default, record(96.0, Schedule(2, 4), how, form=form)], A76)[form] == default
    assert fitting([default, record(90.0, Schedule(2, 4), how, form=form)], A76)[form].schedule == Schedule(2, 4)


def test_a_model_has_no_say_in_decode() -> None:
    default, better = record(100.0, how="model cortex-a76"), record(50.0, Schedule(8), "model cortex-a76")
    assert fitting([default, better], A76)[FORM] == default
    assert fitting([default, replace(better, how="rpc rpi5")], A76)[FORM].schedule == Schedule(8)


def test_the_own_core_counts_before_any() -> None:
    rows = [record(1.0, Schedule(8), platform=DOTPROD), record(5.0, Schedule(4))]
    assert fitting(rows, A76)[FORM].schedule == Schedule(4)
    assert fitting(rows, DOTPROD)[FORM].schedule == Schedule(8)
    assert fitting(rows, replace(A76, cpu="cortex-a55"))[FORM].schedule == Schedule(8)
    assert fitting(rows, Platform("linux", ISAS["i8mm"])) == {}


def test_a_users_rows_come_before_the_shared_ones(tmp_path: Path) -> None:
    platform = Platform("linux", ISAS["neon"], "cortex-a72")
    shared = fitting(read(SHARED), platform)
    form, theirs = next(iter(shared.items()))
    write(tmp_path / "mine", [replace(theirs, schedule=Schedule(1, 1, 0, 2), us=1e6, how="host me")])
    tuning = Tuning(platform, tmp_path / "mine")
    assert tuning.schedules[form] == Schedule(1, 1, 0, 2)
    assert tuning.used([form])[0].how == "host me"
    assert tuning.notes([form]) == []
    assert len(tuning.schedules) == len(shared)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (replace(record(1.0), kernels=0), "it was made for version 0 of the kernels, these are version"),
        (replace(record(1.0), isa="neon"), "it was made for neon, this is dotprod"),
        (replace(record(1.0), cpu="cortex-x1"), "it was made for cortex-x1, this is for cortex-a76"),
        (record(1.0), "none of its matrices is in this model"),
        (None, "it has no rows"),
    ],
)
def test_what_does_not_fit_is_ignored_with_a_notice(tmp_path: Path, row: Record | None, said: str) -> None:
    path = tmp_path / "other.jsonl"
    write(path, [row] if row else [])
    (note,) = Tuning(A76, path).notes(["decode 1x1 block 32 q+scale"])
    assert note.startswith(f"{path} was ignored: {said}")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {**row, "schedule": {"units": 0}},
        lambda row: {**row, "schedule": {"units": 2, "warp": 1}},
        lambda row: {**row, "schedule": {"unroll": 10**12}},
        lambda row: {**row, "schedule": {"units": 2**70}},
        lambda row: {**row, "schedule": {"rows": 3}},
        lambda row: {**row, "schedule": None},
        lambda row: {**row, "us": True},
        lambda row: {**row, "us": 1e999},
        lambda row: {**row, "isa": ["dotprod"]},
        lambda row: {**row, "schedule": {"unroll": "2"}},
        lambda row: {**row, "us": -1},
        lambda row: {name: value for name, value in row.items() if name != "form"},
        lambda row: [],
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, change: object) -> None:
    good = record(1.0).line()
    path = tmp_path / "x.jsonl"
    path.write_text(good + "\n" + json.dumps(change(json.loads(good))) + "\n")  # type: ignore[operator]
    with pytest.raises(
        InputError, match=r"x\.jsonl:2: (not a row of a tuning database: expected kernels|dotprod has no)"
    ):
        read(path)


@pytest.mark.parametrize("line", [b"[" * 10**5, b"1" * 5000, b"\xff", b'{"us": "\\ud800"}'])
def test_a_line_that_is_no_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(line)
    with pytest.raises(InputError, match=r"x\.jsonl:1: not a row of a tuning database"):
        read(path)


def test_no_database(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such file; expected a tuning database"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"cannot be written: No such file or directory"):
        write(tmp_path / "no" / "folder", [])


def test_the_shared_database_holds_what_was_tuned_at_phi_3s_widths() -> None:
    """Those of `dotprod` and `i8mm` went when their loops changed: they are to be timed again."""
    rows = read(SHARED)
    assert {r.kernels for r in rows} == {KERNELS}
    lacking = []
    neon = [(core, isa) for core, isa in CORES.items() if isa == "neon"]
    for core, isa in [*neon, *((None, name) for name in ("avx2", "avx512vnni"))]:
        held = fitting(rows, Platform("linux", ISAS[isa], core))
        lacking += [core for size in ("3072x3072", "16384x3072") if f"prefill {size} block 32 q+scale" not in held]
    assert lacking == []
    assert "decode 3072x3072 block 32 q+scale" in fitting(rows, Platform("linux", ISAS["avx512vnni"]))
    assert SHARED.read_text("utf-8") == "".join(r.line() + "\n" for r in sorted(set(rows), key=lambda r: r.order))
