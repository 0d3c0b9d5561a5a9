"""What the C runtime reads: JSON as Python reads it, and bytecode, damaged ones under the sanitizers."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tvm_small as small

from pocketphi.targets.tvm_arm.build_runtime import compile_sources
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain, find_toolchain, host_arch

PROGRAM = r"""
#include <cstdio>
#include <iostream>
#include <string>

#include "bytecode.h"
#include "json.h"
#include "failure.h"

using namespace pocketphi_runtime;

static void print(const Json& value) {
  if (value.kind == Json::Kind::list || value.kind == Json::Kind::object) {
    std::printf(value.keys.empty() ? "[" : "{");
    for (size_t i = 0; i < value.items.size(); ++i) {
      if (!value.keys.empty()) {
        for (unsigned char c : value.keys[i]) std::printf("%02x", c);
        std::printf(":");
      }
      print(value.items[i]);
    }
    std::printf("]");
  } else if (value.kind == Json::Kind::text) {
    for (unsigned char c : value.text) std::printf("%02x", c);
    std::printf("\",");
  } else {
    std::printf("%s,", value.written().c_str());
  }
}

static std::string line() {  // as hexadecimal digits
  std::string text, bytes;
  std::getline(std::cin, text);
  for (size_t i = 0; i + 1 < text.size(); i += 2) bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  return bytes;
}

