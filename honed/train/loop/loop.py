"""Supervised fine-tuning, complete, in plain PyTorch. It reads from top to bottom:

    rows -> batches -> scores -> objective -> backward -> clip -> step -> log -> save -> resume

It does not use transformers' Trainer, and tests compare the two step by step. It runs as one process, or as several
under `torchrun`. docs/loop.md lists what usually goes wrong in such a loop, and where this one deals with it.

Shapes: B rows, L tokens, N trained tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from honed.data.batch.collate import Batch, FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow
from honed.errors import DataError, RecipeError, RunError
from honed.loss.objective import IGNORE_INDEX, total_weight
from honed.loss.router import aux_loss_coefficient, aux_loss_of
from honed.model.layers import keep_first
from honed.ops import attention
from honed.train.forward.neftune import noisy_embeddings
from honed.train.forward.seams import Seams, base_model, find_seams, opened, refuse_padding, token_count, token_scores
from honed.train.loop.config import LoopConfig
from honed.train.loop.log import Log, opened_log
from honed.train.loop.plan import Plan, learning_rate, warm_up_steps
from honed.train.loop.state import Run, identity_of, restore, seed_everything, state_of
from honed.train.metrics import StepMetrics
from honed.train.optimizers.muon import make_muon
from honed.train.optimizers.rates import notes_on_warm_up, with_rates
from honed.train.ranks import Ranks, joined, keep_on_sigterm, others_alive, until_sigterm
from honed.train.run_folder import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: steps taken, whether SIGTERM stopped it early, its log and its notes."""

    steps: int
    stopped: bool
    log: list[dict[str, float]]
    notes: list[str]


def train(
    model: Any,
    rows: Sequence[PackedRow],
    config: LoopConfig,
    *,
    eval_rows: Sequence[PackedRow] | None = None,
    folder: Path | None = None,
    seams: Seams | None = None,
    pad_token_id: int = 0,
    bar: bool = False,
) -> Outcome:
    """Trains the model's parameters that require gradients, in place.

    Args:
        model: a causal language model of transformers, or a peft model.
        rows: training rows from `honed.data.prepare.prepare`.
        folder: where checkpoints and `metrics.jsonl` are written; None writes nothing.
        seams: the ones that the model supports; None to detect them.
        pad_token_id: pads rows if the model needs padding; masks come from lengths, so any token will do.
        bar: whether to show progress on standard error.

    Raises:
        DataError, ModelError: there are no rows, or the model computes them correctly only one by one.
        RecipeError: the device is missing or does not support the dtype, or a tracker is not installed.
        RunError: the loss is not finite, or the named checkpoint cannot be resumed from.
    """
    if not len(rows):
        raise DataError("There are no rows to train on.", fix="see the ledger for why they were dropped")
    with joined(config.device) as ranks, others_alive(folder), until_sigterm() as asked_to_stop:
        model.to(ranks.device)
        seams = refuse_padding(seams or find_seams(model), config.batch_size, "set batch_size=1 and more accumulation")
        collate = FlatCollator() if seams.flat else PaddedCollator(pad_token_id=pad_token_id)
        seed_everything(config.seed + ranks.rank)
        model.train()
        stopped = False
        with opened(model, seams) as head:
            run = begin(model, rows, config, ranks=ranks, head=head, folder=folder)
            told = resume(run, folder)
            if run.step == 0:
                told += notes_on_warm_up(warm_up_steps(run.plan.total, config), run.plan.total)
            with opened_log(config, folder, step=run.step, total=run.plan.total, first=ranks.rank == 0, bar=bar) as log:
                log.note(*told)
                for micro_batches in steps(rows, collate, run):
                    norm = train_step(run, micro_batches)
                    log.step()
                    if run.plan.due(config.log_every, run.step):
                        log.write(run.step, measured(run, norm))
                    if eval_rows is not None and run.plan.due(config.eval_every, run.step):
                        log.write(run.step, evaluate(run, eval_rows, collate))
                    stopped = any(ranks.sum(asked_to_stop.is_set()))
                    last = run.step == run.plan.total and bool(config.save_every)
                    if folder is not None and (stopped or last or run.plan.due(config.save_every, run.step)):
                        save(run, folder, log, must=stopped)
                    if stopped:
                        break
        run.wrapped = run.model  # DDP must be destroyed before the process group, or it hangs
    return Outcome(steps=run.step, stopped=stopped, log=log.lines, notes=log.notes)


