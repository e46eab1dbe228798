"""FSDP2 gathers a tied head and its embedding as two tensors; one of them is saved, as one process does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from program import logits_of
from test_engines import FSDP, IN_PARTS
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from conftest import Ranks

TIED = {"model": {"tie_word_embeddings": True}, "rows": 4}


@pytest.mark.parametrize("engine", [FSDP, IN_PARTS], ids=["whole", "in-parts"])
def test_a_tied_head_is_saved_once(engine: dict[str, Any], ranks: Ranks) -> None:
    found = ranks(f"tied-once-{engine['fsdp_config']['state_dict_type']}", **TIED, train=engine)
    assert "lm_head.weight" not in found.weights() and "model.embed_tokens.weight" in found.weights()
    loaded = AutoModelForCausalLM.from_pretrained(found.out / "model")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(torch.tensor(logits_of(loaded)), torch.tensor(found.told()["logits"]))


def test_an_untied_head_is_kept(ranks: Ranks) -> None:
    assert "lm_head.weight" in ranks("untied-kept", rows=4, train=FSDP).weights()
