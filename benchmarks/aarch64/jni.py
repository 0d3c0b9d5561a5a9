"""The JNI part of the Android kit over a real library: python benchmarks/aarch64/jni.py BUNDLE [--host BUNDLE]

BUNDLE: of --target tvm-arm for linux, with a tokenizer; --host: the same with --os host, whose greedy tokens are compared. The
kit's C++ is compiled for the bundle's CPU and linked with the bundle's own runtime; `jni_harness.cpp` takes the place of the
virtual machine, under qemu-aarch64 where the CPU is another.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pocketphi.targets.tvm_arm.host import TvmHost

HARNESS = Path(__file__).with_name("jni_harness.cpp")
CPP = Path("src/main/cpp")


def missing(arch: str = "aarch64") -> str | None:
    """What has to be installed to build and run the kit's code for that CPU, if anything is."""
    from pocketphi.graph.errors import InputError
    from pocketphi.targets.tvm_arm.toolchain import find_toolchain

    if not shutil.which("javac"):
        return "no javac, which comes with jni.h: apt-get install default-jdk-headless"
    try:
        find_toolchain("linux", arch).command(Path("runner"))
    except InputError as error:
        return str(error)
    return None


def java_headers() -> list[str]:
    """Compiler flags for jni.h, which is the same for every CPU."""
    javac = shutil.which("javac")
    assert javac
    include = Path(javac).resolve().parents[1] / "include"
    return [f"-I{include}", f"-I{include / 'linux'}"]


def build_library(kit: Path, bundle: Path, folder: Path) -> Path:
    """libpocketphi_jni.so in `folder`: the kit's C++, linked with the bundle's libpocketphi.so."""
    out = folder / "libpocketphi_jni.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", *java_headers()]
    link = [f"-L{bundle}", "-lpocketphi", f"-Wl,-rpath,{bundle}", "-Wl,--no-undefined"]
    source = str(kit / CPP / "pocketphi_jni.cpp")
    TvmHost(bundle).platform.toolchain().run(*flags, f"-I{bundle}", source, *link, "-o", str(out))
    return out


def drive(
    library: Path, bundle: Path, prompt: Sequence[int], steps: int, cpu: str | None = None
) -> tuple[dict[str, str], npt.NDArray[np.float32]]:
    """What the harness found, by name, and the last logits. cpu: an emulated one, as qemu names it."""
    toolchain = TvmHost(bundle).platform.toolchain()
    harness, logits = library.with_name("jni_harness"), library.with_name("logits.bin")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *java_headers()]
    toolchain.run(*flags, str(HARNESS), "-ldl", "-o", str(harness))
    arguments = [str(library), str(bundle), '{"threads": 2}', ",".join(map(str, prompt)), str(steps), str(logits)]
    command = [*toolchain.command(harness, cpu), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"jni_harness: {done.stderr or f'ended with {done.returncode}'}")
    found = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    return found, np.fromfile(logits, np.float32)


def greedy(bundle: Path, prompt: Sequence[int], steps: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Greedy tokens of a bundle in the C runtime, without JNI, and the last logits."""
    runner = TvmHost(bundle).runner(len(prompt) + steps, threads=2)
    logits = runner.process.prefill(prompt)
    made = [int(logits.argmax())]
    while len(made) < steps:
        logits = runner.process.decode(made[-1])
        made.append(int(logits.argmax()))
    return made, logits.copy()


def main() -> None:
    from pocketphi.compiler.integrate import integrate
    from pocketphi.graph.tokenizer import Tokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--host", type=Path)
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cpu", default="cortex-a76", help="as qemu names it (default %(default)s)")
    arguments = parser.parse_args()
    bundle = arguments.bundle.resolve()
    if why := missing(TvmHost(bundle).platform.isa.arch):
        sys.exit(why)
    tokenizer = Tokenizer.load(bundle)
    prompt = tokenizer.encode_chat([{"role": "user", "content": arguments.prompt}])
    with tempfile.TemporaryDirectory() as folder:
        integrate(bundle, "android", Path(folder) / "kit", "tvm")
        library = build_library(Path(folder) / "kit", bundle, Path(folder))
        begin = time.perf_counter()
        found, _ = drive(library, bundle, prompt, arguments.steps, arguments.cpu)
        seconds = time.perf_counter() - begin
    tokens = [int(token) for token in found["tokens"].split(",")]
    print(f"{len(prompt)} tokens read, {len(tokens)} made, twice, in {seconds:.0f} s: {tokenizer.decode(tokens)!r}")
    print(f"after a reset the same: {found['again'] == found['tokens']}; errors: {found['bad-token']!r}")
    if arguments.host:
        expected, _ = greedy(arguments.host, prompt, arguments.steps)
        print(f"greedy {sum(a == b for a, b in zip(expected, tokens))}/{len(expected)} equal to the host's")


if __name__ == "__main__":
    main()
