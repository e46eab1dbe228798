"""axolotl's YAML (`axolotl train x.yaml`); keys and defaults as in its src/axolotl/utils/schemas, 2026-07."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from honed.cli.new.axolotl_data import data, put_often
from honed.cli.new.axolotl_weights import model, rates, weights
from honed.cli.new.translate import (
    KEEP,
    Draft,
    Rule,
    Trainer,
    Values,
    as_number,
    needless,
    refused,
    rules_of,
    to,
    transformers_arguments,
)

NAME = "axolotl"
SPEED_PLUGINS = ("CutCrossEntropyPlugin", "LigerPlugin", "KernelsPlugin")

RULES: Mapping[str, Rule] = MappingProxyType({
    "base_model": to("model"),
    "output_dir": to("output"),
    "chat_template_kwargs": to("data.template_arguments"),
    "default_system_message": to("data.system"),
    "dataset_processes": to("data.workers"),
    "dataset_num_proc": to("data.workers"),
    "num_epochs": to("train.num_train_epochs"),
    "optimizer": to("train.optim"),
    "noisy_embedding_alpha": to("train.neftune_noise_alpha"),
    "context_parallel_size": to("train.sequence_parallel_size"),
    "sequence_parallel_degree": to("train.sequence_parallel_size"),
    "gradient_checkpointing": to("train.gradient_checkpointing", {True: True, False: False, "offload": True}),
    "activation_offloading": to("train.activation_offloading", {True: True, "legacy": True, False: None}),
    "fp8": to("train.fp8"),
    "tf32": to("train.tf32", {True: True, False: False, "auto": None}),
    "torch_compile": to("train.torch_compile", {True: True, False: None, "auto": None}),
    "shuffle_merged_datasets": to("train.train_sampling_strategy", {True: None, False: "sequential"}),
    **rules_of("adapter load_in_4bit load_in_8bit lora_r lora_alpha lora_dropout lora_target_modules "
               "lora_target_linear lora_modules_to_save lora_target_parameters lora_rank_pattern lora_alpha_pattern "
               "peft_use_dora peft_use_rslora peft_init_lora_weights bf16 "
               "bfloat16 bnb_config_kwargs quantize_moe_experts llama4_linearized_experts unfrozen_parameters "
               "freeze_mm_modules", Rule(group="weights")),
    **rules_of("embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio", Rule(group="rates")),
    **rules_of("model_config overrides_of_model_config", Rule(group="model")),
    **rules_of("micro_batch_size gradient_accumulation_steps batch_size eval_batch_size warmup_ratio warmup_steps "
               "saves_per_epoch save_steps lr_scheduler cosine_min_lr_ratio special_tokens tokens "
               "early_stopping_patience "
               "plugins wandb_project use_wandb wandb_name use_mlflow use_tensorboard use_comet use_trackio",
               Rule(group="steps")),
    **rules_of("datasets test_datasets pretraining_dataset val_set_size sequence_len sample_packing "
               "eval_sample_packing evals_per_epoch eval_steps eval_strategy "
               "evaluation_strategy train_on_inputs excess_length_strategy chat_template chat_template_jinja streaming "
               "streaming_multipack_buffer_size pretrain_multipack_buffer_size", Rule(group="data")),
    **needless("base_model_config model_type type_of_model tokenizer_type processor_type tokenizer_use_fast "
               "is_*_derived_model model_config_type", "found by the model's own config.json"),
    **needless("flash_* xformers_attention sdp_attention flex_attention flex_attn_* sage_attention eager_attention "
               "attn_implementation fused_attn_kernel gemma4_hybrid_attn_impl sdpa_varlen large_head_attention "
               "liger_* cut_cross_entropy chunked_cross_entropy* lora_*_kernel use_kernels use_scattermoe use_sonicmoe "
               "use_*_kernels experts_implementation tiled_mlp*", "honed has its own implementation"),
    **needless("dataset_prepared_path dataset_keep_in_memory num_dataset_shards_to_save "
               "push_dataset_to_hub is_preprocess preprocess_iterable",
               "prepared data are cached by what they were made of"),
    **needless("skip_prepare_dataset", "rows are prepared here, those with images too"),
    **needless("pad_to_sequence_len pad_to_multiple_of batch_flattening multipack_real_batches sample_packing_* "
               "pretrain_multipack_attn total_num_tokens",
               "batches have no padding, and rows are packed by real length"),
    **needless("resize_token_embeddings_to_32x", "embedding rows without a token are only there for speed"),
    **needless("eta_min adam_eps full_finetune", f"{NAME} has no such key and ignores it"),
    **needless("lora_fan_in_fan_out", "peft sees it at the layer"),
    **needless("eot_tokens", "the token that ends a turn is found in the template, and is trained"),
    **needless("dp_shard_size dp_replicate_size expert_parallel_num_* expert_parallel_token_*",
               "weights are sharded by `accelerate launch --config_file fsdp2.yaml` (docs/distributed.md)"),
    **needless("use_ray ray_* resources_per_worker ddp local_rank world_size device device_map gpu_memory_limit "
               "max_memory low_cpu_mem_usage experimental_skip_move_to_device",
               "the device is found; several processes are started by torchrun (docs/distributed.md)"),
    **needless("wandb_* mlflow_* hf_mlflow_* comet_* trackio_* use_otel_metrics otel_* swanlab_*",
               "trackers take it from their own environment variables (WANDB_PROJECT, ...)"),
    **needless("debug strict loss_watchdog_* gc_steps gc_collect_steps profiler_* include_tkps "
               "include_tokens_per_second save_first_step eval_table_size eval_max_new_tokens "
               "eval_causal_lm_metrics do_causal_lm_eval generate_samples num_generation_samples "
               "generation_* test_value", "it changes nothing that is trained"),
    **needless("auto_resume_from_checkpoints", "the same command resumes from the newest checkpoint"),
    **needless("lora_on_cpu merge_* qlora_sharded_model_loading tokenizer_save_jinja_files embeddings_skip_upcast "
               "bnb_*", "honed loads and saves in its own way"),
    **needless("loraplus_lr_embedding trl vllm ebft_* dpo_* kto_* orpo_* simpo_* cpo_* rl_beta rpo_* "
               "precompute_ref_log_probs max_prompt_len "
               "relora_* jagged_* lisa_* eaft_* qgalore_* dion_* gptq_*", "part of another key, which decides"),
    **refused("rl reward_model process_reward_model center_rewards_coefficient num_labels ebft diffusion",
              "honed does supervised fine-tuning", KEEP),
    **refused("qat quantization llmcompressor fp16_full_eval gptq model_quantization_config* "
              "use_onebitllms", "honed quantises to nf4, fp4 or int8", KEEP),
    **refused("lora_model_dir", "a recipe names an adapter as its model, and takes its options",
              "leave it and lora_* out, and set model=ADAPTER, or merge it (`honed export`)"),
    **refused("relora lisa_n_layers peft peft_layer* peft_trainable_token_indices "
              "peft_ensure_weight_tying "
              "peft_autocast_adapter_dtype", "a recipe makes a new LoRA adapter on named layers", "leave it out"),
    **refused("layer_offloading selective_checkpointing", "honed has gradient_checkpointing and activation_offloading"),
    **refused("lr_quadratic_warmup lr_div_factor "
              "cosine_constant_lr_ratio jagged_restart_steps adam_beta3 adam_epsilon2 optim_target_modules",
              "honed has one learning rate, and transformers' schedules", "leave it out"),
    **refused("use_eaft", "axolotl's factor is three times that of the paper's authors, whom honed follows",
              "set train.loss_type=eaft in the recipe, and look at the learning rate again"),
    **refused("use_pose curriculum_sampling sample_packing_sequentially min_sample_len eval_sequence_len "
              "dataset_exact_deduplication dataset_shard_num dataset_shard_idx shuffle_before_merging_datasets",
              "honed has no such option",
              "leave it out, or change the rows (`honed data check` finds repeats)"),
    **refused("tokenizer_config tokenizer_legacy tokenizer_use_mistral_common added_tokens_overrides "
              "shrink_embeddings reinit_weights fix_untrained_tokens processor_kwargs "
              "revision_of_model overrides_of_model_kwargs cls_model_config rope_scaling scaling_softmax*", "a recipe "
              "takes model and tokenizer as they were saved",
              "save them changed, and name that folder"),
    **refused("tensor_parallel_size expert_parallel_size",
              "parts of layers on several GPUs", "use DDP or FSDP2 (docs/distributed.md)", off=(1,)),
    **refused("do_bench_eval bench_* trainer_cls dynamic_checkpoint use_swanlab",
              "honed has no such option"),
})  # fmt: skip


def steps(draft: Draft, given: Values) -> None:
    """Translates batches, schedule, checkpoints and trackers."""
    _batches(draft, given)
    _schedule(draft, given)
    put_often(draft, "save", given.get("saves_per_epoch"), given.get("save_steps"))
    _tokens(draft, given)
    if given.get("early_stopping_patience"):
        draft.put("train.early_stopping_patience", given["early_stopping_patience"])
        draft.put("train.load_best_model_at_end", True, f"{NAME} does so with early_stopping_patience")
    odd = [name for name in given.get("plugins") or () if str(name).rsplit(".", 1)[-1] not in SPEED_PLUGINS]
    if odd:
        draft.refuse("plugins", f"{', '.join(map(str, odd))} may change what is trained", "leave it out")
    trackers = [name for name in ("wandb", "mlflow", "tensorboard", "comet", "trackio") if given.get(f"use_{name}")]
    if given.get("wandb_project") and "use_wandb" not in given:
        trackers.append("wandb")
    if trackers:
        draft.put("train.report_to", [{"comet": "comet_ml"}.get(name, name) for name in trackers])
    if given.get("wandb_name") and "wandb" in trackers:
        draft.put("train.run_name", given["wandb_name"])
    for key in given.keys() & {"wandb_project", "wandb_name"}:
        if "wandb" not in trackers or key == "wandb_project":
            draft.skip(key, "export WANDB_PROJECT" if "wandb" in trackers else "no tracker is set")


def _tokens(draft: Draft, given: Values) -> None:
    """Translates new tokens and special tokens; older files have the new ones in `tokens`."""
    tokens: Any = given.get("tokens") or []
    roles: dict[str, Any] = dict(given.get("special_tokens") or {})
    if isinstance(tokens, Mapping):
        tokens, roles = [], {**tokens, **roles}
    added = [*tokens, *(roles.pop("additional_special_tokens", None) or [])]
    if added:
        draft.put("train.add_tokens", added, "those that the tokenizer has already stay as they are")
    for name, token in roles.items():
        if token is not None and name in ("bos_token", "eos_token", "pad_token", "unk_token"):
            draft.put(f"train.{name}", token)
        elif token is not None:
            draft.refuse("special_tokens", f"{name} is the tokenizer's own", "save a tokenizer that has it")


def _batches(draft: Draft, given: Values) -> None:
    rows = given.get("micro_batch_size", 1)
    draft.put("train.per_device_train_batch_size", rows, "" if "micro_batch_size" in given else f"{NAME}'s default")
    accumulated = given.get("gradient_accumulation_steps")
    if accumulated is None and "batch_size" in given:
        accumulated = max(1, given["batch_size"] // rows)
    elif "batch_size" in given:
        draft.skip("batch_size", "gradient_accumulation_steps says it")
    draft.put("train.gradient_accumulation_steps", accumulated or 1, "" if accumulated else f"{NAME}'s default")
    draft.put("train.per_device_eval_batch_size", given.get("eval_batch_size", rows))


def _schedule(draft: Draft, given: Values) -> None:
    name, least = given.get("lr_scheduler", "cosine"), as_number(given.get("cosine_min_lr_ratio"))
    if name in ("one_cycle", "rex"):
        draft.refuse("lr_scheduler", "not one of transformers' schedules", "write cosine, linear, constant, ...")
    elif least is not None and name == "cosine":
        draft.put("train.lr_scheduler_type", "cosine_with_min_lr")
        draft.put("train.lr_scheduler_kwargs", {"min_lr_rate": least})
    else:
        draft.put("train.lr_scheduler_type", name, "" if "lr_scheduler" in given else f"{NAME}'s default")
        if least is not None:
            draft.skip("cosine_min_lr_ratio", "part of the cosine schedule")
    warmup = as_number(given.get("warmup_steps", given.get("warmup_ratio")))
    comment = f"{NAME}'s default; there at most 100 steps" if warmup is None else ""
    draft.put("train.warmup_steps", 0.03 if warmup is None else warmup, comment)
    if {"warmup_steps", "warmup_ratio"} <= given.keys():
        draft.skip("warmup_ratio", "warmup_steps says it")


AXOLOTL = Trainer(
    name=NAME,
    rules=RULES,
    groups=MappingProxyType({"weights": weights, "rates": rates, "model": model, "steps": steps, "data": data}),
    defaults=(
        ("train.num_train_epochs", 1.0),
        ("train.weight_decay", 0.0),
        ("train.save_strategy", "epoch"),
        ("train.save_total_limit", 4),
        ("train.seed", 42),
    ),
    arguments=transformers_arguments,
)
