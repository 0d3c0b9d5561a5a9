"""The published shapes of all models. Their weights are not here: `random_weights.py` makes some."""

from __future__ import annotations

from pocketphi.graph.models import models

PUBLISHED = {name: config for model in models() for name, config in model.published.items()}
