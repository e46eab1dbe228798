"""Both seams on unmodified models of several families: what fits is used, what does not is found out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow
from honed.errors import ModelError
from honed.loss.head import LogitTransform, ScoringHead
from honed.model.adapters.adapters import attach, lora_config
from honed.train.forward import seams

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


def padded(row: PackedRow) -> dict[str, Any]:
    return PaddedCollator(pad_token_id=2, multiple_of=4)([row])


def gradients(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


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


# What these do to their logits behind the head, with values that no score could hide.
TRANSFORMS: dict[str, tuple[dict[str, Any], LogitTransform]] = {
    "gemma2": ({"final_logit_softcapping": 2.0, "attn_logit_softcapping": None}, LogitTransform(softcap=2.0)),
    "gemma3_text": ({"final_logit_softcapping": 3.0}, LogitTransform(softcap=3.0)),
    "nanochat": ({"final_logit_softcapping": 2.0}, LogitTransform(softcap=2.0)),
    "cohere": ({"logit_scale": 0.3}, LogitTransform(scale=0.3)),
    "cohere2": ({"logit_scale": 0.3}, LogitTransform(scale=0.3)),
    "granite": ({"logits_scaling": 3.0}, LogitTransform(scale=1 / 3)),
    "hyperclovax": ({"logits_scaling": 3.0}, LogitTransform(scale=3.0)),
}


@pytest.mark.parametrize("family", TRANSFORMS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_a_model_does_behind_its_head_is_found_and_trained_through(
    family: str, tied: bool, tiny_model: Callable[..., Any]
) -> None:
    changes, transform = TRANSFORMS[family]
    model = tiny_model(family, dtype=torch.float64, tie_word_embeddings=tied, **changes)
    found = seams.find_seams(model)
    assert (found.scoring, found.transform) == (True, transform), found.notes
    documents = rows(9, 2, 30)
    expected = gradients(model, torch.cat([plain_scores(model, row) for row in documents]).sum() / 38)
    with seams.opened(model, found) as head:
        scores = [seams.token_scores(model, padded(row), head, total=38)[0] for row in documents]
        found_gradients = gradients(model, sum(score.loss for score in scores))
    tolerance = 1e-6 if family.startswith("gemma") else 1e-10  # Gemma's norms are computed in float32 whatever is asked
    assert found_gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found_gradients[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_an_unknown_change_of_the_logits_is_found_out(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=2.0, attn_logit_softcapping=None)
    model.lm_head.register_forward_hook(lambda module, args, logits: logits)  # a hook alone does no harm
    assert seams.find_seams(model).scoring
    model.config.final_logit_softcapping = None
    forward = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * torch.linspace(0.5, 2, output.logits.shape[-1])
        return output

    model.forward = shifted
    found = seams.find_seams(model)
    assert not found.scoring and any("after the head" in note for note in found.notes)


def test_a_change_that_only_the_gradient_shows_is_found_out(tiny_model: Callable[..., Any]) -> None:
    """Here the scores are right, for they are made in the head; but the loss would reach it doubled."""
    model = tiny_model()
    forward = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if output.logits.shape[-1] == 1:
            output.logits = output.logits * 2
        return output

    model.forward = doubled
    assert not seams.find_seams(model).scoring


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


def test_a_window_that_only_the_masks_know_is_found_out(tiny_model: Callable[..., Any]) -> None:
    """The probe's documents are shorter than most windows, so their scores alone would not show it."""
    found = seams.find_seams(tiny_model("phimoe", sliding_window=64, **SMALL_MOE))
    assert not found.flat and found.padded and any("window of 64 tokens" in note for note in found.notes)


def test_padding_that_changes_scores_is_found_out() -> None:
    config = AutoConfig.for_model(
        "prophetnet", vocab_size=400, hidden_size=32, num_encoder_layers=1, num_decoder_layers=1, dropout=0.0,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, decoder_ffn_dim=64, encoder_ffn_dim=64,
        init_std=0.3, is_decoder=True, max_position_embeddings=64,
    )  # fmt: skip
    found = seams.find_seams(AutoModelForCausalLM.from_config(config))
    assert not found.flat and not found.padded and "padding of a batch changes" in found.notes[-1]
    seams.refuse_padding(found, 1, "")
    with pytest.raises(ModelError, match="padding of a batch changes"):
        seams.refuse_padding(found, 2, "set batch_size=1")


def test_a_soft_cap_is_known_by_both_of_its_names() -> None:
    config = AutoConfig.for_model("recurrent_gemma", logits_soft_cap=3.0)
    assert next(seams.logit_transforms(config)) == LogitTransform(softcap=3.0)


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


def test_weights_that_deepspeed_shared_out_are_refused(tiny_model: Callable[..., Any]) -> None:
    """A model that was loaded under ZeRO-3's configuration: each weight is empty until its module runs."""
    model = tiny_model()
    weight = model.get_input_embeddings().weight
    weight.ds_id, weight.data = 0, torch.empty(0)
    with pytest.raises(ModelError, match="ZeRO-3 sharded the weights") as refusal:
        seams.find_seams(model)
    assert "load the model before" in refusal.value.fix


@pytest.mark.parametrize(("on_gpu", "tf32", "same"), [(True, True, True), (True, False, False), (False, True, False)])
def test_tf32_rounds_like_half_precision(on_gpu: bool, tf32: bool, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is common on GPUs, and no reason to give up flat batches and the head."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    products, scores = torch.backends.cuda.matmul, torch.linspace(1, 9, 5)
    before = products.fp32_precision
    try:
        products.fp32_precision = "tf32" if tf32 else "ieee"
        assert seams.are_same([scores * 1.002], [scores], torch.float32) is same
        assert not seams.are_same([scores * 1.2], [scores], torch.float32)
    finally:
        products.fp32_precision = before
