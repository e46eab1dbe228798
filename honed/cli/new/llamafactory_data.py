"""LLaMA-Factory's datasets: names that dataset_info.json describes, and how their rows become tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from honed.cli.new.sources import Origin, hub_id, named, put_held_out, put_origins, talk_columns
from honed.cli.new.translate import KEEP, Draft, Values, as_list, as_number

NAME = "LLaMA-Factory"
# Parts of the names of towers and projectors, from src/llamafactory/model/model_utils/visual.py.
TOWERS = ("visual", "vision_tower", "vision_model", "vision_embed_tokens", "audio_tower", "multi_modal_projector",
          "language_projection", "resampler", "vpm", "apm")  # fmt: skip
# Prompt styles that no tokenizer has; all other templates belong to a model family.
STYLES = ("alpaca", "default", "empty", "fewshot", "original", "vicuna")
TAGS = {"user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "system_tag": ("system",),
        "observation_tag": ("observation", "tool"), "function_tag": ("function_call",)}  # fmt: skip


def freeze_vision(draft: Draft, comment: str = "") -> None:
    """Freezes tower and projector; an adapter is attached to the projector only if it is named."""
    if "lora" in draft.lines and draft.lines["lora"].value is None:
        draft.put("train.trainable", [f"!(^|\\.)({'|'.join(TOWERS)})\\."], comment)
    else:
        draft.put("train.freeze_vision", True, comment)


def data(draft: Draft, given: Values) -> None:
    """Translates the datasets, and how rows become tokens."""
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
    if any(origin.images for origin in origins) and not {"train.freeze_vision", "train.trainable"} & draft.lines.keys():
        freeze_vision(draft, f"{NAME}'s default")
    if any(origin.images for origin in origins) and "train.image_max_pixels" not in draft.lines:
        draft.put("train.image_max_pixels", 768 * 768, f"{NAME}'s default")
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
        draft.refuse("template", "a prompt style that no tokenizer has", "name a Jinja file with data.template")
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
        uncapped = "all of it: max_samples is for training" if "max_samples" in given else ""
        put_held_out(draft, held_out, training, key="eval_dataset", comment=uncapped)
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
    strategy = given.get("mix_strategy", "concat")
    if strategy == "concat":
        if "interleave_probs" in given:
            draft.skip("interleave_probs", "rows are concatenated")
        return origins
    if strategy != "interleave_under":
        draft.refuse("mix_strategy", "weighted sources end with the first that has no more rows",
                     "write concat or interleave_under, or set repeat for sources")  # fmt: skip
    weights = [float(weight) for weight in as_list(given.get("interleave_probs"))] or [1.0] * len(origins)
    return [replace(origin, weight=weight) for origin, weight in zip(origins, weights, strict=True)]


def _origins(draft: Draft, given: Values, key: str, *, texts: bool) -> list[Origin]:
    """Returns the datasets that a key names, as dataset_info.json describes them."""
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
    """A recipe cannot describe a dataset; says why, and what to do."""


def _folder(place: Path, name: str) -> Path | None:
    """Finds the folder from here, from the YAML file, or from a folder above it, where LLaMA-Factory was started."""
    beside = [parent / name for parent in place.absolute().parents]
    return next((folder for folder in (Path(name), *beside) if (folder / "dataset_info.json").is_file()), None)


def _info(folder: Path | None) -> dict[str, Any]:
    try:
        found = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _origin(name: str, entry: dict[str, Any], folder: Path, cap: int | None, *, texts: bool) -> Origin:
    """Returns a dataset as a source; raises _Unusable if a recipe cannot describe it."""
    if entry.get("ranking"):
        raise _Unusable(f"{name!r} holds preferences", KEEP)
    if "folder" in entry or not ("hf_hub_url" in entry or "file_name" in entry):
        raise _Unusable(f"{name!r} is not a file, a folder or a whole dataset of the Hub", "download its rows")
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
