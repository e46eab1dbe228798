"""MiniMind's weight files: a state dict, saved by `torch.save` as `minimind_sft_512.pth` or `..._moe.pth`.

Two naming schemes are read and written:

    "minimind2"      layers.0.attention.wq.weight, feed_forward.w1     the lesson, and all files before April 2025
    "transformers"   model.layers.0.self_attn.q_proj.weight, mlp.gate_proj      since then, and in honed

The older scheme rotates dimensions 2i and 2i + 1 of a head together, the newer one i and i + E/2, so the rows of query
and key weights are reordered.

Shapes: H heads, E head size, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from honed.errors import ModelError
from honed.model.minimind.config import MiniMindConfig
from honed.model.minimind.minimind import MiniMindForCausalLM

State = dict[str, torch.Tensor]

# Tables in older files that can be computed from the configuration.
DERIVED = re.compile(r"(.*\.)?(pos_cis|freqs_cos|freqs_sin|attention\.mask)")
NAMINGS = ("minimind2", "transformers")
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\..+")
EXPERT = re.compile(r".+\.experts\.(\d+)\..+")
SHARED = re.compile(r".+\.shared_experts\.(\d+)\..+")


def load_pth(path: str | Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> MiniMindForCausalLM:
    """Loads a model from a MiniMind weight file. Nothing in the file is executed.

    Args:
        dtype: the model's dtype; MiniMind saves float16.
        changes: fields of `MiniMindConfig` that `config_of` cannot infer, such as num_attention_heads=16,
            num_key_value_heads=8, rope_theta=1e4 for MiniMind 1.

    Raises:
        ModelError: no such file, not a state dict, or keys or shapes that do not match the model; names them.
    """
    state = to_transformers(read_state(path), changes.get("num_attention_heads", 8), str(path))
    config = config_of(state, **changes)
    model = MiniMindForCausalLM(config)
    _check(state, model, str(path))
    model.load_state_dict(state)
    return model.to(dtype)


def save_pth(model: MiniMindForCausalLM, path: str | Path, *, names: str = "minimind2") -> None:
    """Writes the model's weights in MiniMind's format, in the model's own dtype.

    Args:
        names: "minimind2" or "transformers".

    Raises:
        ModelError: unknown naming, a model with parts that "minimind2" has no names for, or the file cannot be written.
    """
    if names not in NAMINGS:
        raise ModelError(f"Unknown naming {names!r}.", fix=f"use one of {', '.join(NAMINGS)}")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        torch.save(from_transformers(state, model.config) if names == "minimind2" else state, unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a missing folder
        unfinished.unlink(missing_ok=True)
        raise ModelError(f"{path} cannot be written: {error}", fix="name a folder that exists") from None


def read_state(path: str | Path) -> State:
    """The tensors of a weight file, without tables that can be computed from the configuration.

    Raises:
        ModelError: no such file, or it is not a dict of tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"No such file: {path}", fix="check the path") from None
    except Exception as error:  # pickle, zip and torch raise various errors for a wrong or hostile file
        raise ModelError(
            f"{path} cannot be read as plain tensors: {type(error).__name__}",
            fix="save model.state_dict() alone, with torch.save",
        ) from None
    tensors = isinstance(loaded, Mapping) and all(isinstance(value, torch.Tensor) for value in loaded.values())
    if not tensors or not loaded:
        raise ModelError(f"{path} holds no state dict.", fix="save model.state_dict() alone, with torch.save")
    return {name: tensor for name, tensor in loaded.items() if not DERIVED.fullmatch(name)}


def to_transformers(state: Mapping[str, torch.Tensor], heads: int, path: str = "the state dict") -> State:
    """Converts a state dict of either naming to the newer one.

    Args:
        heads: number of query heads, which determines the head size.

    Raises:
        ModelError: a key that belongs to neither naming.
    """
    if "tok_embeddings.weight" not in state:
        return dict(state)
    new_names = names_of(_count(state, LAYER), _count(state, EXPERT))
    if unknown := sorted(state.keys() - new_names.keys()):
        raise ModelError(
            f"{path} holds keys that MiniMind does not have: {_some(unknown)}.", fix="leave them out of the file"
        )
    size = state["tok_embeddings.weight"].shape[1] // heads
    return {new_names[old]: _reordered(new_names[old], state[old], size, halves_first) for old in state}


def from_transformers(state: Mapping[str, torch.Tensor], config: MiniMindConfig) -> State:
    """Converts a state dict of the newer naming to MiniMind 2's.

    Raises:
        ModelError: the model has parts that MiniMind 2 did not have.
    """
    old_names = {new: old for old, new in names_of(config.num_hidden_layers, config.num_experts).items()}
    if unknown := sorted(state.keys() - old_names.keys()):
        raise ModelError(f"MiniMind 2 has no names for {_some(unknown)}.", fix='save with names="transformers"')
    size = config.head_dim or 0
    return {old_names[new]: _reordered(new, state[new], size, neighbours_first) for new in state}


