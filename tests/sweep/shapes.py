"""Tiny shapes of every model type: a table of common names, and what some types need beside it.

Only names that the type's own configuration has are set, so the table can be long. Dropout is off, because a sum over
documents would not be comparable with it.
"""

from __future__ import annotations

from typing import Any

WORDS = 400
# name in a configuration -> its value in the sweep
COMMON: dict[str, Any] = {
    "vocab_size": WORDS,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim_model", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "d_kv", "kv_channels", "attention_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "dim_ff", "dff", "n_inner", "ffn_hidden_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "sliding_window_size", "attention_window_size"), 8),
    **dict.fromkeys(("q_lora_rank", "o_lora_rank"), 16),
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("index_head_dim",), 8),
    "index_n_heads": 2,
    "index_topk": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "use_cache": True,
}
# Encoders that can be decoders, and dropouts by part of their name.
OFF = ("dropout", "pdrop", "layerdrop", "jitter", "drop_rate")
NOT_OFF = ("classifier_dropout",)
SUBS = ("text_config", "vision_config", "audio_config", "decoder", "attn_config", "ffn_config")
GEMMA4 = {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": WORDS}
INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8}
QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
}
# What some types need beside the common names; nested dictionaries are merged.
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "flint": {"mlp_only_layers": [0]},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": WORDS,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 4,
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "gemma4": {"text_config": GEMMA4},
    "gemma4_unified": {"text_config": GEMMA4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "inkling_text": INKLING,
    "inkling2_text": INKLING,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_expand": 2},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {"moe_shared_expert_intermediate_size": 48},
    "prophetnet": {"num_hidden_layers": None},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3},
    "xlstm": {
        "embedding_dim": 32,
        "num_blocks": 2,
        "chunk_size": 8,
        "v_head_dim": None,
        "head_dim": None,
        "qk_head_dim": None,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 5,
        "layer_types": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16, "zaya_mlp_expansion": 16},
}


def tiny_config(kind: str, **changes: Any) -> Any:
    """transformers' configuration of this type, made small."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(kind, **SPECIAL.get(kind, {}).get("_first", {}))
    values = small(default)
    special = {name: value for name, value in SPECIAL.get(kind, {}).items() if not name.startswith("_")}
    merged = {**values, **{name: merge(values.get(name), value) for name, value in {**special, **changes}.items()}}
    merged = {name: value for name, value in merged.items() if value is not None}
    return AutoConfig.for_model(kind, **merged)


def merge(own: Any, special: Any) -> Any:
    """Nested configurations are merged, all else is replaced."""
    return {**own, **special} if isinstance(own, dict) and isinstance(special, dict) else special


def small(config: Any) -> dict[str, Any]:
    """What is to be set in a configuration like this one, sub-configurations included."""
    own = config.to_dict()
    names = set(own) | {name for name in COMMON if knows(config, name)}
    special = {name: value for name, value in COMMON.items() if name in names}
    special |= {name: 0.0 for name in names if is_off(name) and isinstance(own.get(name), float)}
    if "is_decoder" in names and not getattr(config, "is_encoder_decoder", False):
        special["is_decoder"] = True
    if "kv_lora_rank" in names:  # latent attention: a key head for each query head
        special["num_key_value_heads"] = special["num_attention_heads"]
    special |= layers_of_each_kind(config)
    for name in SUBS:
        if hasattr(getattr(config, name, None), "to_dict"):
            sub = getattr(config, name)
            special[name] = small(sub) | ({"model_type": sub.model_type} if sub.model_type else {})
    return special


def knows(config: Any, name: str) -> bool:
    """Whether the configuration has such a value; one that differs from layer to layer cannot be asked for."""
    try:
        return hasattr(config, name)
    except RuntimeError:
        return True


def layers_of_each_kind(config: Any) -> dict[str, Any]:
    """Where layers differ, one of each kind; every other list that has an entry per layer is shortened alike."""
    kinds = getattr(config, "layer_types", None) or []
    count, chosen = len(kinds), [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if len(chosen) < 2:
        return {}
    lists = {
        name: [value[place] for place in chosen]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == count
    }
    return {**lists, "num_hidden_layers": len(chosen)}


def is_off(name: str) -> bool:
    return any(part in name for part in OFF) and name not in NOT_OFF
