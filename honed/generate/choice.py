"""Chooses the engine and its settings: those of the call, otherwise the model's own generation settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from honed.generate.engine.engine import SLOTS, Engine
from honed.generate.engine.fits import why_not
from honed.generate.library import TransformersEngine, shares_batches
from honed.generate.request import TextEngine
from honed.generate.sampling import Sampling

OWN = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
TOP_K = 50  # transformers' default if neither the call nor the model sets it
# Settings of transformers' `generate` that change tokens and that honed's engine does not support, with the values at
# which they have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "encoder_repetition_penalty", "typical_p", "guidance_scale"), (None, 1)),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens"), (None, 0)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (None, 0)),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "sequence_bias"), (None,)),
    **dict.fromkeys(("stop_strings", "max_time", "top_h", "watermarking_config"), (None,)),
    "exponential_decay_length_penalty": (None,),
}


@contextmanager
def open_engine(
    model: Any, tokenizer: Any, *, slots: int = SLOTS, options: Mapping[str, Any] | None = None
) -> Iterator[tuple[TextEngine, str]]:
    """Yields honed's engine and "" if it supports the model and options, else transformers' `generate` and the reason.

    Args:
        options: arguments of transformers' `generate` beyond those in `OWN`.
    """
    reason = _unknown(model, options or {}) or why_not(model)
    if reason is None:
        with Engine(model, tokenizer, slots=slots) as engine:
            yield engine, ""
    else:
        library = TransformersEngine(model, tokenizer, batch_size=slots, options=options, shares=shares_batches(model))
        yield library, f"transformers' generate answers for this model: {reason}"


def sampling_of(model: Any, options: Mapping[str, Any]) -> Sampling:
    """Sampling settings, with arguments read as by transformers' `generate`, but greedy unless they say otherwise."""
    own = model.generation_config

    def value(name: str, default: float) -> Any:
        given = options.get(name)
        given = getattr(own, name, None) if given is None else given
        return default if given is None else given

    penalty = value("repetition_penalty", 1.0)
    if not options.get("do_sample"):
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=value("temperature", 1.0),
        top_k=value("top_k", TOP_K),
        top_p=value("top_p", 1.0),
        min_p=value("min_p", 0.0),
        repetition_penalty=penalty,
    )


def stop_ids(model: Any) -> list[int]:
    """Token ids at which the model stops."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def _unknown(model: Any, options: Mapping[str, Any]) -> str | None:
    own = [name for name, values in NEUTRAL.items() if getattr(model.generation_config, name, None) not in values]
    names = [*options, *own]
    return f"honed's engine does not know {', '.join(names)}" if names else None