def begin(
    model: Any, rows: Sequence[PackedRow], config: LoopConfig, *, ranks: Ranks, head: Any, folder: Path | None
) -> Run:
    """Creates a run at step 0."""
    if config.dtype == "float16" and ranks.device.type not in ("cuda", "cpu"):
        raise RecipeError(f"dtype=float16 is not supported on {ranks.device.type}.", fix="set bfloat16 or float32")
    if config.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # transformers renamed it on the way to v6
        if config.recomputed_layers is not None:
            keep_first(model, config.recomputed_layers)
    return Run(
        config=config,
        plan=Plan(config=config, rows=len(rows), world=ranks.world),
        ranks=ranks,
        model=model,
        wrapped=ranks.wrap(model),
        head=head,
        optimizer=make_optimizer(model, config),
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=config.dtype == "float16"),
        metrics=StepMetrics(ranks.device, over_ranks=ranks.sum),
        loss=torch.zeros((), device=ranks.device),
        identity={} if folder is None else identity_of(model, rows, config, ranks.world),
    )


def steps(rows: Sequence[PackedRow], collate: Any, run: Run) -> Iterator[list[Batch]]:
    """Yields this rank's micro-batches of each step, over all epochs: one loop, so that one `break` leaves it."""
    config, plan, step = run.config, run.plan, run.step
    while step < plan.total:
        epoch, done = plan.place(step)
        batches, lacks_one = plan.batches(epoch, run.ranks.rank)
        loader: DataLoader[Any] = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=batches[done:],
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=keep_on_sigterm,
            pin_memory=run.ranks.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from dropout's generator
        )
        micro_batches = iter(loader)
        while step < plan.total and (of_a_step := list(islice(micro_batches, config.accumulation))):
            step += 1
            if lacks_one and step % plan.steps_per_epoch == 0:
                of_a_step[-1]["labels"].fill_(IGNORE_INDEX)
                of_a_step[-1].update(num_targets=0, num_tokens=0)
            yield of_a_step


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW, for the trained parameters. Matrices decay; biases and norms (vectors) do not."""
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    if config.optimizer == "muon":
        return with_rates(make_muon(model, weight_decay=config.weight_decay, **options), model, config.learning_rates)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return with_rates(torch.optim.AdamW(groups, fused=True, **options), model, config.learning_rates)


def train_step(run: Run, micro_batches: list[Batch]) -> torch.Tensor:
    """Takes one optimizer step; returns the gradient norm before clipping.

    The loss is the sum of the weighted token losses over all micro-batches and ranks, divided once by the sum of their
    weights. It is not a mean of means, so it does not depend on how rows are divided into micro-batches.
    """
    config, ranks, scaler = run.config, run.ranks, run.scaler
    weights = [float(total_weight(batch["labels"], batch.get("loss_weights"))) for batch in micro_batches]
    step_weight = ranks.sum(sum(weights))[0] or 1.0  # 0 if no token is trained; the loss is 0 then too
    for number, (on_host, weight) in enumerate(zip(micro_batches, weights, strict=True), start=1):
        batch = ranks.on_device(on_host)
        attention.remember(batch)
        with ranks.syncing(run.wrapped, now=number == len(micro_batches)):
            loss, aux_loss = forward(run, batch, step_weight)
            if aux_loss is not None:  # already a mean over this micro-batch's tokens, so it is weighted by their share
                loss = loss + aux_loss * (weight / step_weight)
            scaler.scale(loss * ranks.world).backward()  # times `world`, because gradients are averaged over ranks
        run.loss += loss.detach()
    scaler.unscale_(run.optimizer)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, run.plan.total, config) * group.get("rate", 1.0)
    scaler.step(run.optimizer)
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.unlogged = run.step + 1, run.unlogged + 1
    return norm


def forward(run: Run, batch: Batch, step_weight: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the micro-batch's weighted sum of token losses / `step_weight`, and the experts' balance loss or None."""
    inner, config = base_model(run.model), run.config
    balance = aux_loss_coefficient(inner.config.get_text_config(), config.router_aux_loss_coef)
    noise = noisy_embeddings(inner.get_input_embeddings(), config.neftune_alpha, batch)
    options: dict[str, Any] = {"total": step_weight, "extras": config.token_metrics, "router_logits": balance > 0}
    with run.ranks.precision(config.dtype), noise:
        scores, output = token_scores(run.wrapped, batch, run.head, **options)
    aux_loss = aux_loss_of(output) if balance else None
    run.metrics.add(scores, tokens=token_count(batch), aux_loss=aux_loss)
    return scores.loss, None if aux_loss is None else balance * aux_loss


