"""Prompts of different lengths, and what transformers alone makes of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Prompts = list[list[int]]


@pytest.fixture
def prompts() -> Prompts:
    """Shortest 1, longest 30 tokens; none of them a special token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in (3, 17, 9, 1, 30, 12)]


@pytest.fixture
def alone() -> Callable[..., Prompts]:
    """New ids of transformers' own generation, one prompt at a time, nothing padded; greedy unless told."""

    def generate(model: Any, prompts: Prompts, new: int, **options: Any) -> Prompts:
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            arguments = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, **options}
            output = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
            found.append(output[0, len(prompt) :].tolist())
        return found

    return generate
