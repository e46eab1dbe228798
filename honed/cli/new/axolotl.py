"""axolotl's YAML (`axolotl train x.yaml`); keys and defaults as in its src/axolotl/utils/schemas, 2026-07."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from honed.cli.new.axolotl_data import data, put_often
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
    "freeze_mm_modules": to("train.freeze_vision"),
    "gradient_checkpointing": to("train.gradient_checkpointing", {True: True, False: False, "offload": True}),
    "activation_offloading": to("train.activation_offloading", {True: True, "legacy": True, False: None}),
    "fp8": to("train.fp8"),
    "tf32": to("train.tf32", {True: True, False: False, "auto": None}),
    "torch_compile": to("train.torch_compile", {True: True, False: None, "auto": None}),
    "shuffle_merged_datasets": to("train.train_sampling_strategy", {True: None, False: "sequential"}),
    **rules_of("adapter load_in_4bit load_in_8bit lora_r lora_alpha lora_dropout lora_target_modules "
               "lora_target_linear lora_modules_to_save peft_use_dora peft_use_rslora peft_init_lora_weights bf16 "
               "bfloat16 bnb_config_kwargs", Rule(group="weights")),
    **rules_of("micro_batch_size gradient_accumulation_steps batch_size eval_batch_size warmup_ratio warmup_steps "
               "saves_per_epoch save_steps lr_scheduler cosine_min_lr_ratio special_tokens "
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
               "use_*_kernels experts_implementation tiled_mlp*", "honed brings its own way of computing"),
    **needless("dataset_prepared_path dataset_keep_in_memory num_dataset_shards_to_save "
               "push_dataset_to_hub is_preprocess preprocess_iterable",
               "prepared data are cached by what they were made of"),
    **needless("skip_prepare_dataset", "rows are prepared here, those with images too"),
    **needless("pad_to_sequence_len pad_to_multiple_of batch_flattening multipack_real_batches sample_packing_* "
               "pretrain_multipack_attn total_num_tokens",
               "batches have no padding, and rows are packed by real length"),
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
    **needless("auto_resume_from_checkpoints", "the same command goes on from the newest checkpoint"),
    **needless("lora_on_cpu merge_* qlora_sharded_model_loading tokenizer_save_jinja_files embeddings_skip_upcast "
               "bnb_*", "honed loads and saves in its own way"),
    **needless("trl vllm ebft_* dpo_* kto_* orpo_* simpo_* cpo_* rl_beta rpo_* precompute_ref_log_probs max_prompt_len "
               "relora_* jagged_* lisa_* eaft_* qgalore_* dion_* gptq_*", "part of another key, which decides"),
    **refused("rl reward_model process_reward_model center_rewards_coefficient num_labels ebft diffusion",
              "honed does supervised fine-tuning", KEEP),
    **refused("qat quantization llmcompressor fp16_full_eval gptq model_quantization_config* quantize_moe_experts "
              "use_onebitllms", "honed quantises to nf4, fp4 or int8", KEEP),
    **refused("relora lisa_n_layers lora_model_dir lora_target_parameters lora_rank_pattern lora_alpha_pattern "
              "lora_fan_in_fan_out peft peft_layer* peft_trainable_token_indices peft_ensure_weight_tying "
              "peft_autocast_adapter_dtype", "a recipe makes a new LoRA adapter on named layers", "leave it out"),
    **refused("unfrozen_parameters layer_offloading selective_checkpointing", "all weights are trained, or an adapter"),
    **refused("embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio lr_quadratic_warmup lr_div_factor "
              "cosine_constant_lr_ratio jagged_restart_steps adam_beta3 adam_epsilon2 optim_target_modules",
              "honed has one learning rate, and transformers' schedules", "leave it out"),
    **refused("use_eaft", "axolotl's factor is three times that of the paper's authors, whom honed follows",
              "set train.loss_type=eaft in the recipe, and look at the learning rate again"),
    **refused("use_pose curriculum_sampling sample_packing_sequentially min_sample_len eval_sequence_len "
              "dataset_exact_deduplication dataset_shard_num dataset_shard_idx shuffle_before_merging_datasets",
              "honed has no such option",
              "leave it out, or change the rows (`honed data check` finds repeats)"),
    **refused("tokenizer_config tokenizer_legacy tokenizer_use_mistral_common tokens added_tokens_overrides "
              "resize_token_embeddings_to_32x shrink_embeddings reinit_weights fix_untrained_tokens processor_kwargs "
              "revision_of_model overrides_of_model_* model_config cls_model_config rope_scaling "
              "llama4_linearized_experts scaling_softmax*", "a recipe takes model and tokenizer as they were saved",
              "save them changed, and name that folder"),
    **refused("tensor_parallel_size context_parallel_size sequence_parallel_degree expert_parallel_size",
              "parts of rows or layers on several GPUs", "use DDP or FSDP2 (docs/distributed.md)", off=(1,)),
    **refused("early_stopping_patience do_bench_eval bench_* trainer_cls dynamic_checkpoint use_swanlab",
              "honed has no such option"),
})  # fmt: skip


def weights(draft: Draft, given: Values) -> None:
    """What is trained: an adapter, on 16, 8 or 4 bits, or all weights."""
    adapter = given.get("adapter")
    if adapter in ("lora", "qlora"):
        _adapter(draft, given)
    elif adapter is not None:
        draft.refuse("adapter", "honed trains a LoRA adapter or all weights", "write lora or qlora, or leave it out")
    else:
        draft.put("lora", None, "all weights")
        for key in given.keys() - {"bf16", "bfloat16", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs"}:
            draft.skip(key, "all weights are trained")
    _quantization(draft, given)
    halved = given.get("bf16", "auto") in (True, "auto") or given.get("bfloat16")
    if adapter is None and halved:
        draft.put("dtype", "bfloat16", f"as {NAME} loads it; without this line small updates are not rounded away")
    if isinstance(given.get("bf16"), bool):
        draft.put("train.bf16", given["bf16"])
    elif given.get("bf16", "auto") != "auto":
        draft.refuse("bf16", "no such value here", "write true, false or auto")


def _adapter(draft: Draft, given: Values) -> None:
    names = {
        "lora_r": "r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "lora_modules_to_save": "modules_to_save",
        "peft_use_dora": "use_dora",
        "peft_use_rslora": "use_rslora",
        "peft_init_lora_weights": "init",
    }
    for key, ours in names.items():
        if key in given:
            draft.put(f"lora.{ours}", float(given[key]) if ours == "dropout" else given[key])
        elif ours in ("r", "alpha"):
            draft.refuse("adapter", f"{key} is missing", f"write {key}")
    listed = given.get("lora_target_modules")
    whole = given.get("lora_target_linear")
    if whole and isinstance(listed, list) and {"lm_head", "embed_tokens"} & set(listed):
        draft.refuse(
            "lora_target_modules", "all linear layers and the head cannot be named together", "list all layers"
        )
    if whole or listed:
        draft.put("lora.target_modules", "all-linear" if whole else listed)
    else:
        draft.refuse("adapter", "no layers are named for it", "write lora_target_linear: true")


def _quantization(draft: Draft, given: Values) -> None:
    extra = dict(given.get("bnb_config_kwargs") or {})
    if given.get("load_in_4bit"):
        draft.put("quantization", extra.pop("bnb_4bit_quant_type", "nf4"))
        if extra.pop("bnb_4bit_use_double_quant", True) is not True or extra:
            draft.refuse("bnb_config_kwargs", "scales are quantised once more, and nothing else is set", "leave it out")
    elif given.get("load_in_8bit"):
        draft.put("quantization", "int8")
    if extra and not given.get("load_in_4bit"):
        draft.skip("bnb_config_kwargs", "part of load_in_4bit")


def steps(draft: Draft, given: Values) -> None:
    """Batches, schedule, checkpoints and trackers."""
    _batches(draft, given)
    _schedule(draft, given)
    put_often(draft, "save", given.get("saves_per_epoch"), given.get("save_steps"))
    for name, token in (given.get("special_tokens") or {}).items():
        if token is not None and name in ("eos_token", "pad_token"):
            draft.put(f"train.{name}", token)
        elif token is not None:
            draft.refuse("special_tokens", f"{name} is the tokenizer's own", "save a tokenizer that has it")
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
            draft.skip(key, "export WANDB_PROJECT" if "wandb" in trackers else "no tracker is asked for")


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
    groups=MappingProxyType({"weights": weights, "steps": steps, "data": data}),
    defaults=(
        ("train.num_train_epochs", 1.0),
        ("train.weight_decay", 0.0),
        ("train.save_strategy", "epoch"),
        ("train.save_total_limit", 4),
        ("train.seed", 42),
    ),
    arguments=transformers_arguments,
)
