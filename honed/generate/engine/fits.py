"""Whether honed's engine can decode a model, found by trying it on the actual model."""

from __future__ import annotations

from typing import Any

import torch

from honed.generate.engine.cache import RowCache, plan_step
from honed.generate.engine.engine import Engine
from honed.generate.request import evaluating
from honed.model.load.vocabulary import known_tokens
from honed.ops.attention_windows import untold_windows

PROBE_LENGTHS = (5, 7)
PROBE_STEPS = 2


@torch.no_grad()
def why_not(model: Any) -> str | None:
    """Why the engine cannot decode this model; None if it can.

    Two short random prompts are computed together and continued for two tokens; the logits must equal those of the
    model's ordinary forward over each whole text alone.
    """
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is chunked"
    if getattr(model, "_is_stateful", False):  # set by transformers for models whose cache cannot be rolled back
        return "its layers carry a state from token to token"
    try:
        with evaluating(model):
            if windows := untold_windows(model):
                return f"attention's window of {windows[0]:,} tokens is only in its masks"
            texts = _texts(model)
            expected = [_plain_logits(model, text) for text in texts]
            with Engine(model, slots=len(texts)) as engine:
                found = _stepped_logits(engine, texts, model.device)
    # the model's code may raise anything; transformers' `generate` remains available
    except Exception as error:
        return f"trying it failed ({type(error).__name__}: {error})"
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(model.dtype, 5e-2)
    same = all(_distance(a, b) < tolerance for a, b in zip(found, expected, strict=True))
    return None if same else "its logits came out different"


def _texts(model: Any) -> list[list[int]]:
    vocabulary = known_tokens(model)
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (n + PROBE_STEPS,), generator=generator).tolist() for n in PROBE_LENGTHS]


def _plain_logits(model: Any, text: list[int]) -> torch.Tensor:
    """Logits (1 + PROBE_STEPS, V) of the model's ordinary forward."""
    ids = torch.tensor([text], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, -PROBE_STEPS - 1 :]
    return logits


def _stepped_logits(engine: Engine, texts: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    """The same logits, computed step by step with the engine."""
    cache = RowCache(len(texts))
    begun = [(slot, text[:-PROBE_STEPS]) for slot, text in enumerate(texts)]
    steps = [engine.forward(plan_step(cache, begun, [], device))]
    for left in range(PROBE_STEPS, 0, -1):
        running = [(slot, text[-left], len(text) - left) for slot, text in enumerate(texts)]
        steps.append(engine.forward(plan_step(cache, [], running, device)))
    return [torch.stack([step[slot] for step in steps]) for slot in range(len(texts))]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance at the worst position."""
    found, expected = found.double(), expected.double()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)).max())
