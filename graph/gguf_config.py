"""The shape of a GGUF file's model, with llama.cpp's defaults for what the metadata leaves out."""

from __future__ import annotations

from collections.abc import Mapping

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_header import GgufHeader
from pocketphi.graph.gguf_keys import check_model_keys
from pocketphi.graph.gguf_metadata import Metadata
from pocketphi.graph.gguf_rope import read_rope
from pocketphi.graph.gguf_vocabulary import Vocabulary
from pocketphi.graph.models.settings import check_heads_of_long_rope

_LARGEST_HEAD = 1 << 16
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def config_of(header: GgufHeader, rope_factors: Mapping[str, tuple[float, ...]]) -> tuple[ModelConfig, list[str]]:
    """The config, and lines about what was assumed or is not read.

    rope_factors: values of the rope tensors that the file has

    Raises InputError for a missing key, for one that would change the result and is not known, and for what the
    model's form cannot express.
    """
    metadata = Metadata(header.fields, header.model, header.gguf, str(header.path))
    metadata.notices += check_model_keys(header.fields, header.gguf.architecture, metadata.where)
    vocabulary = Vocabulary.read(header.fields, metadata.where)
    rows = _vocab_size(header, metadata, vocabulary)
    layers = metadata.whole("block_count")
    if layers > len(header.tensors):
        raise InputError(f"{header.path}: {layers} layers, but only {len(header.tensors)} tensors; download it again")
    heads, hidden = metadata.each_layer("attention.head_count", layers), metadata.whole("embedding_length")
    kv_heads = metadata.each_layer("attention.head_count_kv", layers, heads)
    head_dim = _head_dim(metadata, hidden, heads)
    rotary = _rotary_dim(metadata, head_dim)
    config = ModelConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=metadata.each_layer("feed_forward_length", layers),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=metadata.whole("context_length"),
        rms_norm_eps=metadata.real("attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.real("rope.freq_base", 10000.0),
        rotary_dim=rotary,
        long_rope=read_rope(metadata, rope_factors, rotary),
        sliding_window=_window(metadata, layers, kv_heads),
        tied_embeddings=HEAD not in header.tensors,
        bos=vocabulary.ids.get("bos") if vocabulary else None,
        eos=vocabulary.ends() if vocabulary else (),
        pad=vocabulary.ids.get("padding") if vocabulary else None,
        form=header.model.form,
        where=metadata.where,
    )
    check_heads_of_long_rope(config, metadata.where)
    return config, [*metadata.notices, *(vocabulary.notices if vocabulary else ())]


def _vocab_size(header: GgufHeader, metadata: Metadata, vocabulary: Vocabulary | None) -> int:
    """The rows of the embedding. A token without a row could not be read; a row without a token is only a waste."""
    if EMBEDDING not in header.tensors:
        raise InputError(f"{header.path}: tensor {EMBEDDING!r} is missing; convert the model again")
    rows = header.tensors[EMBEDDING].shape[0]
    tokens = len(vocabulary.tokens) if vocabulary else rows
    if tokens > rows:
        raise InputError(f"{header.path}: {tokens} tokens, but {EMBEDDING!r} has {rows} rows; convert the model again")
    if tokens < rows:
        metadata.notices.append(f"{rows - tokens} of the {rows} rows of {EMBEDDING} have no token")
    declared = metadata.whole("vocab_size", rows)
    if declared not in (rows, tokens):
        raise InputError(
            f"{header.path}: {metadata.key('vocab_size')} is {declared}, but {EMBEDDING!r} has {rows} rows; "
            "convert the model again"
        )
    return rows


def _head_dim(metadata: Metadata, hidden: int, heads: int) -> int:
    key, value = (
        metadata.whole(f"attention.{kind}_length", hidden // heads, most=_LARGEST_HEAD) for kind in ("key", "value")
    )
    if key != value:
        raise InputError(
            f"{metadata.where}: {metadata.key('attention.key_length')} is {key} and value_length {value}, "
            "expected the same"
        )
    return key


def _rotary_dim(metadata: Metadata, head_dim: int) -> int:
    rotary = metadata.whole("rope.dimension_count", head_dim)
    key = metadata.key("rope.dimension_count")
    if metadata.kind.whole_heads and rotary != head_dim:
        raise InputError(f"{metadata.where}: {key} is {rotary}, expected the whole head, {head_dim}")
    if rotary > head_dim or rotary % 2:
        raise InputError(f"{metadata.where}: {key} is {rotary}, expected an even number, at most {head_dim}")
    return rotary


def _window(metadata: Metadata, layers: int, kv_heads: int) -> int | None:
    """The sliding window. Some early files lack the key, and llama.cpp knew their models by their shape."""
    key, kind, context = "attention.sliding_window", metadata.kind, metadata.whole("context_length")
    if metadata.has(key):
        window = metadata.whole(key, least=0) or None
        if window and not kind.reads_window and window < context:
            metadata.notices.append(f"{metadata.key(key)} = {window} is honoured; llama.cpp does not read it")
        return window
    if not kind.reads_window:
        return None
    for known in kind.windows:
        if (known.layers, known.context) == (layers, context) and known.kv_heads in (None, kv_heads):
            assumed = f"{known.window} is assumed, as llama.cpp does for {known.models}"
            metadata.notices.append(f"{metadata.key(key)} is missing: {assumed}")
            return known.window
    metadata.notices.append(f"{metadata.key(key)} is missing: no sliding window")
    return None
