"""Tune a TVM bundle: time schedules of its kernels, keep the rows, and build its library anew with the best."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.artifacts.folder import new_folder
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number, check_threads
from pocketphi.graph.reading import resolved
from pocketphi.graph.writing import write_whole
from pocketphi.targets import find_target, packages_of
from pocketphi.targets.target import Asked, Tools, Ui
from pocketphi.targets.tvm_arm.options import TvmArm

if TYPE_CHECKING:
    from pocketphi.targets.tvm_arm.host import TvmHost
    from pocketphi.targets.tvm_arm.kernels.matmul import Form
    from pocketphi.targets.tvm_arm.tune.database import Record
    from pocketphi.targets.tvm_arm.tune.spread import Measurer


@dataclass(frozen=True)
class TuneOptions:
    """Arguments of the command. out: the database, `BUNDLE.tuning.jsonl` if None; rpc: a tracker's HOST:PORT; key: a board
    there; model: a core for llvm-mca; threads, rounds: of timed kernels; apply: build the bundle's library anew."""

    bundle: Path
    out: Path | None = None
    rpc: str | None = None
    key: str | None = None
    model: str | None = None
    threads: int = 1
    rounds: int = 7
    apply: bool = False

    def __post_init__(self) -> None:
        check_threads(self.threads, least=1)
        check_number("--rounds", self.rounds)
        if (self.rpc is None) != (self.key is None):
            raise InputError("--rpc and --key: a board takes both, the tracker's HOST:PORT and its name there")
        if self.rpc and self.model:
            raise InputError("--rpc and --model: kernels are timed in one way at a time")

    @property
    def database(self) -> Path:
        return self.out or self.bundle.with_name(resolved(self.bundle).name + ".tuning.jsonl")


@dataclass(frozen=True)
class TunedForm:
    """What was found for a form. default, us: microseconds of the default schedule and of the best."""

    form: str
    default: float
    us: float
    schedule: dict[str, int]
    how: str


@dataclass
class Tuned:
    """The result. timed: schedules timed by this run."""

    database: Path
    timed: int = 0
    forms: list[TunedForm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "database": str(self.database)}


@dataclass(frozen=True)
class Rank:
    """How well the model ranks a form's schedules. choice: the best time over the time of the model's choice, both measured."""

    form: str
    schedules: int
    spearman: float
    choice: float


def tune(options: TuneOptions, tools: Tools) -> Tuned:
    """Time what the database lacks, form by form. Raises InputError for bad input and where a board goes away: what was timed
    until then is in the database, and the same call goes on from there."""
    host = _host(options.bundle)
    from pocketphi.targets.tvm_arm.tune import database
    from pocketphi.targets.tvm_arm.tune.search import forms_of, search

    records = database.read(options.database) if options.database.exists() else []
    measurers = _measurers(options, host)
    measurer, forms = measurers[0], forms_of(host.described)
    result = Tuned(options.database)
    boards = f" on {len(measurers)} boards" if len(measurers) > 1 else ""
    with tools.ui.task(f"tune, {measurer.how}{boards}", len(forms)) as advance:
        for rows in search(measurers, forms, records, lambda: advance(1), tools.ui.say):
            records += rows
            result.timed += len(rows)
            database.write(options.database, records)
    result.forms = [found for form in forms if (found := _tuned_form(measurer, form, records))]
    if options.apply:
        result.notes = apply(options, tools)
    return result


def apply(options: TuneOptions, tools: Tools) -> list[str]:
    """Build the library of the bundle anew with the database; parameters stay, the manifest follows. Returns notes."""
    from pocketphi.targets.tvm_arm.package import TvmBundle

    bundle = Bundle.open(options.bundle)
    host = _host(options.bundle)
    manifest = bundle.manifest
    program = tools.rebuild(bundle, host.weights())
    platform = host.platform
    asked = TvmArm(
        os=platform.system, cpu=platform.cpu or platform.isa.name, tuning=options.database, kv_cache=host.kv_cache
    )
    prepared = TvmBundle(program, asked, Asked())
    library = (entry.bytes for name, entry in manifest.files.items() if name.startswith(("model.so", "libmodel")))
    with new_folder(bundle.path, 2 * sum(library), replace=True) as folder:
        for name in manifest.files:
            _link(bundle.path / name, folder / name)
        notes = prepared.replace_library(folder)
        if manifest.verification:
            manifest = replace(manifest, verification=tools.verify(folder, manifest))
        write_manifest(folder, manifest)
    return notes


