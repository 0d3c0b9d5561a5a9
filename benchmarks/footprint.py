"""Memory of a bundle in onnxruntime against the plan of `pocketphi devices`: python benchmarks/footprint.py BUNDLE

Each line is a process of its own: it loads the bundle, reads a prompt, makes eight tokens. What counts is how much its peak of
resident memory grows from the moment where onnxruntime is imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import preflight

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


def resident(bundle: Path, prompt: int) -> int:
    """Bytes that a process takes for a bundle in onnxruntime, at its peak."""
    command = [sys.executable, "-c", _CHILD, str(bundle), str(prompt)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="an ort-mobile bundle")
    bundle = parser.parse_args().bundle
    preflight.require(__file__)

    from pocketphi.artifacts.bundle import Bundle
    from pocketphi.compiler.footprint import bundle_footprint

    opened = Bundle.open(bundle)
    longest = opened.manifest.model.context
    print("prompt  measured, MB  predicted, MB  ratio")
    for prompt in (64, 256, 512, 1024, 2040):
        if prompt + 8 <= longest:
            measured = resident(bundle, prompt)
            predicted = bundle_footprint(opened, "ort-mobile", prompt).total(prompt + 8)
            print(f"{prompt:>6}  {measured / 1e6:>12.1f}  {predicted / 1e6:>13.1f}  {predicted / measured:.3f}")


if __name__ == "__main__":
    main()
