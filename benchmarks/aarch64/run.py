"""A bundle on aarch64, under qemu, against this host: python benchmarks/aarch64/run.py BUNDLE [--prompt TEXT] [--steps N]

Needs benchmarks/aarch64/setup.sh build/aarch64 first. ARM kernels are other code than x86 kernels for the same operators: each
emulated CPU takes those that its features allow.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketphi.compiler.measure import Distance, distance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import preflight

FOLDER = Path(__file__).resolve().parents[2] / "build" / "aarch64"
GUEST = Path(__file__).with_name("guest.py")
CPUS = {
    "cortex-a72": "neon",
    "cortex-a76": "dotprod, fp16 (Raspberry Pi 5, phones since 2018)",
    "max": "i8mm, bf16, SVE",
}
_PARTS = {
    "cortex-a72": ("0xd08", ""),
    "cortex-a76": ("0xd0b", " asimdhp asimddp"),
    "max": ("0xd40", " asimdhp asimddp i8mm bf16 sve"),
}


def missing(folder: Path = FOLDER) -> str | None:
    """What to run first, if anything."""
    if list(folder.glob(".done-*")):
        return None
    return f"no aarch64 Python in {folder}: run benchmarks/aarch64/setup.sh {folder}"


@dataclass
class Run:
    """logits: float32 [STEPS, V]; tokens: int64 [STEPS], the most likely ones; seconds: with starting up."""

    logits: torch.Tensor
    tokens: list[int]
    machine: str
    seconds: float


def run(bundle: Path, prompt: Sequence[int], steps: int, cpu: str | None, forced: Sequence[int] | None = None) -> Run:
    """Run a bundle in a process of its own. cpu: an emulated one, or None for this host."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        arguments = [str(GUEST), str(bundle), ",".join(map(str, prompt)), str(steps), str(out)]
        arguments += [",".join(map(str, forced))] if forced else []
        command, environment = [sys.executable], dict(os.environ)
        if cpu:
            _describe(cpu)
            root = FOLDER / "root"
            command = [
                str(FOLDER / "qemu/usr/bin/qemu-aarch64-static"),
                "-cpu",
                cpu,
                "-L",
                str(root),
                str(root / "usr/bin/python3.11"),
            ]
            environment |= {"PYTHONPATH": str(FOLDER / "site"), "PYTHONHOME": str(root / "usr")}
        begin = time.perf_counter()
        subprocess.run([*command, *arguments], check=True, env=environment)
        seconds = time.perf_counter() - begin
        data = np.load(out)
        return Run(torch.from_numpy(data["logits"]), data["tokens"].tolist(), str(data["machine"]), seconds)


def _describe(cpu: str) -> None:
    """pytorch/cpuinfo, in onnxruntime, trusts /proc/cpuinfo, which under qemu before 8.0 is the host's: it would crash."""
    part, features = _PARTS[cpu]
    one = f"Features\t: fp asimd aes pmull sha1 sha2 crc32{features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    one += f"CPU variant\t: 0x1\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
    path = FOLDER / "root" / "proc" / "cpuinfo"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"processor\t: {i}\n{one}" for i in range(os.cpu_count() or 1)))


def compare(bundle: Path, prompt: Sequence[int], steps: int, cpu: str) -> tuple[Run, Run, Distance]:
    """The host's greedy reply, the same tokens forced upon the emulated CPU, and how far the logits are apart."""
    host = run(bundle, prompt, steps, None)
    guest = run(bundle, prompt, steps, cpu, host.tokens)
    return host, guest, distance(host.logits, guest.logits)


def exact_copy(bundle: Path, folder: Path) -> Path:
    """The same bundle computing in float32 (accuracy level 0): another graph over the same weights."""
    import onnx

    from pocketphi.targets.ort_mobile.host import accuracy_level

    model = onnx.load(str(bundle / "model.onnx"), load_external_data=False)
    accuracy_level(0)(model)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    os.link(bundle / "model.onnx.data", folder / "model.onnx.data")
    return folder


def main() -> None:
    from pocketphi.graph.tokenizer import Tokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    preflight.require(__file__)
    if why := missing():
        sys.exit(why)
    tokenizer = Tokenizer.load(arguments.bundle)
    prompt = tokenizer.encode_chat([{"role": "user", "content": arguments.prompt}])
    with tempfile.TemporaryDirectory(dir=arguments.bundle.parent) as folder:
        exact = exact_copy(arguments.bundle, Path(folder) / "exact")
        host, guest, apart = compare(exact, prompt, min(8, arguments.steps), "cortex-a76")
        print(
            f"in float32, cortex-a76: KL {apart.kl:.1e} nats/token, top-1 {apart.top1:.3f}, max |Δlogit| {apart.largest:.2g}"
        )
    for cpu, features in CPUS.items():
        host, guest, apart = compare(arguments.bundle, prompt, arguments.steps, cpu)
        alone = run(arguments.bundle, prompt, arguments.steps, cpu)
        same = sum(a == b for a, b in zip(host.tokens, alone.tokens))
        print(
            f"{cpu} ({features}): KL {apart.kl:.1e} nats/token, top-1 {apart.top1:.3f}, max |Δlogit| {apart.largest:.2g}"
        )
        print(f"  greedy {same}/{len(host.tokens)} equal, {guest.seconds:.0f} s: {tokenizer.decode(alone.tokens)!r}")


if __name__ == "__main__":
    main()