def validate(options: TuneOptions, ui: Ui) -> list[Rank]:
    """Time every form both here and by the model, which is trusted as far as their ranks agree."""
    host = _host(options.bundle)
    from pocketphi.targets.tvm_arm.tune.cores import cores_of
    from pocketphi.targets.tvm_arm.tune.cost_model import CostModel, find_mca
    from pocketphi.targets.tvm_arm.tune.measure import LocalMeasurer
    from pocketphi.targets.tvm_arm.tune.rank import spearman
    from pocketphi.targets.tvm_arm.tune.search import forms_of
    from pocketphi.targets.tvm_arm.tune.space import space

    platform = host.platform
    local = LocalMeasurer(platform, options.threads, options.rounds)
    model = CostModel(platform, options.model or cores_of(platform.isa)[0], find_mca())
    forms = forms_of(host.described)
    ranks = []
    with ui.task("validate", len(forms)) as advance:
        for form in forms:
            modelled = model.times(form, space(platform.isa, form))
            schedules = list(modelled)
            measured = local.times(form, schedules)
            rank = spearman([measured[s] for s in schedules], [modelled[s] for s in schedules])
            choice = measured[min(schedules, key=lambda s: modelled[s])]
            ranks.append(Rank(form.key, len(schedules), round(rank, 3), round(min(measured.values()) / choice, 3)))
            advance(1)
    return ranks


def write_server(options: TuneOptions, path: Path) -> None:
    """The RPC server for the OS and CPU that a bundle was made for. Raises InputError where its compiler is missing."""
    host = _host(options.bundle)
    from pocketphi.targets.tvm_arm.build_runtime import build_rpc_server

    write_whole(path, build_rpc_server(host.platform.toolchain()).read_bytes())
    path.chmod(0o755)


def _host(folder: Path) -> TvmHost:
    """The TVM part of a bundle. Raises InputError where it has none."""
    bundle = Bundle.open(folder, check=False)
    held = bundle.manifest.targets
    name = TvmArm.target
    if name not in held:
        raise InputError(f"{folder}: holds {', '.join(held)}; only a bundle of --target {name} has schedules to tune")
    with packages_of(find_target(TvmArm.target)):
        from pocketphi.targets.tvm_arm.host import TvmHost
    return TvmHost(folder)


def _measurers(options: TuneOptions, host: TvmHost) -> Sequence[Measurer]:
    """Boards where a tracker is given; else this machine where it runs these kernels; else the model."""
    platform = host.platform
    if options.rpc:
        with packages_of(find_target(TvmArm.target)):
            from pocketphi.targets.tvm_arm.tune.remote import RemoteMeasurer, connect, parse_address

            key = options.key or ""
            sessions = connect(parse_address(options.rpc), key)
            return [RemoteMeasurer(platform, session, key, options.threads, options.rounds) for session in sessions]
    from pocketphi.targets.tvm_arm.tune.cores import find_core
    from pocketphi.targets.tvm_arm.tune.cost_model import CostModel, find_mca
    from pocketphi.targets.tvm_arm.tune.measure import LocalMeasurer, runs_here

    if options.model is None and runs_here(platform):
        return [LocalMeasurer(platform, options.threads, options.rounds)]
    core = options.model or platform.cpu
    if core is None:
        raise InputError(
            f"the bundle is for any CPU with {platform.isa.name}: "
            "name a core by --model cortex-a76, or a board by --rpc and --key"
        )
    find_core(core)  # refuses before anything is timed
    return [CostModel(platform, core, find_mca())]


def _tuned_form(measurer: Measurer, form: Form, records: list[Record]) -> TunedForm | None:
    from pocketphi.targets.tvm_arm.tune.database import fitting
    from pocketphi.targets.tvm_arm.tune.space import default_schedule

    own = [record for record in records if record.how == measurer.how and record.form == form.key]
    chosen = fitting(own, measurer.platform).get(form.key)
    default = next((r.us for r in own if r.schedule == default_schedule(measurer.platform.isa, form)), None)
    if chosen is None or default is None:
        return None
    return TunedForm(form.key, default, chosen.us, asdict(chosen.schedule), chosen.how)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk has no such thing, or where it will be written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".params":
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)
