"""Load a bundle with optimum: transformers' `generate()` and pipelines over the bundle's model.onnx.

    model = load_causal_lm("sample-bundle")
    model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=32)

optimum's `ORTModelForCausalLM` loads a bundle by itself, but is right only for models whose every head has its own keys
and values: for type phi3 it makes caches of `num_attention_heads`. What the class here adds is in its docstring.

optimum-onnx 0.1 needs transformers 4, the compiler transformers 5: this file imports nothing of pocketphi, so that it
works in optimum's environment (`pip install --no-deps pocketphi`, or a copy of the file).
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from onnxruntime import SessionOptions

try:
    from optimum.onnxruntime import ORTModelForCausalLM
except ImportError as error:
    raise ImportError(
        f"optimum with its ONNX Runtime part cannot be imported ({error}); it needs transformers 4, so an environment "
        "of its own: pip install optimum-onnx==0.1.0 onnxruntime"
    ) from error

GRAPH_FILE = "model.onnx"
_LOGGER = "optimum.onnxruntime.modeling_decoder"


class BundleForCausalLM(ORTModelForCausalLM):
    """optimum's class, with three things that it does not know of a bundle.

    The cache's heads and head size are the graph's. Where LongRoPE changes its factors, the cache is computed again, as
    transformers' own Phi-3 does. Rows padded to the left are an error: the attention operator counts tokens from the
    left, and would be silently wrong. Rows of several lengths are padded to the right, whatever transformers' warning
    says: the logits are those of each row's last token.
    """

    def __init__(self, **kwargs: Any) -> None:
        logger = logging.getLogger(_LOGGER)
        level = logger.level
        logger.setLevel(logging.ERROR)  # it advises to export again, with positions that only LongRoPE models read
        try:
            super().__init__(**kwargs)
        finally:
            logger.setLevel(level)
        _, self.num_key_value_heads, _, self.embed_size_per_head = self.input_shapes[self.key_value_input_names[0]]
        self._long_after = self.config.original_max_position_embeddings if self.config.rope_scaling else None

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids: int64 [B, S]; attention_mask: int64 [B, P + S]. Logits: float32 [B, 1, V].

        Raises ValueError for a mask that begins with zeros.
        """
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            row = int(attention_mask[:, 0].argmin())
            padding = int(attention_mask[row].argmax())
            raise ValueError(
                f"attention_mask: row {row} begins with {padding} padding tokens, expected a token; "
                "pad to the right (tokenizer.padding_side = 'right')"
            )
        return super().forward(input_ids, attention_mask, past_key_values, position_ids, use_cache, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """input_ids: all tokens so far, int64 [B, T]."""
        if past_key_values is not None and self._long_after is not None:
            past = past_key_values[0][0].shape[2]
            if past <= self._long_after < input_ids.shape[1]:
                past_key_values = None
        return super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)


def load_causal_lm(folder: str | os.PathLike[str], threads: int = 0, **options: Any) -> BundleForCausalLM:
    """Open a bundle. threads: of the CPU, 0 for one a core; options: as `ORTModelForCausalLM.from_pretrained` has."""
    session = SessionOptions()
    session.intra_op_num_threads = threads
    return BundleForCausalLM.from_pretrained(
        os.fspath(folder), file_name=GRAPH_FILE, session_options=session, local_files_only=True, **options
    )
