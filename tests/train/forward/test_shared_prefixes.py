"""Sharing prefixes changes neither loss nor gradients: shown in float64 on unmodified models, whole and with LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from honed import SFTConfig, SFTTrainer
from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRow
from honed.errors import ModelError, RecipeError
from honed.loss.objective import total_weight
from honed.model.adapters.adapters import attach, lora_config
from honed.train.forward import seams, shared_prefixes

FAMILIES = [
    ("llama", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 7}),
    ("gemma3_text", {"sliding_window": 9}),  # sliding and full layers in turn
]


def in_float64(model: Any) -> Any:
    """The model with torch's own RMSNorm: that of transformers computes in float32, whatever the model's dtype."""
    model = model.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            own = torch.nn.RMSNorm(module.weight.shape[-1], eps=getattr(module, "eps", 1e-6), dtype=torch.float64)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, own)
    return model


def documents(trained: str) -> list[PackedRow]:
    """Two questions behind one system prompt, four answers to each, and one document that shares nothing."""
    draw = np.random.default_rng(0).integers
    system, rows = draw(3, 400, 20), []
    for _ in range(2):
        question = draw(3, 400, 18)
        for _ in range(4):
            ids = np.concatenate([system, question, draw(3, 400, int(draw(2, 12)))])
            weights = np.zeros(len(ids)) if trained == "answers" else draw(0, 3, len(ids)) / 2
            weights[38:] = 1.0
            rows.append((ids, weights))
    rows.append((draw(3, 400, 15), np.ones(15)))
    for _, weights in rows:
        weights[0] = 0.0
    return [
        PackedRow(input_ids=ids.astype(np.int32), weights=weights.astype(np.float32), lengths=(len(ids),))
        for ids, weights in rows
    ]


def loss_and_gradients(model: Any, rows: list[PackedRow], share: bool) -> tuple[Any, dict[str, torch.Tensor], int]:
    batch = FlatCollator(share_prefixes=share)(rows)
    labels, weights = batch["labels"], batch["loss_weights"].double()
    model.zero_grad()
    with seams.opened(model, seams.Seams(flat=True, scoring=True)) as head:
        scores, _ = seams.token_scores(model, batch, head, total=total_weight(labels, weights))
    loss = scores.loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, batch["input_ids"].numel()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("trained", ["answers", "everywhere"])
@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_loss_and_gradients_are_those_of_the_documents(
    family: str, options: dict[str, Any], trained: str, adapter: bool, tiny_model: Callable[..., Any]
) -> None:
    model = in_float64(tiny_model(family, **options))
    if adapter:
        model = attach(model, lora_config(r=2, target_modules=["q_proj", "v_proj", "down_proj"])).double()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.train()
    rows = documents(trained)
    apart, gradients_apart, tokens_apart = loss_and_gradients(model, rows, share=False)
    together, gradients_together, tokens_together = loss_and_gradients(model, rows, share=True)
    assert 2 * tokens_together < tokens_apart
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients_together, gradients_apart, rtol=1e-10, atol=1e-10)


def asked(share: Any, **options: Any) -> SFTConfig:
    return SFTConfig(share_prefixes=share, use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_fitting_models_are_found(family: str, options: dict[str, Any], tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family, **options)
    assert shared_prefixes.decide(asked("auto"), model, seams.find_seams(model)) == (True, [])
    assert shared_prefixes.decide(asked(False), model, seams.Seams(flat=True)) == (False, [])


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"attention_dropout": 0.1}, "dropout"),
        ("gpt2", {"resid_pdrop": 0.1, "attn_pdrop": 0.0, "embd_pdrop": 0.0}, "dropout"),
        ("mixtral", {"output_router_logits": True, "num_local_experts": 2}, "auxiliary loss"),
        ("stablelm", {}, "different scores"),  # it keeps what it is told of documents from its attention
    ],
)
def test_what_cannot_share_says_why(
    family: str, options: dict[str, Any], reason: str, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model(family, **options)
    found = seams.Seams(flat=True)
    shares, [note] = shared_prefixes.decide(asked("auto"), model, found)
    assert not shares and reason in note and not found.notes
    with pytest.raises(ModelError, match="share_prefixes=True, but"):
        shared_prefixes.decide(asked(True), model, found)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [("llama", {"neftune_noise_alpha": 5.0}, "noise"), ("mixtral", {"router_aux_loss_coef": 0.1}, "auxiliary loss")],
)
def test_options_in_the_way_say_so(
    family: str, options: dict[str, Any], reason: str, tiny_model: Callable[..., Any]
) -> None:
    """The model by itself could: no noise, and a balance that counts nothing."""
    model = tiny_model(family, num_local_experts=2, router_aux_loss_coef=0.0)
    assert shared_prefixes.decide(asked(True), model, seams.find_seams(model)) == (True, [])
    found = seams.Seams(flat=True)
    shares, [note] = shared_prefixes.decide(asked("auto", **options), model, found)
    assert not shares and reason in note
    with pytest.raises(ModelError, match=reason):
        shared_prefixes.decide(asked(True, **options), model, found)


def test_a_model_without_flat_rows_cannot_share(tiny_model: Callable[..., Any]) -> None:
    assert "share a row" in (shared_prefixes.find_obstacle(tiny_model(), seams.Seams()) or "")


def test_an_unknown_wish_is_refused(tiny_model: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="share_prefixes is 'yes'"):
        shared_prefixes.decide(asked("yes"), tiny_model(), seams.Seams())


def test_the_trainer_says_why_it_does_not_share(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = SFTConfig(output_dir=str(tmp_path), share_prefixes="auto", use_cpu=True, report_to="none")
    model, rows = tiny_model(attention_dropout=0.1), [{"text": "why fox"}] * 2
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tiny_tokenizer)
    [note] = [note for note in trainer.notes if "prefixes are not shared" in note]
    assert "dropout" in note


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_learns_the_same(
    packing: bool, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    asked = "why does the quick brown fox ask, and who answers with a word"
    rows = [{"prompt": f"{asked} {n % 2}", "completion": f" {'yes ' * (n + 1)}no"} for n in range(8)]
    losses, tokens = [], []
    for share in (False, "auto"):
        config = SFTConfig(
            output_dir=str(tmp_path / str(share)),
            share_prefixes=share,
            packing=packing,
            max_length=512,
            max_steps=2,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = SFTTrainer(tiny_model(), config, train_dataset=rows, processing_class=tiny_tokenizer)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        tokens.append(next(iter(trainer.get_train_dataloader()))["input_ids"].numel())
        if packing:
            shared = [note for note in trainer.ledger.notes if "computed once" in note]
            assert bool(shared) == bool(share)
    assert tokens[1] < tokens[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
