"""Puts honed's attention and head into a model, after testing on that model that neither changes its results.

The seams are public interfaces of transformers: `set_attn_implementation` and `set_output_embeddings`. A model that
does not support one of them (an unusual head, linear attention, ...) is trained without it, with a note. A third seam
is peft's LoRA layers, which are computed as one function (`honed.model.adapters.fused_lora`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from honed.data.batch.collate import Batch, FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow
from honed.errors import ModelError
from honed.loss.head import LogitTransform, ScoringHead, score_logits
from honed.loss.objective import IGNORE_INDEX, Objective, targets_of
from honed.loss.tied_embedding import one_gradient
from honed.model.adapters.adapters import prompt_tokens
from honed.model.adapters.fused_lora import coverage, fused_lora
from honed.model.load.vocabulary import known_tokens
from honed.ops import attention
from honed.ops.attention_windows import untold_windows
from honed.ops.linear_cross_entropy import TokenScores
from honed.ops.products import fast_linears
from honed.train.forward.experts import experts_in_autocast

PROBE_LENGTHS = (5, 7)
# Padding changes the shapes of products, and recurrent layers accumulate the rounding; padding that the model reads
# changes scores by their own magnitude.
PADDING_NOISE = {torch.float64: 1e-3, torch.float32: 1e-3}
NOT_FOR_THE_MODEL = ("labels", "loss_weights", "num_tokens", "num_targets", "layout")
# Configuration names for soft caps and factors of the logits; a trial determines which one applies, and how.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@dataclass(slots=True, kw_only=True)
class Seams:
    """The seams that a model supports.

    Attributes:
        flat: whether documents can share a row without attending to each other.
        scoring: whether the head can score only the trained positions.
        padded: whether rows of different lengths can share a batch.
        lora: whether there are LoRA layers that can be computed as one function.
        transform: the function that the model applies to its logits after the head.
        notes: why a seam is not used.
    """

    flat: bool = False
    scoring: bool = False
    padded: bool = True
    lora: bool = False
    transform: LogitTransform = field(default_factory=LogitTransform)
    notes: list[str] = field(default_factory=list)


def base_model(model: nn.Module) -> Any:
    """Returns the transformers model inside a peft model; any other model is returned unchanged."""
    peft: Any = model
    return peft.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def opened(model: nn.Module, seams: Seams) -> Iterator[ScoringHead | None]:
    """Puts the seams into the model within the block; yields the scoring head, if any.

    FSDP2 and DeepSpeed bind weights to their module: a scoring head that they have wrapped stays in the model, where it
    acts like the linear layer that it replaced.
    """
    inner = base_model(model)
    attention_before, head_before = inner.config._attn_implementation, inner.get_output_embeddings()
    head = head_before if isinstance(head_before, ScoringHead) else None
    if seams.scoring and head is None:
        head = ScoringHead(head_before, seams.transform)
        inner.set_output_embeddings(head)
    if seams.flat and attention_before != attention.NAME:  # a nested block must not undo `compiled_layers`' exclusion
        inner.set_attn_implementation(attention.register())
    try:
        with (
            fast_linears(model),
            experts_in_autocast(inner),
            fused_lora(model) if seams.lora else nullcontext(),
            one_gradient(inner.get_input_embeddings(), head),
        ):
            yield head
    finally:
        if head is not None and not _is_wrapped(head, head_before):  # some models without a head cannot be given one
            inner.set_output_embeddings(head_before)
        if seams.flat:
            inner.set_attn_implementation(attention_before)


def _is_wrapped(head: ScoringHead, before: nn.Module) -> bool:
    return head.weight is not before.weight or bool(head._forward_pre_hooks)


def token_scores(
    model: nn.Module,
    batch: Batch,
    head: ScoringHead | None,
    *,
    objective: Objective | None = None,
    total: torch.Tensor | float = 1.0,
    extras: bool = False,
    router_logits: bool = False,
) -> tuple[TokenScores, Any]:
    """Scores the batch's trained tokens; returns the scores, with the loss, and the model's output.

    Args:
        model: the model, wrapped (DDP, FSDP, peft) or not.
        head: the scoring head inside the model; None to score the model's logits.
        objective: the loss per token; None for the negative log-likelihood.
        total: the divisor of the weighted sum of losses: the token weight of the whole step.
        extras: also compute entropy and correctness.
        router_logits: ask a mixture-of-experts model for its auxiliary loss, `output.aux_loss`.
    """
    objective = objective or Objective()
    targets = targets_of(batch["labels"], batch.get("loss_weights"), count=batch.get("num_targets"), total=total)
    inputs = {key: value for key, value in batch.items() if key not in NOT_FOR_THE_MODEL} | {"use_cache": False}
    if router_logits:
        inputs["output_router_logits"] = True
    if head is None:
        output = model(**inputs)
        # Remove the virtual tokens of prompt-learning adapters.
        logits_ND = output.logits[:, -batch["labels"].shape[1] :].flatten(0, 1).index_select(0, targets.index_N)
        return score_logits(logits_ND, targets, objective, extras=extras), output
    with head.scoring(targets, objective=objective, extras=extras):
        output = model(**inputs)
    return head.take(output.logits), output


def token_count(batch: Batch) -> int:
    """Returns the number of tokens without padding; synchronises only if the batch lacks `num_tokens`."""
    if "num_tokens" in batch:
        return int(batch["num_tokens"])
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def known_counts(batch: Batch) -> dict[str, int]:
    """Returns the numbers of `tokens` and `trained` tokens; 0 if a custom batch does not have the information."""
    ids, labels, trained = batch.get("input_ids"), batch.get("labels"), batch.get("num_targets", 0)
    if ids is not None and labels is not None and labels.shape == ids.shape and "num_targets" not in batch:
        trained = (labels[..., 1:] != IGNORE_INDEX).sum()
    return {"tokens": 0 if ids is None else token_count(batch), "trained": int(trained)}


@torch.no_grad()
def find_seams(model: nn.Module) -> Seams:
    """Tries both seams on two short random documents and keeps those that reproduce the plain model's scores.

    Leaks between documents are tested by changing the first one: the second one's scores must be bit-identical. Experts
    compute the tokens of all documents in one product, whose rounding depends on their number; for them the gradient
    between the documents must be zero.

    Raises:
        ModelError: DeepSpeed has already sharded the weights.
    """
    if any(hasattr(parameter, "ds_id") and not parameter.numel() for parameter in model.parameters()):
        raise ModelError(
            "DeepSpeed's ZeRO-3 sharded the weights while they were loaded, so honed cannot test this model.",
            fix="pass the model's name, or load the model before the configuration is made",
        )
    seams = lora_alone(model)
    inner = base_model(model)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        seams.notes.append("the model's weights are not loaded here, so its attention and head were left as they are")
        return seams
    if prompt_tokens(model) is not None:
        seams.notes.append("the adapter puts virtual tokens before each row: batches are padded, whole logits computed")
        return seams
    was_training = model.training
    model.eval()
    try:
        rows = probe_rows(inner, PROBE_LENGTHS)
        plain = [_scores(model, [row], padded=True).nll_N for row in rows]
        seams.scoring = _scoring_fits(model, inner, rows, plain, seams)
        seams.flat = _flat_fits(model, inner, rows, plain, seams)
        seams.padded = seams.flat or _padding_fits(model, inner, rows, plain, seams)
    finally:
        model.train(was_training)
    return seams


def lora_alone(model: nn.Module) -> Seams:
    """Returns the LoRA layers as the only seam, with a note on the layers left to peft."""
    fused, left = coverage(model)
    notes = []
    if left:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left.items())
        notes.append(f"{left.total()} of {fused + left.total()} LoRA layers use peft's own computation: {reasons}")
    return Seams(lora=fused > 0, notes=notes)


def refuse_padding(seams: Seams, rows: int, fix: str) -> Seams:
    """Returns the seams unchanged if they support micro-batches of this many rows.

    Raises:
        ModelError: there are several rows, and both sharing a row and padding change their scores.
    """
    if rows > 1 and not seams.padded:
        raise ModelError("; ".join(seams.notes), fix=fix)
    return seams


def _scoring_fits(model: nn.Module, inner: Any, rows: list[PackedRow], plain: list[torch.Tensor], seams: Seams) -> bool:
    head = inner.get_output_embeddings()
    if type(head) is not nn.Linear:
        seams.notes.append(f"the LM head is a {type(head).__name__}, not a linear layer: whole logits are computed")
        return False
    for transform in logit_transforms(inner.config.get_text_config()):
        with opened(model, Seams(scoring=True, transform=transform)) as scoring_head:
            try:
                scores = [_scores(model, [row], scoring_head, padded=True).nll_N for row in rows]
                fits = are_same(scores, plain, inner.dtype) and _gradient_comes_through(
                    model, rows[0], inner.get_output_embeddings()
                )
            except (IndexError, TypeError, ValueError, RuntimeError):  # the model needs logits of the usual shape
                fits = False
        if fits:
            seams.transform = transform
            return True
    seams.notes.append("the model changes its logits after the head: whole logits are computed")
    return False


def logit_transforms(config: Any) -> Iterator[LogitTransform]:
    """Yields the functions that a model with this configuration may apply to its logits, most likely first."""
    softcap = next((value for name in SOFTCAPS if (value := getattr(config, name, None))), None)
    named = [getattr(config, name, None) for name in SCALES]
    scales = [float(scale) for scale in named if isinstance(scale, int | float) and scale not in {0, 1}]
    # The same name is a factor in some families and a divisor in others.
    for scale in [*scales, *(1 / scale for scale in scales), 1.0]:
        yield LogitTransform(scale=scale, softcap=softcap or None)
    if softcap:
        yield LogitTransform()


def _gradient_comes_through(model: nn.Module, row: PackedRow, head: ScoringHead) -> bool:
    """Whether the loss has derivative 1 with respect to the head's ticket, after all that the model does to it."""
    tickets: list[torch.Tensor] = []

    def record_from_here(module: nn.Module, args: Any, ticket: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)
        tickets.append(ticket.detach().requires_grad_())
        return tickets[-1]

    handle = head.register_forward_hook(record_from_here)
    try:
        with torch.no_grad():  # a hook enables grad after the head; leaving the block restores it
            loss = _scores(model, [row], head, padded=True).loss
    finally:
        handle.remove()
    (slope,) = torch.autograd.grad(loss, tickets)
    return bool(torch.isclose(slope, torch.ones_like(slope), rtol=1e-5))


