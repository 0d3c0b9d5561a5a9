"""Settings of all tests, and what their processes share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `compiler/start.py`: for what tests start by another way

import shared_traces
import torch
from the_sample import SAMPLE_TOKENS

from pocketphi.compiler import numerics
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph import trace as tracer

torch.set_num_threads(1)  # the models are tiny: waking a second thread costs more than it gives

for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background of a shell; what tests start would inherit it
        signal.signal(number, default)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same for every process that runs a part of the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(shared: Path) -> Iterator[None]:
    """What is kept between commands stays out of the user's own cache."""
    os.environ["POCKETPHI_CACHE"] = str(shared / "cache")
    yield
    del os.environ["POCKETPHI_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def traces_of_the_tests(shared: Path) -> Iterator[None]:
    (shared / "traces").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(shared_traces.FOLDER, str(shared / "traces"))
        shared_traces.use(patch)
        yield


@pytest.fixture(scope="module")
def the_tracer_itself(traces_of_the_tests: None) -> Iterator[None]:
    """Every call of `trace` traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracer, "_traced", shared_traces.TRACED)
        yield


WHOLE_DECODE = numerics._DECODE


@pytest.fixture(scope="session", autouse=True)
def short_decode() -> Iterator[None]:
    """Verification takes twelve steps with the cache, in which all is seen that a test spoils. What is right is verified with
    as many as a user's once for each target: by `whole_decode`, and by what starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "_DECODE", 12)
        yield


@pytest.fixture
def whole_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "_DECODE", WHOLE_DECODE)


@pytest.fixture(scope="module", autouse=True)
def what_was_loaded_is_not_searched() -> None:
    """The modules that tests load hold millions of objects, among which Python looks for unused ones again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with the default recipe, verified while it was made. Its weights are in the cache then."""
    out = tmp_path_factory.mktemp("sample") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "_DECODE", WHOLE_DECODE)
        compile_model(compile_options("sample", out, verify="always", calibration_tokens=SAMPLE_TOKENS))
    return out


_TOGETHER = {
    "sample": ("tests/compiler/test_sample.py", "tests/test_docs.py::test_the_four_commands"),
    "kits": ("tests/kits/",),
}
"""What shares what it makes, by how the names of tests begin; these begin first, as they take the longest."""


def _group(test: str) -> str:
    """A file's tests share what they make, where nothing else is said."""
    groups = [name for name, begins in _TOGETHER.items() if test.startswith(begins)]
    return groups[0] if groups else test.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = list(_TOGETHER)
    items.sort(key=lambda item: first.index(group) if (group := _group(item.nodeid)) in first else len(first))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a group run in one process, one after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)
