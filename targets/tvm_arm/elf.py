"""What of a linked library tells how it was made: its compiler's name, and the bytes behind a symbol. ELF of 64 bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show

_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")
_DYNSYM, _NOBITS = 11, 8
_BLOB = "__tvm_ffi__library_bin"
"""The symbol behind which TVM puts what is no machine code: uint64 size, then the calls of each function, and constants."""


@dataclass(frozen=True)
class _Section:
    name: int
    kind: int
    address: int
    offset: int
    size: int
    link: int


class Elf:
    """A library, read whole. Raises InputError where it is none of this kind, or damaged."""

    def __init__(self, path: Path) -> None:
        self._path, self._data = path, path.read_bytes()
        try:
            if not self._data.startswith(b"\x7fELF\x02\x01"):
                raise ValueError("not an ELF file of 64 bits")
            table, size, count, names = struct.unpack_from("<Q10xHHH", self._data, 40)
            self._sections = [self._section(table + i * size) for i in range(count)]
            self._names = self._sections[names].offset
        except (ValueError, IndexError, struct.error) as error:
            raise self._damaged(error) from None

    def compilers(self) -> str:
        """What the compilers of its parts say of themselves, which linkers gather."""
        try:
            texts = {self._content(one) for one in self._sections if self._text(self._names + one.name) == ".comment"}
        except ValueError as error:
            raise self._damaged(error) from None
        said = b"\0".join(sorted(texts)).split(b"\0")
        return ", ".join(dict.fromkeys(text.decode("utf-8", "replace") for text in said if text))

    def calls(self) -> bytes:
        """What lies behind TVM's symbol."""
        try:
            at = self._place(next(value for name, value in self._symbols() if name == _BLOB))
            (size,) = struct.unpack_from("<Q", self._data, at)
            if at + 8 + size > len(self._data):
                raise ValueError(f"{size} bytes at {at}")
        except (ValueError, StopIteration, IndexError, struct.error) as error:
            raise self._damaged(error) from None
        return self._data[at + 8 : at + 8 + size]

    def _section(self, at: int) -> _Section:
        name, kind, _, address, offset, size, link, *_ = _SECTION.unpack_from(self._data, at)
        return _Section(name, kind, address, offset, size, link)

    def _content(self, section: _Section) -> bytes:
        return self._data[section.offset : section.offset + section.size]

    def _symbols(self) -> Iterator[tuple[str, int]]:
        """Those that a loader sees, with their addresses."""
        for section in self._sections:
            if section.kind == _DYNSYM:
                names = self._sections[section.link].offset
                whole = len(content := self._content(section)) // _SYMBOL.size * _SYMBOL.size
                for name, _, _, _, value, _ in _SYMBOL.iter_unpack(content[:whole]):
                    yield self._text(names + name), value

    def _place(self, address: int) -> int:
        """Where in the file the byte of an address lies."""
        held = next(s for s in self._sections if s.address <= address < s.address + s.size and s.kind != _NOBITS)
        return held.offset + address - held.address

    def _text(self, start: int) -> str:
        return self._data[start : self._data.index(b"\0", start)].decode("utf-8", "replace")

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self._path}: damaged ({show(str(error))}); copy or compile it again")
