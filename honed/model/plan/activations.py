"""Bytes per token that a decoder layer keeps for its backward pass: one line per tensor that autograd saves.

Derived from transformers' layers and tested against what autograd saves (tests/model/plan/test_plan_activations.py).
Attention kernels save no scores, so their part is linear in the tokens.

    x -> norm -> h -> q, k, v -> (norm) -> rotary -> attention -> o_proj -> + -> norm -> h -> gate, up -> down -> +

A linear layer keeps its input if its weight is trained or if it has an adapter; under autocast each layer keeps its own
cast copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from honed.errors import RecipeError
from honed.model.plan.sizes import Adapter, Sizes

# Layers that read the same tensor: the normed hidden states, attention's output, the feed-forward's product.
READS_ATTENTION_INPUT = frozenset(("q_proj", "k_proj", "v_proj", "qkv_proj"))
READS_ATTENTION_OUTPUT = frozenset(("o_proj",))
READS_FEED_FORWARD_INPUT = frozenset(("gate_proj", "up_proj", "gate_up_proj", "gate"))
READS_FEED_FORWARD_PRODUCT = frozenset(("down_proj",))
# The numbers of these tensors in a plain Llama layer.
_PLAIN = {
    READS_ATTENTION_INPUT: 3,
    READS_ATTENTION_OUTPUT: 1,
    READS_FEED_FORWARD_INPUT: 2,
    READS_FEED_FORWARD_PRODUCT: 1,
}
FP32 = 4  # bytes; norms compute in float32 whatever the model's dtype
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Bytes per number in different places.

    Attributes:
        weight: unquantised weights and the residual stream.
        compute: matrix products and attention; smaller than `weight` under autocast.
        copies_attention: whether attention's output is copied for o_proj, as on CPU.
    """

    weight: int
    compute: int
    copies_attention: bool

    @property
    def casts(self) -> bool:
        """Whether autocast casts the weights."""
        return self.weight != self.compute

    @property
    def experts(self) -> int:
        """Bytes in the experts' products, which autocast affects on CUDA only (see `experts_in_autocast`)."""
        return self.weight if self.copies_attention else self.compute


def formats_of(method: str, *, device: str, dtype: str | None = None) -> Formats:
    """Returns the dtypes that honed uses: on CUDA products in bfloat16, and weights in float32 if they are trained.

    Raises:
        RecipeError: an unknown dtype.
    """
    if dtype is not None and dtype not in BYTES:
        raise RecipeError(f"dtype is {dtype!r}.", fix=f"known are {', '.join(BYTES)}")
    on_cuda = device == "cuda"
    weight = BYTES[dtype] if dtype is not None else 2 if on_cuda and method != "full" else FP32
    return Formats(weight=weight, compute=2 if on_cuda else weight, copies_attention=not on_cuda)


def saved_per_token(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> dict[str, int]:
    """Returns bytes per token that a layer keeps, by kind; `adapter` is None if all weights are trained."""
    return {
        "norms": _norms(sizes, formats, adapter),
        "attention": _attention(sizes, formats, adapter),
        "feed_forward": _experts(sizes, formats, adapter) if sizes.routed else _dense(sizes, formats, adapter),
        "adapter": 0 if adapter is None else _targets(adapter) * adapter.rank * formats.compute,
    }


def saved_per_layer(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> int:
    """Returns bytes that a layer keeps whatever the tokens: cast weights, and experts with a merged adapter."""
    linear, experts = sizes.linear // sizes.layers, sizes.experts // sizes.layers
    if adapter is None:
        copied = experts * formats.experts if formats.experts != formats.weight else 0
        return (linear * formats.compute if formats.casts else 0) + copied
    merged = experts * formats.weight if adapter.merges_experts else 0
    casts = adapter.weights // sizes.layers * formats.compute if formats.compute < FP32 else 0
    return merged + casts


def _norms(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> int:
    """Each norm keeps its input in float32 and one factor per token; with a trained weight also the normed values."""
    gemma = sizes.norms == 4
    normed = 0 if adapter is not None else (FP32 if gemma else formats.weight)
    return sizes.norms * (sizes.hidden * (FP32 + normed) + FP32)


def _attention(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> int:
    c = formats.compute
    inputs = sizes.hidden * _copies(READS_ATTENTION_INPUT, formats, adapter)
    qkv = (sizes.queries + 2 * sizes.keys) * c  # after rotary
    normed = 0
    if sizes.qk_norm:
        gemma = sizes.norms == 4
        trained = 0 if adapter is not None else (FP32 if gemma else c)
        normed = (sizes.queries + sizes.keys) * (FP32 + trained) + (sizes.heads + sizes.key_heads) * FP32
    output = sizes.queries * c + sizes.heads * FP32  # and the softmax's log-sum-exp
    copied = formats.copies_attention or (adapter is not None and _adapter_casts(formats))
    again = sizes.queries * _copies(READS_ATTENTION_OUTPUT, formats, adapter) if copied else 0
    return inputs + normed + qkv + output + again


def _dense(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> int:
    inputs = sizes.hidden * _copies(READS_FEED_FORWARD_INPUT, formats, adapter)
    gate_act_up = 3 * sizes.feed_forward * formats.compute
    return inputs + gate_act_up + sizes.feed_forward * _copies(READS_FEED_FORWARD_PRODUCT, formats, adapter)


def _experts(sizes: Sizes, formats: Formats, adapter: Adapter | None) -> int:
    """Each token keeps, per expert, gate, up, the activated gate, and the output for the router's gradient; with
    trained or merged weights also input and product."""
    w, chosen = formats.experts, sizes.chosen
    numbers = sizes.hidden + 3 * sizes.feed_forward
    router = sizes.routed * FP32 + chosen * 8
    if adapter is None or adapter.merges_experts:
        numbers += sizes.hidden + sizes.feed_forward
        router += sizes.hidden * formats.compute
    return router + chosen * (numbers * w + 3 * 8 + FP32)


def _copies(readers: frozenset[str], formats: Formats, adapter: Adapter | None) -> int:
    """Bytes per element that the readers of a tensor keep: nothing, the tensor, or a cast copy each."""
    plain = _PLAIN[readers]
    if adapter is None:
        shared = not formats.casts or plain == 1
        return formats.compute * (1 if shared else plain)
    with_adapter = len(adapter.targets & readers)
    if not with_adapter:
        return 0
    return formats.compute * (with_adapter if _adapter_casts(formats) else 1)


def _adapter_casts(formats: Formats) -> bool:
    """Adapters are float32: peft casts their input up, and autocast casts it down again."""
    return formats.compute < FP32


def _targets(adapter: Adapter) -> int:
    return len(adapter.targets - {"experts", "base_layer", "gate"})
