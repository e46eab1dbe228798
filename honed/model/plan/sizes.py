"""Sizes of a model, from transformers' class and peft's adapter on the meta device."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from honed.errors import ModelError, first_line

# Families whose activations are counted in the tests.
READ_FAMILIES = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma3_text", "minimind", "smollm3")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Trained weights of one shape.

    Attributes:
        shape, count: the shape of each weight, and the number of weights.
        hidden: whether they are `layers.hidden_matrices`.
        embedding: whether they are an embedding's.
    """

    shape: tuple[int, ...]
    count: int = 1
    hidden: bool = False
    embedding: bool = False

    @property
    def size(self) -> int:
        """Elements per weight."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a model that determine memory and time; weights are counted in elements.

    Attributes:
        family: transformers' model type.
        hidden, feed_forward, layers, vocabulary: the model's; `feed_forward` is one expert's, if there are experts.
        queries, keys: query heads and key/value heads times the head size.
        norms: norms over the hidden size per layer.
        qk_norm: whether queries and keys are normed.
        embedding, head: their weights; 0 for a tied head.
        linear, largest_linear: weights of all linear layers in the decoder, and of the largest one.
        experts: weights of all routed experts, which are stacked in transformers 5.
        others: weights of norms, biases and routers.
        tensors: all weights by shape.
        plain_embedding: whether the embedding is `nn.Embedding` itself.
        routed, chosen: experts per layer, and experts per token; 0 for a dense model.
        window, full_layers: sliding attention's window (None without), and the number of layers with full attention.
        positions: the longest row that the model supports; None if its configuration does not say. See
            `positions_of`.
    """

    family: str
    hidden: int
    feed_forward: int
    layers: int
    vocabulary: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    head_size: int
    norms: int
    qk_norm: bool
    embedding: int
    head: int
    linear: int
    largest_linear: int
    experts: int
    others: int
    tensors: tuple[Tensors, ...]
    plain_embedding: bool
    routed: int = 0
    chosen: int = 0
    window: int | None = None
    full_layers: int = 0
    positions: int | None = None

    @property
    def parameters(self) -> int:
        """The number of parameters; a tied head is counted once."""
        return self.embedding + self.head + self.linear + self.experts + self.others

    @property
    def tied(self) -> bool:
        """Whether head and embedding are tied."""
        return self.head == 0

    @property
    def read(self) -> bool:
        """Whether the formulas were tested on this family; others are treated like Llama."""
        return self.family in READ_FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The trained weights, if `trainable` freezes the others.

    Attributes:
        tensors: the trained weights by shape.
        head, embedding: whether these are trained.
        idle_layers: the number of layers, from the first, that no gradient passes through, so that they keep nothing.
    """

    tensors: tuple[Tensors, ...]
    head: bool
    embedding: bool
    idle_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter on a model.

    Attributes:
        weights, tensors: trained elements, and the trained weights by shape.
        rank: r.
        targets: last parts of the adapted layers' names, such as q_proj.
        merges_experts: whether peft adds the update to the experts' weights in each forward pass, so they exist twice.
    """

    weights: int
    tensors: tuple[Tensors, ...]
    rank: int
    targets: frozenset[str] = frozenset()
    merges_experts: bool = False


