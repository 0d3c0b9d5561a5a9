"""The settings that auto-round writes beside those of a method: into files of its own, and into GPTQ's and AWQ's."""

from __future__ import annotations

ONLY: dict[str, tuple[object, ...]] = {
    "data_type": ("int", None),
    "act_bits": (16, 32, None),
    "super_bits": (None,),
    "super_group_size": (None,),
    "rotation_config": (None, {}),
    "rotation_configs": (None, []),
    "enable_norm_bias_tuning": (False, None),
    "static_kv_dtype": (None,),
    "static_attention_dtype": (None,),
}
HARMLESS = frozenset(
    """
    act_data_type act_dynamic act_group_size act_sym amp autoround_version batch_size block_name_to_quantize dataset
    enable_minmax_tuning enable_quanted_input gradient_accumulate_steps iters low_cpu_mem_usage low_gpu_mem_usage lr minmax_lr
    nsamples provider quant_block_list quant_lm_head quant_method scale_dtype seqlen static_attention_granularity
    static_kv_granularity supported_types to_quant_block_names
    """.split()  # noqa: SIM905 - a list would take a line for each
)