def names_of(layers: int, experts: int) -> dict[str, str]:
    """Maps the older name to the newer name of every weight that a model of this size can have."""
    names = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    fed = {"feed_forward": "mlp", "feed_forward.shared_experts": "mlp.shared_experts.0"}
    fed |= {f"feed_forward.experts.{number}": f"mlp.experts.{number}" for number in range(experts)}
    inside = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    inside |= {f"attention.w{part}": f"self_attn.{part}_proj" for part in "qkvo"} | {"feed_forward.gate": "mlp.gate"}
    inside |= {f"{old}.w1": f"{new}.gate_proj" for old, new in fed.items()}
    inside |= {f"{old}.w2": f"{new}.down_proj" for old, new in fed.items()}
    inside |= {f"{old}.w3": f"{new}.up_proj" for old, new in fed.items()}
    for layer in range(layers):
        names |= {f"layers.{layer}.{old}.weight": f"model.layers.{layer}.{new}.weight" for old, new in inside.items()}
    return names


def halves_first(weight_HED: torch.Tensor, size: int) -> torch.Tensor:
    """Reorders the rows of a query or key weight from adjacent pairs to pairs half a head apart."""
    return weight_HED.view(-1, size // 2, 2, weight_HED.shape[1]).transpose(1, 2).reshape(weight_HED.shape)


def neighbours_first(weight_HED: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of `halves_first`."""
    return weight_HED.view(-1, 2, size // 2, weight_HED.shape[1]).transpose(1, 2).reshape(weight_HED.shape)


def config_of(state: Mapping[str, torch.Tensor], **changes: Any) -> MiniMindConfig:
    """The configuration inferred from a state dict in the newer naming, with MiniMind's defaults for the rest.

    Shapes do not determine the number of query heads (8 is assumed), `rope_theta`, `rms_norm_eps` and the number of
    experts per token. Normalised queries and keys imply MiniMind 3, where the last two are 1e-6 and 1.
    """
    embedding = state.get("model.embed_tokens.weight")
    if embedding is None or embedding.dim() != 2:
        raise ModelError(f"No embedding among the keys {_some(sorted(state))}.", fix="give MiniMind's own weight file")
    vocab_size, hidden_size = embedding.shape
    qk_norm = (norm := state.get("model.layers.0.self_attn.q_norm.weight")) is not None
    size = norm.shape[0] if norm is not None else hidden_size // changes.get("num_attention_heads", 8)
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(state, LAYER),
        "head_dim": size,
        "num_key_value_heads": _rows(state, "self_attn.k_proj") // max(size, 1),
        "qk_norm": qk_norm,
        "use_moe": "model.layers.0.mlp.gate.weight" in state,
    }
    if qk_norm:
        found |= {"rms_norm_eps": 1e-6, "num_experts_per_tok": 1}
    if found["use_moe"]:
        found |= {
            "num_experts": _rows(state, "mlp.gate"),
            "n_shared_experts": _count(state, SHARED),
            "moe_intermediate_size": _rows(state, "mlp.experts.0.gate_proj"),
        }
    else:
        found["intermediate_size"] = _rows(state, "mlp.gate_proj")
    try:
        return MiniMindConfig(**{**found, **changes})
    except Exception as error:  # transformers raises its own type if the numbers do not fit together
        raise ModelError(f"The weights are not a MiniMind model's: {error}", fix="give the shape by keywords") from None


def _check(state: State, model: MiniMindForCausalLM, path: str) -> None:
    """Checks that keys and shapes match the model, and that tied weights are equal."""
    expected = model.state_dict()
    state.setdefault("lm_head.weight", state.get("model.embed_tokens.weight", expected["lm_head.weight"]))
    if missing := sorted(expected.keys() - state.keys()):
        raise ModelError(f"{path} lacks {_some(missing)}.", fix="give the model's shape by keywords, or save it again")
    if unknown := sorted(state.keys() - expected.keys()):
        raise ModelError(
            f"{path} holds keys that MiniMind does not have: {_some(unknown)}.", fix="leave them out of the file"
        )
    if wrong := [f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
                 for name in sorted(expected) if state[name].shape != expected[name].shape]:  # fmt: skip
        raise ModelError(f"{path} has other shapes: {_some(wrong)}.", fix="give the model's shape by keywords")
    if model.config.tie_word_embeddings and not torch.equal(
        state["lm_head.weight"], state["model.embed_tokens.weight"]
    ):
        raise ModelError(f"{path}: the head is not the embedding.", fix="load it with tie_word_embeddings=False")


def _reordered(
    new_name: str, tensor: torch.Tensor, size: int, order: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    is_rotated = new_name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight"))
    fits = is_rotated and size > 0 and tensor.dim() == 2 and tensor.shape[0] % size == 0
    return order(tensor, size) if fits else tensor  # other shapes are refused later


def _count(state: Mapping[str, torch.Tensor], pattern: re.Pattern[str]) -> int:
    """How many distinct numbers the pattern matches in the names."""
    return len({found[1] for name in state if (found := pattern.fullmatch(name))})


def _rows(state: Mapping[str, torch.Tensor], part: str) -> int:
    name = f"model.layers.0.{part}.weight"
    return state[name].shape[0] if name in state else 0


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
