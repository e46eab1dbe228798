"""What training loops of well-known lessons get wrong, shown in numbers beside what ours does. See docs/loop.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loop_program import make_model, make_rows, trained

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRows, TokenTable
from honed.train.forward.seams import Seams
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.loop.plan import Plan
from honed.train.ranks import joined
from honed.train.run_folder import checkpoint

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "log_every": 1,
    "shuffle": False,
    "max_grad_norm": 0.0,
    "schedule": "constant",
}


def first_step(rows: PackedRows, **changes: Any) -> dict[str, float]:
    """What the loop logs of its first step."""
    return loop.train(make_model(), rows, LoopConfig(**{**SETTINGS, "max_steps": 1, **changes})).log[0]


def documents(rows: PackedRows, model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, weights and logits of each document by itself, from the plain model."""
    for number in range(len(rows)):
        ids, weights = torch.from_numpy(rows[number].input_ids).long(), torch.from_numpy(rows[number].weights)
        yield ids, weights, model(input_ids=ids[None]).logits[0]


def mean_loss(model: Any, rows: PackedRows) -> torch.Tensor:
    """Of the one document in the rows, per trained token, with torch's own loss."""
    [(ids, weights, logits)] = documents(rows, model)
    return F.cross_entropy(logits[:-1], ids[1:], reduction="none") @ weights[1:] / weights[1:].sum()


def gradient_norm(model: Any, loss: torch.Tensor) -> float:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return float(torch.stack([grad.norm() for grad in grads]).norm())


