"""Subclasses of SFTTrainer, as scripts write them: their own loss gets padded batches and logits, or is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

SINCE_5_19 = pytest.mark.skipif(
    not hasattr(Trainer, "loss_is_scaled_for_ga"), reason="transformers before 5.19 has no loss_is_scaled_for_ga"
)


def mean_loss(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())


class OwnForward(SFTTrainer):
    """Hands the model ids and mask only, and takes the labels out, as losses for distillation do."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels_BL = inputs.pop("labels")
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = mean_loss(outputs.logits, labels_BL)
        return (loss, outputs) if return_outputs else loss


class OnTop(SFTTrainer):
    """Adds to the usual loss what it makes of the logits."""

    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **given)
        self.seen = [*getattr(self, "seen", []), (loss.detach(), outputs.logits.detach(), inputs["labels"])]
        return (loss, outputs) if return_outputs else loss


@pytest.fixture
def make_of(
    tiny_model: Callable[..., Any], tiny_tokenizer: Any, quick: dict[str, Any], chat_rows: list[Any]
) -> Callable[..., Any]:
    def make_trainer(cls: type[SFTTrainer], **changes: Any) -> Any:
        options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": 3, **changes}
        return cls(
            tiny_model(dtype=torch.float64),
            args=SFTConfig(**{**quick, "assistant_only_loss": True, **options}),
            train_dataset=chat_rows,
            eval_dataset=chat_rows[:4],
            processing_class=tiny_tokenizer,
        )

    return make_trainer


def test_a_loss_of_its_own_sees_each_document_alone(make_of: Callable[..., Any]) -> None:
    """Without the boundaries of documents in its hands, each row's loss is what the row has by itself."""
    trainer = make_of(OwnForward)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 3 and "attention_mask" in batch
    logits = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)[1].logits
    for row, mask in enumerate(batch["attention_mask"].bool()):
        alone = trainer.model(input_ids=batch["input_ids"][row, mask][None]).logits[0]
        assert torch.allclose(logits[row, mask], alone, atol=1e-10)
    trainer.train()
    assert trainer.state.global_step == 2 and "eval_loss" in trainer.evaluate()
    assert any("OwnForward has a compute_loss of its own: batches are padded." in note for note in trainer.notes)


def test_it_gets_logits_from_the_usual_loss(make_of: Callable[..., Any]) -> None:
    trainer, plain = make_of(OnTop), make_of(SFTTrainer)
    trainer.train(), plain.train()
    for loss, logits_BLV, labels_BL in trainer.seen:
        assert logits_BLV.shape[:2] == labels_BL.shape
        assert torch.allclose(loss, mean_loss(logits_BLV, labels_BL), atol=1e-10)
    for (name, ours), (_, theirs) in zip(trainer.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10), name


def test_packed_batches_stay_flat(make_of: Callable[..., Any]) -> None:
    trainer = make_of(OnTop, packing=True)
    trainer.train()
    assert trainer.seen[0][1].shape[0] == 1 and any(
        "batches are flat, and it must pass every key on" in note for note in trainer.notes
    )


def test_a_subclass_that_knows_flat_batches_gets_them(make_of: Callable[..., Any]) -> None:
    class Knows(OnTop):
        takes_flat_batches = True

    trainer = make_of(Knows)
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape[0] == 1
    assert not any("batches are" in note for note in trainer.notes)


class WithoutItems(SFTTrainer):
    """Does not pass on the number of the step's tokens."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs)


class BySum(SFTTrainer):
    """Divides the sum of its own token losses by the step's tokens, as transformers' documentation asks."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits_BLV = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        labels_BL = inputs["labels"][:, 1:]
        losses = F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL.flatten(), reduction="sum")
        return losses / ((labels_BL != -100).sum() if num_items_in_batch is None else num_items_in_batch)


class Declared(OwnForward):
    """Says that its loss is the mean of a micro-batch, which transformers 5.19 asks for."""

    loss_is_scaled_for_ga = False


