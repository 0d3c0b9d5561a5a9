"""The traced graph of a model and the fused one, from the cache or made now.

A trace takes seconds, most of them for importing transformers, and gives the same for every model of a shape. It runs in a
process of its own, since what the tracer leaves behind is larger than all that a compile needs. What comes out of that process
is what the cache keeps, so that the first command works on the same graph as the second: it was compared with the trace.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch

from pocketphi.compiler.known import Known
from pocketphi.compiler.pipeline import dump_graph, fusions, run_passes
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.processes import apart
from pocketphi.graph.program import Program
from pocketphi.graph.reading import typed
from pocketphi.graph.stored_program import pack, same_program, unpack
from pocketphi.passes.base import PassReport

_LIBRARIES = ("torch", "transformers")


class KnownGraphs:
    """The float graphs of one checkpoint."""

    def __init__(self, source: Checkpoint, cache: Path | None = None) -> None:
        self._source = source
        self._graphs = Known("graph", _LIBRARIES, cache)
        self._agreements = Known("agreement", _LIBRARIES, cache)

    @functools.cached_property
    def traced(self) -> Program:
        """See `graph.trace`. Raises InputError where transformers would make another model of the source's settings."""
        about = self._about("traced")
        found = self._find(about)
        if found is not None:
            self._check_settings()
            return found[0]
        stored, constants = trace_apart(self._source)  # checks the settings first
        if self._source.settings is not None:
            self._agreements.keep(self._settings())
        self._graphs.keep(about, {"program": stored, "reports": []}, [constants])
        return unpack(stored, memoryview(constants), self._source)

    def fused(self, context: int | None, dump: Path | None = None) -> tuple[Program, list[PassReport]]:
        """After the float rewrites, and what they did; the caller's own. context: see `fusions`; dump: see `run_passes`."""
        about = self._about("fused", context=context)
        found = None if dump else self._find(about)
        if found is not None:
            self._check_settings()
            return found
        dump_graph(self.traced, dump, 0, "traced")
        program = self.traced.copy()
        reports = run_passes(program, fusions(context), dump, first=1)
        stored, constants = packed(program, self._source)
        self._graphs.keep(about, {"program": stored, "reports": [vars(one) for one in reports]}, [constants])
        return program, reports

    def _about(self, which: str, **more: Any) -> dict[str, Any]:
        cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"  # rotary tables are computed
        return {"graph": which, "config": self._source.config.to_hf(), "cpu": cpu, **more}

    def _find(self, about: dict[str, Any]) -> tuple[Program, list[PassReport]] | None:
        found = self._graphs.find(about)
        if found is None:
            return None
        content, data = found
        try:
            stored = typed(dict[str, Any], content, "a stored graph")
            reports = typed(list[PassReport], stored.get("reports"), "a stored graph: reports")
            return unpack(stored.get("program"), data, self._source), reports
        except InputError:
            return None

    def _check_settings(self) -> None:
        """Ask transformers about the source's settings, if it was not asked before."""
        if self._source.settings is not None and self._agreements.find(self._settings()) is None:
            self._source.check_settings()
            self._agreements.keep(self._settings())

    def _settings(self) -> dict[str, Any]:
        return {"settings": self._source.settings, "config": self._source.config.to_hf()}


def trace_apart(source: Checkpoint) -> tuple[dict[str, Any], bytes]:
    """The traced graph of a checkpoint as `packed` gives it. Raises what `graph.trace` raises."""

    def job() -> tuple[dict[str, Any], bytes]:
        from pocketphi.graph.trace import trace

        return packed(trace(source), source)

    return apart(job)


def packed(program: Program, source: Checkpoint) -> tuple[dict[str, Any], bytes]:
    """A program as JSON and bytes, after making it again out of them. Raises CompilerBug where that is another one."""
    stored, constants = pack(program)
    data = b"".join(constants)
    if not same_program(program, unpack(stored, memoryview(data), source)):
        raise CompilerBug("a graph that is made again out of its stored form is another one")
    return stored, data
