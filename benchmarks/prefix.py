"""How soon an answer begins where a bundle ships what its prompts begin with. See README.md.

A prompt of the prefix and a message is read with the prefix's file and without, in turns, in processes of the C runtime. CPU
time of the call counts, which other work on the machine moves less than its wall time; both are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import preflight

preflight.require(__file__)

import numpy as np  # noqa: E402 - packages may be missing
from common import Bar, print_table  # noqa: E402

from pocketphi.artifacts.bundle import Bundle  # noqa: E402
from pocketphi.compiler.compile import compile_model  # noqa: E402
from pocketphi.compiler.options import compile_options  # noqa: E402
from pocketphi.compiler.prefix import PREFIX, prefix_tokens  # noqa: E402
from pocketphi.compiler.text import read_text  # noqa: E402
from pocketphi.compiler.ui import PlainUi  # noqa: E402
from pocketphi.graph.opening import open_checkpoint  # noqa: E402
from pocketphi.graph.tokenizer import Tokenizer  # noqa: E402
from pocketphi.passes.calibrate import held_out_text  # noqa: E402
from pocketphi.targets.tvm_arm.build_runtime import build_runtime  # noqa: E402
from pocketphi.targets.tvm_arm.process import RuntimeProcess  # noqa: E402
from pocketphi.targets.tvm_arm.toolchain import find_toolchain  # noqa: E402

MESSAGE = "Which of these functions should I call to read a whole file as text, and what does it raise?"
_TICK = os.sysconf("SC_CLK_TCK")


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """A text with which prompts begin with about so many tokens, of documentation."""
    ids = tokenizer.encode(held_out_text())
    least, most = 1, tokens
    while least < most:  # the template takes some of them
        middle = (least + most + 1) // 2
        long = len(prefix_tokens(tokenizer, tokenizer.decode(ids[:middle]).strip(), "the text")) > tokens
        least, most = (least, middle - 1) if long else (middle, most)
    return tokenizer.decode(ids[:least]).strip()


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICK


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="sample")
    parser.add_argument("--out", type=Path, default=Path("build/prefix"), help="folder of the bundle, which is kept")
    parser.add_argument("--tokens", type=int, default=1000, help="of the prefix (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not a.out.exists():
        a.out.parent.mkdir(parents=True, exist_ok=True)
        path = a.out.with_suffix(".txt")
        path.write_text(text_of(Tokenizer.from_files(open_checkpoint(a.model).tokenizer_files()), a.tokens))
        asked = compile_options(a.model, a.out, ("tvm-arm",), os="host", recipe="rtn", verify="never", prefix=path)
        compile_model(asked, PlainUi())
    bundle, tokenizer = Bundle.open(a.out), Tokenizer.load(a.out)
    assert bundle.manifest.prefix
    text = read_text(a.out / PREFIX, "the prefix")
    prompt = tokenizer.encode_chat([{"role": "system", "content": text}, {"role": "user", "content": MESSAGE}])
    runner = [str(build_runtime(find_toolchain()).runner)]
    cpu: dict[bool, list[float]] = {True: [], False: []}
    wall: dict[bool, list[float]] = {True: [], False: []}
    logits = {}
    for _ in range(a.rounds):
        for shipped in (True, False):
            with RuntimeProcess(runner, a.out, max_tokens=len(prompt) + 64, threads=1, prefix=shipped) as process:
                process.prefill([1, 2])  # the first call maps the weights
                process.reset()
                before = cpu_seconds(process.pid)
                logits[shipped] = process.prefill(prompt).copy()
                cpu[shipped].append(cpu_seconds(process.pid) - before)
                wall[shipped].append(process.last.milliseconds / 1e3)
    ratios = {
        "CPU": statistics.median(cpu[False]) / statistics.median(cpu[True]),
        "wall": statistics.median(wall[False]) / statistics.median(wall[True]),
    }
    tokens = bundle.manifest.prefix.tokens
    print(f"ratio of wall times {ratios['wall']:.1f}; prefix of {tokens} tokens, {len(prompt) - tokens} more")
    print_table(
        "One thread",
        ["", "CPU s to the first token", "wall s"],
        [
            [name, f"{statistics.median(cpu[way]):.2f}", f"{statistics.median(wall[way]):.2f}"]
            for name, way in (("computed", False), ("shipped", True))
        ],
    )
    different = int(not np.array_equal(logits[True], logits[False]))
    bars = [Bar("time to first token, computed ÷ shipped", ratios["CPU"], 15, "x", at_least=True)]
    bars.append(Bar("logits that are others", different, 0))
    print_table("Limits", ["figure", "measured", "limit", ""], [bar.row() for bar in bars])
    if a.json:
        a.json.write_text(json.dumps({"ratios": ratios, "cpu": cpu, "wall": wall, "bars": [b.as_json() for b in bars]}))
    return int(any(bar.missed for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
