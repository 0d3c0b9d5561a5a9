"""How a byte-level tokenizer cuts text before the merges: llama.cpp's names (`tokenizer.ggml.pre`) and what they stand for.

The groups are those of llama.cpp's src/llama-vocab.cpp. The patterns are the models' own, from their tokenizer.json, of which
llama.cpp's are a spelling for its regex engine; the default one is llama.cpp's own.
"""

from __future__ import annotations

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"

DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"))
"""Each digit is a piece of its own, then GPT-2's cut."""

_GPT2_NAMES = (
    *(
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "jina-v2-es",
        "jina-v2-de",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "modern-bert",
    ),
    *("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
)
_LLAMA3_NAMES = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
)

CUTS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **dict.fromkeys(_GPT2_NAMES, ()),  # GPT-2's own cut is built into ByteLevel
    **dict.fromkeys(sorted(DIGITS), ()),
    **dict.fromkeys(_LLAMA3_NAMES, (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,)),
}
"""Patterns that isolate pieces, one after the other."""

ADDS_START = frozenset(_LLAMA3_NAMES)
"""Llama 3 puts its start token before text."""
WORDS_FIRST = ADDS_START | {"glm4"}
"""A word that is a token is taken as that token, even where no merges lead there."""
