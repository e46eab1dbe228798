"""The model that is checked: the user's in float64 where it is small enough, else a part or a small copy of it.

    whole      all layers and weights
    cut        the first layers with their weights, the embedding and the head
    shrunken   the architecture and vocabulary, with few layers, heads and experts and random weights

Dropout is off, and so is the router's auxiliary loss, which depends on how rows are batched. Where `trainable` and
`learning_rates` name weights that a part of the model lacks, they are left out there, and its description says so.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from honed.errors import ModelError, RecipeError, first_line
from honed.model.adapters.adapters import lora_config, ready_to_train
from honed.model.adapters.trainable import train_only
from honed.model.load.added_tokens import with_rows
from honed.model.load.load import load_config, load_model
from honed.quantities import counted
from honed.recipe import LoraRecipe, Recipe
from honed.train.optimizers.rates import notes_on_rates
from honed.train.options.config import SFTConfig

SIZES = ("auto", "whole", "cut", "shrunken")
WHOLE = 50_000_000  # parameters that take two CPU cores seconds in float64
DRILL = 3_000_000  # parameters that are also quick to train, save and send to another process
LAYERS = 2
MOST_LAYERS = 8  # of a model with several kinds of layers
WIDE = 0.1  # standard deviation of random weights: with 0.02 the layers hardly change the hidden states
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A model to check.

    Attributes:
        make: gives a new copy with the same weights, ready to train, in training mode.
        size: "whole", "cut" or "shrunken".
        words: a description for the user.
        without: keys of the recipe's `train` that name weights that are not there.
    """

    make: Callable[[], Any]
    size: str
    words: str
    without: tuple[str, ...] = ()


def choose(
    recipe: Recipe, args: SFTConfig, tokenizer: Any, *, size: str, device: torch.device, dtype: torch.dtype
) -> tuple[Chosen, Chosen]:
    """The model that sums are checked on, and the small one that is trained for several steps.

    Args:
        args: say which weights are trained, and which tokens are added.
        tokenizer: with these tokens.
        size: one of SIZES; "auto" takes the first that is small enough.

    Raises:
        ModelError: the model cannot be found, loaded or shrunk.
        RecipeError: the size is not known, or weights are named that the whole model lacks.
    """
    if size not in SIZES:
        raise RecipeError(f"size is {size!r}.", fix=f"set one of {', '.join(SIZES)}")
    config = exact(load_config(recipe.model))
    parts = {"whole": config, "cut": cut(config), "shrunken": shrunken(config)}
    counts = {name: _parameters(part) for name, part in parts.items()}
    if size == "auto":
        size = next((name for name in ("whole", "cut") if counts[name] <= WHOLE), "shrunken")
    main = _chosen(recipe, args, parts[size], tokenizer, size=size, device=device, dtype=dtype)
    small = size if counts[size] <= DRILL else "shrunken"
    if small == size:
        return main, main
    drill = _chosen(recipe, args, parts[small], tokenizer, size=small, device=device, dtype=dtype)
    return main, drill


def exact(config: Any) -> Any:
    """A copy of the configuration without dropout and without an auxiliary loss."""
    config = copy.deepcopy(config)
    for inner in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in inner.to_dict().items():
            if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
                setattr(inner, name, 0.0)
        if getattr(inner, "output_router_logits", False):
            inner.output_router_logits = False
        if hasattr(inner, "router_aux_loss_coef"):
            inner.router_aux_loss_coef = 0.0
    return config


