"""The plain loop and SFTTrainer agree step by step: two programs that share no training code, and one result."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop_program import make_model, make_rows
from torch.nn.functional import cross_entropy
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, get_scheduler

from honed.data.batch.collate import PaddedCollator
from honed.data.batch.table import PackedRows, TokenTable
from honed.errors import DataError, RecipeError, RunError
from honed.model.adapters.adapters import attach, lora_config
from honed.model.minimind.minimind import register
from honed.train.forward.seams import Seams
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.loop.plan import Plan, epoch_order, learning_rate
from honed.train.loop.recipe import config_of
from honed.train.options.config import SFTConfig
from honed.train.ranks import Ranks
from honed.train.run_folder import checkpoint
from honed.train.trainer.trainer import SFTTrainer

ROOT = Path(__file__).resolve().parent.parent.parent.parent
Rows = list[dict[str, Any]]
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS: dict[str, dict[str, Any]] = {"mixtral": MOE, "minimind": {"use_moe": True, "num_experts": 4}}


def trained_by_trainer(
    model: Any, rows: Rows, args: SFTConfig, tokenizer: Any, *, seams: Seams | None = None, **options: Any
) -> tuple[SFTTrainer, list[dict[str, float]]]:
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **options)
    if seams is not None:
        trainer.seams, trainer.data_collator = seams, PaddedCollator(pad_token_id=tokenizer.pad_token_id)
    trainer.train()
    return trainer, [line for line in trainer.state.log_history if "loss" in line]


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a parameter."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp_min(1e-12)) for n in expected)


@pytest.fixture
def args_of(tmp_path: Path) -> Callable[..., SFTConfig]:
    def make(**changes: Any) -> SFTConfig:
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "train_on": "assistant",
            "max_length": 64,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "weight_decay": 0.1,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 3,
            "max_grad_norm": 0.5,
            "disable_tqdm": True,
            "seed": 7,
        }
        return SFTConfig(**{**options, **changes})

    return make


WAYS: dict[str, dict[str, Any]] = {
    "flat": {},
    "padded": {},
    "packed": {"packing": True, "per_device_train_batch_size": 1},
    # twelve rows in batches of one, five to a step: 5 + 5 + 2, the last of them short
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 5, "num_train_epochs": 3},
    "lora": {},
    "linear, sequential": {"lr_scheduler_type": "linear", "train_sampling_strategy": "sequential", "warmup_steps": 0.3},
    "bfloat16": {"bf16": True},
    "steps": {"max_steps": 6, "lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_agrees_with_the_trainer(
    way: str,
    args_of: Callable[..., SFTConfig],
    tiny_model: Callable[..., Any],
    tiny_tokenizer: Any,
    chat_rows: Rows,
) -> None:
    args = args_of(**WAYS[way])
    lora = lora_config(r=4) if way == "lora" else None
    seams = Seams(scoring=True) if way == "padded" else None
    trainer, expected = trained_by_trainer(tiny_model(), chat_rows, args, tiny_tokenizer, seams=seams, peft_config=lora)
    model = tiny_model()
    if lora is not None:
        torch.manual_seed(args.seed)
        model = attach(model, lora)
    before = weights_of(model)
    outcome = loop.train(model, trainer.train_dataset, config_of(args), seams=seams)

    assert len(outcome.log) == len(expected) == outcome.steps == trainer.state.max_steps
    for line, wanted in zip(outcome.log, expected, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "mean_token_accuracy", "entropy"):
            assert line[key] == pytest.approx(wanted[key], rel=1e-6, abs=1e-12), (key, line["step"])
    assert apart(weights_of(model), weights_of(trainer.model)) < 1e-6
    assert apart(before, weights_of(model)) > 1e-3


@pytest.mark.parametrize("family", EXPERTS)
def test_the_loop_agrees_with_the_trainer_on_experts(
    family: str, args_of: Callable[..., SFTConfig], tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: Rows
) -> None:
    """MiniMind balances its experts by itself; Mixtral does because it is asked to."""
    register()
    args = args_of(router_aux_loss_coef=0.3 if family == "mixtral" else None)
    trainer, expected = trained_by_trainer(tiny_model(family, **EXPERTS[family]), chat_rows, args, tiny_tokenizer)
    model = tiny_model(family, **EXPERTS[family])
    outcome = loop.train(model, trainer.train_dataset, config_of(args))
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in outcome.log] == pytest.approx([line[key] for line in expected], rel=1e-6)
    assert apart(weights_of(model), weights_of(trainer.model)) < 1e-6
    assert all(line["aux_loss"] > 0 for line in outcome.log)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral", "gpt2", "phi"])
def test_what_decays_is_what_decays_in_the_trainer(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family)
    by_trainer = set(Trainer.get_decay_parameter_names(None, model))
    decays, stays = loop.make_optimizer(model, LoopConfig(weight_decay=0.3)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decays["params"]} == by_trainer & set(names.values())
    assert len(decays["params"]) + len(stays["params"]) == len(names) and stays["params"]
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("warmup", [0, 3, 0.25])
@pytest.mark.parametrize(
    ("name", "schedule", "options"),
    [
        ("linear", {"schedule": "linear"}, {}),
        ("cosine", {"schedule": "cosine"}, {}),
        ("constant_with_warmup", {"schedule": "constant"}, {}),
        ("cosine_with_min_lr", {"schedule": "cosine", "floor": 0.1}, {"min_lr_rate": 0.1}),
    ],
)
def test_schedules_are_those_of_transformers(name: str, schedule: Any, options: Any, warmup: float) -> None:
    total, steps = 11, math.ceil(11 * warmup) if warmup < 1 else int(warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=steps, num_training_steps=total, scheduler_specific_kwargs=options
    )
    config = LoopConfig(learning_rate=0.3, warmup=warmup, **schedule)
    for step in range(total):
        assert learning_rate(step, total, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        theirs.step()


def test_the_minimind_schedule_gives_what_minimind_prints() -> None:
    """The rates that its lesson shows for 5e-4 and five steps; it begins a tenth above the rate that was asked for."""
    config = LoopConfig(learning_rate=5e-4, schedule="minimind")
    printed = [0.00050225, 0.00037725, 0.00022275, 0.00009775, 0.00005000]
    assert [round(learning_rate(step, 5, config), 8) for step in range(5)] == printed
    warmed = LoopConfig(learning_rate=1.0, schedule="minimind", warmup=2)
    assert [learning_rate(step, 6, warmed) for step in (0, 1, 5)] == pytest.approx([0, 0.5, 0.1])


@given(rows=st.integers(1, 40), size=st.integers(1, 5), accumulation=st.integers(1, 4), world=st.integers(1, 4))
def test_every_row_is_trained_once_an_epoch(rows: int, size: int, accumulation: int, world: int) -> None:
    config = LoopConfig(batch_size=size, accumulation=accumulation, epochs=2, seed=5)
    plan = Plan(config=config, rows=rows, world=world)
    for epoch in (0, 1):
        of_ranks = [plan.batches(epoch, rank) for rank in range(world)]
        assert {len(batches) for batches, _ in of_ranks} == {plan.micro_batches}, "all ranks take part in every one"
        real = [batches[: len(batches) - made_up] for batches, made_up in of_ranks]
        assert sorted(row for batches in real for batch in batches for row in batch) == list(range(rows))
        in_turn = [batch for several in zip_longest(*real) for batch in several if batch is not None]
        assert [row for batch in in_turn for row in batch] == epoch_order(rows, 5, epoch)
    assert (
        plan.steps_per_epoch == math.ceil(plan.micro_batches / accumulation) and plan.total == 2 * plan.steps_per_epoch
    )
    assert plan.place(plan.total) == (2, 0)


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, []), (3, [3, 6, 9]), (0.4, [4, 8]), ("epoch", [4, 8, 10]), (1, list(range(1, 11)))],
)
def test_when_things_are_due(every: Any, expected: list[int]) -> None:
    plan = Plan(config=LoopConfig(batch_size=2, epochs=2.5), rows=8)
    assert plan.total == 10
    assert [step for step in range(1, 11) if plan.due(every, step)] == expected


def test_the_experts_balance_is_in_the_loss_where_the_model_asks_for_it() -> None:
    """One document, all of it trained: transformers' own loss with labels, which adds the balance, is the reference."""
    shape = {**MOE, "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "router_aux_loss_coef": 0.5}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**shape, output_router_logits=True))
    rows = make_rows(1)
    weights = np.ones_like(rows.table.weights)
    weights[0] = 0
    rows = PackedRows(TokenTable.of(rows.table.input_ids, weights, rows.table.starts), [[0]])
    ids = torch.from_numpy(rows.table.input_ids).long()[None]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids)
    assert float(expected.aux_loss) > 0.5
    outcome = loop.train(model, rows, LoopConfig(epochs=1, log_every=1, device="cpu"))
    assert outcome.log[0]["loss"] == pytest.approx(float(expected.loss), rel=1e-6)
    torch.manual_seed(0)
    silent = MixtralForCausalLM(MixtralConfig(**shape, output_router_logits=True))
    outcome = loop.train(silent, rows, LoopConfig(epochs=1, log_every=1, device="cpu", router_aux_loss_coef=0.0))
    assert outcome.log[0]["loss"] == pytest.approx(float(expected.loss - 0.5 * expected.aux_loss), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_is_a_mean_over_tokens_whatever_the_batch(size: int) -> None:
    rows, model = make_rows(8), make_model().double()
    sums = torch.zeros(3, dtype=torch.float64)
    for number in range(8):
        document = rows[number]
        ids = torch.from_numpy(document.input_ids).long()
        with torch.no_grad():
            logp = model.eval()(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        weights, trained = torch.from_numpy(document.weights[1:]).double(), torch.from_numpy(document.weights[1:] > 0)
        sums[0] -= (logp.gather(-1, ids[1:, None])[:, 0] * weights).sum()
        sums[1:] += torch.stack([weights.sum(), (logp.argmax(-1) == ids[1:])[trained].sum()])
    config = LoopConfig(
        learning_rate=0.0, max_steps=1, eval_batch_size=size, eval_every=1, device="cpu", neftune_alpha=50.0
    )
    [line] = [line for line in loop.train(model, rows, config, eval_rows=rows).log if "eval_loss" in line]
    assert line["eval_loss"] == pytest.approx(float(sums[0] / sums[1]), rel=1e-6)
    count = int((rows.table.weights > 0).sum())
    assert line["eval_mean_token_accuracy"] == pytest.approx(float(sums[2]) / count, rel=1e-6)


def test_the_model_is_handed_back_as_it_came_but_for_its_weights() -> None:
    model = make_model()
    head, attention = model.get_output_embeddings(), model.config._attn_implementation
    loop.train(model, make_rows(4), LoopConfig(max_steps=2, neftune_alpha=5.0, device="cpu"))
    assert model.get_output_embeddings() is head and model.config._attn_implementation == attention
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_gradient_checkpointing_changes_no_bit() -> None:
    models = [make_model(), make_model()]
    for model, again in zip(models, (False, True), strict=True):
        loop.train(model, make_rows(6), LoopConfig(max_steps=3, gradient_checkpointing=again, device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_float16_is_that_of_torchs_own_autocast_and_scaler() -> None:
    """The scale begins so high that the first gradients overflow: those steps are skipped, in both."""
    config = LoopConfig(learning_rate=0.01, schedule="constant", max_steps=12, log_every=1, dtype="float16",
                        batch_size=1, shuffle=False, max_grad_norm=0.5, device="cpu")  # fmt: skip
    rows, model, plain = make_rows(12), make_model(), make_model()
    log = loop.train(model, rows, config).log
    scaler, optimizer = torch.amp.GradScaler("cpu"), loop.make_optimizer(plain, config)
    for number, line in enumerate(log):
        row = rows[number]
        ids, weights = torch.from_numpy(row.input_ids).long(), torch.from_numpy(row.weights[1:])
        with torch.autocast("cpu", dtype=torch.float16):
            logits = plain(input_ids=ids[None]).logits[0, :-1]
        loss = cross_entropy(logits.float(), ids[1:], reduction="none") @ weights / weights.sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5))
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert line["loss"] == pytest.approx(float(loss.detach()), rel=2e-3)
        assert line["grad_norm"] == pytest.approx(norm, rel=0.02, nan_ok=True)
    skipped = [line["step"] for line in log if not math.isfinite(line["grad_norm"])]
    assert 0 < len(skipped) < 6 and scaler.get_scale() == 65536 / 2 ** len(skipped)
    assert apart(weights_of(model), weights_of(plain)) < 0.02 < apart(weights_of(model), weights_of(make_model()))


def test_it_brings_neither_the_trainer_nor_accelerate_along() -> None:
    program = (
        "import sys, honed.train.loop.loop; print(*sorted({'transformers', 'accelerate', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    lines = (ROOT / "honed/train/loop/loop.py").read_text().splitlines()
    assert len(lines) < 300


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    model = make_model()
    config = LoopConfig(learning_rate=1e38, max_steps=9, log_every=1, save_every=1, device="cpu", max_grad_norm=0)
    with pytest.raises(RunError, match=r"The loss is (nan|inf) at step"):
        loop.train(model, make_rows(4), config, folder=tmp_path)
    path, _ = checkpoint.latest_good(tmp_path)
    assert path is not None and int(path.name[-1]) < 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"schedule": "cosinus"}, "schedule is 'cosinus'"),
        ({"save_every": "sometimes"}, "save_every is 'sometimes'"),
        ({"warmup": -1}, "warmup is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        LoopConfig(**changes)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        loop.train(make_model(), PackedRows(TokenTable([]), []), LoopConfig(device="cpu"))
    elsewhere = Ranks(device=torch.device("mps"))
    with pytest.raises(RecipeError, match="float16 is not supported on mps"):
        loop.begin(make_model(), make_rows(2), LoopConfig(dtype="float16"), ranks=elsewhere, head=None, folder=None)
    with pytest.raises(RecipeError, match="device 'abacus' cannot be used here"):
        loop.train(make_model(), make_rows(2), LoopConfig(device="abacus"))