def sizes_of(config: Any) -> Sizes:
    """Counts a model by building it on the meta device.

    Raises:
        ModelError: transformers has no causal language model for this configuration.
    """
    from torch import nn

    model = on_meta(config)
    config = config.get_text_config()
    heads = largest(config, "num_attention_heads")
    key_heads = largest(config, "num_key_value_heads") or heads
    head_size = largest(config, "head_dim") or (config.hidden_size // heads if heads else 0)
    experts = _experts_of(config)
    names = {name.rsplit(".", 2)[-2] for name, _ in model.named_parameters()}
    windows = list(getattr(config, "layer_types", None) or [])
    return Sizes(
        family=config.model_type,
        hidden=int(config.hidden_size),
        feed_forward=_feed_forward(config, experts),
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        queries=heads * head_size,
        keys=key_heads * head_size,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        norms=4 if "pre_feedforward_layernorm" in names else 2,
        qk_norm="q_norm" in names,
        **_counts(model),
        tensors=trained_tensors(model),
        plain_embedding=type(model.get_input_embeddings()) is nn.Embedding,
        **experts,
        window=getattr(config, "sliding_window", None) if "sliding_attention" in windows else None,
        full_layers=windows.count("full_attention") if windows else config.num_hidden_layers,
        positions=positions_of(config),
    )


def positions_of(config: Any) -> int | None:
    """Returns the maximum tokens per row: `max_position_embeddings`, or more if rotary embeddings are scaled.

    YaRN scales `original_max_position_embeddings`, "linear" and "dynamic" scale what the model has. With other types
    (llama3, longrope, one per layer type) `max_position_embeddings` is already the scaled number.
    """
    try:
        positions = getattr(config, "max_position_embeddings", None)
    except RuntimeError:  # transformers', of what differs from layer to layer
        return None
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope.get("factor") or 1.0
    if rope.get("rope_type") in ("linear", "dynamic"):
        return int(positions * factor)
    if rope.get("rope_type") == "yarn":
        return max(positions, int((rope.get("original_max_position_embeddings") or positions) * factor))
    return positions


def adapter_of(config: Any, lora: Mapping[str, Any]) -> Adapter:
    """Counts an adapter by attaching it on the meta device.

    Args:
        lora: options of `honed.model.adapters.adapters.lora_config`.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    from honed.model.adapters.adapters import attach, lora_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of patterns that it sets itself; training shows them
        model = attach(on_meta(config), lora_config(**{**lora, "init": True}))  # other initialisations need weights
    return adapter_in(model)


def adapter_in(model: Any) -> Adapter:
    """Counts a model's adapter; with different ranks it takes the largest."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    owners = [name.partition(".lora_A")[0] for name in trained if ".lora_A" in name]
    # Not from the shapes: for stacked experts peft's matrices contain the ranks of all experts.
    ranks = [
        rank for module in model.modules() if isinstance(of := getattr(module, "r", None), dict) for rank in of.values()
    ]
    return Adapter(
        weights=sum(parameter.numel() for parameter in trained.values()),
        tensors=trained_tensors(model),
        rank=max(ranks, default=0),
        targets=frozenset(owner.rsplit(".", 1)[-1] for owner in owners),
        merges_experts=any(".experts" in owner for owner in owners),
    )


def chosen_of(config: Any, patterns: Sequence[str]) -> Chosen:
    """Counts the weights that `trainable` chooses, on the meta device.

    Raises:
        ModelError: see `on_meta`.
        RecipeError: see `honed.model.adapters.trainable.train_only`.
    """
    from honed.model.adapters.trainable import train_only

    model = on_meta(config)
    train_only(model, patterns)
    return chosen_in(model)


def chosen_in(model: Any) -> Chosen:
    """Counts the trained weights of a model without an adapter."""
    from honed.model.layers import decoder_layers

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = decoder_layers(model)
    behind = {id(p) for layer in layers for p in layer.parameters()} | {
        id(p) for p in getattr(head, "parameters", tuple)()
    }
    behind -= {id(embedding.weight)}
    before = any(p.requires_grad and p.ndim > 1 and id(p) not in behind for p in model.parameters())
    trains = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return Chosen(
        tensors=trained_tensors(model),
        head=head is not None and head.weight.requires_grad,
        embedding=embedding.weight.requires_grad,
        idle_layers=0 if before else [*trains, True].index(True),
    )


def trained_tensors(model: Any) -> tuple[Tensors, ...]:
    """Returns the trained weights of a model; tied ones are counted once."""
    from torch import nn

    from honed.model.layers import hidden_matrices

    hidden = {id(p) for p in hidden_matrices(model).values()}
    embedding = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    found = Counter((tuple(p.shape), id(p) in hidden, id(p) in embedding) for p in trained)
    return tuple(
        Tensors(shape=shape, count=count, hidden=matrix, embedding=table)
        for (shape, matrix, table), count in found.items()
    )


def on_meta(config: Any) -> Any:
    """Builds the model on the meta device.

    Raises:
        ModelError: it cannot be built.
    """
    import torch

    from honed.model.load.load import class_of

    try:
        with torch.device("meta"):
            return class_of(config).from_config(config)
    except Exception as error:  # a type without a causal model, inconsistent numbers: all of different types
        raise ModelError(
            f"No causal language model can be made of this configuration ({config.model_type}): {first_line(error)}",
            fix="name a text model that transformers knows",
        ) from None


def _counts(model: Any) -> dict[str, int]:
    from torch import nn

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linears = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    experts = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 3 and "expert" in name)
    everything = sum(parameter.numel() for parameter in model.parameters())
    untied = head is not None and head.weight is not embedding.weight
    ends = {"embedding": embedding.weight.numel(), "head": head.weight.numel() if untied else 0}
    return {
        **ends,
        "linear": sum(linears),
        "largest_linear": max(linears, default=0),
        "experts": experts,
        "others": everything - sum(ends.values()) - sum(linears) - experts,
    }


def _experts_of(config: Any) -> dict[str, int]:
    routed = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    if not routed or getattr(config, "use_moe", True) is False:
        return {}
    return {"routed": int(routed), "chosen": largest(config, "num_experts_per_tok")}


def _feed_forward(config: Any, experts: Mapping[str, int]) -> int:
    size = largest(config, "moe_intermediate_size") if experts else 0
    return size or largest(config, "intermediate_size") or math.ceil(4 * config.hidden_size)


def largest(config: Any, name: str) -> int:
    """Returns a size of the layers, the largest if they differ (Gemma 3n and 4); 0 if the model has no such part."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers', of what differs from layer to layer
        value = [getattr(layer, name, None) for layer in config.per_layer_config]
    sizes = value if isinstance(value, Iterable) else [value]
    return max((int(size) for size in sizes if size), default=0)