def _flat_fits(model: nn.Module, inner: Any, rows: list[PackedRow], plain: list[torch.Tensor], seams: Seams) -> bool:
    if getattr(inner.config.get_text_config(), "attention_chunk_size", None):
        seams.notes.append("chunked attention: documents cannot share a row")
        return False
    other = _row(rows[0].input_ids[::-1].copy())
    try:
        if windows := untold_windows(inner):
            seams.notes.append(
                f"attention's window of {windows[0]:,} tokens is only in the model's masks: batches are padded"
            )
            return False
        with opened(model, Seams(flat=True)):
            scores = _scores(model, rows).nll_N
            moved = _scores(model, [other, rows[1]]).nll_N
            first = PROBE_LENGTHS[0] - 1
            rounded = are_same([scores[first:]], [moved[first:]], inner.dtype)
            isolated = torch.equal(scores[first:], moved[first:]) or (rounded and _nothing_flows(model, inner, rows))
    except Exception as error:  # model code may raise anything; the seam is then not used
        told = isinstance(error, NotImplementedError | ImportError)  # has a readable message
        why = error if told else f"the model does not take boundaries ({error})"
        seams.notes.append(f"documents cannot share a row: {why}")
        return False
    if isolated and are_same([scores], [torch.cat(plain)], inner.dtype):
        return True
    seams.notes.append("documents would see each other in a shared row: batches are padded instead")
    return False


