"""MiniMind, a small language model to train from scratch, as a transformers model: dense or a mixture of experts.

Pre-norm decoder with RMSNorm, rotary positions (optionally YaRN), grouped-query attention, SwiGLU and tied embeddings.
Parameters and configuration have the names of the MiniMind project (jingyaogong/minimind, 2 and later); `pth` reads and
writes its weight files, also older ones. Attention uses transformers' interface, so `set_attn_implementation`, flat
batches and caches work as with any transformers model.

Shapes: B rows, T tokens, D hidden size, H query heads, K key/value heads, E head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from honed.errors import ModelError
from honed.model.minimind.config import MiniMindConfig
from honed.model.minimind.moe import MixtureOfExperts, Router, SwiGLU, balance_loss, sequences_of
from honed.model.minimind.rope import rope_frequencies, rope_tables, rotate


class Attention(nn.Module):
    """Causal grouped-query attention, computed by the implementation that the configuration names."""

    is_causal = True

    def __init__(self, config: MiniMindConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim or 0
        self.head_dim, self.scaling = size, size**-0.5
        self.num_key_value_groups = heads // kv_heads
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(size, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(size, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x_BTD: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output (B, T, D), and the attention weights if the implementation returns them.

        Args:
            rope: see `rope_tables`.
            attention_mask: see `create_causal_mask`.
            kwargs: passed to the implementation, such as the boundaries of documents in a flat row.
        """
        shape = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BHTE = rotate(self.q_norm(self.q_proj(x_BTD).view(shape)).transpose(1, 2), *rope)
        k_BKTE = rotate(self.k_norm(self.k_proj(x_BTD).view(shape)).transpose(1, 2), *rope)
        v_BKTE = self.v_proj(x_BTD).view(shape).transpose(1, 2)
        if past_key_values is not None:
            k_BKTE, v_BKTE = past_key_values.update(k_BKTE, v_BKTE, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.dropout if self.training else 0.0
        options = {"dropout": dropout, "scaling": self.scaling, **kwargs}
        y_BTHE, weights = attend(self, q_BHTE, k_BKTE, v_BKTE, attention_mask, **options)
        return self.o_proj(y_BTHE.reshape(*x_BTD.shape[:2], -1)), weights


class DecoderLayer(GradientCheckpointingLayer):
    """Attention, then the feed-forward layer or the experts, each with pre-normalisation and a residual connection."""

    def __init__(self, config: MiniMindConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = _feed_forward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (B, T, D), and the router logits (B * T, experts), or None without a router."""
        attended, _ = self.self_attn(self.input_layernorm(x_BTD), **kwargs)
        x_BTD = x_BTD + self.dropout(attended)
        out = self.mlp(self.post_attention_layernorm(x_BTD))
        fed, logits = out if isinstance(out, tuple) else (out, None)
        return x_BTD + self.dropout(fed), logits


def _feed_forward(config: MiniMindConfig) -> SwiGLU | MixtureOfExperts:
    if not config.use_moe:
        return SwiGLU(config.hidden_size, config.intermediate_size or 0)
    return MixtureOfExperts(
        config.hidden_size,
        config.moe_intermediate_size or 0,
        experts=config.num_experts,
        shared_experts=config.n_shared_experts,
        top_k=config.num_experts_per_tok,
        normalise=config.norm_topk_prob,
    )


class MiniMindPreTrainedModel(PreTrainedModel):
    """Class attributes for transformers, shared by both classes below."""

    config_class = MiniMindConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012 - transformers reads lists
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": DecoderLayer, "attentions": Attention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Router):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class MiniMindModel(MiniMindPreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        # a list, not a buffer: casting the model to bfloat16 must not round the angles
        frequencies, self.rope_factor = rope_frequencies(config.head_dim or 0, config.rope_parameters or {})
        self.rope_frequencies: list[float] = frequencies.tolist()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # noqa: PLR0917 - the order is that of transformers' models
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """As in transformers' models; `kwargs` are passed to the attention.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        x_BTD: torch.Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x_BTD.shape[1], device=x_BTD.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        frequencies = torch.tensor(self.rope_frequencies, device=x_BTD.device)
        rope = rope_tables(frequencies, position_ids, factor=self.rope_factor, dtype=x_BTD.dtype)
        x_BTD = self.dropout(x_BTD)
        router_logits = []
        for layer in self.layers:
            x_BTD, logits = layer(
                x_BTD,
                rope=rope,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
            router_logits.append(logits)
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(x_BTD),
            past_key_values=past_key_values,
            router_logits=tuple(router_logits) if self.config.use_moe and self.config.output_router_logits else None,
        )


class MiniMindForCausalLM(MiniMindPreTrainedModel, GenerationMixin):
    """MiniMind with its LM head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__(config)
        self.model = MiniMindModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: PLR0917
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As in transformers' models.

        Returns:
            `aux_loss` is the sum of `balance_loss` over the layers, without its coefficient; `loss` is the
            cross-entropy, plus coefficient * aux_loss in training mode.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        shape = outputs.last_hidden_state.shape[:2]
        aux_loss = self._balance(outputs.router_logits, shape, attention_mask, kwargs.get("cu_seq_lens_q"))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if aux_loss is not None and self.training:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _balance(
        self,
        router_logits: tuple[torch.Tensor, ...] | None,
        shape: torch.Size,
        attention_mask: torch.Tensor | None,
        bounds: torch.Tensor | None,
    ) -> torch.Tensor | None:
        if not router_logits:
            return None
        sequence_N, sequences = sequences_of(shape, attention_mask, bounds, router_logits[0].device)
        if not self.config.seq_aux:
            sequence_N, sequences = sequence_N.clamp(max=0), 1
        top_k = self.config.num_experts_per_tok
        each = [balance_loss(logits, sequence_N, sequences=sequences, top_k=top_k) for logits in router_logits]
        return torch.stack(each).sum()


def register() -> None:
    """Registers MiniMind with transformers' Auto classes. May be called repeatedly."""
    AutoConfig.register("minimind", MiniMindConfig, exist_ok=True)
    AutoModel.register(MiniMindConfig, MiniMindModel, exist_ok=True)
    AutoModelForCausalLM.register(MiniMindConfig, MiniMindForCausalLM, exist_ok=True)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters; a tied embedding counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def as_llama(model: MiniMindForCausalLM) -> LlamaForCausalLM:
    """The model as transformers' Llama, for other tools; with equal logits and copied weights.

    Raises:
        ModelError: it has experts or normalised queries and keys, which Llama does not have.
    """
    config = model.config
    if config.use_moe or config.qk_norm:
        what = "experts (use_moe)" if config.use_moe else "normalised queries and keys (qk_norm)"
        raise ModelError(f"The model has {what}, and Llama has none.", fix="export a dense model without qk_norm")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range", "bos_token_id",
            "eos_token_id", "pad_token_id", "tie_word_embeddings")  # fmt: skip
    llama_config = LlamaConfig(
        **{name: getattr(config, name) for name in same},
        rope_parameters=dict(config.rope_parameters),
        attention_dropout=config.dropout,
    )
    llama = LlamaForCausalLM(llama_config).to(device=model.device, dtype=model.dtype)
    llama.load_state_dict(model.state_dict())
    llama.generation_config = model.generation_config
    return llama.train(model.training)