def cut(config: Any) -> Any:
    """A copy with the first layers only: two, or as many as it takes to have each kind of layer."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or [])
    count = LAYERS
    while count < min(len(kinds), MOST_LAYERS) and set(kinds[:count]) != set(kinds):
        count += 1
    text.num_hidden_layers = min(text.num_hidden_layers, count)
    if kinds:
        text.layer_types = kinds[: text.num_hidden_layers]
    return config


def shrunken(config: Any) -> Any:
    """`cut` with few heads and experts; the head size and the vocabulary stay."""
    config = cut(config)
    text = config.get_text_config()
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    few = min(key_heads, 2 if heads == key_heads else 1)
    text.num_attention_heads = few * (heads // key_heads)
    if getattr(text, "num_key_value_heads", None):
        text.num_key_value_heads = few
    text.hidden_size = min(text.hidden_size, text.num_attention_heads * size)
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner"):
        if getattr(text, name, None):
            setattr(text, name, min(getattr(text, name), 2 * text.hidden_size))
    for name in EXPERTS:
        if getattr(text, name, None):
            setattr(text, name, min(getattr(text, name), 4))
    if getattr(text, "num_experts_per_tok", None):
        text.num_experts_per_tok = min(text.num_experts_per_tok, 2)
    if hasattr(text, "initializer_range"):
        text.initializer_range = WIDE
    return config


def has_experts(config: Any) -> bool:
    """True for a mixture of experts."""
    return any(getattr(config.get_text_config(), name, None) for name in EXPERTS)


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in _built(config).parameters())


def _built(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except Exception as error:  # a configuration whose sizes belong together in ways of its own
        raise ModelError(
            f"No model could be made of this configuration: {first_line(error)}", fix="choose another --size"
        ) from None


def _chosen(
    recipe: Recipe,
    args: SFTConfig,
    config: Any,
    tokenizer: Any,
    *,
    size: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Chosen:
    without: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(recipe, config, size=size, device=device, dtype=dtype)
        with_rows(model, tokenizer, args.add_tokens)
        with _unless_it_lacks_weights("trainable", size, without):
            if args.trainable:
                train_only(model, args.trainable)
        chosen = {"trainable": args.trainable, "added": args.add_tokens, **dict.fromkeys(without, ())}
        model = with_adapter(model, recipe.lora, tokenizer, **chosen)
    with _unless_it_lacks_weights("learning_rates", size, without):
        notes_on_rates(model, args.learning_rates)
    text, count = config.get_text_config(), sum(p.numel() for p in model.parameters())
    words = f"{size}: {counted(text.num_hidden_layers, 'layer')} of {text.hidden_size}, {counted(count, 'parameter')}"
    words += f", {str(dtype)[6:]} on {device}"
    words += "".join(f"; without {name}: {reason.removeprefix(f'{name}: ')}" for name, reason in without.items())
    return Chosen(make=lambda: copy.deepcopy(model), size=size, words=words.rstrip("."), without=tuple(without))


def _made(recipe: Recipe, config: Any, *, size: str, device: torch.device, dtype: torch.dtype) -> Any:
    if size == "shrunken":
        model = _built(config).to(dtype).to(device)
        # transformers leaves the pad token's row at zero
        torch.nn.init.normal_(model.get_input_embeddings().weight.data, std=WIDE)
    else:
        model = load_model(recipe.model, device=device, dtype=dtype, config=copy.deepcopy(config))
    if dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped_mm has no float64
    return model


@contextmanager
def _unless_it_lacks_weights(key: str, size: str, without: dict[str, str]) -> Iterator[None]:
    """Notes the key and the reason in `without`, where a part of the model lacks weights that it names."""
    try:
        yield
    except RecipeError as error:
        if size == "whole":
            raise
        without[key] = error.problem


def with_adapter(model: Any, lora: LoraRecipe | None, tokenizer: Any, **chosen: Any) -> Any:
    """The model ready to train, with the recipe's adapter; `chosen` as `ready_to_train` takes it.

    LoRA's B is made random: it starts at zero, where the gradient of A is zero too and checks nothing.
    """
    adapter = None
    if lora is not None:
        given = {f.name: getattr(lora, f.name) for f in dataclasses.fields(LoraRecipe)}
        adapter = lora_config(**{**given, "dropout": 0.0})
    model, _ = ready_to_train(model, adapter, tokenizer=tokenizer, **chosen)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.02)
    return model.train()
