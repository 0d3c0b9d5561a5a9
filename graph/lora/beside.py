"""An adapter beside its base: what it adds to each projection as two factors, whose product nobody has to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.lora.adapter import Adapter, open_adapter
from pocketphi.graph.lora.changes import Change, LowRank, OfEmbedding, Rows
from pocketphi.graph.lora.named import NamedLora
from pocketphi.graph.models.base import Piece
from pocketphi.graph.reading import some


@dataclass(frozen=True)
class Beside:
    """Factors of an adapter, read from its folder when they are asked for.

    named: as the user named it; adapter: opened for the base; ranks: by weight, of all its modules together
    """

    named: NamedLora
    adapter: Adapter
    ranks: Mapping[str, int]

    def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(A float32 [K, r], B float32 [r, N]). Modules that are rows of one weight follow each other in the rank, each with
        its own rows of the weight: of q and k, whose weights lie one after the other, B is [[Bq 0], [0 Bk]]. The scaling is
        in B, which is rounded once."""
        pieces = self.adapter.modules.pieces[weight]
        parts = _parts(self.adapter, pieces)
        a = torch.cat([change.a.whole() for change in parts.values()]).T.float().contiguous()
        b = torch.zeros(self.ranks[weight], sum(piece.rows for piece in pieces))
        places, at = {}, 0
        for module, change in parts.items():
            places[module] = slice(at, at + change.a.stored.shape[0])
            at = places[module].stop
        row = 0
        for piece in pieces:
            if piece.name in parts:
                change = parts[piece.name]
                numbers = torch.from_numpy(piece.stored_rows(0, piece.rows))
                b[places[piece.name], row : row + piece.rows] = (change.b.rows(numbers) * change.scale).T.float()
            row += piece.rows
        return a, b


def open_beside(named: Sequence[NamedLora], base: Checkpoint, projections: Sequence[str]) -> dict[str, Beside]:
    """Adapters by their names. projections: the weights of the base that a program multiplies with.

    Raises InputError for two of one name, and for an adapter that is not low-rank changes of projections alone.
    """
    found: dict[str, Beside] = {}
    for one in named:
        if one.name.casefold() in (name.casefold() for name in found):
            raise InputError(f"--adapter {one}: there are two adapters {one.name}; give one of them another name")
        adapter = open_adapter(one.lora, base, _no_norms)
        for module, changes in adapter.changes.items():
            if why := _why_not(changes):
                raise InputError(f"{one.lora.option} {one.lora.folder}: {why} of {module}; {_INSTEAD}")
        for module in adapter.bases:
            if not _is_bases_own(adapter, module, base):
                raise InputError(f"{one.lora.option} {one.lora.folder}: brings other weights of {module}; {_INSTEAD}")
        parts = {name: _parts(adapter, pieces) for name, pieces in adapter.modules.pieces.items()}
        ranks = {
            name: sum(change.a.stored.shape[0] for change in held.values()) for name, held in parts.items() if held
        }
        if odd := sorted(set(ranks) - {*projections, HEAD}):
            raise InputError(
                f"{one.lora.option} {one.lora.folder}: changes {some(odd, 1)}, which is no projection; {_INSTEAD}"
            )
        found[one.name] = Beside(one, adapter, ranks)
    return found


_INSTEAD = "an app cannot switch that; merge the adapter with --lora"


def _parts(adapter: Adapter, pieces: Sequence[Piece]) -> dict[str, LowRank]:
    """The changes of a weight by the modules that its rows are of."""
    found = {}
    for piece in pieces:
        for change in adapter.changes.get(piece.name, ()):
            if isinstance(change, LowRank):
                found[piece.name] = change
    return found


def _is_bases_own(adapter: Adapter, module: str, base: Checkpoint) -> bool:
    """Whether the weight that an adapter brings for a module, as PEFT saves it of a head, is the base's, to the bit."""
    name = f"{module}.weight"
    stored = name if name in base.tensors else EMBEDDING
    for start, stop in base.chunks(stored):
        numbers = torch.arange(start, stop)
        own = base.read(stored, start, stop).double()
        rows = Rows(numbers, own, own, [(0, stop - start)])
        for one in adapter.bases[module]:
            one.apply(rows)
        if not torch.equal(rows.now, own):
            return False
    return True


def _why_not(changes: Sequence[Change]) -> str:
    """What of a module is more than a low-rank change of a projection; empty where nothing is."""
    for change in changes:
        if isinstance(change, OfEmbedding):
            return "changes rows of the embedding"
        if not isinstance(change, LowRank):
            return "replaces weights (modules_to_save or trainable_token_indices)"
        if change.magnitude is not None:
            return "has the magnitudes of DoRA (use_dora)"
    return ""


def _no_norms(change: OfEmbedding, bases: Sequence[Change]) -> torch.Tensor:
    """Of an embedding's columns: asked for by DoRA alone, which is refused."""
    raise CompilerBug(f"{change} after {len(bases)} others")
