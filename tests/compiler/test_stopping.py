"""Ctrl-C, `kill` and a closed terminal: one line and exit code 130, at any moment, also during the first imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LINE = "pocketphi: stopped; nothing was left half-written\n"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

AT = """
import builtins, os, signal, sys
sys.argv = ["pocketphi", "compile", "random:tiny", "--recipe", "rtn", "--verify", "never", "-o", "out"]
real, wanted, number = builtins.__import__, {wanted!r}, {number}
def watched(name, *rest, **named):
    if name == wanted or name + "." == wanted:
        builtins.__import__ = real
        os.kill(os.getpid(), number)
    return real(name, *rest, **named)
builtins.__import__ = watched
from pocketphi.compiler.start import entry
sys.exit(entry())
"""


MOMENTS = [("pocketphi.compiler.cli", signal.SIGINT), ("torch", signal.SIGTERM), ("onnx", signal.SIGINT)]


@pytest.mark.parametrize(("wanted", "number"), MOMENTS)
def test_a_signal_while_a_module_is_imported(wanted: str, number: signal.Signals, tmp_path: Path) -> None:
    code = AT.format(wanted=wanted, number=int(number))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines(keepends=True)[-1]) == (130, LINE)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


WORKING = """
import os, signal, sys, time
from pathlib import Path
from pocketphi.graph import stopping
stopping.listen()
from pocketphi.artifacts.folder import new_folder
from pocketphi.compiler import cli
from pocketphi.graph.processes import in_processes

def job(item, progress):
    print(os.getpid(), flush=True)
    while True:
        signal.pause()

def work(arguments):
    with new_folder(Path("out"), 0):
        {body}

class Parser:
    def parse_args(self, argv):
        return type("Arguments", (), {{"run": staticmethod(work), "verbose": True}})

cli.parser = Parser
sys.exit(cli.entry())
"""
POOL = 'in_processes(["a", "b"], job, print)'


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_group_while_workers_run(number: signal.Signals, tmp_path: Path) -> None:
    """As the terminal sends it; a second one while it cleans up changes nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING.format(body=POOL)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    workers = [process.stdout.readline() for _ in range(2)]
    assert all(workers)
    for _ in range(2):
        os.killpg(process.pid, number)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, LINE)
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "a library that makes another error of it": """
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except BaseException:
            raise ImportError("cannot import")""",
    "a finalizer, where no exception is raised": """
        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)
        Last()
        while True:
            time.sleep(0.01)""",
    "a terminal that is gone": """
        os.close(2)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)""",
}


@pytest.mark.parametrize("where", OTHERS)
def test_a_signal_in(where: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKING.format(body=OTHERS[where])], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "" if "gone" in where else LINE)
    assert list(tmp_path.iterdir()) == []


def test_who_is_not_to_hang_up_does_not(tmp_path: Path) -> None:
    """Under `nohup`."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WORKING.format(
        body="os.kill(os.getpid(), signal.SIGHUP); return 0"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
