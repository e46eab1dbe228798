"""Models whose layers keep a window from attention are found; those that tell it are not suspected."""

from collections.abc import Callable
from typing import Any

import pytest

from honed.ops.attention_windows import untold_windows

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("phimoe", EXPERTS, [8]),
        ("mistral", {}, []),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}, []),
        ("gpt_oss", EXPERTS, []),
        ("qwen3", {}, []),
    ],
)
def test_windows_that_stand_in_masks_alone(
    family: str, options: dict[str, Any], expected: list[int], tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model(family, sliding_window=8, **options).eval()
    before = model.config._attn_implementation
    assert untold_windows(model) == expected
    assert model.config._attn_implementation == before