class DeclaredBefore(OwnForward):
    """Says so as scripts did before 5.19."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


@pytest.mark.parametrize(
    ("cls", "steps", "told"),
    [
        pytest.param(Declared, 2, None, marks=SINCE_5_19),
        (DeclaredBefore, 2, None),
        (OnTop, 2, None),
        (SFTTrainer, 2, None),
        (BySum, 2, None),
        (WithoutItems, 1, None),
        (WithoutItems, 2, "calls super().compute_loss without num_items_in_batch; pass it on"),
        (OwnForward, 2, "never calls honed's; divide its sum of token losses by num_items_in_batch"),
    ],
)
def test_a_loss_on_the_wrong_scale_is_reported_once(
    make_of: Callable[..., Any], caplog: pytest.LogCaptureFixture, cls: type[SFTTrainer], steps: int, told: str | None
) -> None:
    make_of(cls, gradient_accumulation_steps=steps).train()
    said = [record.getMessage() for record in caplog.records if "num_items_in_batch" in record.getMessage()]
    assert len(said) == (told is not None)
    assert told is None or (told in said[0] and f"{steps} times too large" in said[0])


def test_what_the_report_claims(make_of: Callable[..., Any]) -> None:
    """Without the step's tokens the gradient is about as many times too large; with them it is the usual one."""
    norms = {}
    for cls in (SFTTrainer, WithoutItems, BySum, OwnForward, DeclaredBefore):
        trainer = make_of(
            cls, gradient_accumulation_steps=4, per_device_train_batch_size=1, max_steps=1, logging_steps=1
        )
        trainer.train()
        norms[cls] = trainer.state.log_history[0]["grad_norm"]
    assert norms[BySum] == pytest.approx(norms[SFTTrainer], rel=1e-9)
    assert 3 < norms[WithoutItems] / norms[SFTTrainer] < 5
    assert norms[DeclaredBefore] == pytest.approx(norms[OwnForward] / 4, rel=1e-9)


@SINCE_5_19
def test_a_declared_mean_is_divided(make_of: Callable[..., Any]) -> None:
    norms = []
    for cls in (Declared, DeclaredBefore):
        trainer = make_of(
            cls, gradient_accumulation_steps=4, per_device_train_batch_size=1, max_steps=1, logging_steps=1
        )
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == norms[1]


@pytest.mark.parametrize(("cls", "cut"), [(OwnForward, False), (BySum, False), (OnTop, True)])
def test_only_losses_that_add_up_are_cut_when_memory_runs_out(
    make_of: Callable[..., Any], cls: type[SFTTrainer], cut: bool
) -> None:
    """The means of two halves, added, would be twice the mean."""
    trainer = make_of(cls, max_steps=1)

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.register_forward_pre_hook(fail, with_kwargs=True)
    if not cut:
        with pytest.raises(torch.OutOfMemoryError):
            trainer.train()
        return
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0


def test_a_loss_of_before_4_46_is_refused(make_of: Callable[..., Any]) -> None:
    class Old(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            raise AssertionError("not called")

    with pytest.raises(RecipeError, match=r"Old.compute_loss does not take num_items.*\n.*add num_items_in_batch"):
        make_of(Old)


@pytest.mark.parametrize("hook", ["_prepare_dataset", "_prepare_peft_model"])
def test_hooks_that_are_never_called_are_refused(hook: str, make_of: Callable[..., Any]) -> None:
    cls = type("Hooked", (SFTTrainer,), {hook: lambda self, *args: args})
    with pytest.raises(RecipeError, match=f"Hooked overrides {hook}"):
        make_of(cls)


def test_other_methods_are_the_scripts_own_business(make_of: Callable[..., Any]) -> None:
    class Counts(SFTTrainer):
        steps = 0

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            return super().training_step(*args, **kwargs)

    trainer = make_of(Counts)
    trainer.train()
    assert trainer.steps == 2 and not any("Counts" in note for note in trainer.notes)
