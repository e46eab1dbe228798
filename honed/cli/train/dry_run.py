"""`honed train --dry-run`: what would happen, with the decisive facts first; the rows and their masks below."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from honed.quantities import counted, duration_text

if TYPE_CHECKING:
    from honed.recipe import Recipe
    from honed.train.run.dry_run import DryRun

FLAG = "--dry-run"
NAME = 15  # columns before the facts
REFUSED = 2
# shown on lines of their own
SHOWN_ELSEWHERE = ("model", "output", "data.files", "data.sources")


def show(recipe: Recipe, command: str, *, overwrite: bool = False) -> int:
    """Prints what the command would do, and the command that does it; returns 2 if training would be refused."""
    from honed.train.run.dry_run import dry_run

    found = dry_run(recipe, overwrite=overwrite)
    print("\n\n".join([summary(found), *rows_shown(found)]))
    print("\nNothing was trained or written. The recipe with every default: --show-recipe in place of --dry-run.")
    if found.output.stops:
        print(f"Training would be refused: {found.output.stops}")
        return REFUSED
    print(f"To train:\n  {without_flag(command)}")
    return 0


def without_flag(command: str) -> str:
    """The command without the flag, so that it trains; argparse accepts abbreviations of the flag as well."""
    return shlex.join(word for word in shlex.split(command) if not (len(word) > 2 and FLAG.startswith(word)))


def rows_shown(found: DryRun) -> list[str]:
    """The first rows as `honed data show` prints them, with long passages cut."""
    from honed.report.row.text import Style, legend, row_text

    style = Style.of(sys.stdout, brief=True)
    rows = [
        row_text((source, row), options, found.tokenizer, style, explained=False)
        for source, row, options in found.examples
    ]
    head = f"The first {counted(len(rows), 'row')} as the model will see {'it' if len(rows) == 1 else 'them'}"
    return [f"{head} {legend(style)}", *rows]


def summary(found: DryRun) -> str:
    """The decisive facts, a line or two each: model, data, steps, memory, time, output; then notes and changes."""
    from honed.train.run.dry_run import schedule_in_words

    base = f" ({found.recipe.quantization})" if found.recipe.quantization else ""
    parts = {
        "would stop": found.output.stops,
        "model": f"{found.recipe.model}: {found.parameters:,} parameters, {found.dtype}{base} on {found.device}",
        "trained": _trained(found),
        "data": _data(found),
        "steps": _steps(found),
        "learning rate": schedule_in_words(found.args, found.steps),
        "memory": _memory(found),
        "time": _time(found),
        "writes to": f"{found.recipe.output}: {found.output.says}",
        "notes": "\n".join(f"- {note}" for note in found.notes),
        "changed": "  ".join(changed(found.recipe)),
    }
    return "\n".join(_part(name, text) for name, text in parts.items() if text)


def changed(recipe: Recipe) -> Iterator[str]:
    """`key=value` for each setting that differs from the default recipe, without secrets."""
    from dataclasses import asdict

    from honed.recipe import Recipe as Plain
    from honed.train.run_folder.secrets import masked_values

    default = dict(_flat(asdict(Plain())))
    for key, value in _flat(masked_values(asdict(recipe))):
        if default.get(key) != value and key not in SHOWN_ELSEWHERE:
            yield f"{key.removeprefix('train.')}={value}"


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Keys as written on a command line, and their values as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not before:
            yield from _flat(value, f"{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{before}{key}", shown


def _part(name: str, text: str) -> str:
    """Lines after the part's name, wrapped if the terminal is narrower."""
    width = max(60, min(120, shutil.get_terminal_size((120, 24)).columns))
    lines = [
        folded
        for line in text.splitlines()
        for folded in textwrap.wrap(
            line, width - NAME, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]
    return "\n".join(f"{name if number == 0 else '':<{NAME}}{line}" for number, line in enumerate(lines))


def _trained(found: DryRun) -> str:
    from honed.model.load.load import is_adapter, resolve

    lora = found.lora
    share = f"{found.trainable:,} parameters ({found.trainable / max(1, found.parameters):.2%})"
    if lora is None:
        return f"{share}: {', '.join(found.args.trainable) or 'all weights'}"
    layers = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules or []
    which = "an adapter"
    if is_adapter(resolve(found.recipe.model)):  # its file may name each layer in full
        which = f"the adapter in {found.recipe.model}"
        layers = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
    on = ", ".join([*layers, *(lora.target_parameters or [])])
    return f"{share}: {which}, r={lora.r}, alpha={lora.alpha:g}, on {on}"


def _data(found: DryRun) -> str:
    data = found.recipe.data
    names = [str(source.get("files")) for source in data.sources] if data.sources else list(data.files)
    options = found.args.prepare_options()
    length = f"max_length {options.max_length}, overlong {options.overlong_policy}"
    if options.longest_document is None and options.max_length is not None:  # wrapped packing
        length = f"rows of {options.max_length} tokens, which cut texts at their ends (packing_strategy wrapped)"
    head = f"{', '.join(names)}: trains {_parts_trained(found)}, {length}"
    return f"{head}\n{found.ledger.summary() if found.ledger else 'streamed: rows are counted while they are trained'}"


def _parts_trained(found: DryRun) -> str:
    """What `train_on` means for the kinds of rows among the first ones: it chooses among the turns of conversations."""
    from honed.data.example import Document, RowError, Tokens
    from honed.data.prepare.options import reading_of
    from honed.data.read.formats import read_example

    words = {Document: "plain text in full", Tokens: "token rows by their own labels"}
    parts = {}
    for source, row, options in found.examples:
        with suppress(RowError):  # the ledger counts it
            example = read_example(row, source, reading_of(options), format=options.format)
            parts[words.get(type(example), options.train_on)] = True
    return ", ".join(parts) or found.recipe.data.train_on


def _steps(found: DryRun) -> str:
    args = found.args
    sizes = [counted(args.per_device_train_batch_size, "row")]
    if args.gradient_accumulation_steps > 1:
        sizes.append(counted(args.gradient_accumulation_steps, "micro-batch", "micro-batches"))
    if args.sequence_parallel_size > 1:
        share = f"of {args.sequence_parallel_size} processes that share rows"
        sizes.append(counted(args.data_parallel_size, f"group {share}", f"groups {share}"))
    elif args.world_size > 1:
        sizes.append(counted(args.world_size, "process", "processes"))
    lines = [f"{counted(found.steps, 'optimizer step')} of {' x '.join(sizes)}"]
    if found.rows is not None:
        epochs = counted(round(found.steps * found.rows_per_step / found.rows, 2), "epoch")
        lines[0] += f"; {epochs} of {counted(found.rows, 'row')}"
    if found.tokens_per_step is not None:
        lines.append(f"on average {found.rows_per_step:,.1f} rows and {found.tokens_per_step:,.0f} tokens a step")
    return "\n".join(lines)


def _memory(found: DryRun) -> str:
    if found.memory is None:
        return ""
    most, place = f"{found.memory / 1e9:.1f} GB", f"at the peak on {found.device}"
    if found.memory_of_rows is None or found.longest is None:
        return f"about {most} {place}, with rows of max_length"
    peak = f"about {found.memory_of_rows / 1e9:.1f} GB {place}"
    return f"{peak}: the longest micro-batch has {counted(found.longest, 'token')} ({most} if all rows had max_length)"


def _time(found: DryRun) -> str:
    """An estimate from the operations and the machine's peak speed; "" if one of them is unknown."""
    from honed.cli.machine import machine
    from honed.model.device import cpu_flops
    from honed.model.plan.step_time import EFFICIENCY

    if (
        found.operations is None
        or (rate := cpu_flops() if found.device == "cpu" else machine(None, None).flops) is None
    ):
        return ""
    seconds = found.operations / (rate * EFFICIENCY)
    rates = f"{EFFICIENCY:.0%} of {rate / 1e12:,.2f} TFLOP/s"
    step = duration_text(seconds) if seconds >= 1 else f"{1000 * seconds:,.1f} ms"
    return f"about {duration_text(seconds * found.steps)}, {step} a step, if {rates} are reached"
