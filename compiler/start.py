"""The first module that a command loads: it hears Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

import os

from pocketphi.graph import stopping


def entry() -> int:
    """Entry point of the console script."""
    stopping.listen()
    # torch's threads wait for each other asleep, not in a loop: where others use the cores too, the loop takes 2.5 times the
    # CPU time. OpenMP reads this when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from pocketphi.compiler.cli import entry as run

        return run()
    except KeyboardInterrupt:  # outside of what the command line looks after
        stopping.end()
