"""Compile the sample model, verify it, measure it, and ask it a question. Run by `make demo`."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.bench import bench
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.ui import Ui

OUT = Path("demo/sample")
QUESTION = "What is the capital of Japan?"


def main() -> int:
    command = ["pocketphi", "compile", "sample", "-o", str(OUT), "--force", "--verify", "always"]
    print("$", " ".join(command), flush=True)
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pocketphi.compiler", *command[1:]])
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if done.returncode:
        return done.returncode
    _table(seconds, memory)
    print(f"\n$ pocketphi chat {OUT} --prompt '{QUESTION}'")
    Chat(OUT).say(QUESTION, show=lambda piece: print(piece, end="", flush=True))
    print()
    return 0


def _table(seconds: float, memory: int) -> None:
    manifest = Bundle.open(OUT).manifest
    speeds = bench(OUT, [1, 2], prompt=512, generate=64, rounds=3, ui=Ui())
    kl = {check.name: check.measured for check in manifest.checks}
    table = Table(title="\nthe sample in numbers", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_row("parameters", f"{manifest.model.parameters / 1e6:.0f} M")
    table.add_row("on disk", f"{manifest.bytes / 1e6:.1f} MB in {len(manifest.files)} files")
    table.add_row(
        "error of the files, in float32", f"KL {kl['KL decode, exact']:.1e} nats a token, at most 1e-06 allowed"
    )
    table.add_row(
        "error of the files, as they run", f"KL {kl['KL decode, as saved']:.1e} nats a token, at most 1e-02 allowed"
    )
    for s in speeds:
        rate = f"reads a prompt of 512 tokens at {s.prefill:.0f} tokens/s, answers at {s.decode:.0f} tokens/s"
        table.add_row(f"{s.threads} thread{'s' * (s.threads > 1)}", rate)
    table.add_row("compile and verify", f"{seconds:.0f} s, peak memory {memory / 1e9:.2f} GB")
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
