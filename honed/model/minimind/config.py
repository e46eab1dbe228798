"""The configuration of a MiniMind model, with the names of the MiniMind project and of transformers."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# MiniMind's `inference_rope_scaling`: 16 times the training context of 2,048 tokens.
YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}


@strict
class MiniMindConfig(PreTrainedConfig):
    """The configuration of a MiniMind model; the defaults are the 26M model (8 layers, hidden size 512).

    Args:
        intermediate_size: width of the feed-forward layers; None for 8/3 of the hidden size, rounded up to a multiple
            of 64.
        rope_parameters: as in transformers; `inference_rope_scaling=True` selects MiniMind's YaRN settings.
        qk_norm: RMSNorm over each head's queries and keys, as in MiniMind 3.
        dropout: after the embeddings, attention and feed-forward layers, and on attention weights.
        use_moe: replace each feed-forward layer with experts. The following arguments are used only then.
        num_experts: number of routed experts (`n_routed_experts`).
        n_shared_experts: number of experts that process every token.
        moe_intermediate_size: width of each expert; None for `intermediate_size`.
        norm_topk_prob: divide the chosen probabilities by their sum.
        seq_aux: balance experts within each sequence instead of over the whole batch.
        router_aux_loss_coef: weight of the balance loss (`aux_loss_alpha`).
        output_router_logits: whether outputs contain `router_logits` and the `aux_loss` computed from them.
    """

    model_type = "minimind"
    keys_to_ignore_at_inference = ("past_key_values", "router_logits", "aux_loss")
    attribute_map = {  # noqa: RUF012 - transformers reads a plain dict
        "n_routed_experts": "num_experts",
        "aux_loss_alpha": "router_aux_loss_coef",
    }
    default_theta = 1e6

    vocab_size: int = 6400
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int | None = None
    max_position_embeddings: int = 32768
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-5
    qk_norm: bool = False
    dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0

    use_moe: bool = False
    num_experts: int = 4
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = True
    seq_aux: bool = True
    router_aux_loss_coef: float = 0.01
    output_router_logits: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 64 * math.ceil(8 * self.hidden_size // 3 / 64)
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if kwargs.pop("inference_rope_scaling", False) and not (self.rope_parameters or kwargs.get("rope_scaling")):
            self.rope_parameters = dict(YARN)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Checks that sizes and numbers of heads and experts fit together.

        Raises:
            ValueError: they do not.
        """
        if min(self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads) < 1:
            raise ValueError("sizes, layers and heads must be 1 or more")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot be divided among {self.num_key_value_heads} "
                "key/value heads"
            )
        if self.head_dim is None or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"the head size is {self.head_dim} (hidden size / heads); rotary positions need it even")
        if self.use_moe and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"{self.num_experts_per_tok} of {self.num_experts} experts cannot be chosen")
