"""What the compiler does for the commands that single targets have; see `targets.target.Tools`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import Manifest, VerificationRecord
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.program import Program
from pocketphi.targets.target import Tools


def tools(ui: Ui) -> Tools:
    """ui: where a command tells what it does."""

    def rebuilt(bundle: Bundle, weights: Mapping[str, LazyWeight]) -> Program:
        recipe = bundle.manifest.recipe
        return rebuild(bundle.path, recipe, weights, recipe.all_logits).quantized

    def verified(folder: Path, manifest: Manifest) -> VerificationRecord:
        return verify_folder(folder, manifest, ui, as_far_as_it_runs=True).require().recorded()

    return Tools(ui, rebuilt, verified)
