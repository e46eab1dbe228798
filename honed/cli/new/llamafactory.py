"""LLaMA-Factory's YAML (`llamafactory-cli train x.yaml`): keys and defaults of src/llamafactory/hparams, 2026-08."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from honed.cli.new.llamafactory_data import NAME, data, freeze_vision
from honed.cli.new.llamafactory_freeze import freeze
from honed.cli.new.translate import (
    KEEP,
    OFF,
    Draft,
    Rule,
    Trainer,
    Values,
    as_list,
    as_number,
    needless,
    only,
    refused,
    rules_of,
    to,
    transformers_arguments,
)

FREEZE = {"freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"}
VISION = ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model")

RULES: Mapping[str, Rule] = MappingProxyType({
    "model_name_or_path": to("model"),
    "output_dir": to("output"),
    "default_system": to("data.system"),
    "preprocessing_num_workers": to("data.workers"),
    "early_stopping_steps": to("train.early_stopping_patience"),
    "moe_aux_loss_coef": to("train.router_aux_loss_coef"),
    "enable_liger_kernel": to("train.use_liger_kernel"),
    "fp8": to("train.fp8"),
    "image_max_pixels": to("train.image_max_pixels"),
    "disable_gradient_checkpointing": to("train.gradient_checkpointing", {True: False, False: True}),
    "use_dft_loss": to("train.loss_type", {True: "dft", False: None}),
    "use_eaft_loss": to("train.loss_type", {True: "eaft", False: None}),
    "use_muon": to("train.optim", {True: "muon", False: None}),
    "disable_shuffling": to("train.train_sampling_strategy", {True: "sequential", False: None}),
    "quantization_method": to("", {"bnb": None, "bitsandbytes": None}),
    "double_quantization": only(True, "scales of 4 bits are always quantised once more"),
    "ignore_pad_token_for_loss": only(True, "padding is never trained"),
    "eaft_alpha": only(1.0, "honed's eaft is the paper's, where the entropy has no exponent"),
    "model_revision": only("main", "a recipe names no revision", "download that revision, and name its folder"),
    "fp8_backend": to("", {"auto": None, "torchao": None}),
    **rules_of("finetuning_type lora_rank lora_alpha lora_dropout lora_target use_rslora use_dora pissa_init "
               "pissa_iter additional_target quantization_bit quantization_type pure_bf16 loraplus_lr_ratio "
               "freeze_vision_tower freeze_multi_modal_projector freeze_language_model freeze_trainable_layers "
               "freeze_trainable_modules freeze_extra_modules", Rule(group="weights")),
    **rules_of("add_tokens add_special_tokens", Rule(group="tokens")),
    **rules_of("stage dataset dataset_dir media_dir eval_dataset val_size max_samples mix_strategy interleave_probs "
               "streaming buffer_size packing neat_packing cutoff_len train_on_prompt mask_history template "
               "enable_thinking eval_strategy", Rule(group="data")),
    **needless("do_train do_eval do_predict", "`honed train` trains, and evaluates if rows are held out"),
    **needless("flash_attn use_unsloth use_unsloth_gc use_v1_kernels use_reentrant_gc low_cpu_mem_usage "
               "use_fast_tokenizer print_param_status", "honed has its own implementation"),
    **needless("overwrite_cache tokenized_path preprocessing_batch_size data_shared_file_system cache_dir "
               "offload_folder", "prepared data are cached by what they were made of; HF_HOME names the Hub's cache"),
    **needless("plot_loss compute_accuracy include_effective_tokens_per_second include_num_input_tokens_seen",
               "the report has it"),
    **needless("swanlab_*", "part of use_swanlab"),
    **needless("ray_* master_addr master_port", "several processes are started by torchrun (docs/distributed.md)"),
    **needless("enable_torch_profiler profiler_* profile_modules", "it only measures"),
    **needless("export_* infer_* vllm_* sglang_* use_kv_cache", "`honed export` and `honed generate` do that"),
    **needless("predict_with_generate generation_* eval_num_beams do_sample temperature top_p top_k num_beams "
               "max_length max_new_tokens repetition_penalty length_penalty skip_special_tokens",
               "it is for answers: `honed eval`, `honed generate`"),
    **needless("pref_* dpo_* kto_* simpo_* ppo_* ref_model* reward_model* ld_alpha", "of other stages than SFT"),
    **needless("galore_* apollo_* badam_* asft_alpha loraplus_lr_embedding "
               "oft_* module_dropout kt_* megatron_* hyper_parallel_*",
               "part of another key, which decides"),
    **needless("video_* audio_sampling_rate use_audio_in_video", "honed reads texts and images"),
    **needless("create_new_adapter pissa_convert tool_format", "the adapter is new; the chat template writes tools"),
    **refused("model model_class dist_config train_dataset micro_batch_size kernel_config sample_backend cp_mode "
              "batching_strategy peft_config quant_config optim_config init_config cp_size",
              "this is a key of LLaMA-Factory's v1", "write the keys of one version: model_name_or_path is not v1's"),
    **refused("use_galore use_apollo use_badam use_adam_mini", "honed has no such optimizer", "choose one with optim"),
    **refused("use_asft_loss", "honed has the losses nll, dft and eaft", "leave it out, or set use_dft_loss"),
    **refused("use_llama_pro mixture_of_depths shift_attn", "it changes the model", KEEP),
    **refused("use_mca use_megatron_bridge use_hyper_parallel use_kt *_parallel_size sequence_parallel",
              "another engine", KEEP, off=(1,)),
    **refused("adapter_name_or_path adapter_folder", "a recipe names an adapter as its model, and takes its options",
              "leave it and lora_* out, and set model=ADAPTER, or merge it (`honed export`)"),
    **needless("resize_vocab", "the embedding grows where tokens are added"),
    **refused("new_special_tokens_config init_special_tokens split_special_tokens",
              "new tokens begin as the mean of the others, and are trained", "write add_tokens alone"),
    **refused("rope_scaling train_from_scratch upcast_layernorm upcast_lmhead_output",
              "a recipe trains the model as it was saved", "change the model's config.json, or `honed new minimind`"),
    **refused("image_min_pixels image_do_pan_and_scan crop_to_patches",
              "the size of images is the processor's", "set it in the model's preprocessor_config.json"),
    **refused("eval_on_each_dataset preserve_thinking quantization_device_map",
              "honed has no such option"),
    **refused("use_swanlab", "trackers are named by report_to", "write report_to: swanlab"),
})  # fmt: skip


def weights(draft: Draft, given: Values) -> None:
    """Translates what is trained: an adapter, on 16, 8 or 4 bits, or all weights."""
    kind = given.get("finetuning_type", "lora")
    if kind == "full":
        draft.put("lora", None, "all weights")
        for key in given.keys() - {"finetuning_type", "pure_bf16", "quantization_bit", "quantization_type", *VISION}:
            draft.skip(key, "all weights are trained")
    elif kind == "freeze":
        _some_layers(draft, given)
    elif kind == "lora":
        _adapter(draft, given)
        for key in given.keys() & FREEZE:
            draft.skip(key, "an adapter is trained")
    else:
        fix = "write lora, full or freeze"
        draft.refuse("finetuning_type", "honed trains a LoRA adapter, all weights, or some by name", fix)
    _vision(draft, given, whole=kind == "full")
    bits = {4: given.get("quantization_type", "nf4"), 8: "int8"}.get(as_number(given.get("quantization_bit")))
    if bits is not None:
        draft.put("quantization", bits)
    elif given.get("quantization_bit"):
        draft.refuse("quantization_bit", "honed quantises to 4 or 8 bits", "write 4 or 8")
    elif "quantization_type" in given:
        draft.skip("quantization_type", "part of quantization_bit")
    if given.get("pure_bf16"):
        draft.put("dtype", "bfloat16")


def _some_layers(draft: Draft, given: Values) -> None:
    modules, extra = given.get("freeze_trainable_modules", "all"), given.get("freeze_extra_modules")
    layers = given.get("freeze_trainable_layers", 2)
    freeze(draft, "finetuning_type", layers=layers, modules=modules, extra=extra)
    read = {"finetuning_type", "pure_bf16", "quantization_bit", "quantization_type", *FREEZE, *VISION}
    for key in given.keys() - read:
        draft.skip(key, "layers are trained, and no adapter")


def _adapter(draft: Draft, given: Values) -> None:
    rank, target = given.get("lora_rank", 8), as_list(given.get("lora_target", "all"))
    default = f"{NAME}'s default"
    draft.put("lora.r", rank, "" if "lora_rank" in given else default)
    draft.put("lora.alpha", given.get("lora_alpha", 2 * rank), "" if "lora_alpha" in given else f"{default}: twice r")
    draft.put("lora.dropout", given.get("lora_dropout", 0.0))
    draft.put("lora.target_modules", "all-linear" if target == ["all"] else target)
    for key in ("use_rslora", "use_dora"):
        if given.get(key):
            draft.put(f"lora.{key}", True)
    if "additional_target" in given:
        draft.put("lora.modules_to_save", as_list(given["additional_target"]))
    if given.get("pissa_init"):
        draft.put("lora.init", "pissa", "exact: after a random start the saved adapter would not fit its base")
    if "pissa_iter" in given:
        draft.skip("pissa_iter", "part of pissa_init")
    if given.get("loraplus_lr_ratio"):
        draft.put("train.learning_rates", {"lora_B": float(given["loraplus_lr_ratio"])}, "LoRA+")


def _vision(draft: Draft, given: Values, *, whole: bool) -> None:
    """Translates what is frozen in a vision-language model; without such a key, nothing shows that it is one."""
    asked = given.keys() & set(VISION)
    if not asked:
        return
    tower, projector, language = (given.get(key, key != VISION[2]) for key in VISION)
    if language or (whole and tower != projector):
        draft.refuse(
            max(asked, key=VISION.index),
            "train.trainable can freeze it, but needs the model's own names",
            "write it into the recipe",
        )
    elif tower:
        freeze_vision(draft)
    else:
        draft.put("train.freeze_vision", False)


def tokens(draft: Draft, given: Values) -> None:
    """Translates new tokens; special ones become ordinary ones, so that rows can spell them."""
    added = [token for key in given for token in as_list(given[key])]
    if added:
        draft.put("train.add_tokens", list(dict.fromkeys(added)), "a text that spells one holds it")
    for key in given if not added else ():
        draft.skip(key, OFF)


LLAMAFACTORY = Trainer(
    name=NAME,
    rules=RULES,
    groups=MappingProxyType({"weights": weights, "tokens": tokens, "data": data}),
    defaults=(
        ("train.num_train_epochs", 3.0),
        ("train.learning_rate", 5e-5),
        ("train.lr_scheduler_type", "linear"),
        ("train.warmup_steps", 0),
        ("train.per_device_train_batch_size", 8),
        ("train.gradient_accumulation_steps", 1),
        ("train.save_strategy", "steps"),
        ("train.seed", 42),
    ),
    arguments=transformers_arguments,
    means_null=frozenset({"enable_thinking"}),
)
