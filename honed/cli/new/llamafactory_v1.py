"""The YAML of LLaMA-Factory's v1 (`USE_V1=1 llamafactory-cli sft x.yaml`): keys of src/llamafactory/v1, 2026-08."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from honed.cli.new.llamafactory_freeze import freeze
from honed.cli.new.sources import Origin, hub_id, put_held_out, put_origins
from honed.cli.new.translate import (
    KEEP,
    Draft,
    Rule,
    Trainer,
    Values,
    as_list,
    needless,
    only,
    refused,
    rules_of,
    to,
    transformers_arguments,
)
from honed.errors import RecipeError
from honed.recipe import strict_yaml

NAME = "LLaMA-Factory"
OWN_ROWS = "these rows are in its own form (blocks of `type` and `value`, `loss_weight`), which honed does not read"
MEND_ROWS = 'write `content` as text, and `"train": false` for a `loss_weight` of 0'
FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt"}

RULES: Mapping[str, Rule] = MappingProxyType({
    "model": to("model"),
    "output_dir": to("output"),
    "cutoff_len": to("data.max_length"),
    "enable_activation_checkpointing": to("train.gradient_checkpointing"),
    "model_class": only("llm", "honed trains language models", KEEP),
    "batching_strategy": to("", {"normal": None, "padding_free": None}),
    **rules_of("train_dataset eval_dataset", Rule(group="data")),
    **rules_of("peft_config quant_config", Rule(group="weights")),
    **rules_of("micro_batch_size global_batch_size cp_size cp_mode optim_config save_steps save_epochs",
               Rule(group="steps")),
    **needless("kernel_config flash_attn", "honed has its own implementation"),
    **needless("dist_config init_config dp_size mp_replicate_size mp_shard_size dist_timeout save_ckpt_as_hf",
               "several processes are started by torchrun or accelerate (docs/distributed.md)"),
    **needless("sample_backend max_new_tokens", "it is for answers: `honed eval`, `honed generate`"),
    **needless("batching_workers", "rows are prepared before training"),
    **needless("pref_* simpo_* dpo_* ld_alpha", "of other stages than SFT"),
    **refused("custom_chat_template", "data.template names a file", "write the template into one"),
    **refused("lr_scheduler_config", "its v1 brings no schedule", "choose one with lr_scheduler_type in the recipe"),
})  # fmt: skip


def data(draft: Draft, given: Values) -> None:
    """Translates the datasets for training and evaluation."""
    training = _origins(draft, given, "train_dataset")
    if training:
        put_origins(draft, training, key="train_dataset")
    held_out = _origins(draft, given, "eval_dataset")
    if held_out and training:
        put_held_out(draft, held_out, training, key="eval_dataset")
    draft.put("data.overlong", "truncate", f"{NAME}'s default: it cuts longer rows")
    draft.put("data.train_on", "assistant", "a row trains all its answers; theirs is a sample for each")


def _origins(draft: Draft, given: Values, key: str) -> list[Origin]:
    """Returns the datasets of a file that describes them, or the dataset that is named directly."""
    name = given.get(key)
    if name is None:
        return []
    file = next((place for place in _places(draft.place, name) if place.is_file()), None)
    if not str(name).endswith(".yaml"):
        entries = {"": {"path": str(name), "source": "local" if file else "hf_hub"}}
    elif file is None:
        draft.refuse(key, f"{name} was not found, which describes the datasets", "start in the folder that holds it")
        return []
    else:
        try:
            entries = strict_yaml(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RecipeError(f"{file} is not valid YAML: {error}", fix="fix that line") from None
    return [_origin(draft, key, label, entry) for label, entry in entries.items()]


def _places(place: Path, name: Any) -> list[Path]:
    """Returns places relative to here, to the YAML file, or to a folder above it, where LLaMA-Factory was started."""
    return [Path(str(name)), *(parent / str(name) for parent in place.absolute().parents)]


def _origin(draft: Draft, key: str, label: str, entry: Mapping[str, Any]) -> Origin:
    converter, path = entry.get("converter"), str(entry["path"])
    if converter not in FORMATS:
        why = OWN_ROWS if converter is None else f"{label!r} has the converter {converter!r}"
        draft.refuse(key, why, MEND_ROWS if converter is None else KEEP)
    for option in ("weight", "streaming"):
        if entry.get(option):
            draft.refuse(key, f"{label!r} has {option}", "leave it out, and set it in the recipe (docs/data.md)")
    local = entry.get("source", "hf_hub") == "local"
    files = path if local else hub_id(path, None, entry.get("split"))
    return Origin(files=files, name=label, cap=entry.get("size"), format=FORMATS.get(converter or ""))


def weights(draft: Draft, given: Values) -> None:
    """Translates what is trained: an adapter, on 16, 8 or 4 bits, all weights, or some layers."""
    adapter = given.get("peft_config") or {"name": "full"}
    kind = adapter["name"]
    if kind == "lora" and adapter.get("adapter_name_or_path"):
        fix = "leave peft_config out, and set model=ADAPTER, or merge it (`honed export`)"
        draft.refuse("peft_config", "a recipe names an adapter as its model, and takes its options", fix)
    elif kind == "lora":
        _lora(draft, adapter)
    elif kind == "freeze":
        layers, modules = adapter.get("freeze_trainable_layers", 2), adapter.get("freeze_trainable_modules", "all")
        freeze(draft, "peft_config", layers=layers, modules=modules, extra=adapter.get("freeze_extra_modules"))
    elif kind == "full":
        draft.put("lora", None, "all weights")
    else:
        draft.refuse("peft_config", f"honed has no {kind!r}", "write lora or freeze, or leave it out")
    if quant := given.get("quant_config"):
        _quantisation(draft, quant)


def _lora(draft: Draft, adapter: Mapping[str, Any]) -> None:
    default = f"{NAME}'s default"
    for theirs, ours, value in (("r", "r", 8), ("lora_alpha", "alpha", 16), ("lora_dropout", "dropout", 0.05)):
        draft.put(f"lora.{ours}", adapter.get(theirs, value), "" if theirs in adapter else default)
    target = as_list(adapter.get("target_modules", "all"))
    draft.put("lora.target_modules", "all-linear" if target == ["all"] else target)
    for key in ("use_rslora", "use_dora", "modules_to_save"):
        if adapter.get(key):
            draft.put(f"lora.{key}", adapter[key])


def _quantisation(draft: Draft, quant: Mapping[str, Any]) -> None:
    bits = quant.get("quantization_bit", 4 if quant["name"] == "bnb" else None)
    if quant["name"] not in ("bnb", "auto") or bits not in (4, 8, None):
        draft.refuse("quant_config", "honed quantises to 4 or 8 bits with bitsandbytes", "write bnb, and 4 or 8")
    elif bits is not None:
        draft.put("quantization", "int8" if bits == 8 else quant.get("quantization_type", "nf4"))


def steps(draft: Draft, given: Values) -> None:
    """Translates batches, the optimizer, and when checkpoints are saved."""
    micro, whole = given.get("micro_batch_size", 1), given.get("global_batch_size")
    draft.put("train.per_device_train_batch_size", micro)
    many = "" if whole is None else f"of {whole} rows on one process; divide by the number of processes"
    draft.put("train.gradient_accumulation_steps", max(1, (whole or micro) // micro), many)
    if given.get("cp_mode", "ulysses") != "ulysses" and given.get("cp_size", 1) > 1:
        draft.refuse("cp_mode", "honed shares rows as Ulysses does", "write ulysses")
    elif given.get("cp_size", 1) > 1:
        draft.put("train.sequence_parallel_size", given["cp_size"])
    if given.get("save_epochs"):
        draft.refuse("save_epochs", "honed saves after steps or epochs", "write save_steps; or save_strategy: epoch")
    draft.put("train.save_strategy", "steps" if given.get("save_steps") else "no")
    if given.get("save_steps"):
        draft.put("train.save_steps", given["save_steps"])
    if optimizer := given.get("optim_config"):
        _optimizer(draft, optimizer)


def _optimizer(draft: Draft, optimizer: Mapping[str, Any]) -> None:
    if optimizer["name"] != "muon":
        draft.refuse("optim_config", "its v1 has muon alone", "choose one with optim in the recipe")
        return
    draft.put("train.optim", "muon")
    draft.put("train.weight_decay", optimizer.get("wd", 0.1))
    first, second = optimizer.get("adamw_betas", [0.9, 0.95])
    draft.put("train.adam_beta1", first)
    draft.put("train.adam_beta2", second)
    draft.put("train.adam_epsilon", optimizer.get("adamw_eps", 1e-8))
    own = {key: optimizer[key] for key in ("momentum", "nesterov", "ns_steps") if key in optimizer}
    if own:
        draft.put("train.optim_args", ",".join(f"{key}={value}" for key, value in own.items()))


LLAMAFACTORY_V1 = Trainer(
    name=f"{NAME} v1",
    rules=RULES,
    groups=MappingProxyType({"weights": weights, "data": data, "steps": steps}),
    defaults=(
        ("data.max_length", 2048),
        ("train.num_train_epochs", 3),
        ("train.learning_rate", 1e-4),
        ("train.lr_scheduler_type", "constant"),
        ("train.warmup_steps", 0),
        ("train.weight_decay", 0.01),
        ("train.gradient_checkpointing", True),
        ("train.logging_steps", 1),
        ("train.seed", 42),
    ),
    arguments=transformers_arguments,
)


def is_v1(theirs: Values) -> bool:
    """Whether a LLaMA-Factory file is for its v1."""
    return "model" in theirs and "model_name_or_path" not in theirs
