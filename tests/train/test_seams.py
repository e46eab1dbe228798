"""Both seams on unmodified models of several families: what fits is used, what does not is found out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from honed.data.collate import FlatCollator
from honed.data.table import PackedRow
from honed.loss.head import ScoringHead
from honed.model.adapters import attach, lora_config
from honed.train import seams

SMALL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
FITTING = ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "olmo2", "smollm3"]


def rows(*lengths: int) -> list[PackedRow]:
    found = []
    for length in lengths:
        weights = torch.ones(length).numpy()
        weights[0] = 0.0
        found.append(PackedRow(input_ids=torch.randint(3, 400, (length,)).numpy(), weights=weights, lengths=(length,)))
    return found


def plain_scores(model: Any, row: PackedRow) -> torch.Tensor:
    """One document through the model alone; torch's cross entropy on its logits."""
    ids = torch.from_numpy(row.input_ids).long()[None]
    logits = model(input_ids=ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="none")


@pytest.mark.parametrize("family", FITTING)
def test_both_seams_fit_and_give_the_models_own_scores(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family, dtype=torch.float64).eval()
    found = seams.find_seams(model)
    assert (found.flat, found.scoring, found.notes) == (True, True, [])
    documents = rows(9, 2, 30, 5)
    with seams.opened(model, found) as head:
        scores, _ = seams.token_scores(model, FlatCollator()(documents), head)
    torch.testing.assert_close(scores.nll_N, torch.cat([plain_scores(model, row) for row in documents]))


def test_a_sliding_window_is_kept_inside_each_document(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("mistral", dtype=torch.float64, sliding_window=4).eval()
    documents = rows(12, 3, 20)
    expected = torch.cat([plain_scores(model, row) for row in documents])
    with seams.opened(model, seams.find_seams(model)) as head:
        scores, _ = seams.token_scores(model, FlatCollator()(documents), head)
    torch.testing.assert_close(scores.nll_N, expected)


def test_soft_capped_logits_are_found_out(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=2.0, attn_logit_softcapping=None)
    found = seams.find_seams(model)
    assert not found.scoring and any("after the head" in note for note in found.notes)


@pytest.mark.parametrize(("family", "options"), [("gemma2", {"attn_logit_softcapping": 5.0}), ("gpt_oss", SMALL_MOE)])
def test_soft_capped_scores_and_attention_sinks_fit(
    family: str, options: dict[str, Any], tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model(family, sliding_window=4, **options).eval()  # float32: their own softmax is, whatever the model
    model.set_attn_implementation("eager")  # transformers 5.17 leaves soft-capping out of its SDPA
    documents = rows(12, 3, 20)
    expected = torch.cat([plain_scores(model, row) for row in documents])
    found = seams.find_seams(model)
    assert found.flat
    with seams.opened(model, found) as head:
        scores, _ = seams.token_scores(model, FlatCollator()(documents), head)
    torch.testing.assert_close(scores.nll_N.double(), expected, rtol=1e-4, atol=1e-4)


def test_attention_that_looks_ahead_is_found_out(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gemma3_text", use_bidirectional_attention=True)
    found = seams.find_seams(model)
    assert not found.flat and any("looks ahead" in note for note in found.notes)


def test_a_model_that_ignores_boundaries_is_found_out(tiny_model: Callable[..., Any]) -> None:
    """A recurrent model carries its state from one document into the next."""
    model = tiny_model("mamba", state_size=4, expand=2, conv_kernel=3, time_step_rank=4)
    found = seams.find_seams(model)
    assert not found.flat and found.notes


def test_the_model_is_as_it_was_afterwards(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model().train()
    head, attention, keys = model.lm_head, model.config._attn_implementation, list(model.state_dict())
    found = seams.find_seams(model)
    assert model.training
    with seams.opened(model, found) as scoring:
        assert isinstance(scoring, ScoringHead) and model.lm_head is scoring
        assert list(model.state_dict()) == keys
        with seams.opened(model, found) as inner:
            assert inner is scoring
        assert model.lm_head is scoring
    assert model.lm_head is head and model.config._attn_implementation == attention


def test_adapters_keep_the_seams(tiny_model: Callable[..., Any]) -> None:
    found = seams.find_seams(attach(tiny_model(), lora_config(r=2)))
    assert found.flat and found.scoring


def test_an_adapted_head_is_left_alone(tiny_model: Callable[..., Any]) -> None:
    found = seams.find_seams(
        attach(tiny_model(tie_word_embeddings=False), lora_config(r=2, target_modules=["lm_head"]))
    )
    assert found.flat and not found.scoring and "LM head" in found.notes[0]


def test_weights_that_are_not_here_are_not_probed() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    assert "not loaded" in seams.find_seams(model).notes[0]
