"""The first module that a command loads: it hears Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

import os
import sys

from pocketphi.graph import stopping


def entry() -> int:
    """Entry point of the console script."""
    _open_streams()
    stopping.listen()
    # torch's threads wait for each other asleep, not in a loop: where others use the cores too, the loop takes 2.5 times the
    # CPU time. OpenMP reads this when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from pocketphi.compiler.cli import entry as run

        return run()
    except KeyboardInterrupt:  # outside of what the command line looks after
        stopping.end()


def _open_streams() -> None:
    """Streams that the caller has closed lead nowhere: the first files that are opened would take their numbers, and what
    libraries write to a stream would go into them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115  # stays open
            setattr(sys, name, stream)
