"""4-bit quantisation of a model's linear layers by GPTQ (Frantar et al., arXiv:2210.17323), with llm-compressor.

Weights are rounded layer by layer to minimise the change of the outputs on calibration rows. The result
(compressed-tensors, "pack-quantized") is read by vLLM, and by transformers with `pip install compressed-tensors`.
Embedding, norms and LM head keep their dtype.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from honed.errors import ModelError
from honed.model.load.load import load_model, load_tokenizer

BITS = 4
GROUPS = (128, 64, 32)  # possible numbers of weights that share a scale
# Allowed rise of the mean loss in nats. SmolLM2-135M's rose by 0.02; that of a broken model rises by several nats.
ALLOWED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Token ids, and which of them are trained."""

    ids: Sequence[int]
    trained: Sequence[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Mean loss in nats on the check rows' trained tokens, of the model and of the quantised model read back."""

    before: float
    after: float
    tokens: int
    group: int

    @property
    def passes(self) -> bool:
        """Whether the loss rose by no more than `ALLOWED`."""
        return self.after - self.before <= ALLOWED  # False for NaN


def export_gptq(folder: str | Path, out: str | Path, *, calibration: Sequence[Row], check: Sequence[Row]) -> Losses:
    """Writes the model of `folder` in 4 bits, with its tokenizer, and measures how much the loss rises.

    Args:
        folder: a whole model in transformers' format, with its tokenizer.
        out: created; must not exist.
        calibration: rows to calibrate on, preferably training data.
        check: rows to measure the loss on, preferably different ones.

    Raises:
        ModelError: llm-compressor is not installed, the model is not supported, or the result is much worse; `out` is
            then not written.
    """
    need_llmcompressor()
    folder, out = Path(folder), Path(out)
    model = load_model(str(folder), device=torch.device("cpu"), dtype=torch.float32).eval()
    group = group_size(model)
    before, tokens = loss_of(model, check)
    beside = out.parent / f".{out.name}-gptq-{os.getpid()}"
    try:
        with _quiet():
            _quantize(model, group, calibration)
            model.save_pretrained(beside, save_compressed=True)
        (beside / "recipe.yaml").unlink(missing_ok=True)  # llm-compressor's; clashes with the recipe of a honed run
        del model
        load_tokenizer(str(folder)).save_pretrained(beside)
        after, _ = loss_of(load_model(str(beside), device=torch.device("cpu"), dtype=torch.float32).eval(), check)
        found = Losses(before=before, after=after, tokens=tokens, group=group)
        if not found.passes:
            raise ModelError(
                f"GPTQ failed: the loss of {tokens} trained tokens went from {before:.3f} to {after:.3f} nats.",
                fix="calibrate on more rows (--calibration-rows), or export without --gptq",
            )
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


def need_llmcompressor() -> None:
    """Raises ModelError if the package is not installed."""
    if find_spec("llmcompressor") is None:
        raise ModelError(
            "GPTQ is done by the package 'llmcompressor', which is not installed.",
            fix="pip install llmcompressor (0.14 needs transformers <= 5.17, which honed works with)",
        )


def group_size(model: Any) -> int:
    """The largest of `GROUPS` that divides the width of every quantised layer.

    Raises:
        ModelError: none does, the model has experts in one tensor, or it has no linear layer except the head.
    """
    fused = [name for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name]
    if fused:
        raise ModelError(
            f"GPTQ of experts is not supported: {fused[0]} holds several matrices.", fix="leave --gptq out"
        )
    head = model.get_output_embeddings()
    widths = {m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}
    for group in GROUPS:
        if widths and all(width % group == 0 for width in widths):
            return group
    raise ModelError(
        f"GPTQ needs layers whose widths {GROUPS[-1]} divides; here they are {sorted(widths)}.", fix="leave --gptq out"
    )


@torch.no_grad()
def loss_of(model: Any, rows: Sequence[Row]) -> tuple[float, int]:
    """Mean loss in nats over the trained tokens of all rows, and their number."""
    total, count = 0.0, 0
    for row in rows:
        ids_L = torch.tensor(list(row.ids), device=model.device)
        trained_L = torch.tensor(list(row.trained), dtype=torch.bool, device=model.device)[1:]
        logits_LV = model(input_ids=ids_L[None], use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits_LV[trained_L], ids_L[1:][trained_L], reduction="sum"))
        count += int(trained_L.sum())
    return total / max(count, 1), count


def _quantize(model: Any, group: int, rows: Sequence[Row]) -> None:
    from datasets import Dataset

    oneshot = import_module("llmcompressor").oneshot
    modifiers = import_module("llmcompressor.modifiers.quantization")

    scheme = {
        "targets": ["Linear"],
        "weights": {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group", "group_size": group},
    }
    head = model.get_output_embeddings()
    ignore = [name for name, module in model.named_modules() if module is head]
    data = Dataset.from_list([{"input_ids": list(row.ids), "attention_mask": [1] * len(row.ids)} for row in rows])
    oneshot(
        model=model,
        dataset=data,
        recipe=modifiers.GPTQModifier(config_groups={"group_0": scheme}, ignore=ignore),
        num_calibration_samples=len(rows),
        max_seq_length=max(len(row.ids) for row in rows),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' logs, which have several lines per layer."""
    logger = import_module("loguru").logger
    names = ("llmcompressor", "compressed_tensors")
    for name in names:
        logger.disable(name)
    try:
        yield
    finally:
        for name in names:
            logger.enable(name)
