"""A trained run -> one ordinary model: the adapter merged, cast, written, read back, and compared with the run.

The reference is the run's own model with its adapter unmerged, in float32 (on the quantised base, if it was trained on
one); it is compared with the files that were written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from honed.errors import MissingExtraError, ModelError, RunError
from honed.model.adapters.adapter_class import trained_seeing
from honed.model.adapters.adapters import load_with_adapter
from honed.model.adapters.load_trained import load_for_generation, trained_on
from honed.model.load import quantize
from honed.model.load.load import is_adapter, load_model, load_processor, load_tokenizer, sees_images

# RMS change of the logits over their standard deviation. Casting rounds a weight by up to a part of 2^-9 in bfloat16,
# 2^-12 in float16; in float32 only the merge rounds.
ALLOWED = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
# LLM.int8() also rounds activations, which no weights can reproduce.
ALLOWED_FOR_INT8 = 1e-1
NEW_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A row to compare on: its token ids, and how many of them are the prompt."""

    ids: Sequence[int]
    n_prompt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far the written model is from the trained one.

    Attributes:
        tokens: compared positions.
        change: RMS change of the logits, over their standard deviation.
        allowed: largest `change` that passes.
        same_choices: positions whose most likely token is the same.
        same_answers: greedy answers with the same tokens, of `answers`.
    """

    tokens: int
    change: float
    allowed: float
    same_choices: int
    answers: int
    same_answers: int

    @property
    def passes(self) -> bool:
        """Whether the models are the same within the number format."""
        return self.change <= self.allowed  # NaN is not


def export(folder: str | Path, out: str | Path, *, dtype: str = "float32", probes: Sequence[Probe]) -> Comparison:
    """Writes the run as a whole model that plain transformers loads, with tokenizer (or processor), template and stops.

    A base that was quantised for training is dequantised; merging into the original base would give another model.
    Memory holds one model at a time, in float32.

    Args:
        folder: of a run or a model, on this machine.
        out: created; must not exist, or be empty.
        dtype: "float32", "bfloat16" or "float16".
        probes: rows to compare on; at least one.

    Raises:
        ModelError: the adapter cannot be merged, or the result is not the trained model. `out` is then not written.
        RunError: the run has not finished, or `out` is in the way.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    check_places(folder, out, dtype)
    allowed = max(ALLOWED[dtype], ALLOWED_FOR_INT8 if trained_on(str(folder)) == "int8" else 0)
    trained, _ = load_for_generation(str(folder), device=torch.device("cpu"), dtype=torch.float32)
    expected, generation_config = outputs(trained, probes), trained.generation_config  # with the trained stops
    del trained
    beside = out.parent / f".{out.name}-{os.getpid()}"
    try:
        beside.mkdir(parents=True)
        merged = merge(folder).to(getattr(torch, dtype))
        merged.config.dtype = getattr(torch, dtype)
        merged.generation_config = generation_config
        merged.save_pretrained(beside)
        merged_config = merged.config
        del merged
        processing_class(folder, merged_config).save_pretrained(beside)
        written, _ = load_for_generation(str(beside), device=torch.device("cpu"), dtype=torch.float32)
        found = compare(expected, outputs(written, probes), allowed=allowed)
        if not found.passes:
            raise ModelError(
                f"The exported model is not the trained one: its logits differ by {found.change:.2%} of their spread, "
                f"{found.allowed:.2%} is allowed for {dtype}.",
                fix="export with --dtype float32; if that fails, too, the adapter cannot be merged into this model",
            )
        if out.exists():
            out.rmdir()
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


def check_places(folder: Path, out: Path, dtype: str) -> None:
    """Refuses what cannot be exported, or would overwrite something, before anything is loaded.

    Raises:
        ModelError: no such run or number format.
        RunError: the run has not finished, or `out` is in the way.
    """
    from peft import PeftConfig

    if dtype not in ALLOWED:
        raise ModelError(f"dtype is {dtype!r}.", fix=f"known are {', '.join(ALLOWED)}")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"{folder} holds no model.", fix="name the folder of a finished run")
    if is_adapter(str(folder)) and PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
        raise ModelError("Virtual tokens cannot be merged into weights.", fix="keep the adapter, or train LoRA instead")
    state = folder / "run.json"
    if state.is_file():
        status = json.loads(state.read_text(encoding="utf-8")).get("status")
        if status != "finished":
            raise RunError(f"The run in {folder} is {status}, not finished.", fix="train it to its end first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty.", fix="name a new folder")


def merge(folder: Path) -> Any:
    """The run's model in float32, with its adapter merged if it has one.

    Raises:
        ModelError: the adapter cannot be merged, or gives weights that are not finite.
    """
    cpu = torch.device("cpu")
    if not is_adapter(str(folder)):
        return load_model(str(folder), device=cpu, dtype=torch.float32, with_vision=sees_images(str(folder)))
    adapted = load_with_adapter(str(folder), device=cpu, base=_plain_base(folder))
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        kind = adapted.active_peft_config.peft_type.value
        raise ModelError(
            f"The {kind} adapter cannot be merged: {error}", fix="keep the adapter, or train LoRA"
        ) from None


def processing_class(folder: Path, config: Any) -> Any:
    """The run's tokenizer; for a model of this configuration that sees images, the run's processor or its base's.

    A run on text keeps no processor, and its base may have none either; then it is the tokenizer.
    """
    from peft import PeftConfig
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    tokenizer = load_tokenizer(str(folder))
    places = [str(folder)]
    if is_adapter(str(folder)):
        places.append(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    for place in places if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else ():
        try:
            processor = load_processor(place)
        except (ModelError, MissingExtraError):
            continue
        processor.tokenizer = tokenizer
        processor.chat_template = tokenizer.chat_template or processor.chat_template
        return processor
    return tokenizer


def compare(expected: Sequence[Any], found: Sequence[Any], *, allowed: float) -> Comparison:
    """Measures two models' `outputs` on the same probes."""
    logits = torch.cat([logits_LV for logits_LV, _ in expected])
    change = torch.cat([logits_LV for logits_LV, _ in found])[:, : logits.shape[1]] - logits
    moved = [(a, b) for (a, _), (b, _) in zip(expected, found, strict=True)]
    return Comparison(
        tokens=len(logits),
        change=float(change.pow(2).mean().sqrt() / logits.std()),
        allowed=allowed,
        same_choices=sum(int((a.argmax(-1) == b[:, : a.shape[1]].argmax(-1)).sum()) for a, b in moved),
        answers=len(expected),
        same_answers=sum(a == b for (_, a), (_, b) in zip(expected, found, strict=True)),
    )


@torch.no_grad()
def outputs(model: Any, probes: Sequence[Probe]) -> list[tuple[torch.Tensor, list[int]]]:
    """For each probe the logits (L, V) of its row, float32, and the greedy answer to its prompt."""
    found = []
    for probe in probes:
        ids_1L = torch.tensor([list(probe.ids)], device=model.device)
        prompt = ids_1L[:, : max(probe.n_prompt, 1)]
        answer = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        logits_LV = model(input_ids=ids_1L, use_cache=False).logits[0, -ids_1L.shape[1] :].float().cpu()
        found.append((logits_LV, answer[0, prompt.shape[1] :].tolist()))
    return found


def _plain_base(folder: Path) -> Any:
    """The adapter's base, dequantised where it was quantised for training."""
    from peft import PeftConfig

    name = str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "trains_all": False}
    base = load_model(
        name, quantization=trained_on(str(folder)), with_vision=trained_seeing(str(folder), name), **options
    )
    return quantize.dequantized(base, torch.float32) if quantize.is_quantized(base) else base
