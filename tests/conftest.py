"""Settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: waking a second thread costs more than it gives


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept between commands stays out of the user's own cache."""
    os.environ["POCKETPHI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["POCKETPHI_CACHE"]
