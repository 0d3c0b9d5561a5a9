"""A shape is traced once in a run of the tests, by one of its processes, whatever the cache of a test is: many tests begin with
an empty one, and verification traces anew. What tests the tracer itself says so (`the_tracer_itself` in conftest.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pocketphi.compiler import known_graphs
from pocketphi.graph import trace as tracer
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.program import Program
from pocketphi.graph.stored_program import unpack
from pocketphi.graph.writing import write_whole

FOLDER = "POCKETPHI_TRACES_OF_TESTS"
"""Of the environment: where they lie."""
TRACED = tracer._traced


def use(patch: pytest.MonkeyPatch | None = None) -> None:
    """From now on, in this process. patch: to take it back."""
    patch = patch or pytest.MonkeyPatch()
    patch.setattr(tracer, "_traced", _once)
    patch.setattr(known_graphs, "trace_apart", _here)


def _once(source: Checkpoint, layers: int | None) -> Program:
    about = json.dumps([source.config.form.architecture, source.config.to_hf(), layers], sort_keys=True)
    file = Path(os.environ[FOLDER], hashlib.sha256(about.encode()).hexdigest())
    if not file.exists():
        write_whole(file, pickle.dumps(known_graphs.packed(TRACED(source, layers), source)))
    stored, constants = pickle.loads(file.read_bytes())
    return unpack(stored, memoryview(constants), source)


def _here(source: Checkpoint) -> tuple[dict[str, Any], bytes]:
    """In this process, which has imported transformers once for all of its tests."""
    return known_graphs.packed(tracer.trace(source), source)
