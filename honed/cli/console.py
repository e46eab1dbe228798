"""Shared code of the verbs: quiet libraries, loading a model to chat with, and results side by side."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from honed.recipe import DataRecipe

SHOWN = 5
NARROWEST = 20  # columns; a terminal may report fewer


def quiet_libraries() -> None:
    """Hides the libraries' own progress bars and advice; honed has its own. Errors are still shown."""
    import logging as python_logging
    import os
    import warnings

    python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)
    python_logging.getLogger("honed").setLevel(python_logging.ERROR)  # verbs show its warnings as notes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|transformers\.|peft\.")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model to chat with, and the template and system prompt it was trained with."""

    model: Any
    tokenizer: Any
    template: Any
    system: str | None


def load_speaker(name: str, *, seed: int, weights: bool = True) -> Speaker:
    """Loads the model of a run's folder, or any other; without weights, only its `generation_config`.

    Raises:
        ModelError: there is no such model, or it has no chat template.
    """
    from transformers import set_seed

    from honed.data.prepare.options import PrepareOptions
    from honed.data.prepare.prepare import make_template
    from honed.generate.answer import need_template
    from honed.model.adapters.load_trained import load_for_generation
    from honed.model.device import pick_device
    from honed.model.load.load import load_tokenizer, resolve

    set_seed(seed)
    if weights:
        model, tokenizer = load_for_generation(name, device=pick_device())
    else:
        folder = resolve(name)
        tokenizer = load_tokenizer(folder)
        model = SimpleNamespace(generation_config=_generation_config(folder))
    data = data_of(Path(name))
    options = PrepareOptions(template_arguments=data.template_arguments)
    template = need_template(make_template(tokenizer, options), name)
    return Speaker(model=model, tokenizer=tokenizer, template=template, system=data.system)


def _generation_config(folder: str) -> Any:
    """The generation config, as `from_pretrained` of the model would set it."""
    from transformers import AutoConfig, GenerationConfig

    if (Path(folder) / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))


def data_of(folder: Path) -> DataRecipe:
    """The data section of the run's recipe; the defaults if the folder is not a run's."""
    from honed.recipe import DataRecipe, load_recipe

    recipe = folder / "recipe.yaml"
    return load_recipe(recipe).data if recipe.is_file() else DataRecipe()


def show_result(folder: Path, samples: dict[str, Any]) -> None:
    """Prints answers before and after training, and what to do next."""
    if samples:
        print()
        print(side_by_side(samples, width=min(shutil.get_terminal_size((100, 24)).columns, 140)))
        print(counts_table(samples))
    print(f"\n{folder / 'report.html'}   the run to look at: curves, data, answers")
    print(f"honed chat {folder}   to talk with the model")


def counts_table(samples: dict[str, Any]) -> str:
    """A table of how many answers the model ended and how many had the wanted form, before and after."""
    before, after = samples["before"], samples["after"]
    of = after["of"]
    lines = [
        f"{'':28}before   after",
        f"{'ended their turn':28}{before['stopped']:>3}/{of}   {after['stopped']:>3}/{of}",
    ]
    if "followed_form" in after:
        row = f"{'followed the form':28}{before['followed_form']:>3}/{of}   {after['followed_form']:>3}/{of}"
        lines.append(f"{row}   (form: {samples['rule']})")
    return "\n".join(lines)


def side_by_side(samples: dict[str, Any], *, width: int, shown: int = SHOWN) -> str:
    """The first answers before and after, in two columns."""
    width = max(width, NARROWEST)
    column = (width - 3) // 2
    lines = []
    for row in samples["answers"][:shown]:
        lines += wrap(f"Q: {row['prompt']}", width)
        left = ["before", *wrap(row["before"] + ("" if row["before_stopped"] else " [cut]"), column)]
        right = ["after", *wrap(row["after"] + ("" if row["after_stopped"] else " [cut]"), column)]
        lines += [*two_columns(left, right, column), "-" * width]
    more = len(samples["answers"]) - shown
    return "\n".join(lines + ([f"({more} more in the report)"] if more > 0 else []))


def two_columns(left: list[str], right: list[str], width: int) -> list[str]:
    """Joins lines in two columns; those on the left are at most `width` columns wide."""
    return [f"{pad(a, width)} | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; Chinese characters count as two."""
    lines: list[str] = []
    for line in text.expandtabs().splitlines() or [""]:
        if columns(line) == len(line):
            lines += textwrap.wrap(line, width) or [""]
        else:
            lines += _wrap_wide(line, width)
    return lines


def pad(text: str, width: int) -> str:
    """The text padded with spaces to `width` columns."""
    return text + " " * max(0, width - columns(text))


def columns(text: str) -> int:
    """Columns that a terminal needs for this text."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _wrap_wide(line: str, width: int) -> list[str]:
    lines, current = [], ""
    for character in line:
        if columns(current + character) > width:
            lines.append(current)
            current = ""
        current += character
    return [*lines, current]
