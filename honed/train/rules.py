"""Combinations that cannot work or have no effect, as a table; each is told with its fix before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from honed.errors import RecipeError
from honed.train.config import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`when` tells from the arguments whether the rule applies; `refuses` makes it an error instead of a note."""

    name: str
    when: Callable[[SFTConfig], bool]
    message: str
    fix: str
    refuses: bool


RULES = (
    Rule(
        name="data_parallel",
        when=lambda args: args.n_gpu > 1 and args.parallel_mode.value == "not_distributed",
        message="One process sees several GPUs and would use nn.DataParallel: slow, and losses averaged wrongly.",
        fix="start it with `torchrun --nproc_per_node N ...` or `accelerate launch ...`, or show it one GPU "
        "(CUDA_VISIBLE_DEVICES=0)",
        refuses=True,
    ),
    Rule(
        name="packing_without_length",
        when=lambda args: args.packing and args.max_length is None,
        message="packing=True needs the length of a packed row.",
        fix="set max_length",
        refuses=True,
    ),
    Rule(
        name="chunked_nll",
        when=lambda args: args.loss_type == "chunked_nll",
        message="loss_type='chunked_nll' is TRL's old name for 'nll'; no whole logits are computed either way.",
        fix="write loss_type='nll'",
        refuses=False,
    ),
    Rule(
        name="liger",
        when=lambda args: args.use_liger_kernel,
        message="use_liger_kernel replaces the model's forward, which the scoring head needs unchanged.",
        fix="leave it off; honed computes no whole logits anyway",
        refuses=True,
    ),
    Rule(
        name="length_grouping",
        when=lambda args: getattr(args, "train_sampling_strategy", "") == "group_by_length",
        message="train_sampling_strategy='group_by_length' has no effect on flat batches, which have no padding.",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="bf16_on_cpu",
        when=lambda args: bool(args.bf16) and args.device.type == "cpu" and not cpu_likes_bf16(),
        message="bf16=True on this CPU is slower than float32 (measured just now).",
        fix="leave bf16 out",
        refuses=False,
    ),
)


def check(args: SFTConfig) -> list[str]:
    """The notes of all rules that apply.

    Raises:
        RecipeError: a rule that refuses applies, or the loss is not one there is.
    """
    args.objective()
    notes = []
    for rule in RULES:
        if not rule.when(args):
            continue
        if rule.refuses:
            raise RecipeError(rule.message, fix=rule.fix)
        notes.append(f"{rule.message} {rule.fix[0].upper()}{rule.fix[1:]}.")
    return notes


def cpu_likes_bf16() -> bool:
    """True when a small bfloat16 matrix product beats the float32 one on this CPU."""
    from honed.model.device import matmul_seconds

    return matmul_seconds(torch.bfloat16) < matmul_seconds(torch.float32)
