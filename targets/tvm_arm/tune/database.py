"""Tuned schedules as JSON lines, sorted, one row for each schedule that was tried.

    {"kernels": 1, "isa": "dotprod", "cpu": "cortex-a76", "form": "decode 3072x8192 block 32 q+scale",
     "schedule": {"prefetch": 0, "rows": 1, "units": 4, "unroll": 1}, "us": 501.2, "how": "model cortex-a76"}

kernels: `KERNELS` of the templates that were timed; cpu: LLVM's name of the core that was compiled for, `any` where a bundle
is for an instruction set; us: microseconds of a call. The best row of a form counts: measured ones before modelled ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named, parse_object, read_whole, show, typed
from pocketphi.graph.writing import write_whole
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.kernels.matmul import KERNELS, Schedule, decode_schedule, prefill_schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.space import legal

SHARED = Path(__file__).with_name("database.jsonl")
BUNDLED = "tuning.jsonl"
"""What a bundle was built with, in its folder."""

ANY = "any"
MODEL_MARGIN = 0.05
"""A modelled schedule has to beat the default one by this much: the model's ranks are no better."""


@dataclass(frozen=True)
class Record:
    """One timed schedule."""

    kernels: int
    isa: str
    cpu: str
    form: str
    schedule: Schedule
    us: float
    how: str

    @staticmethod
    def of(platform: Platform, form: str, schedule: Schedule, us: float, how: str) -> Record:
        return Record(KERNELS, platform.isa.name, platform.cpu or ANY, form, schedule, float(f"{us:.4g}"), how)

    @property
    def measured(self) -> bool:
        return not self.how.startswith("model")

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.kernels, self.isa, self.cpu, self.form, *self.preference)

    @property
    def preference(self) -> tuple[Any, ...]:
        """Smaller is better; of equal ones the simpler."""
        simple = asdict(self.schedule)
        return (not self.measured, self.us, *simple.values(), self.how)

    def line(self) -> str:
        return json.dumps(asdict(self))


def read(path: Path, content: bytes | None = None) -> list[Record]:
    """content: of the file, where it has been read already. Raises InputError naming the line that is no record."""
    lines = (read_whole(path, "expected a tuning database") if content is None else content).split(b"\n")
    return [_parsed(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(where: str, line: bytes) -> Record:
    names = [field.name for field in fields(Record)]
    expected = f"not a row of a tuning database: expected {', '.join(names)}"
    row = parse_object(line, f"{where}: {expected}")
    schedule = row.get("schedule")
    known = {field.name for field in fields(Schedule)}
    if set(row) != set(names) or not isinstance(schedule, dict) or set(schedule) - known:
        raise InputError(f"{where}: {expected}")
    record = typed(Record, row, f"{where}: {expected}")
    if record.kernels < 0 or not 0 < record.us < float("inf"):
        raise InputError(f"{where}: {expected}, counts and microseconds above zero")
    if record.isa in ISAS and record.kernels == KERNELS and not legal(ISAS[record.isa], record.schedule):
        raise InputError(f"{where}: {named(record.isa)} has no registers for {show(asdict(record.schedule))}")
    return record


def write(path: Path, records: Iterable[Record]) -> None:
    """Replace a file at once: it holds the old rows or the new ones."""
    write_whole(path, text_of(records))


def text_of(records: Iterable[Record]) -> str:
    """A file with these rows."""
    rows = sorted(set(records), key=lambda record: record.order)
    return "".join(record.line() + "\n" for record in rows)


def fitting(records: Iterable[Record], platform: Platform) -> dict[str, Record]:
    """The best records of these kernels for a platform by form: its core's, else those for any core of the instruction set."""
    own = [r for r in records if (r.kernels, r.isa) == (KERNELS, platform.isa.name)]
    anyones = _best((r for r in own if r.cpu == ANY), platform.isa)
    return anyones | _best((r for r in own if r.cpu == (platform.cpu or ANY)), platform.isa)


def _best(records: Iterable[Record], isa: Isa) -> dict[str, Record]:
    """By form, of records for one platform."""
    rows: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda one: one.preference):
        rows.setdefault(record.form, []).append(record)
    return {form: found[0] if found[0].measured else _modelled(found, isa) for form, found in rows.items()}


def _modelled(rows: list[Record], isa: Isa) -> Record:
    """The first of a form's rows, or the default schedule's where that is nearly as good, and always in decode: there the
    model's ranks were found to be wrong (docs/tuning.md)."""
    decode = rows[0].form.startswith("decode")
    usual = decode_schedule(isa) if decode else prefill_schedule(isa)
    default = next((r for s in (usual, replace(usual, units=1)) for r in rows if r.schedule == s), rows[0])
    return rows[0] if not decode and rows[0].us * (1 + MODEL_MARGIN) < default.us else default


class Tuning:
    """The shared database, and a user's before it."""

    def __init__(self, platform: Platform, extra: Path | None = None, content: bytes | None = None) -> None:
        """content: of `extra`, where it has been read already."""
        self.platform, self.extra = platform, extra
        self._extra = read(extra, content) if extra else []
        self._mine = fitting(self._extra, platform)
        self.records = fitting(read(SHARED), platform) | self._mine

    @property
    def schedules(self) -> dict[str, Schedule]:
        return {form: record.schedule for form, record in self.records.items()}

    def used(self, forms: Iterable[str]) -> list[Record]:
        """Those that a model with these forms was built with."""
        return [self.records[form] for form in dict.fromkeys(forms) if form in self.records]

    def notes(self, forms: Iterable[str]) -> list[str]:
        """What a user should know: a database of theirs that did not apply, and why."""
        if self.extra is None or any(form in self._mine for form in forms):
            return []
        return [f"{self.extra} was ignored: {self._why()}"]

    def _why(self) -> str:
        def said(values: Iterable[object]) -> str:
            return ", ".join(map(named, sorted(set(values), key=str)))

        platform = self.platform
        rows = self._extra
        if not rows:
            return "it has no rows"
        if all(r.kernels != KERNELS for r in rows):
            return (
                f"it was made for version {said(r.kernels for r in rows)} of the kernels, these are version {KERNELS}"
            )
        if all(r.isa != platform.isa.name for r in rows):
            return f"it was made for {said(r.isa for r in rows)}, this is {platform.isa.name}"
        if not self._mine:
            return f"it was made for {said(r.cpu for r in rows)}, this is for {platform.cpu or ANY}"
        return "none of its matrices is in this model"