def _padding_fits(model: nn.Module, inner: Any, rows: list[PackedRow], plain: list[torch.Tensor], seams: Seams) -> bool:
    """Whether documents in a padded batch have the plain scores; some models misinterpret the mask of such a batch."""
    try:
        batch = on_device_of(model, PaddedCollator(pad_token_id=0)(rows))
        found_N, plain_N = token_scores(model, batch, None)[0].nll_N, torch.cat(plain)
        if (found_N - plain_N).norm() <= PADDING_NOISE.get(_as_exact_as(inner.dtype, found_N), 0.1) * plain_N.norm():
            return True
        why = "the padding of a batch changes this model's scores"
    except Exception as error:
        why = f"the model does not take a padded batch ({error})"
    seams.notes.append(f"rows of different length cannot share a batch: {why}")
    return False


def _nothing_flows(model: nn.Module, inner: Any, rows: list[PackedRow]) -> bool:
    """Whether the second document's scores have zero gradient with respect to the first one's embeddings."""
    batch = on_device_of(model, FlatCollator()(rows))
    with torch.enable_grad():
        embedded_1TD = inner.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
        batch["labels"][:, : PROBE_LENGTHS[0]] = IGNORE_INDEX  # only the second document's loss
        scores, _ = token_scores(model, {**batch, "inputs_embeds": embedded_1TD, "num_targets": None}, None)
        [gradient_1TD] = torch.autograd.grad(scores.loss, embedded_1TD)
    return not gradient_1TD[:, : PROBE_LENGTHS[0]].any()


def probe_rows(inner: Any, lengths: Sequence[int]) -> list[PackedRow]:
    """Returns random documents of these lengths, trained on all tokens but the first of each."""
    vocabulary = known_tokens(inner)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (n,), generator=generator).numpy() for n in lengths]
    return [_row(i) for i in ids]


def _row(ids: Any) -> PackedRow:
    weights = torch.ones(len(ids)).numpy()
    weights[0] = 0.0
    return PackedRow(input_ids=ids, weights=weights, lengths=(len(ids),))


def _scores(
    model: nn.Module, rows: list[PackedRow], head: ScoringHead | None = None, *, padded: bool = False
) -> TokenScores:
    batch = FlatCollator()(rows)
    if padded:  # one document without boundaries: the model's ordinary batches
        batch = {key: batch[key] for key in ("input_ids", "labels", "loss_weights")}
    return token_scores(model, on_device_of(model, batch), head)[0]


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """Returns the batch with its tensors on the model's device."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def are_same(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether two lists of scores differ by no more than rounding in the model's dtype, which depends on shapes."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(_as_exact_as(dtype, found[0]), 5e-2)
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


def _as_exact_as(dtype: torch.dtype, scores: torch.Tensor) -> torch.dtype:
    """The dtype whose products are as exact as this one's on the scores' device.

    With TF32 (`tf32=True`, `torch.set_float32_matmul_precision("high")`) a GPU rounds the factors of float32 products
    to the 11 bits of float16.
    """
    tf32 = scores.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return torch.float16 if tf32 and dtype == torch.float32 else dtype
