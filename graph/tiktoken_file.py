"""A `*.tiktoken` file, the vocabulary of OpenAI's tiktoken, written as the files of a Hugging Face tokenizer folder.

A line of it is a token, in base64, and its rank. tiktoken joins the two neighbours whose joint token has the lowest rank,
until there are none, and takes a piece of text that is a token as that token. A `tokenizer.json` has a list of merges in place
of ranks. Only one merge of a token ever happens: two parts that become it were made from its bytes alone, in the order in which
its bytes alone become them. So a token's merge is the last step of tiktoken's own way from its bytes to it; one that is not
reached so is only ever taken whole.

Worked example, of a file that holds `a` 0, `b` 1, `c` 2, `ab` 3, `abc` 4 (and all other bytes): the merges are (a, b), (ab, c).
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from pocketphi.graph.errors import InputError
from pocketphi.graph.models.base import Tiktoken
from pocketphi.graph.reading import is_lfs_pointer, lfs_pointer, parse_object, show

LARGEST = 1 << 24
"""Bytes of the largest such file that is read: ten times those of 100,000 tokens."""

_LONGEST = 256  # bytes of a token; cl100k_base has 128 spaces
_AGAIN = "download it again"
_NEVER = 1 << 62  # a rank that no pair has


def tokenizer_files(
    content: bytes, kind: Tiktoken, rows: int, beside: Mapping[str, bytes], where: str
) -> dict[str, bytes]:
    """The tokenizer of a folder with such a file: name → content, with the folder's other tokenizer files.

    rows: of the embedding; beside: those other files, whose `tokenizer_config.json` gets what the folder's code would do;
    where: the file's name, for messages.

    Raises InputError for a damaged file, and for one with another number of tokens than the model has.
    """
    name = "tokenizer_config.json"
    config = parse_object(beside.get(name, b"{}"), f"{where}: {name} beside it")
    said: dict[str, Any] = {
        **{"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]},
        **{key: value for key, value in config.items() if key != "auto_map"},  # code of the folder, which is not run
        **{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        **dict.fromkeys(("bos_token", "eos_token"), kind.end),
    }
    written = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    return {**beside, "tokenizer.json": _tokenizer_json(content, kind, rows, where), name: written}


def read_ranks(content: bytes, where: str) -> dict[bytes, int]:
    """Token → rank, in the order of the ranks, which are 0, 1, … Raises InputError for a damaged file."""
    if is_lfs_pointer(content):
        raise lfs_pointer(where)
    ranks: dict[bytes, int] = {}
    numbers: set[int] = set()
    for number, line in enumerate(content.splitlines(), 1):
        if line:
            token, rank = _line(line, f"{where}: line {number}")
            if token in ranks:
                raise InputError(f"{where}: line {number}: {show(token)} a second time; {_AGAIN}")
            if rank in numbers:
                raise InputError(f"{where}: line {number}: rank {rank} a second time; {_AGAIN}")
            ranks[token] = rank
            numbers.add(rank)
    lacks = next((rank for rank in range(len(ranks)) if rank not in numbers), None)
    if lacks is not None:
        raise InputError(f"{where}: rank {lacks} is missing, expected 0 to {len(ranks) - 1}; {_AGAIN}")
    byte = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if byte is not None:
        raise InputError(f"{where}: byte {byte} is no token, expected all 256; {_AGAIN}")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def merge_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that become a token of several bytes; None for one that no merges lead to."""
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i : i + 2], _NEVER) for i in range(len(token) - 1)]
    while len(parts) > 2:
        best = min(pairs)
        if best == _NEVER:
            return None
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del pairs[at]
        if at > 0:
            pairs[at - 1] = ranks.get(parts[at - 1] + parts[at], _NEVER)
        if at < len(pairs):
            pairs[at] = ranks.get(parts[at] + parts[at + 1], _NEVER)
    return parts[0], parts[1]


def _line(line: bytes, where: str) -> tuple[bytes, int]:
    parts = line.split()
    if len(parts) != 2:
        raise InputError(f"{where}: {show(line)}, expected a token in base64 and its rank; {_AGAIN}")
    try:
        token = base64.b64decode(parts[0], validate=True)
    except binascii.Error:
        raise InputError(f"{where}: {show(parts[0])} is not base64; {_AGAIN}") from None
    if not 0 < len(token) <= _LONGEST:
        raise InputError(f"{where}: a token of {len(token)} bytes, expected 1 to {_LONGEST}")
    if not parts[1].isdigit() or len(parts[1]) > 9:
        raise InputError(f"{where}: rank {show(parts[1])}, expected a whole number; {_AGAIN}")
    return token, int(parts[1])


@functools.lru_cache(maxsize=1)
def _tokenizer_json(content: bytes, kind: Tiktoken, rows: int, where: str) -> bytes:
    """The 100,000 tokens of cl100k_base take 2 seconds, and a compile asks several times."""
    special, ranks = kind.special(rows), read_ranks(content, where)
    expected = min(special.values())
    if len(ranks) != expected:
        raise InputError(
            f"{where}: holds {len(ranks):,} tokens, expected {expected:,}, which with {len(special)} special ones are the "
            f"vocabulary of the model; {_AGAIN}"
        )
    letters = _letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    ways = (merge_of(token, ranks) for token in ranks if len(token) > 1)
    merges = [(spelled(way[0]), spelled(way[1])) for way in ways if way]
    tokenizer = Tokenizer(BPE({spelled(token): rank for token, rank in ranks.items()}, merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(kind.cut), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    in_order = sorted(special, key=special.__getitem__)  # the library numbers them onwards from the last of the file
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in kind.shown) for token in in_order])
    return tokenizer.to_str(pretty=False).encode()


def _letters() -> list[str]:
    """What a byte-level tokenizer writes for each byte: its letter in Latin-1 where that is printable, else one from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