def measured(run: Run, norm: torch.Tensor) -> dict[str, float]:
    """Returns what is logged: the mean loss of the steps since the last log, and the run's position and metrics."""
    loss = unlogged_loss(run) / run.unlogged
    run.loss, run.unlogged = torch.zeros_like(run.loss), 0
    epoch, done = run.plan.place(run.step)
    return {
        "loss": loss,
        "grad_norm": float(norm),
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "epoch": epoch + done / run.plan.micro_batches,
        **run.metrics.read(),
    }


def unlogged_loss(run: Run) -> float:
    """Returns the sum of all ranks' losses since the last log; called before logging and saving.

    Raises:
        RunError: it is not finite.
    """
    loss = run.ranks.sum(float(run.loss))[0]
    if not math.isfinite(loss):
        raise RunError(f"The loss is {loss} at step {run.step}.", fix="lower learning_rate, or warm up for longer")
    return loss


@torch.no_grad()
def evaluate(run: Run, rows: Sequence[PackedRow], collate: Any) -> dict[str, float]:
    """Computes the loss per trained token over all rows: one sum over one denominator, whatever the batch size."""
    size, ranks, sums = run.config.eval_batch_size, run.ranks, [0.0, 0.0, 0.0, 0.0]
    run.model.eval()
    for start in range(ranks.rank * size, len(rows), ranks.world * size):
        batch = ranks.on_device(collate([rows[i] for i in range(start, min(start + size, len(rows)))]))
        attention.remember(batch)
        with ranks.precision(run.config.dtype):
            scores, _ = token_scores(run.model, batch, run.head, extras=True)
        trained = float(total_weight(batch["labels"], batch.get("loss_weights")))
        correct = torch.zeros(()) if scores.correct_N is None else scores.correct_N.sum()
        found = (float(scores.loss), trained, float(correct), scores.nll_N.numel())
        sums = [before + now for before, now in zip(sums, found, strict=True)]
    run.model.train()
    run.metrics.start_clock()
    losses, weight, correct_ones, tokens = ranks.sum(*sums)
    return {"eval_loss": losses / (weight or 1.0), "eval_mean_token_accuracy": correct_ones / (tokens or 1.0)}


def save(run: Run, folder: Path, log: Log, *, must: bool) -> None:
    """Saves everything that the next step depends on; a failure is an error if `must`, otherwise a note."""
    state = state_of(run, loss=unlogged_loss(run))
    if run.ranks.rank != 0:
        return
    try:
        path = checkpoint.save(folder, state)
        checkpoint.prune(folder, run.config.keep, known_good=path, others=checkpoint.of_others(folder, run.identity))
    except RunError as error:
        if must:
            raise
        log.note(f"step {run.step} could not be saved; training continues. {error.problem}")
    run.metrics.start_clock()


def resume(run: Run, folder: Path | None) -> list[str]:
    """Restores the run from a checkpoint, if there is one; returns why newer ones were skipped.

    Raises:
        RunError: the named checkpoint is damaged or another run's, or the newest has another number of ranks.
    """
    named = run.config.resume
    if folder is None or named is None:
        return []
    if named == "auto":
        path, notes = checkpoint.latest_good(folder, run.identity)
    else:
        path, notes = Path(named), []
        if problem := checkpoint.why_not(path, run.identity):
            raise RunError(f"Cannot resume from {path}: {problem}.", fix="name another checkpoint, or none")
    if path is None:
        return notes
    restore(run, checkpoint.load(path, checked=True))
    return [*notes, f"resuming from {path.name}"]
