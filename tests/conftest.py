"""Settings of all tests."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # the models are tiny: waking a second thread costs more than it gives
