"""Options in combination: every pair of values below occurs in some run, and every run is held against `oracle`.

Losses, gradient norms, learning rates and evaluations of each step, and the weights at the end, are those of each
document alone through the unmodified model, and of AdamW by hand. Which documents a run has is worked out here from the
rows, without honed; every epoch must hold each of them once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback

from honed.data.batch.table import PackedRows
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.model.adapters.adapters import attach, lora_config
from honed.model.minimind.minimind import register
from honed.train.forward.seams import Seams, find_seams
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.loop.plan import Plan
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer
from tests.train.oracle import ByHand, Document, Step, Training, loss_of_step
from tests.train.rows_by_hand import ASKS, assert_same_documents, documents_in, documents_of, rows_of

Run = dict[str, Any]

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "tied": ("qwen3", {}),
    "capped": ("gemma2", {"sliding_window": 9, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0}),
    "windows": ("gemma3_text", {"sliding_window": 9}),
    "scaled": ("cohere", {"logit_scale": 0.3}),
    "mixtral": ("mixtral", {**EXPERTS, "router_aux_loss_coef": 0.1}),
    "minimind": ("minimind", {**EXPERTS, "use_moe": True, "router_aux_loss_coef": 0.1}),
    "sinks": ("gpt_oss", {**EXPERTS, "sliding_window": 8, "router_aux_loss_coef": 0.1}),
}
OPTIONS: dict[str, tuple[Any, ...]] = {  # the first value goes with every other option
    "family": tuple(FAMILIES),
    "rows": ("flat", "padded", "bfd", "bfd_split", "wrapped", "tokens_per_step", "stream"),
    "engine": ("trainer", "loop"),
    "around": ("nothing", "evaluations", "resumed", "workers", "multiple of 8", "no metrics", "cache emptied"),
    "weights": ("all", "some", "named", "lora", "dora", "lora and head", "lora on embedding"),
    "data": ("chat", "weighted", "pairs", "tokens", "texts"),
    "objective": ("nll", "dft", "smoothed"),
    "precision": ("float32", "float64", "bfloat16"),
    "optimizer": ("adamw", "in_backward", "sgd"),
    "rates": ("one", "two"),
    "accumulation": (1, 2, 3),
    "checkpointing": (False, True, "selective"),
    "share_prefixes": (False, "auto"),
    "sampling": ("random", "group_by_length", "sequential"),
    "length": (256, 40),
    "schedule": ("linear", "cosine"),
}
REFUSED: tuple[dict[str, tuple[Any, ...]], ...] = (  # or without a meaning; the refusals themselves: test_rules.py
    {"rows": ("tokens_per_step",), "accumulation": (2, 3)},
    {"rows": ("tokens_per_step",), "optimizer": ("in_backward",)},
    {"optimizer": ("in_backward",), "accumulation": (2, 3)},
    {"rows": ("padded",), "share_prefixes": ("auto",)},
    {"family": ("capped",), "precision": ("float64",)},  # its softmax is float32's: no row is flat, padding is nan
    {"family": ("windows", "sinks"), "rows": ("padded",), "precision": ("float64",)},
    {"family": ("mixtral", "minimind", "sinks"), "precision": ("bfloat16",)},  # rounding sends tokens elsewhere
    {"engine": ("loop",), "rows": ("tokens_per_step", "stream")},
    {"engine": ("loop",), "weights": ("named",)},  # names are for the recipe's engine: loop/test_recipe.py
    {"engine": ("loop",), "objective": ("dft", "smoothed")},
    {"engine": ("loop",), "optimizer": ("in_backward", "sgd")},
    {"engine": ("loop",), "sampling": ("group_by_length",)},
    {"engine": ("loop",), "share_prefixes": ("auto",)},
    {"engine": ("loop",), "around": ("multiple of 8", "no metrics", "cache emptied")},
)
# Relative, after up to a dozen steps, over which rounding grows; float64 computes norms and routers in float32 inside.
TOLERANCES = {"float64": 1e-5, "float32": 5e-3, "bfloat16": 0.3}
FASTER, NAMED = "q_proj", re.compile("self_attn|norm")
AROUND: dict[str, dict[str, Any]] = {
    "nothing": {},
    "evaluations": {"eval_strategy": "steps", "eval_steps": 1},
    "resumed": {"save_strategy": "steps", "save_steps": 1},
    "workers": {"dataloader_num_workers": 1},
    "multiple of 8": {"pad_to_multiple_of": 8},
    "no metrics": {"token_metrics": False},
    "cache emptied": {"torch_empty_cache_steps": 1},
}


def works(run: Run, refused: tuple[dict[str, tuple[Any, ...]], ...] = REFUSED) -> bool:
    return not any(all(run.get(name) in values for name, values in rule.items()) for rule in refused)


def covering_runs(
    options: dict[str, tuple[Any, ...]] = OPTIONS, refused: tuple[dict[str, tuple[Any, ...]], ...] = REFUSED
) -> Iterator[Run]:
    """Runs in which each pair of values that work together occurs: greedily, always for the first pair that is left."""
    singles = [(name, value) for name, values in options.items() for value in values]
    pairs = {(a, b): None for a, b in combinations(singles, 2) if a[0] != b[0] and works(dict((a, b)), refused)}
    while pairs:
        run = dict(next(iter(pairs)))
        for name in [name for name in options if name not in run]:

            def gain(value: Any, run: Run = run, name: str = name) -> int:
                return sum(tuple(sorted([o, (name, value)], key=singles.index)) in pairs for o in run.items())

            run[name] = max((value for value in options[name] if works({**run, name: value}, refused)), key=gain)
        run = {name: run[name] for name in options}
        for pair in combinations(run.items(), 2):
            pairs.pop(pair, None)
        yield run


RUNS = list(covering_runs())


def test_every_pair_occurs() -> None:
    """But for those that are refused."""
    for first, second in combinations(OPTIONS, 2):
        found = {(run[first], run[second]) for run in RUNS}
        assert found == {(a, b) for a in OPTIONS[first] for b in OPTIONS[second] if works({first: a, second: b})}


def name_of(run: Run) -> str:
    return "-".join(str(value).replace(" ", "_") for value in run.values())


def model_of(run: Run, tiny_model: Callable[..., Any]) -> Any:
    register()
    family, changes = FAMILIES[run["family"]]
    dtype = torch.float64 if run["precision"] == "float64" else torch.float32
    model = tiny_model(family, dtype=dtype, hidden_size=16, intermediate_size=32, **changes)
    for number, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:  # biases of 0 and norms of 1 would hide what goes wrong with them
            torch.nn.init.uniform_(parameter, 0.5, 1.5, torch.Generator().manual_seed(number))
        if run["weights"] == "some":
            parameter.requires_grad_(number % 2 == 1)
    if dtype == torch.float64 and hasattr(model.config, "num_experts_per_tok") and family != "minimind":
        model.set_experts_implementation("eager")  # the grouped product has no float64
    if run["rows"] == "padded":
        model.set_attn_implementation("eager")
    return model


def adapter_of(run: Run) -> Any:
    if run["weights"] in ("all", "some", "named"):
        return None
    on = ["q_proj", "o_proj", *(["embed_tokens"] if run["weights"] == "lora on embedding" else [])]
    head = ["lm_head"] if run["weights"] == "lora and head" else None
    return lora_config(r=3, target_modules=on, use_dora=run["weights"] == "dora", modules_to_save=head)


def shaken(model: Any, dtype: torch.dtype) -> Any:
    """In place: an adapter that begins at zero would hide half of what goes wrong with it."""
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name and "magnitude" not in name:
            torch.nn.init.uniform_(parameter, -0.3, 0.3, draw)
    return model.to(dtype)


def how_of(run: Run, model: Any) -> Training:
    return Training(
        loss="dft" if run["objective"] == "dft" else "nll",
        smoothing=0.1 if run["objective"] == "smoothed" else 0.0,
        balance=getattr(model.config, "router_aux_loss_coef", 0.0),
        learning_rate=0.05 if run["optimizer"] == "sgd" else 0.01,
        schedule=run["schedule"],
        warmup=1 if run["schedule"] == "cosine" else 0,
        weight_decay=0.1,
        decay_by_name=run["engine"] == "trainer",
        largest_norm=0.0 if run["optimizer"] == "in_backward" else 0.5,
        sgd=run["optimizer"] == "sgd",
        faster=FASTER if run["rates"] == "two" else "",
        times=3.0,
    )


def arguments_of(run: Run, how: Training, folder: Path, **more: Any) -> SFTConfig:
    rows = run["rows"]
    return SFTConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1,
        train_on=ASKS[run["data"]], max_length=run["length"], bad_rows="drop",
        per_device_train_batch_size=2, per_device_eval_batch_size=3, num_train_epochs=2,
        gradient_accumulation_steps=run["accumulation"], gradient_checkpointing=run["checkpointing"],
        packing=rows in ("bfd", "bfd_split", "wrapped"),
        packing_strategy=rows if rows in ("bfd_split", "wrapped") else "bfd",
        tokens_per_step=150 if rows == "tokens_per_step" else None,
        share_prefixes=run["share_prefixes"], train_sampling_strategy=run["sampling"],
        loss_type=how.loss, label_smoothing_factor=how.smoothing, bf16=run["precision"] == "bfloat16",
        optim="sgd" if how.sgd else "adamw_torch_fused", optimizer_in_backward=run["optimizer"] == "in_backward",
        learning_rate=how.learning_rate, lr_scheduler_type=how.schedule, warmup_steps=how.warmup,
        weight_decay=how.weight_decay, max_grad_norm=how.largest_norm, adam_epsilon=how.epsilon,
        learning_rates={how.faster: how.times} if how.faster else {},
        trainable=["self_attn", "norm", "!o_proj"] if run["weights"] == "named" else [],
        **({"streaming": True, "shuffle_buffer": 0, "max_steps": 5} if rows == "stream" else {}),
        **{"save_strategy": "no", **AROUND[run["around"]], **more},
    )  # fmt: skip


class StopsAtOnce(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def by_trainer(run: Run, model: Any, how: Training, *, rows: Any, tokenizer: Any, folder: Path) -> tuple[Any, ...]:
    """A trained trainer, the model as it was before, and what it logged."""
    args, evaluation = arguments_of(run, how, folder), rows_of(run["data"], seed=5, count=7)
    whole = copy.deepcopy(model)

    def make(model: Any) -> SFTTrainer:
        return SFTTrainer(model, args, None, rows, evaluation, tokenizer, peft_config=adapter_of(run))

    trainer = make(model)
    before = copy.deepcopy(shaken(trainer.model, model.dtype))
    if run["around"] == "resumed":
        trainer.add_callback(StopsAtOnce())
        trainer.train()
        trainer = make(whole)  # whose adapter is not shaken: all of it must come from the checkpoint
        shaken(trainer.model, model.dtype) if adapter_of(run) is None else trainer.model.to(model.dtype)
    trainer.train(resume_from_checkpoint="auto" if run["around"] == "resumed" else None)
    return trainer, before, trainer.state.log_history


def steps_of_trainer(run: Run, trainer: SFTTrainer, documents: list[Document]) -> list[Step]:
    """The documents of each step, in micro-batches; each epoch must hold all rows once."""
    total = trainer.state.max_steps
    if run["rows"] == "stream":  # rows without end, in their order
        batches = [(documents * 20)[at : at + 2] for at in range(0, 20 * len(documents), 2)]
        return [batches[n * run["accumulation"] : (n + 1) * run["accumulation"]] for n in range(total)]
    rows, found = trainer.train_dataset, [trainer.rows_of(step) or [] for step in range(1, total + 1)]
    assert_same_documents(rows, documents)
    placed = iter([row for step in found for batch in step for row in batch])
    assert [sorted(islice(placed, len(rows))) for _ in range(2)] == [list(range(len(rows)))] * 2
    assert next(placed, None) is None
    if run["rows"] != "tokens_per_step":
        assert len([row for batch in found[0] for row in batch]) == min(2 * run["accumulation"], len(rows))
    return [[[d for row in batch for d in documents_in(rows[row])] for batch in step] for step in found]


def by_loop(run: Run, model: Any, how: Training, *, rows: Any, tokenizer: Any, folder: Path) -> tuple[Any, ...]:
    """The trained model, as it was before, what it logged, its rows and its plan."""
    packing = run["rows"] in ("bfd", "bfd_split", "wrapped")
    options = PrepareOptions(
        train_on=ASKS[run["data"]], max_length=run["length"], overlong="truncate", bad_rows="drop", packing=packing,
        packing_strategy=run["rows"] if run["rows"] in ("bfd_split", "wrapped") else "bfd",
    )  # fmt: skip
    prepared = prepare(rows, tokenizer, options).rows
    evaluation = prepare(rows_of(run["data"], seed=5, count=7), tokenizer, options).rows
    if adapter_of(run) is not None:
        model = shaken(attach(model, adapter_of(run)), model.dtype)
    config = LoopConfig(
        epochs=2, batch_size=2, accumulation=run["accumulation"], eval_batch_size=3, log_every=1, device="cpu",
        learning_rate=how.learning_rate, schedule=how.schedule, warmup=how.warmup, weight_decay=how.weight_decay,
        max_grad_norm=how.largest_norm, epsilon=how.epsilon, learning_rates={how.faster: 3.0} if how.faster else {},
        shuffle=run["sampling"] == "random",
        dtype="bfloat16" if run["precision"] == "bfloat16" else "float32",
        gradient_checkpointing=bool(run["checkpointing"]),
        recomputed_layers=1 if run["checkpointing"] == "selective" else None,
        workers=int(run["around"] == "workers"), eval_every=int(run["around"] == "evaluations"),
        save_every=1 if run["around"] == "resumed" else 0,
    )  # fmt: skip
    seams = Seams() if run["rows"] == "padded" else None
    before = copy.deepcopy(model)
    kept = {"eval_rows": evaluation, "folder": folder if run["around"] == "resumed" else None, "seams": seams}
    if run["around"] == "resumed":
        loop.train(copy.deepcopy(model), prepared, config, **kept)
        for later in [path for path in folder.glob("checkpoint-*") if int(path.name.split("-")[1]) > 1]:
            later.rename(folder / f"gone-{later.name}")
    log = loop.train(model, prepared, config, **kept).log
    return model, before, log, prepared, Plan(config=config, rows=len(prepared))


def steps_of_loop(run: Run, rows: PackedRows, plan: Plan, documents: list[Document]) -> list[Step]:
    assert_same_documents(rows, documents)
    steps = []
    for step in range(plan.total):
        epoch, done = plan.place(step)
        batches = plan.batches(epoch, 0)[0][done : done + run["accumulation"]]
        steps.append([[d for row in batch for d in documents_in(rows[row])] for batch in batches])
    assert sum(len(batch) for step in steps for batch in step) == 2 * len(documents)
    return steps


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft's, of adapters on the embedding
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_it_is_what_the_oracle_computes(
    run: Run, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, rows = model_of(run, tiny_model), rows_of(run["data"], seed=0, count=9)
    how, documents = how_of(run, model), documents_of(rows, run, tiny_tokenizer)
    flat_rows = ("bfd", "bfd_split", "wrapped", "tokens_per_step")
    if run["family"] == "capped" and run["rows"] in flat_rows and not find_seams(model).flat:
        pytest.skip(f"transformers {transformers.__version__} has a Gemma 2 whose flat batches are refused")
    given = {"rows": rows, "tokenizer": tiny_tokenizer, "folder": tmp_path}
    if run["engine"] == "trainer":
        trainer, before, log = by_trainer(run, model, how, **given)
        steps, trained = steps_of_trainer(run, trainer, documents), trainer.model
        if run["weights"] == "named":
            chosen = {name for name, _ in model.named_parameters() if NAMED.search(name) and "o_proj" not in name}
            assert {name for name, p in trained.named_parameters() if p.requires_grad} == chosen
        assert trainer.ledger.rows_in == trainer.ledger.rows_trained + trainer.ledger.rows_dropped.total()
    else:
        trained, before, log, prepared, plan = by_loop(run, model, how, **given)
        steps = steps_of_loop(run, prepared, plan, documents)
    oracle = ByHand(before, how, len(steps))
    held_out = documents_of(rows_of(run["data"], seed=5, count=7), run, tiny_tokenizer)
    for step in steps:
        oracle.take(step)
        if run["around"] == "evaluations":
            plain = Training(loss=how.loss, smoothing=how.smoothing)
            oracle.log[-1]["eval_loss"] = float(loss_of_step(before, [held_out], plain).detach())
    assert_same_log(log, oracle.log, TOLERANCES[run["precision"]])
    assert_same_weights(trained, before, TOLERANCES[run["precision"]])


def assert_same_log(found: list[dict[str, Any]], expected: list[dict[str, float]], tolerance: float) -> None:
    """The last lines of the expected log, where a run goes on from a checkpoint."""
    for key in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        values, wanted = [line[key] for line in found if key in line], [line[key] for line in expected if key in line]
        assert len(values) == len(wanted) or (key != "eval_loss" and len(values) == len(wanted) - 1), key
        assert values == pytest.approx(wanted[len(wanted) - len(values) :], rel=tolerance, abs=1e-8), key


def assert_same_weights(found: Any, expected: Any, tolerance: float) -> None:
    weights = dict(found.named_parameters())
    for name, weight in expected.named_parameters():
        assert weight.requires_grad == weights[name].requires_grad, name
        if not weight.requires_grad:
            assert torch.equal(weights[name], weight), name
        elif not re.search(r"k_proj\.bias", name):  # its gradient is 0, but for rounding
            assert relative(weights[name], weight) <= tolerance, name
    assert len(weights) == len(dict(expected.named_parameters()))


@torch.no_grad()
def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
