"""A micro-batch that does not fit is cut in two, and the step is what it would have been with memory enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.errors import RunError
from honed.train.trainer.out_of_memory import halves, is_out_of_memory
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Memory:
    """Lets a model run out of memory: whenever a micro-batch has more tokens than `room`, or in chosen micro-batches.

    Args:
        where: "forward" in the last layer, or "backward" when the last layer's gradients are there already.
        room: tokens that fit.
        calls: numbers of the forward passes that fail, counted from 0.
    """

    def __init__(self, model: Any, where: str, *, room: int = 10**9, calls: tuple[int, ...] = ()) -> None:
        self.where, self.room, self.calls, self.seen, self.failed = where, room, calls, -1, 0
        model.model.embed_tokens.register_forward_hook(self.count)
        model.model.layers[-1].register_forward_hook(self.leave)
        model.model.layers[-1].register_forward_pre_hook(self.enter)

    def count(self, module: Any, args: Any, h_BLD: torch.Tensor) -> None:
        self.seen += 1
        self.short = h_BLD.shape[0] * h_BLD.shape[1] > self.room or self.seen in self.calls

    def leave(self, *_: Any) -> None:
        if self.short and self.where == "forward":
            self.fail()

    def enter(self, module: Any, args: Any) -> None:
        if self.short and self.where == "backward" and args[0].requires_grad:
            args[0].register_hook(self.fail)

    def fail(self, *_: Any) -> None:
        self.failed += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def step_of(trainer: SFTTrainer) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, logs


def assert_same(found: Any, wanted: Any) -> None:
    for name, weight in wanted[0].items():
        assert torch.allclose(found[0][name], weight, rtol=0, atol=1e-10), name
    for line, expected in zip(found[1], wanted[1], strict=True):
        for key in ("loss", "grad_norm", "mean_token_accuracy", "entropy", "num_tokens"):
            assert line[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_that_breaks_off_anywhere_is_the_same_step(
    where: str, call: int, make: Trainers, chat_rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4, "max_steps": 2}
    wanted = step_of(make(chat_rows, gradient_checkpointing=False, **job))
    trainer = make(chat_rows, gradient_checkpointing=False, **job)
    memory = Memory(trainer.model, where, calls=(call,))
    found = step_of(trainer)
    assert memory.failed == 1
    assert_same(found, wanted)
    assert [line.get("out_of_memory") for line in found[1]] == [1.0, None]
    assert sum("out of memory with" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_it_is_cut_until_it_fits(
    where: str, kind: str, make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    """All twelve rows at once, flat and padded, where memory holds two of them; gradients come from checkpoints."""
    job = {"per_device_train_batch_size": 12, "max_steps": 3, "learning_rate": 1e-3}
    wanted = step_of(make(chat_rows, model=tiny_model(dtype=torch.float64, attn_implementation=kind), **job))
    trainer = make(chat_rows, model=tiny_model(dtype=torch.float64, attn_implementation=kind), **job)
    assert isinstance(trainer.data_collator, PaddedCollator) == (kind == "eager")
    memory = Memory(trainer.model, where, room=100)
    assert_same(step_of(trainer), wanted)
    failed = memory.failed
    assert failed >= 3
    assert trainer.splits.limit is not None and trainer.splits.limit > 100
    assert all(part["input_ids"].numel() <= 100 for parts in trainer._window for part in parts)


def test_with_batches_by_tokens_too(make: Trainers, chat_rows: Any) -> None:
    job = {"tokens_per_step": 300, "max_length": 64, "per_device_train_batch_size": 2, "max_steps": 2}
    wanted = step_of(make(chat_rows, **job))
    trainer = make(chat_rows, **job)
    memory = Memory(trainer.model, "backward", room=90)
    assert_same(step_of(trainer), wanted)
    assert memory.failed


def test_a_row_that_does_not_fit_alone_ends_the_run_with_its_number(make: Trainers, chat_rows: Any) -> None:
    trainer = make(chat_rows, per_device_train_batch_size=12, max_steps=1)
    lengths = [len(trainer.train_dataset[n].input_ids) for n in range(12)]
    longest = lengths.index(max(lengths))
    Memory(trainer.model, "forward", room=max(lengths) - 1)
    named = rf"Training row {longest} \(counted from 0, as by trainer.show\)"
    with pytest.raises(RunError, match=rf"{named} does not fit .*{max(lengths)} tokens"):
        trainer.train()


def test_the_callers_own_loss_meets_the_error_itself(make: Trainers, chat_rows: Any) -> None:
    """A loss of one's own may not be a sum over tokens; nor can one rank do a step again that others have done."""

    def own(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs.logits.float().square().mean()

    trainer = make(chat_rows, trainer={"compute_loss_func": own}, max_steps=1)
    Memory(trainer.model, "forward", room=1)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        trainer.train()


def test_only_failed_allocations_count() -> None:
    assert is_out_of_memory(RuntimeError(CPU)) and is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def documents_of(batch: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    if "cu_seq_lens_q" in batch:
        bounds = batch["cu_seq_lens_q"].tolist()
        spans = [(0, slice(a, b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]  # noqa: RUF007
        assert batch["max_length_q"] == max(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True))  # noqa: RUF007
    else:
        spans = [(row, slice(0, int(mask.sum()))) for row, mask in enumerate(batch["attention_mask"])]
    for row, span in spans:
        yield batch["input_ids"][row, span].tolist(), batch["labels"][row, span].tolist()


@pytest.mark.parametrize("collate", [FlatCollator(), PaddedCollator(pad_token_id=0)])
def test_halves_hold_the_same_documents(collate: Any, make: Trainers, chat_rows: Any) -> None:
    rows = make(chat_rows).train_dataset
    batch = collate([rows[n] for n in range(7)])
    first, second = halves(batch)
    assert [*documents_of(first), *documents_of(second)] == list(documents_of(batch))
    for count in ("num_tokens", "num_targets"):
        assert first[count] + second[count] == batch[count]
    assert abs(first["num_tokens"] - second["num_tokens"]) <= 60
    assert first.keys() == batch.keys()
    assert halves(collate([rows[0]])) is None and halves({**batch, "pixel_values": None}) is None


def test_halves_of_a_flat_batch_have_no_padding(make: Trainers, chat_rows: Any) -> None:
    rows = [make(chat_rows).train_dataset[n] for n in range(3)]
    found, expected = (halves(collate(rows)) for collate in (FlatCollator(multiple_of=256), FlatCollator()))
    for ours, plain in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], plain[name]) for name in ("input_ids", "labels", "cu_seq_lens_q"))
        assert ours["num_tokens"] == plain["num_tokens"]
    assert halves(FlatCollator(multiple_of=256)(rows[:1])) is None
