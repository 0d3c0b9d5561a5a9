"""Which rows of which tensor a module of an adapter is: by the names that transformers' class has for its modules.

A projection that is stored apart in one class is packed in another: `q_proj` is the first rows of `qkv_proj`. An adapter may be
for either, whichever the base is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import EMBEDDING, HEAD, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.settings import LoraSettings
from pocketphi.graph.models.apart import hf_apart
from pocketphi.graph.models.base import Piece

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Modules:
    """The modules of an adapter's base, as the adapter has them.

    pieces: tensor → the modules' weights that its rows are of; a name has no `.weight`
    shapes: module → shape of its weight
    prefix: what the names of the adapter lack: `model.` where it was made for the model without its head
    """

    pieces: Mapping[str, Sequence[Piece]]
    shapes: Mapping[str, tuple[int, ...]]
    prefix: str

    def path(self, module: str) -> str:
        """A module's name in the class that the adapter was made for."""
        return module.removeprefix(self.prefix)

    def find(self, path: str) -> str | None:
        """A module by its name in the class that the adapter was made for."""
        return next((name for name in (path, self.prefix + path) if name in self.shapes), None)


def modules_of(base: Checkpoint, used: Collection[str], where: str) -> Modules:
    """used: names that the adapter has changes of. Where the projections of a layer have several names, those are taken.

    Raises InputError where an adapter has a packed projection and parts of it.
    """
    shapes = {**base.config.tensors(), HEAD: (base.config.vocab_size, base.config.hidden_size)}
    whole = {name: [Piece(name, shape[0])] for name, shape in shapes.items()}
    apart = hf_apart(base.config)
    own = base.family.pieces(base.config) if base.family else whole
    prefix = "" if any(path.startswith(("model.", "lm_head")) for path in used) or not used else "model."
    pieces: dict[str, list[Piece]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        layer = f"model.layers.{layer_of(name)}."
        parts = [Piece(layer + p.name, p.rows, p.first, p.head_dim) for p in apart.get(name.removeprefix(layer), ())]
        found = [ways for ways in (own[name], whole[name], parts) if _named(ways) & {prefix + path for path in used}]
        for other in found[1:]:
            if _named(other) != _named(found[0]):
                both = " and ".join(sorted(_named(found[0]) | _named(other)))
                raise InputError(f"{where}: changes {both}, which are the same weights; it cannot be for one model")
        pieces[name] = [Piece(_module(p), p.rows, p.first, p.head_dim) for p in (found or [own[name]])[0]]
        for piece in pieces[name]:
            rows = max(piece.first + piece.rows, *sizes.get(piece.name, (0,))[:1])
            sizes[piece.name] = (rows, *shape[1:])
    return Modules(pieces, sizes, prefix)


def targeted(settings: LoraSettings, modules: Modules, tied: bool) -> set[str] | None:
    """The modules that the settings say to have low-rank changes, as PEFT's `check_target_module_exists` finds them; None where
    they leave it to PEFT, which chooses by the model's type. tied: the base's head is its embedding."""
    if settings.target_modules is None:
        return None
    found = {
        name
        for name, shape in modules.shapes.items()
        if len(shape) == 2
        and _is_target(settings, modules.path(name), name + _WEIGHT == HEAD, name + _WEIGHT == EMBEDDING)
    }
    pair = {EMBEDDING.removesuffix(_WEIGHT), HEAD.removesuffix(_WEIGHT)}
    return found | pair if tied and settings.ensure_weight_tying and found & pair else found


def saved_whole(settings: LoraSettings, modules: Modules, tied: bool) -> set[str]:
    """The modules that `modules_to_save` names: an ending of their name is enough."""
    ends = settings.modules_to_save or ()
    found = {name for name in modules.shapes if any(modules.path(name).endswith(end) for end in ends)}
    pair = {EMBEDDING.removesuffix(_WEIGHT), HEAD.removesuffix(_WEIGHT)}
    return found | pair if tied and settings.ensure_weight_tying and found & pair else found


def _is_target(settings: LoraSettings, path: str, is_head: bool, is_embedding: bool) -> bool:
    targets, excluded = settings.target_modules, settings.exclude_modules
    if isinstance(excluded, str):
        if re.fullmatch(excluded, path):
            return False
    elif _is_listed(path, excluded or ()):
        return False
    if any(re.match(rf"(^|.*\.){one}($|\..*)", path) for one in settings.modules_to_save or ()):
        return False
    if isinstance(targets, str):
        if targets.lower() == "all-linear":
            return not (is_head or is_embedding)
        return re.fullmatch(targets, path) is not None
    return _is_listed(path, targets or ()) and _in_layers(settings, path)


def _is_listed(path: str, names: Collection[str]) -> bool:
    return path in names or any(path.endswith(f".{name}") for name in names)


def _in_layers(settings: LoraSettings, path: str) -> bool:
    wanted = settings.layers_to_transform
    if wanted is None or wanted == ():
        return True
    patterns = settings.layers_pattern or (r"[^.]*",)
    for one in (patterns,) if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.", path):
            return int(found["idx"]) in ((wanted,) if isinstance(wanted, int) else wanted)
    return False


def _named(pieces: Sequence[Piece]) -> set[str]:
    return {_module(piece) for piece in pieces}


def _module(piece: Piece) -> str:
    return piece.name.removesuffix(_WEIGHT)
