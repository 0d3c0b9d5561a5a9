"""The process that makes one bundle for a worker: a job comes in, lines and a result go out."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import traceback
from typing import BinaryIO

import torch

from pocketphi.compiler.build_one import Job, make_bundle
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.cli import lack
from pocketphi.compiler.ui import PlainUi
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.processes import belong_to


class Relay(PlainUi):
    """Says its lines to the worker."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        _send(self._out, "say", text)


def main() -> None:
    """The argument is the number of the worker's process, with which this one ends."""
    belong_to(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print belongs into the worker's log
    job, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)  # sums depend on it
    _send(out, "result", base64.b64encode(pickle.dumps(_made(job, Relay(out)))).decode())


def _made(job: Job, ui: Relay) -> Result:
    try:
        job.sources.recognize()
        return make_bundle(job, ui)
    except PocketphiError as error:
        text, code = str(error), error.exit_code
    except Exception as error:  # as the command line has it
        text, code = lack(error), 2
        if not text:
            traceback.print_exc()
            text, code = f"this is a bug of ours: {type(error).__name__}: {error}", 3
    return Result(job.name, job.place, error=text, exit_code=code)


def _send(out: BinaryIO, kind: str, value: str) -> None:
    out.write(json.dumps({kind: value}).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
