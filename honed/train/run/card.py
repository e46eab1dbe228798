"""A run's README.md, which is the model card if the folder is pushed to the Hub."""

from __future__ import annotations

from pathlib import Path

from honed import __version__
from honed.data.ledger import Ledger
from honed.model.smollm2.smollm2 import MODEL_NAME
from honed.quantities import counted
from honed.recipe import Recipe

_ON_THE_HUB = {MODEL_NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}


def card(recipe: Recipe, ledger: Ledger | None) -> str:
    """Returns the model card. It is meant for others, so it names no folder of this machine."""
    base, adapter = hub_id(recipe.model), recipe.lora is not None
    lines = [
        "---",
        *([f"base_model: {base}"] if base else []),
        f"library_name: {'peft' if adapter else 'transformers'}",
    ]
    lines += ["tags:", "- sft", "- honed", *(["- lora"] if adapter else []), "---", "", f"# {Path(recipe.output).name}"]
    of = f"[{base}](https://huggingface.co/{base})" if base else "a model"
    lines += ["", f"{'A LoRA adapter for' if adapter else 'A fine-tune of'} {of}, trained by honed {__version__}."]
    if ledger is not None:
        tokens, rows = counted(ledger.tokens, "token"), counted(ledger.rows_trained, "row")
        lines += ["", f"Data: {tokens} of {rows}, {ledger.trained_tokens:,} of them with a loss."]
    lines += ["", "`recipe.yaml` is the recipe as run, `report.html` the run to look at: curves, data, answers."]
    return "\n".join([*lines, ""])


def hub_id(model: str) -> str | None:
    """Returns the model's id on the Hub; None for a local folder."""
    if model in _ON_THE_HUB:
        return _ON_THE_HUB[model]
    is_id = model.count("/") == 1 and model[0] not in "./~" and not Path(model).exists()
    return model if is_id else None
