"""A tiny model with the sample's tokenizer whose answers are random words, with emoji in them, and end after a while."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from kit_bundles import sample_files
from safetensors.torch import save_file

from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.random_weights import RandomWeights

EMOJI = "\N{FOX FACE}"
"""Three tokens of the sample's tokenizer, none of which is a text by itself."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_model(folder: Path, context: int) -> Path:
    """A Hugging Face folder. What follows a token depends on all before it, but for the pieces of an emoji: these follow one
    another, and its first one follows one of nine words. No other token is a part of a character: onnxruntime-genai leaves such
    bytes out of a text, where the tokenizers library shows them as replacement characters."""
    from pocketphi.graph.tokenizer import Tokenizer

    files, sample = sample_files()
    config = replace(
        PUBLISHED["tiny"],
        vocab_size=sample.vocab_size,
        max_position=context,
        bos=sample.bos,
        eos=sample.eos,
        pad=sample.pad,
        sliding_window=None,
    )
    source = RandomWeights("random:talking@1", config)
    tensors = {name: source.read(name, 0, info.rows).float() for name, info in source.tensors.items()}
    tokenizer = Tokenizer.from_files(files)
    pieces = tokenizer.tokens(EMOJI)
    embedding, head = tensors[_EMBEDDING], tensors[_HEAD]
    generator = torch.Generator().manual_seed(3)
    embedding *= 1 / embedding.std()
    head *= 1 / head.std()
    words = 1000 + torch.randperm(len(embedding) - 1000, generator=generator)
    words = words[~torch.isin(words, torch.tensor(pieces))]
    leads = [words[: len(words) // 9], *(torch.tensor([piece]) for piece in pieces[:-1]), words[-len(words) // 20 :]]
    head[[token for token in range(len(head)) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token])]] = 0
    afters = [*pieces, config.eos[0]]
    embedding[:, : len(afters)] = head[:, : len(afters)] = 0  # channels that say what must follow
    for channel, (before, after) in enumerate(zip(leads, afters)):
        embedding[before, channel] = 16
        head[after] = 0
        head[after, channel] = 7
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder
