"""Rules about several processes: which rank has which rows, sharded weights, DeepSpeed."""

from __future__ import annotations

from honed.model.plan.optimizers import named_values
from honed.train.options.optim import Own, rounds_stochastically
from honed.train.options.rule import Rule
from honed.train.options.surroundings import (
    gathers_states,
    hinders_sequences,
    is_sharded,
    row_parts,
    uses_deepspeed,
    uses_fsdp,
)

RULES_OF_RANKS = (
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
        "would treat its part of a row as a whole row, and documents would lose boundaries and labels.",
        fix="leave it out and set sequence_parallel_size, which splits rows among processes and keeps both",
    ),
    Rule(
        name="sequence_parallel_alone",
        when=lambda args: args.sequence_parallel_size > 1 and hinders_sequences(args),
        message="sequence_parallel_size has not been verified with torch_compile, fp8, neftune_noise_alpha, "
        "DeepSpeed, cpu_ram_efficient_loading, skip_prepare_dataset or average_tokens_across_devices=False.",
        fix="leave the other out",
    ),
    Rule(
        name="sequence_parallel_ranks",
        when=lambda args: args.sequence_parallel_size < 1 or args.world_size % args.sequence_parallel_size != 0,
        message="sequence_parallel_size processes share a row, so the number of processes must be a multiple of it.",
        fix="start that many (torchrun --nproc_per_node N ...), or leave it out",
    ),
    Rule(
        name="dispatched_batches",
        when=lambda args: bool(args.accelerator_config.dispatch_batches),
        message="dispatch_batches=True (accelerator_config) has one process make all batches and slice "
        "them for the others: through documents, where batches are flat.",
        fix="leave it out; each process then makes its own batches",
    ),
    Rule(
        name="split_batches",
        when=lambda args: (
            bool(args.accelerator_config.split_batches)
            and any(
                size % args.world_size for size in (args.per_device_train_batch_size, args.per_device_eval_batch_size)
            )
        ),
        message="split_batches=True (accelerator_config) divides each batch among the processes, so batch sizes must "
        "be multiples of their number.",
        fix="leave it out, or set per_device_train_batch_size and per_device_eval_batch_size to such multiples",
    ),
    Rule(
        name="static_graph",
        when=lambda args: (
            bool(args.ddp_static_graph)
            and args.world_size > 1
            and (args.gradient_accumulation_steps > 1 or args.tokens_per_step is not None)
        ),
        message="ddp_static_graph=True does not support gradient accumulation: torch stops at an internal assertion.",
        fix="leave it out, or set gradient_accumulation_steps=1 and leave tokens_per_step out",
    ),
    Rule(
        name="gathered_objects",
        when=lambda args: args.eval_use_gather_object and args.world_size > 1,
        message="eval_use_gather_object=True fails with several processes: transformers cannot concatenate the lists "
        "of tensors that it gathers.",
        fix="leave it out; logits and labels are gathered as tensors",
    ),
    Rule(
        name="rebalanced_batches",
        when=lambda args: getattr(args, "train_sampling_strategy", "") == "batch_rebalance",
        message="train_sampling_strategy='batch_rebalance' repeats rows in an epoch's last step, which count twice.",
        fix="set tokens_per_step, which gives all ranks and micro-batches as many tokens, or leave it out",
    ),
    Rule(
        name="tokens_with_deepspeed",
        when=lambda args: args.tokens_per_step is not None and uses_deepspeed(args),
        message="tokens_per_step varies the number of micro-batches, which DeepSpeed counts itself.",
        fix="leave one of them out, or shard with FSDP",
    ),
    Rule(
        name="learning_rates_with_deepspeed",
        when=lambda args: bool(args.learning_rates) and uses_deepspeed(args),
        message="learning_rates groups the optimizer's weights by name, but DeepSpeed flattens and shards them.",
        fix="leave one of them out, or shard with FSDP2",
    ),
    Rule(
        name="muon_sharded",
        when=lambda args: args.optim is Own.MUON and uses_fsdp(args),
        message="optim='muon' needs whole matrices, but FSDP leaves each process only a part of them.",
        fix="leave fsdp out (torchrun alone trains with DDP), or set optim='adamw_torch_fused'",
    ),
    Rule(
        name="muon_deepspeed",
        when=lambda args: args.optim is Own.MUON and uses_deepspeed(args),
        message="optim='muon' needs whole matrices, but DeepSpeed flattens and shards them.",
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
        message="torch cannot resume plain SGD from FSDP's FULL_STATE_DICT checkpoints, because SGD without momentum "
        "has no optimizer state.",
        fix="set state_dict_type='SHARDED_STATE_DICT' in fsdp_config, or optim_args='momentum=0.9'",
    ),
    Rule(
        name="rounding_of_shards",
        when=lambda args: rounds_stochastically(args) and (is_sharded(args) or args.fp16),
        message="bf16_stochastic_round needs whole weights, not shards (FSDP, DeepSpeed), and no fp16.",
        fix="leave it out of optim_args; sharded weights leave room for float32",
    ),
    Rule(
        name="compile_of_shards",
        when=lambda args: args.torch_compile and is_sharded(args),
        message="torch_compile compiles the layers of whole models, not of those that FSDP or DeepSpeed shard.",
        fix="leave torch_compile out",
    ),
    Rule(
        name="fp8_of_shards",
        when=lambda args: bool(args.fp8) and (is_sharded(args) or args.fp16),
        message="fp8 needs whole layers, not those that FSDP or DeepSpeed shard, and bf16=True or float32.",
        fix="leave fp8 or the other option out",
    ),
    Rule(
        name="mean_of_ranks",
        when=lambda args: not args.average_tokens_across_devices,
        message="average_tokens_across_devices=False averages the processes' means, so the loss depends on "
        "which process gets which rows.",
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
)
