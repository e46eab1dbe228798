"""`honed train --dry-run`: what would happen, on one screen and a half."""

from __future__ import annotations

import shlex
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from honed.recipe import Recipe
    from honed.train.run.dry_run import DryRun

FLAG = "--dry-run"


def show(recipe: Recipe, command: str) -> None:
    """Prints what the command would do, and the command that does it."""
    from honed.train.run.dry_run import dry_run

    found = dry_run(recipe)
    print("\n\n".join([_recipe(recipe), *rows_shown(found), summary(found)]))
    print(f"\nNothing was trained or written. To do it:\n  {without_flag(command)}")


def without_flag(command: str) -> str:
    """The command that trains; argparse takes the option's beginnings for it as well."""
    return shlex.join(word for word in shlex.split(command) if not (len(word) > 2 and FLAG.startswith(word)))


def rows_shown(found: DryRun) -> list[str]:
    """The first rows as `honed data show` shows them."""
    from honed.report.row.text import Style, row_text

    style = Style.of(sys.stdout)
    return [row_text((source, row), options, found.tokenizer, style) for source, row, options in found.examples]


def summary(found: DryRun) -> str:
    """Model, data, steps, learning rate, memory, time and notes, a line or two each."""
    from honed.train.run.dry_run import schedule_in_words

    share = found.trainable / max(1, found.parameters)
    how = "all weights" if found.recipe.lora is None else f"an adapter, {share:.2%} as many"
    base = f" ({found.recipe.quantization})" if found.recipe.quantization else ""
    model = (
        f"{found.recipe.model}: {found.parameters:,} parameters, {found.dtype}{base} on {found.device}\n"
        f"{found.trainable:,} trained: {how}"
    )
    parts = {
        "model": model,
        "data": found.ledger.summary() if found.ledger else "streamed: rows are counted while they are trained",
        "steps": _steps(found),
        "learning rate": schedule_in_words(found.args, found.steps),
    }
    if found.memory is not None:
        parts["memory"] = f"about {found.memory / 1e9:.1f} GB at the peak on {found.device}, with rows of max_length"
    if (time := _time(found)) is not None:
        parts["time"] = time
    if found.notes:
        parts["notes"] = "\n".join(found.notes)
    parts["output"] = found.recipe.output
    return "\n".join(f"{name:<15}{textwrap.indent(text, ' ' * 15).lstrip()}" for name, text in parts.items())


def _steps(found: DryRun) -> str:
    args = found.args
    own = f"{args.per_device_train_batch_size} rows x {args.gradient_accumulation_steps} micro-batches"
    lines = [f"{found.steps:,} optimizer steps of {own} x {args.world_size} processes".replace("x 1 processes", "")]
    if found.rows is not None:
        lines.append(f"{found.rows:,} rows an epoch ({found.batches:,} micro-batches on each process)")
    if found.tokens_per_step is not None:
        lines.append(f"{found.rows_per_step:,.1f} rows and {found.tokens_per_step:,.0f} tokens a step on average")
    return "\n".join(line.rstrip() for line in lines)


def _time(found: DryRun) -> str | None:
    """A guess from the operations and what the machine could do at best; None where one of them is not known."""
    from honed.cli.machine import machine
    from honed.model.device import cpu_flops
    from honed.model.plan.step_time import EFFICIENCY
    from honed.quantities import duration_text

    if (
        found.operations is None
        or (rate := cpu_flops() if found.device == "cpu" else machine(None, None).flops) is None
    ):
        return None
    seconds = found.operations / (rate * EFFICIENCY)
    rates = f"{EFFICIENCY:.0%} of {rate / 1e12:,.2f} TFLOP/s"
    step = duration_text(seconds) if seconds >= 1 else f"{1000 * seconds:,.1f} ms"
    return f"about {duration_text(seconds * found.steps)}, {step} a step, if {rates} are reached"


def _recipe(recipe: Recipe) -> str:
    from honed.recipe import as_yaml

    return as_yaml(recipe).rstrip()
