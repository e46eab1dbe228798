"""A table of option combinations that cannot work or have no effect, checked before anything is loaded."""

from __future__ import annotations

import math

from honed.errors import RecipeError
from honed.train.options.config import SFTConfig
from honed.train.options.deepspeed import check_deepspeed
from honed.train.options.optim import check_optim_args
from honed.train.options.refusals import need_reporters
from honed.train.options.rule import Rule, order_is_fixed
from honed.train.options.rules_of_ranks import RULES_OF_RANKS
from honed.train.options.surroundings import (
    CUDA_GRAPH_MODES,
    cpu_likes_bf16,
    has_compiler,
    is_missing,
    lacks_bfloat16,
    multiplies_float8,
    runs_triton,
    uses_deepspeed,
)

RULES = (
    *RULES_OF_RANKS,
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
        message="truncation_mode can only be 'keep_start': otherwise answers would be trained without their questions.",
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
        message="tokens_per_step and gradient_accumulation_steps both set how many micro-batches a step has.",
        fix="leave gradient_accumulation_steps out",
    ),
    Rule(
        name="tokens_of_a_stream",
        when=lambda args: args.tokens_per_step is not None and (args.streaming or args.skips_preparation),
        message="tokens_per_step needs the length of every row before training; streamed or unprepared rows have none.",
        fix="leave it out, or prepare the rows",
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
        message="optimizer_in_backward supports only AdamW.",
        fix="set optim='adamw_torch_fused', or leave it out",
    ),
    Rule(
        name="in_backward_reentrant",
        when=lambda args: (
            args.optimizer_in_backward and bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
        ),
        message="optimizer_in_backward needs whole gradients; reentrant checkpointing delivers them in parts.",
        fix="leave use_reentrant out of gradient_checkpointing_kwargs",
    ),
    Rule(
        name="compile_without_compiler",
        when=lambda args: (
            args.torch_compile and args.torch_compile_backend == "inductor" and not has_compiler(args.device.type)
        ),
        message="torch_compile finds no compiler here: it needs a C++ compiler on CPUs, Triton on GPUs.",
        fix="apt-get install g++ (on a GPU: pip install triton), or leave torch_compile out",
    ),
    Rule(
        name="cuda_graphs_and_checkpointing",
        when=lambda args: args.torch_compile_mode in CUDA_GRAPH_MODES and bool(args.gradient_checkpointing),
        message="A CUDA graph overwrites its earlier outputs, which recomputed activations still need "
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
        message="fp8=True needs a GPU that multiplies in float8: NVIDIA Ada, Hopper or newer.",
        fix="leave it out; bf16=True works on all newer GPUs (fp8='emulate' only simulates float8, slowly)",
    ),
    Rule(
        name="fp8_not_compiled",
        when=lambda args: bool(args.fp8) and args.fp8 != "emulate" and not args.torch_compile,
        message="fp8 without torch_compile=True casts in separate kernels, which cost what the matrix products save.",
        fix="set torch_compile=True",
        refuses=False,
    ),
    Rule(
        name="lengths_of_cuda_graphs",
        when=lambda args: args.torch_compile_mode in CUDA_GRAPH_MODES and not args.pad_to_multiple_of,
        message="A new CUDA graph is recorded for each length (torch_compile_mode='reduce-overhead', 'max-autotune').",
        fix="set packing=True and pad_to_multiple_of to per_device_train_batch_size * max_length: one length for all",
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
        message="gradient_checkpointing='auto' and 'selective' choose the layers, and so does every_n_layers.",
        fix="leave every_n_layers out, or set gradient_checkpointing=True",
    ),
    Rule(
        name="early_stopping_values",
        when=lambda args: (
            (args.early_stopping_patience is not None and args.early_stopping_patience < 1)
            or args.early_stopping_threshold < 0
        ),
        message="early_stopping_patience is below 1, or early_stopping_threshold below 0.",
        fix="set a number of evaluations, such as 3, and the least improvement that counts, or leave them out",
    ),
    Rule(
        name="early_stopping_without_evaluations",
        when=lambda args: args.early_stopping_patience is not None and args.eval_strategy.value == "no",
        message="early_stopping_patience counts evaluations, and there are none (eval_strategy is no).",
        fix="hold rows out (data.eval_share=0.02; in a script eval_dataset), and set eval_strategy='epoch' or 'steps'",
    ),
    Rule(
        name="early_stopping_without_the_best",
        when=lambda args: args.early_stopping_patience is not None and not args.load_best_model_at_end,
        message="early_stopping_patience ends a run after its best evaluation, and would save the worse model.",
        fix="set load_best_model_at_end=True, with save_strategy like eval_strategy",
    ),
    Rule(
        name="jit_checkpoint",
        when=lambda args: args.enable_jit_checkpoint,
        message="enable_jit_checkpoint=True lets train() return after SIGTERM as if the run were finished, and only in "
        "the process that gets the signal.",
        fix="leave it out; honed finishes the step on SIGTERM, saves, and ends all processes",
    ),
    Rule(
        name="order_of_rows",
        when=lambda args: not args.streaming and not order_is_fixed(args),
        message="The seed does not fix the order of the rows with use_seedable_sampler=False (accelerator_config), or "
        "with dataloader_in_order=False and workers: a resumed run may repeat some rows and skip others, and no "
        "report names the rows of a step.",
        fix="leave it out",
        refuses=False,
    ),
    Rule(
        name="optim_target_modules",
        when=lambda args: bool(args.optim_target_modules) and not args.optim.value.startswith(("galore", "apollo")),
        message="optim_target_modules has no effect without one of GaLore's or APOLLO's optimizers.",
        fix="set optim, for instance to 'galore_adamw', or leave it out",
        refuses=False,
    ),
    Rule(
        name="schedule_without_options",
        when=lambda args: bool(args.lr_scheduler_kwargs) and args.lr_scheduler_type.value.startswith("constant"),
        message="lr_scheduler_kwargs has no effect with lr_scheduler_type='constant' and 'constant_with_warmup'.",
        fix="leave it out, or set another lr_scheduler_type",
        refuses=False,
    ),
    Rule(
        name="include_for_metrics",
        when=lambda args: bool(set(args.include_for_metrics) - {"inputs", "loss"}),
        message="include_for_metrics has no effect except for 'inputs' and 'loss'.",
        fix="leave other names out",
        refuses=False,
    ),
    Rule(
        name="threshold_without_patience",
        when=lambda args: args.early_stopping_threshold > 0 and args.early_stopping_patience is None,
        message="early_stopping_threshold has no effect without early_stopping_patience.",
        fix="set early_stopping_patience, or leave it out",
        refuses=False,
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
        message="dataset_kwargs has no effect except for skip_prepare_dataset.",
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
        message="completion_only_loss has no effect with train_on, which says what is trained.",
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
        name="evaluation_casts_the_model",
        when=lambda args: args.bf16_full_eval or args.fp16_full_eval,
        message="bf16_full_eval and fp16_full_eval cast the model's own weights when evaluate() is called outside of "
        "train(), so what is saved afterwards is rounded to 16 bits, and train() is refused.",
        fix="leave them out; bf16=True evaluates in bfloat16 and keeps the weights",
        refuses=False,
    ),
    Rule(
        name="bf16_on_cpu",
        when=lambda args: bool(args.bf16) and args.device.type == "cpu" and not cpu_likes_bf16(),
        message="bf16=True on this CPU is slower than float32 (measured just now).",
        fix="leave bf16 out",
        refuses=False,
    ),
    Rule(
        name="bf16_emulated",
        when=lambda args: not args.fp16 and lacks_bfloat16(args),
        message="This GPU does not compute in bfloat16. float32, or bfloat16 emulated with bf16=True, is slow on it.",
        fix="set fp16=True",
        refuses=False,
    ),
)


def check(args: SFTConfig) -> list[str]:
    """Returns the notes of all rules that apply.

    Raises:
        RecipeError: a rule that refuses applies, the loss or a service in `report_to` is unknown, `optim_args` has no
            names, or DeepSpeed's configuration contradicts the arguments.
    """
    args.objective()
    need_reporters(args.report_to)
    check_deepspeed(args)
    notes = check_optim_args(args)
    for rule in RULES:
        if not rule.when(args):
            continue
        if rule.refuses:
            raise RecipeError(rule.message, fix=rule.fix)
        notes.append(f"{rule.message} {rule.fix[0].upper()}{rule.fix[1:]}.")
    return notes
