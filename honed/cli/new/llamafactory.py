"""LLaMA-Factory's YAML (`llamafactory-cli train x.yaml`); keys and defaults as in its src/llamafactory/hparams, 2026-08."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from honed.cli.new.sources import Origin, hub_id, named, put_held_out, put_origins, talk_columns
from honed.cli.new.translate import (
    OFF,
    Draft,
    Rule,
    Trainer,
    Values,
    as_list,
    as_number,
    needless,
    refused,
    rules_of,
    to,
    transformers_arguments,
)

NAME = "LLaMA-Factory"
KEEP = f"keep {NAME} for it; models saved by honed load there"
# Styles of prompts that no tokenizer brings; all other templates are those of a family of models.
STYLES = ("alpaca", "default", "empty", "fewshot", "original", "vicuna")
TAGS = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "system_tag": ("system",),
        "observation_tag": ("observation", "tool"), "function_tag": ("function_call",)}  # fmt: skip

RULES: Mapping[str, Rule] = MappingProxyType({
    "model_name_or_path": to("model"),
    "output_dir": to("output"),
    "default_system": to("data.system"),
    "preprocessing_num_workers": to("data.workers"),
    "moe_aux_loss_coef": to("train.router_aux_loss_coef"),
    "enable_liger_kernel": to("train.use_liger_kernel"),
    "freeze_vision_tower": to("train.freeze_vision"),
    "fp8": to("train.fp8"),
    "disable_gradient_checkpointing": to("train.gradient_checkpointing", {True: False, False: True}),
    "use_dft_loss": to("train.loss_type", {True: "dft", False: None}),
    "use_muon": to("train.optim", {True: "muon", False: None}),
    "disable_shuffling": to("train.train_sampling_strategy", {True: "sequential", False: None}),
    "quantization_method": to("", {"bnb": None, "bitsandbytes": None}),
    "double_quantization": to("", {True: None}),
    "ignore_pad_token_for_loss": to("", {True: None}),
    "model_revision": to("", {"main": None}),
    "fp8_backend": to("", {"auto": None, "torchao": None}),
    **rules_of("finetuning_type lora_rank lora_alpha lora_dropout lora_target use_rslora use_dora pissa_init pissa_iter "
               "additional_target quantization_bit quantization_type pure_bf16", Rule(group="weights")),
    **rules_of("stage dataset dataset_dir media_dir eval_dataset val_size max_samples mix_strategy interleave_probs "
               "streaming buffer_size packing neat_packing cutoff_len train_on_prompt mask_history template "
               "enable_thinking eval_strategy", Rule(group="data")),
    **needless("do_train do_eval do_predict", "`honed train` trains, and evaluates where there is something held out"),
    **needless("flash_attn use_unsloth use_unsloth_gc use_v1_kernels use_reentrant_gc low_cpu_mem_usage "
               "use_fast_tokenizer print_param_status", "honed brings its own way of computing"),
    **needless("overwrite_cache preprocessing_batch_size data_shared_file_system cache_dir offload_folder",
               "prepared data are cached by what they were made of; HF_HOME names the Hub's cache"),
    **needless("hub_token *_hub_token", "secrets do not belong into recipes: export HF_TOKEN"),
    **needless("trust_remote_code", "recipes run transformers' own classes; a model that needs other code is refused"),
    **needless("plot_loss compute_accuracy include_effective_tokens_per_second include_num_input_tokens_seen",
               "the report has it"),
    **needless("swanlab_*", "part of use_swanlab"),
    **needless("ray_* master_addr master_port", "several processes are started by torchrun (docs/distributed.md)"),
    **needless("enable_torch_profiler profiler_* profile_modules", "it only measures"),
    **needless("fp8_enable_fsdp_float8_all_gather fsdp fsdp_*",
               "weights are sharded by `accelerate launch --config_file fsdp2.yaml` (docs/distributed.md)"),
    **needless("export_* infer_* vllm_* sglang_* use_kv_cache", "`honed export` and `honed generate` do that"),
    **needless("predict_with_generate generation_* eval_num_beams do_sample temperature top_p top_k num_beams max_length "
               "max_new_tokens repetition_penalty length_penalty skip_special_tokens",
               "it is for answers: `honed eval`, `honed generate`"),
    **needless("pref_* dpo_* kto_* simpo_* ppo_* ref_model* reward_model* ld_alpha", "of other stages than SFT"),
    **needless("galore_* apollo_* badam_* asft_alpha eaft_alpha loraplus_lr_embedding freeze_trainable_* "
               "freeze_extra_modules oft_* module_dropout kt_* megatron_* hyper_parallel_*",
               "part of another key, which decides"),
    **needless("video_* audio_sampling_rate use_audio_in_video", "honed reads texts and images"),
    **needless("create_new_adapter pissa_convert tool_format", "the adapter is new; the chat template writes tools"),
    **needless("remove_unused_columns", "columns that are not read are counted in the ledger"),
    **refused("model_class dist_config train_dataset", "this is a file of LLaMA-Factory's v1, which is not translated",
              "write the YAML of its stable version (model_name_or_path, dataset, ...)"),
    **refused("use_galore use_apollo use_badam use_adam_mini", "honed has no such optimizer", "choose one with optim"),
    **refused("use_asft_loss use_eaft_loss", "honed has the losses nll and dft", "leave it out, or set use_dft_loss"),
    **refused("use_llama_pro mixture_of_depths shift_attn", "it changes the model", KEEP),
    **refused("use_mca use_megatron_bridge use_hyper_parallel use_kt", "another engine", KEEP),
    **refused("loraplus_lr_ratio", "one learning rate for all of the adapter", "leave it out"),
    **refused("adapter_name_or_path adapter_folder", "a recipe makes a new adapter",
              "merge that one (`honed export`), and name the merged model"),
    **refused("resume_from_checkpoint", "another trainer's checkpoint cannot be gone on from",
              "name the model that it saved"),
    **refused("add_tokens add_special_tokens new_special_tokens_config init_special_tokens resize_vocab "
              "split_special_tokens", "a recipe leaves the vocabulary as it is",
              "save a model and tokenizer that have the tokens, and name that folder"),
    **refused("rope_scaling train_from_scratch upcast_layernorm upcast_lmhead_output",
              "a recipe trains the model as it was saved", "change the model's config.json, or see `honed new minimind`"),
    **refused("image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches",
              "the size of images is the processor's", "set it in the model's preprocessor_config.json, and leave it out"),
    **refused("freeze_multi_modal_projector freeze_language_model", "only the vision tower can be frozen",
              "leave it out (docs/vision.md)"),
    **refused("early_stopping_steps eval_on_each_dataset tokenized_path preserve_thinking quantization_device_map",
              "honed has no such option"),
    **refused("use_swanlab", "trackers are named by report_to", "write report_to: swanlab"),
})  # fmt: skip


def weights(draft: Draft, given: Values) -> None:
    """What is trained: an adapter, on 16, 8 or 4 bits, or all weights."""
    kind = given.get("finetuning_type", "lora")
    if kind == "full":
        draft.put("lora", None, "all weights")
        for key in given.keys() - {"finetuning_type", "pure_bf16", "quantization_bit", "quantization_type"}:
            draft.skip(key, "all weights are trained")
    elif kind == "lora":
        _adapter(draft, given)
    else:
        draft.refuse("finetuning_type", "honed trains a LoRA adapter or all weights", "write lora or full")
    bits = {4: given.get("quantization_type", "nf4"), 8: "int8"}.get(as_number(given.get("quantization_bit")))
    if bits is not None:
        draft.put("quantization", bits)
    elif given.get("quantization_bit"):
        draft.refuse("quantization_bit", "honed quantises to 4 or 8 bits", "write 4 or 8")
    elif "quantization_type" in given:
        draft.skip("quantization_type", "part of quantization_bit")
    if given.get("pure_bf16"):
        draft.put("dtype", "bfloat16")


def _adapter(draft: Draft, given: Values) -> None:
    rank, target = given.get("lora_rank", 8), as_list(given.get("lora_target", "all"))
    default = f"{NAME}'s default"
    draft.put("lora.r", rank, "" if "lora_rank" in given else default)
    draft.put("lora.alpha", given.get("lora_alpha", 2 * rank), "" if "lora_alpha" in given else f"{default}: twice r")
    draft.put("lora.dropout", as_number(given.get("lora_dropout", 0.0)))
    draft.put("lora.target_modules", "all-linear" if target == ["all"] else target)
    for key in ("use_rslora", "use_dora"):
        if given.get(key):
            draft.put(f"lora.{key}", True)
    if "additional_target" in given:
        draft.put("lora.modules_to_save", as_list(given["additional_target"]))
    if given.get("pissa_init"):
        rounds = given.get("pissa_iter", 16)
        draft.put("lora.init", "pissa" if rounds == -1 else f"pissa_niter_{rounds}")
    elif "pissa_iter" in given:
        draft.skip("pissa_iter", "part of pissa_init")


def data(draft: Draft, given: Values) -> None:
    """What is trained on, and how rows become tokens."""
    stage = given.get("stage", "sft")
    if stage not in ("sft", "pt"):
        draft.refuse("stage", "honed does supervised fine-tuning (sft, and pt)", KEEP)
    texts = stage == "pt"
    origins = _origins(draft, given, "dataset", texts=texts)
    if origins:
        put_origins(draft, _weighted(draft, origins, given), key="dataset")
    _evaluation(draft, given, origins, texts=texts)
    _length(draft, given, texts=texts)
    _template(draft, given, texts=texts)
    if given.get("streaming"):
        draft.put("data.streaming", True)
        draft.put("data.shuffle_buffer", given.get("buffer_size", 16384))
    elif "buffer_size" in given:
        draft.skip("buffer_size", "part of streaming")
    if any(origin.images for origin in origins) and "train.freeze_vision" not in draft.lines:
        draft.put("train.freeze_vision", True, f"{NAME}'s default")
    if "media_dir" in given:
        draft.put("train.image_folder", given["media_dir"])


def _length(draft: Draft, given: Values, *, texts: bool) -> None:
    default = f"{NAME}'s default"
    draft.put("data.max_length", given.get("cutoff_len", 2048), "" if "cutoff_len" in given else default)
    packs = given.get("packing", texts) or given.get("neat_packing")
    if packs:
        draft.put("data.packing", True, "documents in a row do not see each other, as with neat_packing")
    if packs and texts:
        draft.put("data.packing_strategy", "wrapped")
        return
    why = "with packing it drops longer rows" if packs else "it cuts longer rows; here their beginning is kept"
    draft.put("data.overlong", "drop" if packs else "truncate", f"{default}: {why}")


def _template(draft: Draft, given: Values, *, texts: bool) -> None:
    style = given.get("template")
    if texts:
        draft.put("data.train_on", "all")
        for key in given.keys() & {"template", "train_on_prompt", "mask_history", "enable_thinking"}:
            draft.skip(key, "texts have no turns")
        return
    masks = {"train_on_prompt": "all", "mask_history": "last"}
    draft.put("data.train_on", next((ours for key, ours in masks.items() if given.get(key)), "assistant"))
    if style in STYLES:
        draft.refuse("template", "a style of prompts that no tokenizer brings", "name a Jinja file with data.template")
    elif style is not None:
        draft.put("data.template", "auto", f"theirs is {style!r}; here it is the tokenizer's own")
    if "enable_thinking" in given and given["enable_thinking"] is None:
        draft.refuse("enable_thinking", "rows are rendered with thinking, or without", "write true or false")
    elif not given.get("enable_thinking", True):
        draft.put("data.template_arguments", {"enable_thinking": False})


def _evaluation(draft: Draft, given: Values, training: list[Origin], *, texts: bool) -> None:
    share = as_number(given.get("val_size", 0))
    held_out = _origins(draft, {**given, "max_samples": None}, "eval_dataset", texts=texts)
    if held_out and training:
        put_held_out(draft, held_out, training, key="eval_dataset")
    if share >= 1:
        draft.refuse("val_size", "data.eval_share is a share of the rows", "write a share, such as 0.02")
    elif share:
        draft.put("data.eval_share", share)
    if "eval_strategy" in given:
        strategy = given["eval_strategy"] or "no"
        draft.put("train.eval_strategy", strategy)
    elif {"data.eval_share", "data.held_out"} & draft.lines.keys():
        draft.put("train.eval_strategy", "no", f"{NAME}'s default")


def _weighted(draft: Draft, origins: list[Origin], given: Values) -> list[Origin]:
    from dataclasses import replace

    strategy = given.get("mix_strategy", "concat")
    if strategy == "concat":
        if "interleave_probs" in given:
            draft.skip("interleave_probs", "rows are put one behind the other")
        return origins
    if strategy != "interleave_under":
        draft.refuse("mix_strategy", "weighted sources end with the first that has no more rows",
                     "write concat or interleave_under, or set repeat for sources")  # fmt: skip
    weights = [float(weight) for weight in as_list(given.get("interleave_probs"))] or [1.0] * len(origins)
    return [replace(origin, weight=weight) for origin, weight in zip(origins, weights, strict=False)]


def _origins(draft: Draft, given: Values, key: str, *, texts: bool) -> list[Origin]:
    """The data sets that a key names, as dataset_info.json describes them."""
    names = as_list(given.get(key))
    place = given.get("dataset_dir", "data")
    if not names:
        return []
    if place == "ONLINE":
        return [Origin(files=name, name=name, cap=given.get("max_samples")) for name in names]
    folder = _folder(draft.place, place)
    info = _info(folder)
    origins = []
    for name in names:
        try:
            if not isinstance(info.get(name), dict):
                where = f"{folder}/dataset_info.json" if folder else f"{place}/dataset_info.json, which was not found"
                raise _Unusable(f"{name!r} is not in {where}", "name the folder with dataset_dir")
            origins.append(_origin(name, info[name], folder or Path(place), given.get("max_samples"), texts=texts))
        except _Unusable as error:
            draft.refuse(key, *error.args)
            origins.append(Origin(files=name, name=name))
    return origins


class _Unusable(Exception):
    """A data set that cannot be described in a recipe: why, and what to do."""


def _folder(place: Path, name: str) -> Path | None:
    """The folder as seen from here, from the YAML file, or from a folder above it, where LLaMA-Factory was started."""
    beside = [parent / name for parent in place.absolute().parents]
    return next((folder for folder in (Path(name), *beside) if (folder / "dataset_info.json").is_file()), None)


def _info(folder: Path | None) -> dict[str, Any]:
    try:
        found = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _origin(name: str, entry: dict[str, Any], folder: Path, cap: int | None, *, texts: bool) -> Origin:
    """Raises _Unusable for what a recipe cannot say."""
    if entry.get("ranking"):
        raise _Unusable(f"{name!r} holds preferences", KEEP)
    if "folder" in entry or not ("hf_hub_url" in entry or "file_name" in entry):
        raise _Unusable(f"{name!r} is not a file, a folder or a whole data set of the Hub", "download its rows")
    own = {"system": entry.get("columns", {}).get("system"), "tools": entry.get("columns", {}).get("tools"),
           "images": entry.get("columns", {}).get("images")}  # fmt: skip
    columns = entry.get("columns", {"prompt": "instruction", "query": "input", "response": "output"})
    if columns.keys() & {"videos", "audios", "kto_tag", "chosen", "rejected"}:
        raise _Unusable(f"{name!r} has columns for {', '.join(columns)}", "train on texts and images")
    hub = entry.get("hf_hub_url")
    files = hub_id(hub, entry.get("subset"), entry.get("split")) if hub else str(folder / entry["file_name"])
    rest: dict[str, Any] = {"files": files, "name": name, "cap": entry.get("num_samples") or cap}
    if texts:
        return Origin(format="text", text_field=columns.get("prompt", "text"), **rest)
    if entry.get("formatting", "alpaca") == "alpaca":
        theirs = {"instruction": "prompt", "input": "query", "output": "response", "history": "history"}
        mine = {key: columns.get(their) for key, their in theirs.items()}
        return Origin(columns=named(mine | own), images=bool(own["images"]), format="alpaca", **rest)
    tags = entry.get("tags", {})
    odd = [tag for key, tag in tags.items() if key in TAGS and tag not in TAGS[key]]
    if odd:
        raise _Unusable(f"{name!r} has the role {odd[0]!r}", "rename it in the rows: user, assistant, system, tool")
    talk = talk_columns(columns.get("messages", "conversations"), tags.get("role_tag", "from"),
                        tags.get("content_tag", "value"))  # fmt: skip
    return Origin(columns=talk | named(own), images=bool(own["images"]), **rest)


LLAMAFACTORY = Trainer(
    name=NAME,
    rules=RULES,
    groups=MappingProxyType({"weights": weights, "data": data}),
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
