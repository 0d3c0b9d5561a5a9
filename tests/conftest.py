"""Settings of all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `compiler/start.py`: for what tests start by another way

import torch

torch.set_num_threads(1)  # the models are tiny: waking a second thread costs more than it gives

for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background of a shell; what tests start would inherit it
        signal.signal(number, default)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between commands stays out of the user's own cache."""
    os.environ["POCKETPHI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["POCKETPHI_CACHE"]
