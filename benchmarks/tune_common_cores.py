"""Fill the shared database of schedules (targets/tvm_arm/tune/database.jsonl) at Phi-3-mini's and the sample's widths.

    python benchmarks/tune_common_cores.py --model    # every core of platform.CORES, by llvm-mca: some minutes
    python benchmarks/tune_common_cores.py --host     # this machine's instruction sets, measured

Rows of the other kind stay. One row a form: the best schedule, or the default one where the best is nearly as good.
"""

from __future__ import annotations

import argparse
import math
import sys

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.cores import cores_of
from pocketphi.targets.tvm_arm.tune.cost_model import CostModel, find_mca
from pocketphi.targets.tvm_arm.tune.database import MODEL_MARGIN, SHARED, Record, read, write
from pocketphi.targets.tvm_arm.tune.measure import LocalMeasurer, runs_here
from pocketphi.targets.tvm_arm.tune.space import default_schedule, space

# rows × columns: qkv, output, gate and up, down; the head serves one token
PHI_3_MINI = [(9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192)], (32064, 3072)
SAMPLE = [(960, 576), (576, 576), (3072, 576), (576, 1536)], (49152, 576)

NOISE = 0.08
"""A measured schedule has to beat the default one by this much: the least time of two dozen schedules is partly luck."""


def forms(isa: Isa) -> list[Form]:
    made = []
    for matrices, head in (PHI_3_MINI, SAMPLE):
        for rows, columns in [*matrices, head]:
            matrix = Interleaved(rows, columns, 32, isa.lanes, isa.pairs, isa.signed)
            made += [Form(matrix, single=True)] + ([Form(matrix)] if (rows, columns) != head else [])
    return made


def chosen(isa: Isa, form: Form, times: dict[Schedule, float], margin: float) -> Schedule:
    default = default_schedule(isa, form)
    best = min(times, key=lambda schedule: (round(times[schedule], 3), schedule.units, schedule.unroll))
    return best if times[best] * (1 + margin) < times[default] else default


def modelled(isa: Isa) -> list[Record]:
    """Rows for each core, and for any: the schedule that is best on average over the cores."""
    tool, rows = find_mca(), []
    kinds = [form for form in forms(isa) if not form.single]  # nobody would take a model's word for decode
    cores = {core: CostModel(Platform("linux", isa, core), core, tool) for core in cores_of(isa)}
    shared: dict[Form, list[dict[Schedule, float]]] = {form: [] for form in kinds}
    for core, model in cores.items():
        for form in kinds:
            times = model.times(form, space(isa, form))
            schedule = chosen(isa, form, times, MODEL_MARGIN)
            rows.append(Record.of(model.platform, form.key, schedule, times[schedule], model.how))
            shared[form].append(times)
        say(f"{isa.name} {core}")
    for form, all_times in shared.items():
        common = [s for s in all_times[0] if all(s in times for times in all_times)]
        times = {s: math.prod(t[s] for t in all_times) ** (1 / len(all_times)) for s in common}
        schedule = chosen(isa, form, times, MODEL_MARGIN)
        how = f"model of {len(cores)} cores"
        rows.append(Record.of(Platform("linux", isa), form.key, schedule, times[schedule], how))
    return rows


def measured(isa: Isa, rounds: int) -> list[Record]:
    measurer, rows = LocalMeasurer(Platform("linux", isa), rounds=rounds), []
    for form in forms(isa):
        times = measurer.times(form, space(isa, form))
        schedule, default = chosen(isa, form, times, NOISE), times[default_schedule(isa, form)]
        rows.append(Record.of(measurer.platform, form.key, schedule, times[schedule], measurer.how))
        say(f"{isa.name} {form.key}: {default:.1f} -> {times[schedule]:.1f} us, {schedule}")
    return rows


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", action="store_true")
    p.add_argument("--host", action="store_true")
    p.add_argument("--rounds", type=int, default=7)
    a = p.parse_args()
    kept = read(SHARED)
    for isa in ISAS.values():
        if a.model and isa.arch == "aarch64":
            kept = [r for r in kept if r.measured or r.isa != isa.name] + modelled(isa)
        if a.host and runs_here(Platform("linux", isa)):
            kept = [r for r in kept if not r.measured or r.isa != isa.name] + measured(isa, a.rounds)
        write(SHARED, kept)


if __name__ == "__main__":
    main()
