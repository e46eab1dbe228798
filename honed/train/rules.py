"""Combinations that cannot work or have no effect, as a table; each is told with its fix before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from honed.errors import RecipeError
from honed.train.config import SFTConfig
from honed.train.refusals import need_reporters


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
        name="context_parallel",
        when=lambda args: row_parts(args) > 1,
        message="Context or sequence parallelism (cp_size, sp_size) would train wrongly: each process would take its "
        "part of a row for a row of its own, so that documents lose their boundaries and labels their neighbours.",
        fix="leave it out; for long rows use flat batches of one row, gradient_checkpointing=True and FSDP2",
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
        name="liger_absent",
        when=lambda args: args.use_liger_kernel and is_missing("liger_kernel"),
        message="use_liger_kernel=True needs Liger's kernels, which are not installed.",
        fix="pip install liger-kernel",
        refuses=True,
    ),
    Rule(
        name="liger_without_gpu",
        when=lambda args: args.use_liger_kernel and not runs_triton(args),
        message="use_liger_kernel=True needs a GPU: Liger's kernels are written in Triton.",
        fix="leave it out",
        refuses=True,
    ),
    Rule(
        name="liger_loss",
        when=lambda args: bool((args.liger_kernel_config or {}).get("fused_linear_cross_entropy")),
        message="Liger's fused_linear_cross_entropy replaces the model's forward, which honed's head needs unchanged.",
        fix="leave it out of liger_kernel_config; honed's head computes no whole logits either",
        refuses=True,
    ),
    Rule(
        name="truncation_mode",
        when=lambda args: args.truncation_mode != "keep_start",
        message="truncation_mode can only be 'keep_start': answers without their questions would be trained.",
        fix="leave it out, and raise max_length or set overlong='drop'",
        refuses=True,
    ),
    Rule(
        name="selective_checkpointing",
        when=lambda args: bool((args.gradient_checkpointing_kwargs or {}).get("selective")),
        message="gradient_checkpointing_kwargs={'selective': True} is TRL's own and not supported.",
        fix="leave 'selective' out; whole layers are recomputed then",
        refuses=True,
    ),
    Rule(
        name="tokens_and_accumulation",
        when=lambda args: args.tokens_per_step is not None and args.gradient_accumulation_steps > 1,
        message="tokens_per_step chooses how many micro-batches a step has; gradient_accumulation_steps does so too.",
        fix="leave gradient_accumulation_steps out",
        refuses=True,
    ),
    Rule(
        name="tokens_of_a_stream",
        when=lambda args: args.tokens_per_step is not None and (args.streaming or args.skips_preparation),
        message="tokens_per_step needs the length of every row before training; streamed or unprepared rows have none.",
        fix="leave it out, or prepare the rows",
        refuses=True,
    ),
    Rule(
        name="tokens_with_deepspeed",
        when=lambda args: args.tokens_per_step is not None and bool(args.deepspeed),
        message="tokens_per_step varies the number of micro-batches, which DeepSpeed counts itself.",
        fix="leave one of them out, or shard with FSDP",
        refuses=True,
    ),
    Rule(
        name="in_backward_clipping",
        when=lambda args: args.optimizer_in_backward and args.max_grad_norm > 0,
        message="optimizer_in_backward frees each gradient at once, so their common norm cannot be clipped.",
        fix="set max_grad_norm=0, or leave it out",
        refuses=True,
    ),
    Rule(
        name="in_backward_accumulation",
        when=lambda args: (
            args.optimizer_in_backward and (args.gradient_accumulation_steps > 1 or args.tokens_per_step is not None)
        ),
        message="optimizer_in_backward takes a step in every backward pass, so gradients cannot be accumulated.",
        fix="set gradient_accumulation_steps=1 and leave tokens_per_step out",
        refuses=True,
    ),
    Rule(
        name="in_backward_alone",
        when=lambda args: (
            args.optimizer_in_backward and (args.world_size > 1 or args.n_gpu > 1 or bool(args.deepspeed) or args.fp16)
        ),
        message="optimizer_in_backward steps before ranks average gradients, or float16's scaler unscales them.",
        fix="start one process with bf16 or float32, or leave it out",
        refuses=True,
    ),
    Rule(
        name="in_backward_adamw",
        when=lambda args: args.optimizer_in_backward and args.optim.value not in ("adamw_torch", "adamw_torch_fused"),
        message="optimizer_in_backward is AdamW, not another optimizer.",
        fix="set optim='adamw_torch_fused', or leave it out",
        refuses=True,
    ),
    Rule(
        name="in_backward_reentrant",
        when=lambda args: (
            args.optimizer_in_backward and bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
        ),
        message="optimizer_in_backward needs whole gradients; reentrant checkpointing hands them over in parts.",
        fix="leave use_reentrant out of gradient_checkpointing_kwargs",
        refuses=True,
    ),
    Rule(
        name="fsdp_on_cpu",
        when=lambda args: bool(args.fsdp) and args.device.type == "cpu",
        message="fsdp has no effect on CPUs: accelerate keeps the whole model in every process there (DDP).",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="liger_config",
        when=lambda args: bool(args.liger_kernel_config) and not args.use_liger_kernel,
        message="liger_kernel_config has no effect without use_liger_kernel=True.",
        fix="set it, or leave the configuration out",
        refuses=False,
    ),
    Rule(
        name="checkpointing_kwargs",
        when=lambda args: bool(args.gradient_checkpointing_kwargs) and not args.gradient_checkpointing,
        message="gradient_checkpointing_kwargs has no effect without gradient_checkpointing=True.",
        fix="set it, or leave the keywords out",
        refuses=False,
    ),
    Rule(
        name="offloading_on_cpu",
        when=lambda args: args.activation_offloading and args.device.type == "cpu",
        message="activation_offloading has no effect on a CPU: activations are in the host's memory already.",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="dataset_num_proc",
        when=lambda args: (args.dataset_num_proc or 1) > 1 and (args.streaming or args.skips_preparation),
        message="dataset_num_proc (data.workers) has no effect on rows that are streamed or not prepared.",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="dataset_kwargs",
        when=lambda args: bool(set(args.dataset_kwargs or ()) - {"skip_prepare_dataset"}),
        message="dataset_kwargs has no effect but for skip_prepare_dataset.",
        fix="leave its other keys out",
        refuses=False,
    ),
    Rule(
        name="packing_unprepared",
        when=lambda args: args.packing and args.skips_preparation,
        message="packing has no effect with skip_prepare_dataset: rows go to the collator as they are.",
        fix="leave one of them out",
        refuses=False,
    ),
    Rule(
        name="strategy_without_packing",
        when=lambda args: args.packing_strategy != "bfd" and not (args.packing or args.eval_packing),
        message="packing_strategy has no effect without packing=True.",
        fix="set packing=True",
        refuses=False,
    ),
    Rule(
        name="completion_and_train_on",
        when=lambda args: args.completion_only_loss is not None and args.train_on is not None,
        message="completion_only_loss has no effect beside train_on, which says what is trained.",
        fix="leave one of them out",
        refuses=False,
    ),
    Rule(
        name="shuffled_stream",
        when=lambda args: args.shuffle_dataset and args.streaming,
        message="shuffle_dataset has no effect on streamed rows, which are shuffled shuffle_buffer at a time.",
        fix="leave it out",
        refuses=False,
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
        RecipeError: a rule that refuses applies, or the loss or a service of `report_to` is not one there is.
    """
    args.objective()
    need_reporters(args.report_to)
    notes = []
    for rule in RULES:
        if not rule.when(args):
            continue
        if rule.refuses:
            raise RecipeError(rule.message, fix=rule.fix)
        notes.append(f"{rule.message} {rule.fix[0].upper()}{rule.fix[1:]}.")
    return notes


def row_parts(args: SFTConfig) -> int:
    """Among how many processes a row is to be split: by the arguments, or by what `accelerate launch` sets."""
    given = args.parallelism_config
    if given is not None:
        return max(given.cp_size, given.sp_size)
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() != "true":
        return 1
    return max(int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1")) for kind in ("CP", "SP"))


def is_missing(package: str) -> bool:
    """True when a package is not installed."""
    return importlib.util.find_spec(package) is None


def runs_triton(args: SFTConfig) -> bool:
    """True on devices that Triton compiles for."""
    return args.device.type in ("cuda", "xpu")


def cpu_likes_bf16() -> bool:
    """True when a small bfloat16 matrix product beats the float32 one on this CPU."""
    from honed.model.device import matmul_seconds

    return matmul_seconds(torch.bfloat16) < matmul_seconds(torch.float32)
