"""Trained weights in axolotl's YAML: which ones, their learning rates, and quantisation."""

from __future__ import annotations

import re

from honed.cli.new.translate import OFF, Draft, Values, as_number
from honed.recipe import PLUS_EXPERTS

CHOICE = ("unfrozen_parameters", "freeze_mm_modules", "quantize_moe_experts", "llama4_linearized_experts")
EXPERTS = ("quantize_moe_experts", "llama4_linearized_experts")
MM_MODULES = (  # parts of parameter names, as in axolotl
    *("vision_tower", "vision_model", "vision_encoder", "embed_vision", "multi_modal_projector", "visual"),
    *("audio_tower", "audio_model", "embed_audio"),
)


def weights(draft: Draft, given: Values) -> None:
    """Translates what is trained: an adapter, on 16, 8 or 4 bits, or all weights."""
    adapter = given.get("adapter")
    if adapter in ("lora", "qlora"):
        _adapter(draft, given)
    elif adapter is not None:
        draft.refuse("adapter", "honed trains a LoRA adapter or all weights", "write lora or qlora, or leave it out")
    else:
        draft.put("lora", None, "all weights")
        for key in given.keys() - {"bf16", "bfloat16", "load_in_4bit", "load_in_8bit", "bnb_config_kwargs", *CHOICE}:
            draft.skip(key, "all weights are trained")
    _choice(draft, given)
    _quantization(draft, given)
    halved = given.get("bf16", "auto") in (True, "auto") or given.get("bfloat16")
    if adapter is None and halved:
        draft.put("dtype", "bfloat16", "as axolotl loads it; without this line small updates are not rounded away")
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
        "lora_target_parameters": "target_parameters",
        "lora_rank_pattern": "rank_pattern",
        "lora_alpha_pattern": "alpha_pattern",
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
    elif given.get("lora_target_parameters"):
        draft.put("lora.target_modules", None, "no layers but these weights")
    else:
        draft.refuse("adapter", "no layers are named for it", "write lora_target_linear: true")


def _choice(draft: Draft, given: Values) -> None:
    """Translates which of the model's own weights are trained; none if there is an adapter."""
    patterns = [given["unfrozen_parameters"]] if isinstance(given.get("unfrozen_parameters"), str) else []
    patterns = patterns or list(given.get("unfrozen_parameters") or [])
    frozen = bool(given.get("freeze_mm_modules"))
    if given.get("adapter") is not None:
        if patterns:
            draft.refuse("unfrozen_parameters", "an adapter leaves the model's own weights as they are", "leave it out")
        if frozen:
            draft.put("train.freeze_vision", True)
        return
    if any(re.search(r"\[\d*:?\d*\]$", pattern) for pattern in patterns):
        draft.refuse("unfrozen_parameters", "a range of rows cannot be trained on its own", "name whole weights")
        return
    # axolotl matches the beginning of a name, and a dot means a dot.
    chosen = ["^" + re.sub(r"(?<!\\)\.(?!\+)", r"\.", pattern.removeprefix("^")) for pattern in patterns]
    chosen += [f"!(^|\\.)({'|'.join(MM_MODULES)})\\."] if frozen else []
    if chosen:
        draft.put("train.trainable", chosen)
    for key in given.keys() & {"unfrozen_parameters", "freeze_mm_modules"} if not chosen else ():
        draft.skip(key, OFF)


def rates(draft: Draft, given: Values) -> None:
    """Translates learning rates of some weights, which are factors in a recipe."""
    line = draft.lines.get("train.learning_rate")
    absolute = [key for key in ("lr_groups", "embedding_lr") if given.get(key)]
    if line is None and absolute:
        draft.refuse(absolute[0], "its factor needs the learning rate", "write learning_rate")
        return
    rate = None if line is None else line.value
    found: dict[str, float] = {}
    for group in given.get("lr_groups") or []:
        found |= {re.escape(name): as_number(group["lr"]) / rate for name in group["modules"]}
    scale = as_number(given.get("embedding_lr_scale"))
    if scale is None and given.get("embedding_lr"):
        scale = as_number(given["embedding_lr"]) / rate
    found |= {} if scale is None else {"embed_tokens|lm_head": scale}
    found |= {"lora_B": float(given["loraplus_lr_ratio"])} if given.get("loraplus_lr_ratio") else {}
    if found:
        draft.put("train.learning_rates", found, "factors for learning_rate")


def model(draft: Draft, given: Values) -> None:
    """Translates changes to the model's configuration; a recipe supports only the experts' load balancing."""
    for key, changes in given.items():
        others = sorted(set(changes) - {"output_router_logits", "router_aux_loss_coef"})
        if others:
            draft.refuse(key, f"a recipe takes the model as it was saved, not with {', '.join(others)}",
                         "change its config.json, and name that folder")  # fmt: skip
        elif "router_aux_loss_coef" in changes:
            draft.put("train.router_aux_loss_coef", float(changes["router_aux_loss_coef"]))
        elif changes.get("output_router_logits"):
            draft.skip(key, "the experts' balance is trained, with the weight that the model's config.json has")
        else:
            draft.put("train.router_aux_loss_coef", 0.0, "output_router_logits: false")


def _quantization(draft: Draft, given: Values) -> None:
    extra = dict(given.get("bnb_config_kwargs") or {})
    if given.get("load_in_4bit"):
        experts = [key for key in EXPERTS if given.get(key)]
        comment = f"{experts[0]}: experts stay stacked here, and are packed as well" if experts else ""
        kind = extra.pop("bnb_4bit_quant_type", "nf4")
        draft.put("quantization", kind + (PLUS_EXPERTS if experts else ""), comment)
        if extra.pop("bnb_4bit_use_double_quant", True) is not True or extra:
            draft.refuse("bnb_config_kwargs", "scales are quantised once more, and nothing else is set", "leave it out")
    elif given.get("load_in_8bit"):
        draft.put("quantization", "int8")
        if given.get("quantize_moe_experts"):
            draft.refuse("quantize_moe_experts", "experts are quantised to 4 bits only", "write load_in_4bit: true")
    for key in EXPERTS:
        if key in given.keys() - draft.refused.keys() and not (given[key] and given.get("load_in_4bit")):
            draft.skip(key, "nothing is quantised to 4 bits")
    if extra and not given.get("load_in_4bit"):
        draft.skip("bnb_config_kwargs", "part of load_in_4bit")
