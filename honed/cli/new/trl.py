"""TRL's YAML (`trl sft --config x.yaml`): keys and defaults of its SFTConfig, ModelConfig, ScriptArguments, 2026-07."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from honed.cli.new.sources import Origin, hub_id, put_held_out, put_origins
from honed.cli.new.translate import Draft, Rule, Trainer, Values, as_number, needless, only, refused, rules_of, to

NAME = "TRL"

RULES: Mapping[str, Rule] = MappingProxyType({
    "model_name_or_path": to("model"),
    "output_dir": to("output"),
    "max_length": to("data.max_length"),
    "max_seq_length": to("data.max_length"),
    "packing": to("data.packing"),
    "packing_strategy": to("data.packing_strategy", {"bfd": "bfd", "bfd_split": "bfd_split", "wrapped": "wrapped",
                                                     "ffd": "bfd", "bfd-requeue": "bfd_split"}),
    "dataset_text_field": to("data.text_field"),
    "dataset_num_proc": to("data.workers"),
    "truncation_mode": only("keep_start", "answers without their questions would be trained"),
    "model_revision": only("main", "a recipe names no revision", "download that revision, and name its folder"),
    "lora_task_type": only("CAUSAL_LM", "honed trains language models"),
    "use_bnb_nested_quant": only(True, "scales of 4 bits are always quantised once more"),
    **rules_of("use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save "
               "lora_target_parameters use_rslora use_dora "
               "dtype torch_dtype load_in_4bit load_in_8bit bnb_4bit_quant_type", Rule(group="weights")),
    **rules_of("dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming datasets "
               "streaming test_split_size eval_strategy assistant_only_loss completion_only_loss chat_template_path",
               Rule(group="data")),
    **needless("attn_implementation padding_free pad_to_multiple_of", "honed has its own implementation"),
    **needless("ignore_bias_buffers bnb_4bit_quant_storage", "not needed here"),
    **needless("env", "export these variables before `honed train`"),
    **refused("model_init_kwargs dataset_kwargs", "a recipe loads and prepares in its own way", "leave it out"),
    **refused("beta reward_funcs reward_model_path loss_weights max_completion_length num_generations",
              "honed does supervised fine-tuning", "keep TRL for it; models saved by honed load there"),
})  # fmt: skip


def weights(draft: Draft, given: Values) -> None:
    """Translates what is trained: an adapter, on 16, 8 or 4 bits, or all weights."""
    dtype = given.get("dtype", given.get("torch_dtype", "float32"))
    bits = {"load_in_4bit": given.get("bnb_4bit_quant_type", "nf4"), "load_in_8bit": "int8"}
    kinds = [kind for key, kind in bits.items() if given.get(key)]
    if kinds:
        draft.put("quantization", kinds[0], "" if kinds == ["int8"] else "its scales are quantised once more, too")
    elif "bnb_4bit_quant_type" in given:
        draft.skip("bnb_4bit_quant_type", "part of load_in_4bit")
    if dtype != "auto" and not kinds:
        draft.put("dtype", dtype, "" if given.keys() & {"dtype", "torch_dtype"} else f"{NAME}'s default")
    if given.get("use_peft"):
        _adapter(draft, given)
        return
    draft.put("lora", None, "all weights")
    for key in given.keys() - {"use_peft", "dtype", "torch_dtype", *bits, "bnb_4bit_quant_type"}:
        draft.skip(key, "all weights are trained")


def _adapter(draft: Draft, given: Values) -> None:
    default = f"{NAME}'s default"
    for key, ours, value in (("lora_r", "r", 16), ("lora_alpha", "alpha", 32), ("lora_dropout", "dropout", 0.05)):
        draft.put(f"lora.{ours}", given.get(key, value), "" if key in given else default)
    layers = given.get("lora_target_modules")
    alone = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    comment = "" if layers else f"{default}: peft's choice for Llama, Qwen, Gemma and Mistral; others may differ"
    draft.put("lora.target_modules", alone or ["q_proj", "v_proj"], comment)
    if given.get("lora_modules_to_save"):
        draft.put("lora.modules_to_save", given["lora_modules_to_save"])
    if given.get("lora_target_parameters"):
        draft.put("lora.target_parameters", given["lora_target_parameters"])
    for key in ("use_rslora", "use_dora"):
        if given.get(key):
            draft.put(f"lora.{key}", True)


def data(draft: Draft, given: Values) -> None:
    """Translates the dataset, and which tokens are trained."""
    origins = _origins(draft, given)
    if origins:
        put_origins(draft, origins, key="datasets" if "datasets" in given else "dataset_name")
    if given.get("dataset_streaming") or given.get("streaming"):
        draft.put("data.streaming", True)
    _evaluation(draft, given)
    if given.get("assistant_only_loss"):
        draft.put("data.train_on", "assistant")
    elif given.get("completion_only_loss") is False:
        draft.put("data.train_on", "all")
    else:
        draft.put("data.train_on", "completion", f"{NAME}'s default: completions, and the whole of other rows")
    template = given.get("chat_template_path")
    if template is not None:
        draft.put("data.template", template)
        if not str(template).endswith((".jinja", ".j2", ".txt")):
            draft.refuse("chat_template_path", "a recipe names a Jinja file", "save that model's template as a file")
            draft.put("data.template", "auto")


def _origins(draft: Draft, given: Values) -> list[Origin]:
    if given.get("datasets"):
        for key in given.keys() & {"dataset_name", "dataset_config", "dataset_train_split"}:
            draft.skip(key, "datasets comes before it")
        return [_origin(draft, entry) for entry in given["datasets"]]
    if not given.get("dataset_name"):
        return []
    name, split = given["dataset_name"], given.get("dataset_train_split")
    if _is_local(name) and split not in (None, "train"):
        draft.refuse("dataset_train_split", f"{name} has no splits", "name the file with these rows")
    return [Origin(files=_files(name, given.get("dataset_config"), split))]


def _origin(draft: Draft, entry: Mapping[str, Any]) -> Origin:
    odd = sorted(key for key in ("data_dir", "columns") if entry.get(key))
    files = entry.get("data_files")
    if odd or isinstance(files, Mapping) or (files and not _is_reader(entry["path"])):
        draft.refuse("datasets", f"{entry['path']}: {', '.join([*odd, *(['data_files'] if files else [])])}",
                     "name files, folders or whole datasets of the Hub")  # fmt: skip
    named = (
        files if files and _is_reader(entry["path"]) else _files(entry["path"], entry.get("name"), entry.get("split"))
    )
    return Origin(files=named, name=str(entry["path"]), weight=entry.get("fraction"))


def _is_reader(path: str) -> bool:
    return path in ("json", "csv", "parquet", "arrow", "text")


def _is_local(name: str) -> bool:
    suffixes = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
    return Path(name).exists() or name.startswith((".", "/", "~")) or Path(name).suffix in suffixes


def _files(name: str, config: Any, split: Any) -> str:
    return name if _is_local(name) else hub_id(name, config, split)


def _evaluation(draft: Draft, given: Values) -> None:
    strategy = given.get("eval_strategy") or "no"
    draft.put("train.eval_strategy", strategy, "" if "eval_strategy" in given else f"{NAME}'s default")
    share, split = as_number(given.get("test_split_size")), given.get("dataset_test_split", "test")
    if share is not None and share < 1:
        draft.put("data.eval_share", share)
    elif share is not None:
        draft.refuse("test_split_size", "data.eval_share is a share of the rows", "write a share, such as 0.02")
    elif strategy != "no" and _is_local(given.get("dataset_name", ".")):
        draft.refuse("eval_strategy", "files have no split to evaluate on", "set it to no, and data.held_out to a file")
    elif strategy != "no":
        held_out = Origin(files=_files(given["dataset_name"], given.get("dataset_config"), split))
        put_held_out(draft, [held_out], [held_out], key="dataset_test_split")
    elif "dataset_test_split" in given:
        draft.skip("dataset_test_split", "nothing is evaluated")


def arguments() -> frozenset[str]:
    """Returns the names of the arguments of honed's SFTConfig, which has all of TRL's."""
    from dataclasses import fields

    from honed.recipe import DataRecipe
    from honed.train.options.config import SFTConfig

    return frozenset(f.name for f in fields(SFTConfig) if f.init) - {f.name for f in fields(DataRecipe)}


TRL = Trainer(
    name=NAME,
    rules=RULES,
    groups=MappingProxyType({"weights": weights, "data": data}),
    defaults=(
        ("data.overlong", "truncate"),
        ("train.num_train_epochs", 3.0),
        ("train.learning_rate", 2e-5),
        ("train.lr_scheduler_type", "linear"),
        ("train.warmup_steps", 0),
        ("train.per_device_train_batch_size", 8),
        ("train.gradient_accumulation_steps", 1),
        ("train.save_strategy", "steps"),
        ("train.seed", 42),
    ),
    arguments=arguments,
    means_null=frozenset({"max_length", "max_seq_length"}),
)
