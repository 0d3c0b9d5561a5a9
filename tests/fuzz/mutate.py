"""Ways to spoil a file that keep its structure: JSON, TOML, templates, protobuf, binary headers, and plain bytes."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

_DEEP = "a deep value"
_LONG = "a long number"
_POOL: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 16, 64, 255, 256, 257, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1),
    *(2**63, 2**64, -(2**63), 10**12, 10**30, 1e308, 1e-308, -0.5, 0.5, 1.5, float("nan"), float("inf"), float("-inf")),
    *("", "x", "0", "a" * 5000, "\0", "a\nb", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "é\u202e", "[red]", "[/]"),
    *("{{ 7*7 }}", [], {}, [[]], [1], ["a"], {"a": 1}, [None], [{}], [0] * 1000, _DEEP, _LONG),
]
_KEYS = ["x", "", "__class__", "../x", "a\nb", "a" * 5000, "model.layers.99.x", "[/]"]
_WORDS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


def anything(rng: Random, content: bytes) -> bytes:
    """A few bits flipped, bytes lost, put in or written over by odd numbers; or cut short."""
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        if not made:
            break
        at, way = rng.randrange(len(made)), rng.randrange(7)
        if way == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            made[at] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif way == 2:
            del made[at : at + rng.choice([1, 2, 8, 64])]
        elif way == 3:
            made[at:at] = rng.randbytes(rng.choice([1, 4, 8]))
        elif way == 4:
            del made[at:]
        elif way == 5:
            made[at : at + 8] = struct.pack("<Q", rng.choice(_WORDS))
        else:
            made[at : at + 4] = struct.pack("<I", rng.choice(_WORDS) % 2**32)
    return bytes(made)


def json_value(rng: Random, value: Any) -> Any:
    """A JSON value with one to three places changed: to another type, an odd number, another place's value, or gone."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        way = rng.random()
        if way < 0.6:
            holder[key] = copy.deepcopy(rng.choice(_POOL))
        elif way < 0.72:
            del holder[key]
        elif way < 0.82 and isinstance(holder, dict):
            holder[rng.choice(_KEYS)] = copy.deepcopy(holder[key])
        elif way < 0.92 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = _other_number(rng, holder[key])
        else:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = copy.deepcopy(other[name])
    return value


def json_file(rng: Random, content: bytes) -> bytes:
    """A JSON document; now and then as bytes."""
    if rng.random() < 0.15:
        return anything(rng, content)
    return dumped(json_value(rng, json.loads(content)))


def json_lines(rng: Random, content: bytes) -> bytes:
    """One line of a file of JSON values."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_file(rng, lines[at])
    return b"\n".join(lines)


def dumped(value: Any) -> bytes:
    """JSON text, with values in it that no writer makes: nested 5,000 deep, numbers of 5,000 digits."""
    text = json.dumps(value)
    text = text.replace(json.dumps(_DEEP), "[" * 5000 + "]" * 5000).replace(json.dumps(_LONG), "9" * 5000)
    return text.encode()


_TOML_VALUES = [
    *("0", "-1", "1", "2.5", "nan", "inf", "-inf", "true", '""', '"x"', '"../../x"', '"~/x"', '"~nosuchuser/x"', "[]"),
    *('"/etc"', '"env:HOME"', "{}", '["a"]', "[[1]]", "{a = 1}", "1979-05-27", "07:32:00", "9" * 30, "9" * 5000),
    *(
        "1e400",
        '"1e9GB"',
        '"9999999999999999999999TB"',
        '"\\u0000"',
        '"a\\nb"',
        "[" * 3000 + "]" * 3000,
        f'"{"a" * 5000}"',
    ),
    *("{a=" * 2000 + "1" + "}" * 2000, "0x" + "f" * 3000, "[" + "1," * 3000 + "]", '"[/]"', "'always'", "'ort-mobile'"),
]
_TOML_LINES = [
    "[x]",
    "[[models]]",
    "x = 1",
    "[targets]",
    "[recipes]",
    "[gates.tvm-arm]",
    "targets = ['coreml']",
    "x = [",
    "[",
]


def toml_file(rng: Random, content: bytes) -> bytes:
    """Lines of a TOML document: other values, others' names, gone, twice; now and then as bytes."""
    if rng.random() < 0.2:
        return anything(rng, content)
    lines = content.decode().splitlines()
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, way = rng.randrange(len(lines)), rng.random()
        name, sign, value = lines[at].partition(" = ")
        if way < 0.6 and sign:
            lines[at] = f"{name} = {rng.choice(_TOML_VALUES)}"
        elif way < 0.7 and sign:
            lines[at] = f"{rng.choice(['x', name + 's', 'a' * 5000, '', json.dumps(rng.choice(_KEYS))])} = {value}"
        elif way < 0.8:
            lines.insert(at, rng.choice(_TOML_LINES))
        elif way < 0.9 and len(lines) > 1:
            del lines[at]
        else:
            lines.append(rng.choice(lines))
    return "\n".join(lines).encode()


_JINJA = [
    *(
        "{% for i in range(99999) %}",
        "{% endfor %}",
        "{% if x %}",
        "{% endif %}",
        "{{ messages }}",
        "{{ 'a' * 10**9 }}",
    ),
    *(
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{% generation %}",
        "{% endgeneration %}",
    ),
    *(
        "{{ 1 / 0 }}",
        "{% set x = x + 1 %}",
        "{{ messages | tojson }}",
        "{{ strftime_now('%Y') }}",
        "{%- macro f() %}{{ f() }}",
    ),
    *(
        "{%- endmacro %}{{ f() }}",
        "{{ nothing.here }}",
        "{% include 'a' %}",
        "{{ '%s' % (1, 2) }}",
        "{{ 9**9**9 }}",
        "{#",
        "}}",
    ),
]


