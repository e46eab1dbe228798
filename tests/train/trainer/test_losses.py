"""What SFTTrainer trains on, held against plain whole logits: losses, families, mixtures of experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.errors import RecipeError
from honed.model.adapters.adapters import lora_config
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Rows = list[dict[str, Any]]
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURES = ["mixtral", "qwen3_moe", "qwen2_moe"]
FLOAT32_INSIDE = 1e-6  # these families compute norms or routing in float32 whatever is asked


@pytest.fixture
def make(tiny_model: Callable[..., Any], chat_trainer: Callable[..., SFTTrainer]) -> Callable[..., SFTTrainer]:
    def make_trainer(model: Any = None, **changes: Any) -> SFTTrainer:
        return chat_trainer(tiny_model(dtype=torch.float64) if model is None else model, **{"max_steps": 2, **changes})

    return make_trainer


def batches_of(trainer: SFTTrainer, way: str) -> list[dict[str, Any]]:
    rows = [trainer.train_dataset[n] for n in range(len(trainer.train_dataset))]
    collate = PaddedCollator(pad_token_id=2, multiple_of=8) if way == "padded" else FlatCollator()
    return [collate(rows[:5]), collate(rows[5:])]


def trained(trainer: SFTTrainer, batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one optimizer step, through the trainer's own hooks."""
    trainer.model.zero_grad()
    total = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    loss = 0.0
    with trainer._seams_open():
        for batch in batches:
            share = trainer.compute_loss(trainer.model, batch, num_items_in_batch=total)
            share.backward()
            loss += float(share.detach())
    return loss, gradients(trainer.model)


def expected_of(model: Any, batches: list[dict[str, Any]], token_loss: Callable[..., Any], aux: float = 0.0) -> Any:
    """Padded rows through the plain model; what `token_loss` makes of whole logits, and each batch's auxiliary loss."""
    model.zero_grad()
    total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    loss: Any = 0.0
    for batch in batches:
        extra = {"output_router_logits": True} if aux else {}
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra)
        chosen = batch["labels"][:, 1:] != -100
        losses = token_loss(output.logits[:, :-1][chosen], batch["labels"][:, 1:][chosen])
        loss = loss + losses.sum() / total
        loss = loss + (aux * output.aux_loss * len(losses) / total if aux else 0.0)
    loss.backward()
    return float(loss.detach()), gradients(model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-14, name


def nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, ids, reduction="none")


