"""Static archives with a symbol index, written without a tool: `ar` reads no Mach-O, and few machines have an `llvm-ar`.

Two dialects. GNU, for ELF: the index is a member `/`. BSD, for Mach-O: the index is `__.SYMDEF`, names lie in front of the
data, and everything starts on 8 bytes, as Apple's linker wants it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketphi.graph.errors import InputError

_MAGIC = b"!<arch>\n"
_ELF64, _MACHO64 = b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe"


@dataclass(frozen=True)
class _Member:
    name: str
    data: bytes
    symbols: list[str]
    """Those that it defines and others may use."""


def write_archive(objects: Sequence[Path], out: Path) -> None:
    """objects: relocatable files, 64 bits, little-endian, all ELF or all Mach-O. The same objects give the same bytes."""
    members = [_read(path) for path in objects]
    kinds = {member.data[:4] for member in members}
    if len(kinds) != 1:
        raise InputError(f"{out.name}: an archive is made of objects of one kind, ELF or Mach-O")
    write = _bsd if kinds == {_MACHO64} else _gnu
    out.write_bytes(write(members))


def _read(path: Path) -> _Member:
    data = path.read_bytes()
    if data.startswith(_ELF64):
        return _Member(path.name, data, list(_elf_symbols(data)))
    if data.startswith(_MACHO64):
        return _Member(path.name, data, list(_macho_symbols(data)))
    raise InputError(f"{path.name}: expected an object file, ELF or Mach-O, of 64 bits")


def _elf_symbols(data: bytes) -> Iterator[str]:
    """Global and weak symbols with a section: gABI, Elf64_Ehdr, Elf64_Shdr, Elf64_Sym."""
    table, size, count = struct.unpack_from("<Q10xHH", data, 40)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, _, index = struct.unpack_from("<IBBH", data, at)
            if info >> 4 in (1, 2) and index:
                yield _text(data, names + name)


def _macho_symbols(data: bytes) -> Iterator[str]:
    """External symbols with a section: mach-o/loader.h, LC_SYMTAB, nlist_64."""
    (commands,) = struct.unpack_from("<I", data, 16)
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:  # LC_SYMTAB
            first, count, names, _ = struct.unpack_from("<IIII", data, at + 8)
            for i in range(count):
                name, kind = struct.unpack_from("<IB", data, first + 16 * i)
                if kind & 1 and kind & 0x0E == 0x0E and not kind & 0xE0:  # N_EXT, N_SECT, no debugger's entry
                    yield _text(data, names + name)
        at += size


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _header(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{size:<10}`\n".encode()


def _gnu(members: Sequence[_Member]) -> bytes:
    """Index: uint32 big-endian count, offsets of the members, names. Long member names lie in a member `//`."""
    names = b"".join(f"{member.name}/\n".encode() for member in members)
    names += b"\n" * (len(names) % 2)
    symbols = b"".join(s.encode() + b"\0" for member in members for s in member.symbols)
    count = sum(len(member.symbols) for member in members)
    index_size = 4 + 4 * count + len(symbols)
    at = len(_MAGIC) + 60 + index_size + index_size % 2 + 60 + len(names)
    offsets, body, name_at = [], b"", 0
    for member in members:
        offsets += [at] * len(member.symbols)
        part = _header(f"/{name_at}", len(member.data)) + member.data + b"\n" * (len(member.data) % 2)
        name_at += len(member.name) + 2
        at += len(part)
        body += part
    index = struct.pack(f">I{count}I", count, *offsets) + symbols
    index = _header("/", index_size) + index + b"\n" * (index_size % 2)
    return _MAGIC + index + _header("//", len(names)) + names + body


def _bsd(members: Sequence[_Member]) -> bytes:
    """Index: uint32 bytes of the pairs (name, member), the pairs, uint32 bytes of the names, the names."""
    text, starts = b"", []
    for member in members:
        for symbol in member.symbols:
            starts.append(len(text))
            text += symbol.encode() + b"\0"
    text += b"\0" * (-len(text) % 8)
    size = 8 + 8 * len(starts) + len(text)
    at = len(_MAGIC) + len(_bsd_member("__.SYMDEF", bytes(size), len(_MAGIC)))
    pairs, body, done = b"", b"", 0
    for member in members:
        for start in starts[done : done + len(member.symbols)]:
            pairs += struct.pack("<II", start, at)
        done += len(member.symbols)
        part = _bsd_member(member.name, member.data, at)
        at += len(part)
        body += part
    index = struct.pack("<I", len(pairs)) + pairs + struct.pack("<I", len(text)) + text
    return _MAGIC + _bsd_member("__.SYMDEF", index, len(_MAGIC)) + body


def _bsd_member(name: str, data: bytes, at: int) -> bytes:
    """A member that starts at `at`, its name padded so that its data start on 8 bytes, its data so that the next one does."""
    length = len(name) + 1
    length += -(at + 60 + length) % 8
    data += b"\0" * (-len(data) % 8)
    return _header(f"#1/{length}", length + len(data)) + name.encode().ljust(length, b"\0") + data
