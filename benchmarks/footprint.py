"""Memory of a bundle in its runtime against the plan of `pocketphi devices`: python benchmarks/footprint.py BUNDLE

Each line is a process of its own: it loads the bundle, reads a prompt, makes eight tokens. What counts for `ort-mobile` is how
much its peak of resident memory grows from the moment where onnxruntime is imported, and for `tvm-arm` all that the C runtime's
process holds at its peak, the pages of the mapped weights counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import preflight
from common import Bar, judge, print_table

_MADE = 8
_PIECE = 1024
_WITHIN = {"ort-mobile": 0.07, "tvm-arm": 0.05}

_CHILD = r"""
import json, sys, numpy as np, onnxruntime as ort
def peak():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
folder, prompt = sys.argv[1], int(sys.argv[2])
before = peak()
options = ort.SessionOptions()
options.intra_op_num_threads = 2
options.log_severity_level = 3
session = ort.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
caches = {}
for value in session.get_inputs():
    if value.name.startswith("past"):
        zeros = np.zeros((1, value.shape[1], prompt + 8, value.shape[3]), np.float32)
        caches[value.name] = ort.OrtValue.ortvalue_from_numpy(zeros)
names = {value.name for value in session.get_inputs()}
def step(ids, past):
    binding, total = session.io_binding(), past + len(ids)
    feeds = {"input_ids": [ids], "attention_mask": np.ones((1, total)), "position_ids": [np.arange(past, total)]}
    for name, value in feeds.items():
        if name in names:
            binding.bind_cpu_input(name, np.ascontiguousarray(value, np.int64))
    for name, cache in caches.items():
        binding.bind_ortvalue_input(name, cache)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
size = json.load(open(folder + "/genai_config.json"))["search"].get("chunk_size", prompt)
for start in range(0, prompt, size):
    step([i % 200 for i in range(start, min(start + size, prompt))], start)
for i in range(8):
    step([5], prompt + i)
print(peak() - before)
"""


def onnxruntime(bundle: Path, prompt: int) -> int:
    """Bytes that a process takes for a bundle in onnxruntime, at its peak."""
    command = [sys.executable, "-c", _CHILD, str(bundle), str(prompt)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tvm_runtime(bundle: Path, prompt: int) -> int:
    """The same of the C runtime, which runs a bundle for this machine."""
    from pocketphi.targets.tvm_arm.host import TvmHost

    runner = TvmHost(bundle).runner(prompt + _MADE, threads=2)  # its process ends with it
    process = runner.process
    for start in range(0, prompt, _PIECE):
        process.prefill([i % 200 for i in range(start, min(start + _PIECE, prompt))])
        if start + _PIECE < prompt:
            print(f"{start + _PIECE:,} of {prompt:,} tokens read …", end="\r", file=sys.stderr)
    for _ in range(_MADE):
        process.decode(5)
    peak = process.last.peak_bytes
    process.close()
    return peak


RUNTIMES = {"ort-mobile": onnxruntime, "tvm-arm": tvm_runtime}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle for ort-mobile, or for tvm-arm with --os host")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[64, 256, 512, 1024, 2040], help="default %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    a = parser.parse_args()
    preflight.require(__file__)

    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.compiler.footprint import bundle_footprint

    opened = Bundle.open(a.bundle)
    longest, rows, bars = opened.manifest.model.context, [], []
    for target in [name for name in RUNTIMES if name in opened.manifest.targets]:
        for prompt in [length for length in a.prompts if length + _MADE <= longest]:
            measured = RUNTIMES[target](a.bundle, prompt)
            held = prompt + _MADE
            predicted = bundle_footprint(opened, target, prompt, held).total(held)
            rows.append([target, f"{prompt:,}", f"{measured / 1e6:.1f}", f"{predicted / 1e6:.1f}"])
            title = f"{target}, prompt of {prompt:,}: predicted ÷ measured, less 1"
            bars.append(Bar(title, abs(predicted / measured - 1), _WITHIN[target]))
    print_table("Resident memory", ["target", "prompt", "measured, MB", "predicted, MB"], rows)
    return judge(bars, a.json, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