def test_a_misspelt_attention_mask_is_no_mask() -> None:
    """`model(attention_masks=...)` raises nothing: the keyword goes down with the others and nobody reads it."""
    model = make_model().eval()
    ids = torch.tensor([[0, 0, 0, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        none = model(input_ids=ids, position_ids=positions).logits
        misspelt = model(input_ids=ids, position_ids=positions, attention_masks=mask).logits
        right = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
        alone = model(input_ids=ids[:, 3:]).logits
    assert torch.equal(misspelt, none)
    torch.testing.assert_close(right[:, 3:], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(misspelt[:, 3:], alone, atol=1e-2)


def test_a_shift_in_the_data_and_another_in_the_loss_train_the_token_after_the_next() -> None:
    """X = ids[:-1], Y = ids[1:] are shifted already; the lesson then takes logits[:-1] and Y[1:]."""
    rows, model = make_rows(1), make_model()
    right = mean_loss(model, rows).item()
    [(ids, weights, logits)] = documents(rows, model)
    of_x, y, mask = logits[:-1], ids[1:], weights[1:]
    twice = F.cross_entropy(of_x[:-1], y[1:], reduction="none")
    assert torch.equal(twice, F.cross_entropy(logits[:-2], ids[2:], reduction="none")), "two ahead"
    lesson = (twice @ mask[1:] / mask[1:].sum()).item()
    assert first_step(rows)["loss"] == pytest.approx(right, rel=1e-5) and abs(right - lesson) > 0.05


def test_dividing_twice_by_the_accumulation_steps_shrinks_the_gradient() -> None:
    """And with it what clipping sees: a gradient 4 times too small is clipped 4 times too late."""
    one, model = make_rows(1), make_model()
    right = gradient_norm(model, mean_loss(model, one))
    lesson = gradient_norm(model, torch.stack([mean_loss(model, one) / 4 / 4 for _ in range(4)]).sum())
    four_alike = PackedRows(one.table, [[0]] * 4)  # so that a mean of means is right, and only the division is wrong
    ours = first_step(four_alike, batch_size=1, accumulation=4)["grad_norm"]
    assert ours == pytest.approx(right, rel=1e-5) and lesson == pytest.approx(right / 4, rel=1e-5)


def test_no_micro_batch_is_lost_at_the_edges_of_accumulation() -> None:
    """Ten micro-batches, four to a step. Counted from 1 and tested with (step + 1) % 4, the lesson steps after 3 and 7
    and leaves the last three where they are."""
    groups: list[list[int]] = [[]]
    for step in range(1, 11):
        groups[-1].append(step)
        if (step + 1) % 4 == 0:
            groups.append([])
    assert groups == [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10]], "the last group never reaches optimizer.step()"
    config = LoopConfig(**{**SETTINGS, "batch_size": 1, "accumulation": 4, "epochs": 1})
    with joined("cpu") as ranks:
        run = loop.begin(make_model(), make_rows(10), config, ranks=ranks, head=None, folder=None)
        sizes = [len(step) for step in loop.steps(make_rows(10), FlatCollator(), run)]
    assert sizes == [4, 4, 2] and run.plan.total == 3
    whole, model, table = loop.train(make_model(), make_rows(10), config), make_model(), make_rows(10).table
    loop.train(model, PackedRows(table, [[n] for n in range(8)]), config)
    last = loop.train(model, PackedRows(table, [[8, 9]]), config).log[0]
    assert whole.log[2]["loss"] == pytest.approx(last["loss"], rel=1e-5), "divided by its own tokens, not by four"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_float16_needs_its_gradients_scaled(dtype: str) -> None:
    """bfloat16 has the exponents of float32: a gradient too small for float16 is an ordinary number in it."""
    tiny = torch.tensor(1e-30)
    assert tiny.to(torch.float16) == 0 and tiny.to(torch.bfloat16) > 0
    with joined("cpu") as ranks:
        run = loop.begin(make_model(), make_rows(2), LoopConfig(dtype=dtype), ranks=ranks, head=None, folder=None)
    assert not run.scaler.is_enabled()


def test_a_mean_of_micro_batch_means_is_another_objective() -> None:
    rows = make_rows(6)
    with torch.no_grad():
        sums = [
            (F.cross_entropy(logits[:-1], ids[1:], reduction="none") @ weights[1:], weights[1:].sum())
            for ids, weights, logits in documents(rows, make_model())
        ]
    lesson = sum(float(total / weight) for total, weight in sums) / len(sums)
    right = sum(float(total) for total, _ in sums) / sum(float(weight) for _, weight in sums)
    ways = [first_step(rows, batch_size=6 // parts, accumulation=parts)["loss"] for parts in (1, 2, 3, 6)]
    assert ways == pytest.approx([right] * 4, rel=1e-5) and abs(right - lesson) > 0.01


def test_weights_that_pass_through_half_precision_forget_what_they_learned(tmp_path: Any) -> None:
    """Near 1, float16 numbers are 0.001 apart: a hundred steps of 1e-6 leave no trace in them."""
    settings = {**SETTINGS, "learning_rate": 1e-6, "max_steps": 20, "save_every": 10}
    start, model = trained(make_model()), make_model()
    loop.train(model, make_rows(6), LoopConfig(**settings), folder=tmp_path)
    norms = [name for name in start if "norm" in name]
    after = trained(model)
    assert all((after[name] != start[name]).any() for name in norms)
    assert all(torch.equal(after[name].half(), start[name].half()) for name in norms), "lost by `v.half()`"
    kept = checkpoint.load(tmp_path / "checkpoint-20").weights
    assert all(torch.equal(kept[name], after[name]) and kept[name].dtype == after[name].dtype for name in after)


def test_max_steps_ends_the_run_and_not_just_an_epoch() -> None:
    """`if total_step == max: break` inside `for epoch: for batch:` leaves the inner loop; the next epoch goes on."""
    total = 0
    for _ in range(3):
        for _ in range(5):
            total += 1
            if total == 4:
                break
    assert total == 14
    config = LoopConfig(**{**SETTINGS, "batch_size": 2, "epochs": 3, "max_steps": 4})
    assert loop.train(make_model(), make_rows(10), config).steps == 4
    assert Plan(config=config, rows=10).steps_per_epoch == 5


def test_the_pad_token_is_masked_by_length_and_not_by_its_number() -> None:
    """Token 0 may be a word, and the pad token may be the end of a turn: neither is lost, and no padding is trained."""
    rows = make_rows(6)
    ids = rows.table.input_ids.copy()
    ids[rows.table.starts[1:] - 1] = 2  # every document ends with a trained end-of-turn token
    ids[rows.table.starts[:-1] + 1] = 0
    rows = PackedRows(TokenTable.of(ids, rows.table.weights, rows.table.starts), rows.rows)
    config = LoopConfig(**{**SETTINGS, "batch_size": 3, "epochs": 2})
    flat = loop.train(make_model(), rows, config).log
    for pad in (0, 2, 63):
        padded = loop.train(make_model(), rows, config, seams=Seams(), pad_token_id=pad).log
        for key in ("loss", "grad_norm", "num_tokens"):
            assert [line[key] for line in padded] == pytest.approx([line[key] for line in flat], rel=1e-5), (key, pad)