def template(rng: Random, content: bytes) -> bytes:
    """A Jinja template: pieces put in, cut out, or exchanged."""
    text = content.decode(errors="replace")
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1)
        way = rng.random()
        if way < 0.6:
            text = text[:at] + rng.choice(_JINJA) + text[at:]
        elif way < 0.8:
            text = text[:at] + text[at + rng.choice([1, 4, 20]) :]
        else:
            text = text[:at] + rng.choice("{}%#'\"[]()-|.0\0é\n") + text[at:]
    return text.encode()


def safetensors(rng: Random, content: bytes) -> bytes:
    """The header of a safetensors file, its length, or anything."""
    if rng.random() < 0.3:
        return anything(rng, content[: rng.choice([16, 200, len(content)])])
    (length,) = struct.unpack_from("<Q", content)
    header = dumped(json_value(rng, json.loads(content[8 : 8 + length])))
    said = len(header) if rng.random() < 0.9 else rng.choice(_WORDS)
    return struct.pack("<Q", said) + header + content[8 + length :]


_TOKENS = [b"", b"=", b"AA==", b"YQ==", b"YQ", b"!!", b"gP8=", b"A" * 400, "é".encode(), b"\xff"]
_RANKS = [b"", b"0", b"-1", b"1.5", b"1e3", b"9" * 5000, b"99999999", b"0x10", "\u0663".encode(), b"\xb2", b"x"]


def tiktoken(rng: Random, content: bytes) -> bytes:
    """Lines of tokens and ranks: others' parts, gone, twice, in another order; now and then as bytes."""
    if rng.random() < 0.15:
        return anything(rng, content)
    lines = content.splitlines()
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, other, way = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.random()
        token, rank = [*lines[at].split(), b"", b""][:2]
        theirs = [*lines[other].split(), b"", b""][:2]
        if way < 0.25:
            lines[at] = rng.choice(_TOKENS) + b" " + rank
        elif way < 0.45:
            lines[at] = token + rng.choice([b" ", b"\t", b"  ", b""]) + rng.choice(_RANKS)
        elif way < 0.75:  # two tokens change ranks: nothing is wrong with that
            lines[at], lines[other] = token + b" " + theirs[1], theirs[0] + b" " + rank
        elif way < 0.85 and len(lines) > 1:
            del lines[at]
        else:
            lines.insert(other, lines[at])
    return rng.choice([b"\n", b"\n", b"\r\n", b"\n\n"]).join(lines)


def header(size: int) -> Mutator:
    """Mostly the first `size` bytes, where a binary file says what it holds."""

    def mutate(rng: Random, content: bytes) -> bytes:
        if rng.random() < 0.2:
            return anything(rng, content)
        return anything(rng, content[:size]) + content[size:]

    return mutate


def protobuf(rng: Random, content: bytes) -> bytes:
    """A serialized message: a field anywhere in its tree gets another value, is lost, or stands twice."""
    if rng.random() < 0.2:
        return anything(rng, content)
    made = content
    for _ in range(rng.choice([1, 1, 2, 3])):
        made = _message(rng, made, 8)
    return made


def _message(rng: Random, content: bytes, depth: int) -> bytes:
    fields = _fields(content)
    if not fields:
        return anything(rng, content)
    at = rng.randrange(len(fields))
    tag, kind, value = fields[at]
    way = rng.random()
    if kind == 2 and depth and way < 0.75:
        inner = _message(rng, value, depth - 1) if _fields(value) else _text(rng, value)
        fields[at] = (tag, kind, inner)
    elif way < 0.85:
        fields[at] = (tag, kind, _other_field(rng, kind, value))
    elif way < 0.95:
        del fields[at]
    else:
        fields.append(fields[at])
    return b"".join(_varint(tag << 3 | kind) + _written(kind, value) for tag, kind, value in fields)


def _text(rng: Random, value: bytes) -> bytes:
    return rng.choice(
        [b"", b"x", b"0", b"-1", b"99999999999999999999", b"a" * 5000, b"/etc/passwd", b"../x", value[:-1], b"\xff"]
    )


def _other_field(rng: Random, kind: int, value: bytes) -> bytes:
    if kind == 0:
        return _varint(rng.choice(_WORDS) if rng.random() < 0.5 else rng.randrange(20))
    if kind in (1, 5):
        return rng.choice([bytes(len(value)), b"\xff" * len(value), rng.randbytes(len(value))])
    return _text(rng, value)


def _written(kind: int, value: bytes) -> bytes:
    return _varint(len(value)) + value if kind == 2 else value


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _fields(content: bytes) -> list[tuple[int, int, bytes]]:
    """(number, wire type, value) of each field; nothing where it is no message."""
    found, at = [], 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        kind, number = tag & 7, tag >> 3
        if kind == 0:
            start = at
            _, at = _read_varint(content, at)
            value = content[start:at]
        elif kind == 2:
            size, at = _read_varint(content, at)
            value, at = content[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = content[at : at + size], at + size
        else:
            return []
        if not 0 < number < 1 << 20 or at > len(content):
            return []
        found.append((number, kind, value))
    return found


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            return 0, len(content) + 1
        byte = content[at]
        number, at = number | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return number, at
    return 0, len(content) + 1


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything inside of a JSON value; of long lists the first few."""
    keys: Any = (
        list(value) if isinstance(value, dict) else range(min(len(value), 50)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _other_number(rng: Random, value: float) -> Any:
    if isinstance(value, float) and not abs(value) < 1e300:
        return 0
    return rng.choice([value + 1, value - 1, -value, value * 2, value * 1000, value / 2, str(value)])
