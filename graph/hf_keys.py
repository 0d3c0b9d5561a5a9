"""The keys of `config.json` that are not honoured: what they may be, and what is told of those that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.models.base import Model
from pocketphi.graph.packed import KEYS as QUANTIZED
from pocketphi.graph.reading import show, some

_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "lm_head_bias": (False, None),
    "is_causal": (True, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "per_layer_config": (None,),
    "configuration_files": (None,),
}
"""Keys that another value of would make another model, whichever it is. A model's file may have more."""

HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label
    initializer_range is_decoder keys_to_ignore_at_inference label2id length_penalty max_length min_length name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
    output_scores prefix pretraining_tp problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_return_dict
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""Keys that change no logit: training, generation, bookkeeping. A model's file may have more."""


def check_keys(data: Mapping[str, Any], model: Model, where: str) -> list[str]:
    """Returns the notices. Raises InputError for a value that makes another model. What says that the weights are quantized is
    not judged here."""
    only = {**_ONLY, **model.only}
    for key, allowed in only.items():
        if key in data and data[key] not in allowed:
            raise InputError(
                f"{where}: {key} is {show(data[key])}, expected {allowed[0]!r}: nothing else is known of a {model.name}"
            )
    known = HARMLESS.union(model.harmless, model.settings.__dataclass_fields__, only, QUANTIZED)
    unknown = [f"{show(key)} = {show(data[key])}" for key in sorted(data.keys() - known) if data[key] is not None]
    told = f"{where}: not used, as transformers' {model.name} has no such setting: {some(unknown, 4)}"
    return [told] if unknown else []