def smoothed(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return 0.9 * nll(logits, ids) - 0.1 * torch.log_softmax(logits, -1).mean(-1)


def dft(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nll(logits, ids) * (-nll(logits, ids)).exp().detach()


def eaft(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """As in LLaMA-Factory 0.9.5, `_eaft_cross_entropy`: over the 20 greatest logits alone, in units of 3 nats."""
    with torch.no_grad():
        top = logits.topk(20, dim=-1).values
        logp = top - top.logsumexp(-1, keepdim=True)
        factor = -(logp.exp() * logp).sum(-1) / 3.0
    return nll(logits, ids) * factor


LOSSES = {
    "nll": ({}, nll),
    "chunked_nll": ({"loss_type": "chunked_nll"}, nll),
    "dft": ({"loss_type": "dft"}, dft),
    "eaft": ({"loss_type": "eaft"}, eaft),
    "smoothed": ({"label_smoothing_factor": 0.1}, smoothed),
}


@pytest.mark.parametrize("way", ["flat", "padded"])
@pytest.mark.parametrize("scoring", [True, False], ids=["head", "whole logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss: str, scoring: bool, way: str, make: Callable[..., SFTTrainer]) -> None:
    changes, token_loss = LOSSES[loss]
    trainer = make(**changes)
    trainer.seams.scoring = scoring
    expected = expected_of(trainer.model, batches_of(trainer, "padded"), token_loss)
    assert_same(trained(trainer, batches_of(trainer, way)), expected)


@pytest.mark.parametrize("way", ["flat", "padded"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_for_each_token(loss: str, way: str, make: Callable[..., SFTTrainer]) -> None:
    """Rows that bring weights of their own: the loss is the weighted sum over the sum of the weights."""
    changes, token_loss = LOSSES[loss]
    trainer = make(**changes)
    ids = [row.input_ids.tolist() for row in map(trainer.train_dataset.__getitem__, range(12))]
    masks = [[(3 * n + place) % 4 / 2 for place in range(len(row))] for n, row in enumerate(ids)]
    rows = [{"input_ids": row, "loss_mask": mask} for row, mask in zip(ids, masks, strict=True)]
    trainer.train_dataset = trainer._datasets.make("train", rows)
    model, expected = trainer.model, torch.zeros((), dtype=torch.float64)
    weights = [torch.tensor(mask[1:], dtype=torch.float64) for mask in masks]
    model.zero_grad()
    for row, weight in zip(ids, weights, strict=True):
        logits = model(torch.tensor([row])).logits[0, :-1]
        expected = expected + token_loss(logits, torch.tensor(row[1:])) @ weight
    expected = expected / sum(float(weight.sum()) for weight in weights)
    expected.backward()
    assert_same(trained(trainer, batches_of(trainer, way)), (float(expected.detach()), gradients(model)))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("qwen3", {}),
        ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None}),
        ("gemma3_text", {}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_every_family(
    family: str, changes: dict[str, Any], make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    trainer = make(tiny_model(family, dtype=torch.float64, **changes))
    assert trainer.seams.scoring
    tolerance = FLOAT32_INSIDE if family.startswith(("gemma", "cohere")) else 1e-10
    expected = expected_of(trainer.model, batches_of(trainer, "padded"), nll)
    way = "flat" if trainer.seams.flat else "padded"
    assert_same(trained(trainer, batches_of(trainer, way)), expected, tolerance)


@pytest.mark.parametrize("way", ["flat", "padded"])
@pytest.mark.parametrize("family", MIXTURES)
def test_the_auxiliary_loss(
    family: str, way: str, make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    """Padding is not routed; micro-batches of different weight count by their weight."""
    model = tiny_model(family, dtype=torch.float64, **EXPERTS)
    model.set_experts_implementation("eager")  # the grouped product has no float64
    trainer = make(model, router_aux_loss_coef=0.5)
    expected = expected_of(trainer.model, batches_of(trainer, "padded"), nll, aux=0.5)
    without = expected_of(trainer.model, batches_of(trainer, "padded"), nll)
    assert expected[0] > without[0] + 0.1
    assert_same(trained(trainer, batches_of(trainer, way)), expected, FLOAT32_INSIDE)
    assert not trainer.model.config.output_router_logits  # asked for in the call; the model stays as it was


def test_the_auxiliary_loss_is_logged_and_can_be_left_out(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    logged = []
    for coefficient in (None, 0.0):
        trainer = make(tiny_model("mixtral", **EXPERTS), router_aux_loss_coef=coefficient)
        trainer.train()
        logged.append([line.get("aux_loss") for line in trainer.state.log_history if "loss" in line])
        assert trainer.aux_loss_enabled == (coefficient is None)
    assert all(value >= 1.9 for value in logged[0])  # 2 experts of 4 a token: 2 at the least
    assert logged[1] == [None, None]


def test_padding_of_flat_batches_is_not_balanced(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    """No mask tells the model which tokens of a flat row are padding, so there is none where it would count."""
    model = tiny_model("mixtral", **EXPERTS)
    balanced = make(model, pad_to_multiple_of=64)
    assert any("pad_to_multiple_of has no effect" in note for note in balanced.notes)
    assert next(iter(balanced.get_train_dataloader()))["input_ids"].numel() % 64
    unbalanced = make(model, pad_to_multiple_of=64, router_aux_loss_coef=0.0)
    assert next(iter(unbalanced.get_train_dataloader()))["input_ids"].numel() % 64 == 0


def test_the_auxiliary_loss_is_no_part_of_an_evaluation(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    """It depends on which rows share a batch; what an evaluation tells may not."""
    model = tiny_model("mixtral", **EXPERTS)
    losses = [
        make(model, router_aux_loss_coef=coefficient, per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for coefficient, size in ((0.5, 2), (0.5, 5), (0.0, 5))
    ]
    assert losses == pytest.approx([losses[2]] * 3, rel=1e-5)


def test_an_auxiliary_loss_of_a_dense_model_is_refused(make: Callable[..., SFTTrainer]) -> None:
    with pytest.raises(RecipeError, match="no router logits"):
        make(router_aux_loss_coef=0.1).train()


def test_a_step_without_a_trained_token_has_loss_zero(make: Callable[..., SFTTrainer]) -> None:
    trainer = make()
    batch = batches_of(trainer, "flat")[0]
    batch |= {"labels": torch.full_like(batch["labels"], -100), "num_targets": 0}
    loss, found = trained(trainer, [batch])
    assert loss == 0 and not any(gradient.any() for gradient in found.values())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # transformers 5.17 knows no other name
def test_a_frozen_head_gets_no_gradient_and_gradient_checkpointing_changes_nothing(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    found = []
    for checkpointing in (False, True):
        trainer = make(peft_config=lora_config(r=2), gradient_checkpointing=checkpointing)
        trainer.train()
        found.append(trained(trainer, batches_of(trainer, "flat")))
    assert found[0][1] and all("lora" in name for name in found[0][1])
    assert_same(found[1], found[0])


def test_evaluation_between_steps_changes_nothing(
    make: Callable[..., SFTTrainer], tiny_model: Callable[..., Any]
) -> None:
    losses = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make(tiny_model(), max_steps=3, **changes)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


def test_predictions_are_logits(make: Callable[..., SFTTrainer]) -> None:
    seen: list[tuple[int, ...]] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {}

    trainer = make(per_device_eval_batch_size=12)
    trainer.compute_metrics = compute_metrics
    output = trainer.predict(trainer.eval_dataset)
    longest = max(len(trainer.eval_dataset[n].input_ids) for n in range(12))
    assert seen == [(12, longest, 400)] and output.predictions.shape == seen[0]
    assert output.metrics["test_loss"] > 0


def test_dft_beside_a_loss_of_ones_own_is_refused(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Rows, tmp_path: Path
) -> None:
    trainer = SFTTrainer(
        tiny_model(),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, loss_type="dft"),
        train_dataset=chat_rows,
        processing_class=tiny_tokenizer,
        compute_loss_func=lambda output, labels, num_items_in_batch: output.logits.sum(),
    )
    with pytest.raises(RecipeError, match="loss_type='dft'"):
        trainer.train()