int main(int, char** argv) {
  while (std::cin.peek() != EOF) {
    std::string bytes = line();
    try {
      if (argv[1][0] == 'j') {
        print(Json::parse(bytes, "x"));
        std::puts("");
      } else {
        Bytecode code = Bytecode::read(bytes);
        std::printf("%zu functions\n", code.functions.size());
      }
    } catch (const Failure& failure) {
      std::printf("refused %s\n", failure.what());
    }
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    toolchain: Toolchain = dataclasses.replace(
        find_toolchain("linux", host_arch()), flags=("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    )
    (folder / "program.cc").write_text(PROGRAM)
    objects = compile_sources(toolchain, folder, ("bytecode", "json"), ("-O0", "-g1"))
    source = str(folder / "program.cc")
    toolchain.run("-std=c++17", f"-I{SOURCES}", source, *map(str, objects), "-o", str(folder / "program"))
    return folder / "program"


def answers(program: Path, what: str, texts: list[bytes]) -> list[str]:
    lines = "".join(text.hex() + "\n" for text in texts)
    done = subprocess.run([str(program), what], input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def printed(value: Any) -> str:
    if isinstance(value, (list, Pairs)):
        pairs = value.items if isinstance(value, Pairs) else [(None, item) for item in value]
        names = [key.encode().hex() + ":" if key is not None else "" for key, _ in pairs]
        inside = "".join(name + printed(item) for name, (_, item) in zip(names, pairs, strict=True))
        return ("{" if isinstance(value, Pairs) and pairs else "[") + inside + "]"
    if isinstance(value, str):
        return value.encode().hex() + '",'
    return f"{value.text if isinstance(value, Fraction) else json.dumps(value)},"


@dataclasses.dataclass
class Pairs:
    """An object with its keys as they came, also those that are there twice."""

    items: list[tuple[str, Any]]


@dataclasses.dataclass
class Fraction:
    text: str


def read_by_python(text: bytes) -> str | None:
    """How the program should print it; None for what is no JSON, or more than the runtime takes."""

    def refuse(_: str) -> Any:
        raise ValueError

    def whole(text: str) -> int:
        value = int(text)
        return value if -(2**63) <= value < 2**63 else refuse(text)

    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=Pairs,
            parse_float=Fraction,
            parse_int=whole,
            parse_constant=refuse,
        )
        return printed(value)
    except (ValueError, RecursionError):
        return None


DOCUMENTS = [
    rb'{"a": [1, -2, 0, 9223372036854775807, -9223372036854775808], "b": {"c": null, "d": [true, false]}, "a": 2}',
    rb' [ 1.5 , -0.0, 1e9, 2E-3, 10.25e+7, "x\n\t\"\\\/\b\f\r", "\u0041\u00e9\u20AC\ud83d\ude00", "" ] ',
    '{"é€😀": "é€😀", "": {}, "e": [[], {}, [[0]]]}'.encode(),
    *(b"0", b'""', b"null", b" true ", b"-1", b"[]", b"{}", b'"\x7f"'),
    *(
        b"",
        b" ",
        b"01",
        b"-",
        b"1.",
        b".5",
        b"1e",
        b"+1",
        b"1 2",
        b"[1,]",
        b"{,}",
        b'{"a"}',
        b'{"a":}',
        b"[1 2]",
        b"{1:2}",
    ),
    *(
        b"NaN",
        b"Infinity",
        b"nul",
        b"tru",
        b"True",
        b"'a'",
        b'"\n"',
        b'"\\x"',
        b'"\\u12"',
        b'"\\u12g4"',
        b'"',
        b"[",
        b"{",
    ),
    *(b"9223372036854775808", b"-9223372036854775809", b"9" * 5000, b"//x\n1", b"[1]]", b"\xef\xbb\xbf1"),
]


def test_json_is_what_python_takes_it_for(program: Path) -> None:
    rng = random.Random(0)
    texts = list(DOCUMENTS)
    for _ in range(4000):
        changed = bytearray(rng.choice(DOCUMENTS[:3]))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed))
            changed[at : at + rng.randrange(2)] = rng.choice(b'{}[]",:\\u0e.-1 \n').to_bytes()
        texts.append(bytes(changed))
    seen = {True: 0, False: 0}
    for text, got in zip(texts, answers(program, "json", texts), strict=True):
        wanted = read_by_python(text)
        seen[wanted is not None] += 1
        if wanted is None:
            assert got.startswith("refused x: not valid JSON: ") or not is_utf8(text) or b"\\u" in text, text
        else:
            assert got == wanted, text
    assert min(seen.values()) > 300


def is_utf8(text: bytes) -> bool:
    """Whether Python reads it: for the runtime a text is bytes, which messages print with question marks."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_deep_nest_is_refused_and_the_deepest_allowed_is_read(program: Path) -> None:
    texts = [b"[" * depth + b"]" * depth for depth in (33, 34, 100_000)]
    got = answers(program, "json", texts)
    assert got[0] == "[" * 33 + "]" * 33
    assert got[1:] == ["refused x: not valid JSON: nested deeper than 32"] * 2


def test_damaged_bytecode_is_refused(program: Path, tmp_path: Path) -> None:
    whole = bytecode_of(tmp_path)
    (names,) = answers(program, "bytecode", [whole])
    assert int(names.split()[0]) > 7
    rng = random.Random(0)
    texts = [whole[:size] for size in range(0, len(whole), 97)]
    for _ in range(600):
        changed = bytearray(whole)
        at = rng.randrange(len(whole))
        changed[at : at + 8] = rng.choice(
            (b"\xff" * 8, b"\x00" * 8, rng.randbytes(8), b"\xff" * 7 + b"\x7f", rng.randbytes(1))
        )
        texts.append(bytes(changed))
    got = answers(program, "bytecode", texts)
    refused = [line for line in got if line.startswith("refused the library ")]
    assert len(refused) + sum(line.endswith(" functions") for line in got) == len(texts)
    assert len(refused) > len(texts) // 2


def bytecode_of(folder: Path) -> bytes:
    """The bytecode in a small model's library: after the kind of its part and its size."""
    bundle = small.write_small_bundle(folder / "bundle", find_toolchain("linux", host_arch()), small.small_params())
    data, kind = (bundle / "model.so").read_bytes(), b"relax.VMExecutable"
    at = data.index(kind) + len(kind)
    size = int.from_bytes(data[at : at + 8], "little")
    return data[at + 8 : at + 8 + size]
