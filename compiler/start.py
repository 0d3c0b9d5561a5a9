"""The first module that a command loads: it hears Ctrl-C before anything that takes time is imported."""

from __future__ import annotations

from pocketphi.graph import stopping


def entry() -> int:
    """Entry point of the console script."""
    stopping.listen()
    try:
        from pocketphi.compiler.cli import entry as run

        return run()
    except KeyboardInterrupt:  # outside of what the command line looks after
        stopping.end()
