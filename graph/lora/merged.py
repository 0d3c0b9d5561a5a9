"""A checkpoint with adapters merged into its weights, row by row as they are read: none of them is ever whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pocketphi.graph.checkpoint import ROWS_TOGETHER, Checkpoint, TensorInfo
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks
from pocketphi.graph.kept import Kept
from pocketphi.graph.lora.adapter import Adapter, open_adapter
from pocketphi.graph.lora.changes import Change, OfEmbedding, Rows, SomeRows
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.models.base import Piece, cut

_TIED = (EMBEDDING, HEAD)


class MergedAdapters(Checkpoint):
    """Wraps a checkpoint. Tensors that an adapter changes are float32, rounded once from float64: not to the type of the base,
    as PEFT's `merge_and_unload` would.

    A tied embedding that is changed in one of its two places is not tied afterwards. That is what the adapter was trained as;
    PEFT's merge would change both places.
    """

    def __init__(self, base: Checkpoint, loras: Sequence[Lora]) -> None:
        """Raises InputError for an adapter that cannot be added, and where two of them replace the same weight."""
        self._inner = base
        self.wrap(base, "files", "forget_behind")
        self.unmerged = base
        self._norms: dict[int, torch.Tensor] = {}
        self.adapters = tuple(open_adapter(lora, base, self._column_norms) for lora in loras)
        self._check_together()
        self.notices = (*base.notices, *(line for adapter in self.adapters for line in adapter.notices))
        self._touched = {name for name in (*base.tensors, HEAD) if self._changes_of(name)}
        self._untie()
        self.tensors = {
            name: TensorInfo(shape, "fp32" if name in self._touched else base.tensors[self._stored(name)].dtype)
            for name, shape in self.config.tensors().items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        stored = self._stored(name)
        if name not in self._touched:
            return self._inner.read(stored, start, stop)
        first = start // ROWS_TOGETHER * ROWS_TOGETHER
        last = min(-(-max(stop, first + 1) // ROWS_TOGETHER) * ROWS_TOGETHER, self._inner.tensors[stored].rows)
        rows = self._inner.read(stored, first, last).double()
        now = rows.clone()
        for adapter in self.adapters:
            at = 0
            for piece, begin, end in cut(adapter.modules.pieces[name], first, last):
                part = slice(at, at + end - begin)
                self._apply(adapter, name, piece, begin, end, rows[part], now[part], first + at)
                at = part.stop
        made = now.float()
        beyond = (~made.isfinite() & rows.isfinite()).view(len(made), -1).any(1)
        if beyond.any():
            raise InputError(
                f"{name}: row {first + int(beyond.int().argmax())} is beyond float32 once the adapters are added; their "
                "values, or the weights behind --lora, are far too large"
            )
        return made[start - first : stop - first]

    def kept(self, name: str) -> Kept | None:
        return None if name in self._touched else self._inner.kept(self._stored(name))

    def read_kept(self, name: str, start: int, stop: int) -> Blocks:
        return self._inner.read_kept(self._stored(name), start, stop)

    def check_kept(self, name: str) -> str:
        if name in self._touched:
            return "an adapter changes it, so that nothing of it can be kept: rounded to nearest"
        return self._inner.check_kept(self._stored(name))

    def _apply(
        self,
        adapter: Adapter,
        name: str,
        piece: Piece,
        begin: int,
        end: int,
        base: torch.Tensor,
        now: torch.Tensor,
        first: int,
    ) -> None:
        """Make an adapter's changes of rows [begin, end) of a piece, in place. first: of these rows in the tensor."""
        changes = self._of_piece(adapter, name, piece.name)
        if not changes:
            return
        cuts = _cuts(first, end - begin)
        rows = Rows(torch.from_numpy(piece.stored_rows(begin, end)), base, now, cuts)
        for change in changes:
            change.apply(rows)
        base.copy_(rows.base)
        now.copy_(rows.now)

    def _of_piece(self, adapter: Adapter, name: str, module: str) -> list[Change]:
        """In the order in which they are made. What an adapter has of a tied weight as a whole is of both of its places."""
        bases, changes = adapter.bases.get(module, ()), adapter.changes.get(module, ())
        if name in _TIED and self._inner.config.tied_embeddings:
            other = next(piece.name for one in _TIED if one != name for piece in adapter.modules.pieces[one])
            bases = bases or adapter.bases.get(other, ())
            if not any(isinstance(one, SomeRows) for one in changes):
                changes = [*changes, *(one for one in adapter.changes.get(other, ()) if isinstance(one, SomeRows))]
        return [*bases, *changes]

    def _changes_of(self, name: str) -> list[Change]:
        return [
            change
            for adapter in self.adapters
            for piece in adapter.modules.pieces[name]
            for change in self._of_piece(adapter, name, piece.name)
        ]

    def _check_together(self) -> None:
        """Raises InputError where an adapter would undo what another one did before it."""
        seen: dict[str, Adapter] = {}
        for adapter in self.adapters:
            for name, tensors in adapter.modules.pieces.items():
                changes = [one for piece in tensors for one in self._of_piece(adapter, name, piece.name)]
                if name in seen and any(one.replaces for one in changes):
                    raise InputError(
                        f"--lora {adapter.lora.folder}: replaces {name}, which {seen[name].lora.folder} changes too; leave out "
                        "one of them"
                    )
                if changes:
                    seen[name] = adapter

    def _untie(self) -> None:
        """Where only one place of a tied embedding changed, or both differ, there are two matrices from now on."""
        if not self._inner.config.tied_embeddings or not self._touched & set(_TIED):
            return
        if all(isinstance(one, SomeRows) or one in self._of_both() for name in _TIED for one in self._changes_of(name)):
            self._touched.discard(HEAD)
            return
        self.tensors = {HEAD: self._inner.tensors[EMBEDDING]}
        if all(torch.equal(*(self.read(name, *rows).float() for name in _TIED)) for rows in self.chunks(HEAD)):
            self._touched.discard(HEAD)
            return
        self.config = replace(self.config, tied_embeddings=False)
        told = "the embedding is no longer the head: an adapter changes them apart, so that both are stored"
        self.notices = (*self.notices, f"--lora {self.adapters[0].lora.folder}: {told}")

    def _of_both(self) -> list[Change]:
        return [one for adapter in self.adapters for changes in adapter.bases.values() for one in changes]

    def _stored(self, name: str) -> str:
        """The base's tensor."""
        return EMBEDDING if name == HEAD and HEAD not in self._inner.tensors else name

    def _column_norms(self, change: OfEmbedding, bases: Sequence[Change]) -> torch.Tensor:
        """Of the base's embedding with a change: float64 [K]. Computed once, with a pass over the embedding."""
        if id(change) not in self._norms:
            squares = torch.zeros(self._inner.tensors[EMBEDDING].columns, dtype=torch.float64)
            for start, stop in self._inner.chunks(EMBEDDING):
                read = self._inner.read(EMBEDDING, start, stop).double()
                rows = Rows(torch.arange(start, stop), read, read.clone(), _cuts(start, stop - start))
                for one in (*bases, change):
                    one.apply(rows)
                squares += rows.now.square().sum(0)
            self._norms[id(change)] = squares.sqrt()
        return self._norms[id(change)]


def _cuts(first: int, count: int) -> list[tuple[int, int]]:
    """Ranges of `count` rows from row `first` of a tensor on, cut at each multiple of ROWS_TOGETHER."""
    marks = [at - first for at in range(first - first % ROWS_TOGETHER + ROWS_TOGETHER, first + count, ROWS_TOGETHER)]
    return list(zip([0, *marks], [*marks, count]))
