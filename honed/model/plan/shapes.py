"""Shapes of public models, from their published configurations, so that planning works offline.

Memory depends only on these numbers; the rest of a configuration (rope, token ids) has transformers' defaults.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from honed.errors import ModelError, first_line

_TUNED = ("-instruct", "-base", "-it", "-pt", "-chat", "-thinking", "-hf")  # suffixes of names with the same shape


class _Family(NamedTuple):
    """What the models of one family have in common."""

    model_type: str
    owner: str
    fields: dict[str, Any]


def _family(model_type: str, owner: str, **fields: Any) -> _Family:
    return _Family(model_type, owner, fields)


_QWEN3 = _family("qwen3", "Qwen", vocab_size=151936, head_dim=128, max_position_embeddings=40960)
_QWEN3_MOE = _family("qwen3_moe", "Qwen", vocab_size=151936, head_dim=128, max_position_embeddings=40960)
_QWEN2 = _family("qwen2", "Qwen", vocab_size=151936, max_position_embeddings=32768)
_QWEN2_LARGE = _family("qwen2", "Qwen", vocab_size=152064, max_position_embeddings=32768)
_LLAMA3 = _family("llama", "meta-llama", vocab_size=128256, max_position_embeddings=131072)
_GEMMA3 = _family(
    "gemma3_text", "google", vocab_size=262144, head_dim=256, max_position_embeddings=32768, sliding_window=512
)
_GEMMA3_LARGE = _family(  # without the vision tower
    "gemma3_text", "google", vocab_size=262208, max_position_embeddings=131072, sliding_window=1024
)
_MISTRAL = _family("mistral", "mistralai", head_dim=128, max_position_embeddings=32768, sliding_window=None)
_MIXTRAL = _family("mixtral", "mistralai", vocab_size=32000, max_position_embeddings=32768, sliding_window=None)
_SMOLLM2 = _family("llama", "HuggingFaceTB", vocab_size=49152, max_position_embeddings=8192)

# name: family, layers, hidden size, feed-forward size, query heads, key/value heads, tied head, anything else
_Row = tuple[_Family, int, int, int, int, int, bool, dict[str, Any]]
_SHAPES: dict[str, _Row] = {
    "SmolLM2-135M": (_SMOLLM2, 30, 576, 1536, 9, 3, True, {}),
    "SmolLM2-360M": (_SMOLLM2, 32, 960, 2560, 15, 5, True, {}),
    "SmolLM2-1.7B": (_SMOLLM2, 24, 2048, 8192, 32, 32, True, {}),
    "Qwen3-0.6B": (_QWEN3, 28, 1024, 3072, 16, 8, True, {}),
    "Qwen3-1.7B": (_QWEN3, 28, 2048, 6144, 16, 8, True, {}),
    "Qwen3-4B": (_QWEN3, 36, 2560, 9728, 32, 8, True, {}),
    "Qwen3-8B": (_QWEN3, 36, 4096, 12288, 32, 8, False, {}),
    "Qwen3-14B": (_QWEN3, 40, 5120, 17408, 40, 8, False, {}),
    "Qwen3-32B": (_QWEN3, 64, 5120, 25600, 64, 8, False, {}),
    "Qwen3-30B-A3B": (
        *(_QWEN3_MOE, 48, 2048, 6144, 32, 4, False),
        {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    "Qwen2.5-0.5B": (_QWEN2, 24, 896, 4864, 14, 2, True, {}),
    "Qwen2.5-1.5B": (_QWEN2, 28, 1536, 8960, 12, 2, True, {}),
    "Qwen2.5-3B": (_QWEN2, 36, 2048, 11008, 16, 2, True, {}),
    "Qwen2.5-7B": (_QWEN2_LARGE, 28, 3584, 18944, 28, 4, False, {}),
    "Qwen2.5-14B": (_QWEN2_LARGE, 48, 5120, 13824, 40, 8, False, {}),
    "Qwen2.5-32B": (_QWEN2_LARGE, 64, 5120, 27648, 40, 8, False, {}),
    "Qwen2.5-72B": (_QWEN2_LARGE, 80, 8192, 29568, 64, 8, False, {}),
    "Llama-3.2-1B": (_LLAMA3, 16, 2048, 8192, 32, 8, True, {"head_dim": 64}),
    "Llama-3.2-3B": (_LLAMA3, 28, 3072, 8192, 24, 8, True, {"head_dim": 128}),
    "Llama-3.1-8B": (_LLAMA3, 32, 4096, 14336, 32, 8, False, {}),
    "Llama-3.1-70B": (_LLAMA3, 80, 8192, 28672, 64, 8, False, {}),
    "Llama-3.3-70B": (_LLAMA3, 80, 8192, 28672, 64, 8, False, {}),
    "Gemma-3-270M": (_GEMMA3, 18, 640, 2048, 4, 1, True, {}),
    "Gemma-3-1B": (_GEMMA3, 26, 1152, 6912, 4, 1, True, {}),
    "Gemma-3-4B": (_GEMMA3_LARGE, 34, 2560, 10240, 8, 4, True, {"head_dim": 256}),
    "Gemma-3-12B": (_GEMMA3_LARGE, 48, 3840, 15360, 16, 8, True, {"head_dim": 256}),
    "Gemma-3-27B": (_GEMMA3_LARGE, 62, 5376, 21504, 32, 16, True, {"head_dim": 128}),
    "Mistral-7B-v0.1": (_MISTRAL, 32, 4096, 14336, 32, 8, False, {"vocab_size": 32000}),
    "Mistral-7B-v0.3": (_MISTRAL, 32, 4096, 14336, 32, 8, False, {"vocab_size": 32768}),
    "Mixtral-8x7B-v0.1": (
        *(_MIXTRAL, 32, 4096, 14336, 32, 8, False),
        {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
}
_ALIASES = {"mistral-7b": "Mistral-7B-v0.3", "mixtral-8x7b": "Mixtral-8x7B-v0.1"}
_OWNERS = frozenset(row[0].owner.lower() for row in _SHAPES.values())


def find_config(name: str) -> Any:
    """Returns the transformers configuration of a model, without reading weights.

    Built-in names need no network: "Qwen3-8B", "Qwen/Qwen3-8B" and "qwen3-8b-base" have the same shape. Hub ids of
    other owners are looked up, because their shape may differ.

    Args:
        name: a folder with a config.json, a built-in name, or a Hub id.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
    """
    from honed.model.load.load import is_adapter, resolve
    from honed.model.minimind.minimind import register
    from honed.model.smollm2.smollm2 import MODEL_NAME

    register()
    if name == MODEL_NAME:
        return _built_in("SmolLM2-135M")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        known = _known(name)
        if known is not None:
            return _built_in(known)
        if "/" not in name:
            raise ModelError(f"No model called {name!r} is built in, and there is no such folder.", fix=_advice(name))
    place = resolve(name)
    if is_adapter(place):
        raise ModelError(f"{name} holds an adapter, not a model.", fix="name the model that it was trained on")
    return _read_config(name, place)


def is_model(name: str) -> bool:
    """Whether this can only be a model: a built-in name, a folder, or a Hub id. Nothing is read."""
    from honed.model.smollm2.smollm2 import MODEL_NAME

    return name == MODEL_NAME or _known(name) is not None or "/" in name or Path(name).expanduser().is_dir()


def _read_config(name: str, place: str) -> Any:
    from transformers import AutoConfig

    from honed.hub import ask_for_model

    ask_for_model(place)
    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:  # no network, no such id, unknown model type: all of different types
        raise ModelError(
            f"The configuration of {name} cannot be read: {first_line(error)}", fix=_advice(name)
        ) from None
    return config


def _built_in(name: str) -> Any:
    from transformers import AutoConfig

    family, layers, hidden, feed_forward, heads, key_value_heads, tied, others = _SHAPES[name]
    fields = {
        **family.fields,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "tie_word_embeddings": tied,
        **others,
    }
    return AutoConfig.for_model(family.model_type, **fields)


def _known(name: str) -> str | None:
    owner, _, last = name.lower().rpartition("/")
    if owner and owner not in _OWNERS:
        return None
    by_lower = {known.lower(): known for known in _SHAPES} | _ALIASES
    for ending in ("", *_TUNED):
        if (short := last.replace(ending, "", 1)) in by_lower:
            return by_lower[short]
    return None


def _advice(name: str) -> str:
    by_lower = {known.lower(): known for known in _SHAPES}
    close = difflib.get_close_matches(name.rpartition("/")[-1].lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]}? Else give" if close else "give"
    return f"{hint} a folder that holds the model's config.json, or one of {', '.join(_SHAPES)}"
