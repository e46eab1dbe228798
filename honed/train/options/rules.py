"""A table of option combinations that cannot work or have no effect, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from honed.errors import RecipeError
from honed.model.plan.optimizers import named_values
from honed.train.options.config import SFTConfig
from honed.train.options.deepspeed import check_deepspeed
from honed.train.options.optim import Own, rounds_stochastically
from honed.train.options.refusals import need_reporters
from honed.train.options.surroundings import (
    CUDA_GRAPH_MODES,
    cpu_likes_bf16,
    gathers_states,
    has_compiler,
    hinders_sequences,
    is_missing,
    is_sharded,
    multiplies_float8,
    row_parts,
    runs_triton,
    uses_deepspeed,
    uses_fsdp,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`when` tells whether the rule applies; one that does not refuse gives a note."""

    name: str
    when: Callable[[SFTConfig], bool]
    message: str
    fix: str
    refuses: bool = True


RULES = (
    Rule(
        name="data_parallel",
        when=lambda args: args.n_gpu > 1 and args.parallel_mode.value == "not_distributed",
        message="One process sees several GPUs and would use nn.DataParallel: slow, and losses averaged wrongly.",
        fix="start it with `torchrun --nproc_per_node N ...` or `accelerate launch ...`, or show it one GPU "
        "(CUDA_VISIBLE_DEVICES=0)",
    ),
    Rule(
        name="context_parallel",
        when=lambda args: row_parts(args) > 1,
        message="accelerate's context and sequence parallelism (cp_size, sp_size) would train wrongly: each process "
        "would take its part of a row for a row of its own, and documents would lose boundaries and labels.",
        fix="leave it out and set sequence_parallel_size, which shares rows among processes and keeps both",
    ),
    Rule(
        name="sequence_parallel_alone",
        when=lambda args: args.sequence_parallel_size > 1 and hinders_sequences(args),
        message="sequence_parallel_size was not shown to train the same with torch_compile, fp8, neftune_noise_alpha, "
        "DeepSpeed, cpu_ram_efficient_loading, skip_prepare_dataset or average_tokens_across_devices=False.",
        fix="leave the other out",
    ),
    Rule(
        name="sequence_parallel_ranks",
        when=lambda args: args.sequence_parallel_size < 1 or args.world_size % args.sequence_parallel_size != 0,
        message="sequence_parallel_size processes share a row, so the number of processes must be a multiple of it.",
        fix="start so many (torchrun --nproc_per_node N ...), or leave it out",
    ),
    Rule(
        name="dispatched_batches",
        when=lambda args: bool(args.accelerator_config.dispatch_batches),
        message="dispatch_batches=True (accelerator_config) has one process make all batches and cut the others' out "
        "of its own: through documents, where batches are flat.",
        fix="leave it out; each process then makes its own batches",
    ),
    Rule(
        name="rebalanced_batches",
        when=lambda args: getattr(args, "train_sampling_strategy", "") == "batch_rebalance",
        message="train_sampling_strategy='batch_rebalance' repeats rows in an epoch's last step, which count twice.",
        fix="set tokens_per_step, which gives all ranks and micro-batches as many tokens, or leave it out",
    ),
    Rule(
        name="packing_without_length",
        when=lambda args: args.packing and args.max_length is None,
        message="packing=True needs the length of a packed row.",
        fix="set max_length",
    ),
    Rule(
        name="liger_absent",
        when=lambda args: args.use_liger_kernel and is_missing("liger_kernel"),
        message="use_liger_kernel=True needs Liger's kernels, which are not installed.",
        fix="pip install liger-kernel",
    ),
    Rule(
        name="liger_without_gpu",
        when=lambda args: args.use_liger_kernel and not runs_triton(args),
        message="use_liger_kernel=True needs a GPU: Liger's kernels are written in Triton.",
        fix="leave it out",
    ),
    Rule(
        name="liger_loss",
        when=lambda args: bool((args.liger_kernel_config or {}).get("fused_linear_cross_entropy")),
        message="Liger's fused_linear_cross_entropy replaces the model's forward, which honed's head needs unchanged.",
        fix="leave it out of liger_kernel_config; honed's head computes no whole logits either",
    ),
    Rule(
        name="truncation_mode",
        when=lambda args: args.truncation_mode != "keep_start",
        message="truncation_mode can only be 'keep_start': answers without their questions would be trained.",
        fix="leave it out, and raise max_length or set overlong='drop'",
    ),
    Rule(
        name="selective_checkpointing",
        when=lambda args: bool((args.gradient_checkpointing_kwargs or {}).get("selective")),
        message="gradient_checkpointing_kwargs={'selective': True} is TRL's own and not supported.",
        fix="leave 'selective' out; whole layers are recomputed then",
    ),
    Rule(
        name="tokens_and_accumulation",
        when=lambda args: args.tokens_per_step is not None and args.gradient_accumulation_steps > 1,
        message="tokens_per_step chooses how many micro-batches a step has; gradient_accumulation_steps does so too.",
        fix="leave gradient_accumulation_steps out",
    ),
    Rule(
        name="tokens_of_a_stream",
        when=lambda args: args.tokens_per_step is not None and (args.streaming or args.skips_preparation),
        message="tokens_per_step needs the length of every row before training; streamed or unprepared rows have none.",
        fix="leave it out, or prepare the rows",
    ),
    Rule(
        name="tokens_with_deepspeed",
        when=lambda args: args.tokens_per_step is not None and uses_deepspeed(args),
        message="tokens_per_step varies the number of micro-batches, which DeepSpeed counts itself.",
        fix="leave one of them out, or shard with FSDP",
    ),
    Rule(
        name="learning_rates_values",
        when=lambda args: (
            not all(type(factor) in (int, float) and 0 < factor < math.inf for factor in args.learning_rates.values())
        ),
        message="learning_rates takes factors above 0 for the learning rate, such as {'lora_B': 16}.",
        fix="set numbers above 0; to leave weights as they are, use trainable",
    ),
    Rule(
        name="learning_rates_with_deepspeed",
        when=lambda args: bool(args.learning_rates) and uses_deepspeed(args),
        message="learning_rates parts the optimizer's weights by name, which DeepSpeed flattens and shares out.",
        fix="leave one of them out, or shard with FSDP2",
    ),
    Rule(
        name="image_max_pixels",
        when=lambda args: args.image_max_pixels is not None and args.image_max_pixels < 1,
        message="image_max_pixels is below 1.",
        fix="set a number of pixels, such as 262144 (512 x 512), or leave it out",
    ),
    Rule(
        name="in_backward_clipping",
        when=lambda args: args.optimizer_in_backward and args.max_grad_norm > 0,
        message="optimizer_in_backward frees each gradient at once, so their common norm cannot be clipped.",
        fix="set max_grad_norm=0, or leave it out",
    ),
    Rule(
        name="in_backward_accumulation",
        when=lambda args: (
            args.optimizer_in_backward and (args.gradient_accumulation_steps > 1 or args.tokens_per_step is not None)
        ),
        message="optimizer_in_backward takes a step in every backward pass, so gradients cannot be accumulated.",
        fix="set gradient_accumulation_steps=1 and leave tokens_per_step out",
    ),
    Rule(
        name="in_backward_alone",
        when=lambda args: (
            args.optimizer_in_backward and (args.world_size > 1 or args.n_gpu > 1 or uses_deepspeed(args) or args.fp16)
        ),
        message="optimizer_in_backward steps before ranks average gradients, or float16's scaler unscales them.",
        fix="start one process with bf16 or float32, or leave it out",
    ),
    Rule(
        name="in_backward_adamw",
        when=lambda args: args.optimizer_in_backward and args.optim.value not in ("adamw_torch", "adamw_torch_fused"),
        message="optimizer_in_backward is AdamW, not another optimizer.",
        fix="set optim='adamw_torch_fused', or leave it out",
    ),
    Rule(
        name="in_backward_reentrant",
        when=lambda args: (
            args.optimizer_in_backward and bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
        ),
        message="optimizer_in_backward needs whole gradients; reentrant checkpointing hands them over in parts.",
        fix="leave use_reentrant out of gradient_checkpointing_kwargs",
    ),
    Rule(
        name="muon_sharded",
        when=lambda args: args.optim is Own.MUON and uses_fsdp(args),
        message="optim='muon' needs whole matrices, of which FSDP leaves each process a part.",
        fix="leave fsdp out (torchrun alone trains with DDP), or set optim='adamw_torch_fused'",
    ),
    Rule(
        name="muon_deepspeed",
        when=lambda args: args.optim is Own.MUON and uses_deepspeed(args),
        message="optim='muon' needs whole matrices, which DeepSpeed flattens and shares out.",
        fix="leave deepspeed out (torchrun alone trains with DDP), or set optim='adamw_torch_fused'",
    ),
    Rule(
        name="plain_sgd_of_shards",
        when=lambda args: (
            gathers_states(args)
            and args.optim.value == "sgd"
            and not named_values(args.optim_args).get("momentum")
            and args.save_strategy.value != "no"
        ),
        message="Plain SGD has no states, and where FSDP gathers them whole (FULL_STATE_DICT), torch cannot go on from "
        "a checkpoint without any.",
        fix="set state_dict_type to SHARDED_STATE_DICT in fsdp_config, or optim_args='momentum=0.9'",
    ),
    Rule(
        name="rounding_of_shards",
        when=lambda args: rounds_stochastically(args) and (is_sharded(args) or args.fp16),
        message="bf16_stochastic_round rounds whole weights: not those that FSDP or DeepSpeed split, nor with fp16.",
        fix="leave it out of optim_args; weights that are split have room for float32",
    ),
    Rule(
        name="compile_of_shards",
        when=lambda args: args.torch_compile and is_sharded(args),
        message="torch_compile compiles the layers of whole models, not of those that FSDP or DeepSpeed split.",
        fix="leave torch_compile out",
    ),
    Rule(
        name="compile_without_compiler",
        when=lambda args: (
            args.torch_compile and args.torch_compile_backend == "inductor" and not has_compiler(args.device.type)
        ),
        message="torch_compile finds nothing here that compiles its code: on CPUs a C++ compiler, on GPUs Triton.",
        fix="apt-get install g++ (on a GPU: pip install triton), or leave torch_compile out",
    ),
    Rule(
        name="cuda_graphs_and_checkpointing",
        when=lambda args: args.torch_compile_mode in CUDA_GRAPH_MODES and bool(args.gradient_checkpointing),
        message="A CUDA graph writes over what it gave out before, which recomputed activations still need "
        "(torch_compile_mode='reduce-overhead' or 'max-autotune').",
        fix="set gradient_checkpointing=False; such modes are for small models",
    ),
    Rule(
        name="fp8_value",
        when=lambda args: args.fp8 not in (False, True, "emulate"),
        message="fp8 is True, False or 'emulate'.",
        fix="set one of them",
    ),
    Rule(
        name="fp8_absent",
        when=lambda args: bool(args.fp8) and is_missing("torchao"),
        message="fp8 needs torchao, which is not installed.",
        fix="pip install torchao",
    ),
    Rule(
        name="fp8_hardware",
        when=lambda args: bool(args.fp8) and args.fp8 != "emulate" and not multiplies_float8(args),
        message="fp8=True needs a GPU that multiplies in float8: NVIDIA's from Ada or Hopper on.",
        fix="leave it out; bf16=True is for all newer GPUs (fp8='emulate' only tries what would be learned, slowly)",
    ),
    Rule(
        name="fp8_of_shards",
        when=lambda args: bool(args.fp8) and (is_sharded(args) or args.fp16),
        message="fp8 takes whole layers, not those that FSDP or DeepSpeed split, and bf16=True or float32 beside it.",
        fix="leave fp8 out, or the other",
    ),
    Rule(
        name="fp8_not_compiled",
        when=lambda args: bool(args.fp8) and args.fp8 != "emulate" and not args.torch_compile,
        message="fp8 without torch_compile=True casts in kernels of their own, which costs what the products save.",
        fix="set torch_compile=True",
        refuses=False,
    ),
    Rule(
        name="lengths_of_cuda_graphs",
        when=lambda args: args.torch_compile_mode in CUDA_GRAPH_MODES and not args.pad_to_multiple_of,
        message="CUDA graphs are recorded for each length anew (torch_compile_mode='reduce-overhead', 'max-autotune').",
        fix="set packing=True and pad_to_multiple_of to per_device_train_batch_size * max_length: one length for all",
        refuses=False,
    ),
    Rule(
        name="mean_of_ranks",
        when=lambda args: not args.average_tokens_across_devices,
        message="average_tokens_across_devices=False takes the mean of the processes' means: with several of them the "
        "loss depends on which rows fall to which.",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="fsdp_on_cpu",
        when=lambda args: uses_fsdp(args) and args.device.type == "cpu",
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
        name="checkpointing_every_n",
        when=lambda args: (
            isinstance(args.gradient_checkpointing, str)
            and (args.gradient_checkpointing_kwargs or {}).get("every_n_layers", 1) > 1
        ),
        message="gradient_checkpointing='auto' and 'selective' choose the layers, and every_n_layers does so too.",
        fix="leave every_n_layers out, or set gradient_checkpointing=True",
    ),
    Rule(
        name="budget_without_auto",
        when=lambda args: args.memory_budget is not None and args.gradient_checkpointing != "auto",
        message="memory_budget has no effect without gradient_checkpointing='auto'.",
        fix="set it, or leave memory_budget out",
        refuses=False,
    ),
    Rule(
        name="budget_not_positive",
        when=lambda args: args.memory_budget is not None and not args.memory_budget > 0,
        message="memory_budget is not above 0.",
        fix="give GB, such as 24",
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
        RecipeError: a rule that refuses applies, the loss or a service of `report_to` is unknown, or DeepSpeed's
            configuration says something else.
    """
    args.objective()
    need_reporters(args.report_to)
    check_deepspeed(args)
    notes = []
    for rule in RULES:
        if not rule.when(args):
            continue
        if rule.refuses:
            raise RecipeError(rule.message, fix=rule.fix)
        notes.append(f"{rule.message} {rule.fix[0].upper()}{rule.fix[1:]}.")
    return notes
