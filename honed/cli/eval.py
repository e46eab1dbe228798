"""Measure a model on held-out rows: loss, answers, tasks; optionally against another model, with a gate.

  honed eval runs/mine --data held_out.jsonl
  honed eval runs/mine --data held_out.jsonl --against BASE --gate loss=0.02,stops=-0.05 --html eval.html

The exit status is 1 if the gate fails, 2 for an error to fix, else 0. docs/evaluation.md explains each number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.quantities import counted

if TYPE_CHECKING:
    from honed.data.ledger import Ledger
    from honed.data.prepare.options import PrepareOptions
    from honed.data.templates.view import Template
    from honed.evaluate.evaluation import Exam, Measured
    from honed.evaluate.held_out import Collate, Scorer
    from honed.evaluate.measure import Compared

GATE_FAILED = 1
DEFAULT_CONTEXT = 2048  # tokens, for --lm-eval, if a model's configuration does not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run or a model, or a model's name")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="rows that were not trained on")
    parser.add_argument("--against", metavar="BASE", help="another model, measured on the same rows")
    parser.add_argument("--max-length", type=_whole, metavar="N", help="score rows up to here [the run's, or 1024]")
    parser.add_argument("--prompts", type=_whole, default=64, metavar="N", help="answer at most N of the rows [64]")
    parser.add_argument("--max-new-tokens", type=_whole, default=128, metavar="N", help="longest answer [128]")
    parser.add_argument("--form", metavar="REGEX", help="what a whole answer should look like")
    parser.add_argument("--tasks", type=Path, metavar="YAML", help="questions with answers that can be checked")
    parser.add_argument("--gate", metavar="NAME=LIMIT,...", help="fail where a measure got worse by more than this")
    parser.add_argument("--lm-eval", metavar="TASK,...", help="tasks of lm-evaluation-harness as well")
    parser.add_argument("--lm-eval-limit", type=_whole, metavar="N", help="questions of each of them [all]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with answers side by side")
    parser.add_argument("--seed", type=_whole, default=0, help="of the intervals [0]")


def _whole(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("it must be 0 or more")
    return number


def run(args: argparse.Namespace, command: str) -> int:
    """Measures one or two models; returns 1 if the gate fails."""
    from honed.cli.console import quiet_libraries

    quiet_libraries()
    from honed.evaluate.evaluation import result
    from honed.evaluate.gate import judge, read_gate
    from honed.evaluate.measure import compare_measures

    rules = read_gate(args.gate) if args.gate else []
    _check(args)
    exam, tokenizer, template = _exam(args)
    tuned = _measured(args, args.model, exam, tokenizer, template)
    base = _measured(args, args.against, exam, tokenizer, template) if args.against else None
    compared = compare_measures(tuned.measures, base.measures if base else None, seed=args.seed)
    verdicts = judge(rules, compared)
    facts = {"model": args.model, "against": args.against, "data": ", ".join(args.data), "command": command}
    found = result(exam, compared, tuned, base, verdicts, **facts)
    written = _write(args, found)  # first, because `| head` ends the printing early
    print("\n".join([table(compared), *lm_eval_lines(found["lm_eval"]), *map(str, verdicts), *written]))
    return 0 if all(verdict.passed for verdict in verdicts) else GATE_FAILED


def _check(args: argparse.Namespace) -> None:
    """Refuses bad arguments before a model is loaded."""
    from honed.errors import RecipeError, RunError
    from honed.evaluate.lm_eval_model import need_lm_eval

    if args.gate and not args.against:
        raise RecipeError("--gate compares two models.", fix="name the other with --against MODEL")
    if args.lm_eval:
        need_lm_eval()
    for name, least in (("max_new_tokens", 1), ("max_length", 2)):
        if (value := getattr(args, name)) is not None and value < least:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}.", fix=f"set {least} or more")
    for target in (args.json, args.html):
        if target is not None and not target.absolute().parent.is_dir():
            raise RunError(f"{target} could not be written: there is no such folder.", fix="make the folder first")


def _exam(args: argparse.Namespace) -> tuple[Exam, Any, Template | None]:
    """The exam, with the tokenizer and template of the first model, which are also used for the second."""
    from dataclasses import replace

    from honed.data.prepare.options import lowered_length
    from honed.data.prepare.prepare import make_template
    from honed.evaluate.before_after import Form
    from honed.evaluate.behaviour import prompts_of
    from honed.evaluate.evaluation import Exam
    from honed.evaluate.held_out import read_held_out
    from honed.evaluate.tasks import read_tasks
    from honed.model.load.load import load_tokenizer

    options = trained_with(Path(args.model).expanduser(), args.max_length)
    form = Form(pattern=args.form) if args.form else None
    tasks = read_tasks(args.tasks, system=options.system) if args.tasks else []
    tokenizer = load_tokenizer(args.model)
    options = replace(options, max_length=lowered_length(options.max_length, tokenizer)[0])
    template = make_template(tokenizer, options)
    held_out = read_held_out(args.data, tokenizer, template, options)
    prompts, without = prompts_of(held_out.examples, args.prompts)
    print(rows_text(held_out.ledger))
    print(
        f"{counted(len(prompts), 'prompt')} to answer"
        + "".join(f"; {counted(n, 'row')}: {why}" for why, n in without.items())
    )
    exam = Exam(held_out=held_out, prompts=prompts, tasks=tasks, form=form, max_new_tokens=args.max_new_tokens)
    return exam, tokenizer, template


def rows_text(ledger: Ledger) -> str:
    """The number of scored rows and tokens, and the rows that are left out or cut."""
    rows, tokens = counted(ledger.rows_in, "row"), counted(ledger.trained_tokens, "token")
    lines = [f"{ledger.rows_trained:,} of {rows}, {tokens} to score"]
    lines += [f"  left out {n:,}: {reason}" for reason, n in ledger.rows_dropped.most_common()]
    lines += [f"  cut {n:,}: {reason}" for reason, n in ledger.rows_cut.most_common()]
    return "\n".join(lines)


def trained_with(folder: Path, max_length: int | None) -> PrepareOptions:
    """How the run's own data were prepared; the defaults if the folder is not a run's.

    The template is "auto": a run's tokenizer includes the template it was trained with.
    """
    from dataclasses import replace

    from honed.cli.console import data_of
    from honed.data.prepare.options import options_from

    options = replace(options_from(data_of(folder)), template="auto", packing=False)
    return options if max_length is None else replace(options, max_length=max_length)


def _measured(args: argparse.Namespace, name: str, exam: Exam, tokenizer: Any, template: Template | None) -> Measured:
    """One model's measures. The model is loaded and freed here, so that two are never in memory together."""
    from dataclasses import replace

    from honed.evaluate.evaluation import check_same_tokens, sit
    from honed.model.adapters.load_trained import load_for_generation
    from honed.model.device import pick_device

    print(f"{name}:")
    model, own_tokenizer = load_for_generation(name, device=pick_device())
    vocabulary = model.get_input_embeddings().weight.shape[0]
    check_same_tokens(exam.held_out, tokenizer, own_tokenizer, vocabulary=vocabulary, name=name)
    with opened_scorer(model, tokenizer) as (scorer, collate):
        measured = sit(exam, model, tokenizer, template, name=name, scorer=scorer, collate=collate)
        if not args.lm_eval:
            return measured
        return replace(measured, lm_eval=_lm_eval(args, model, tokenizer, scorer, collate))


@contextmanager
def opened_scorer(model: Any, tokenizer: Any) -> Iterator[tuple[Scorer, Collate]]:
    """A scorer of tokens for this model: with a tiled head and flat rows, if the model supports them."""
    import torch

    from honed.data.batch.collate import Batch, FlatCollator, PaddedCollator
    from honed.loss.head import TokenScores
    from honed.train.forward.seams import find_seams, opened, token_scores

    seams = find_seams(model)
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0

    def scorer(batch: Batch, extras: bool) -> TokenScores:
        inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        with opened(model, seams) as head:
            return token_scores(model, inputs, head, extras=extras)[0]

    yield scorer, FlatCollator() if seams.flat else PaddedCollator(pad_token_id=pad)


def _lm_eval(
    args: argparse.Namespace, model: Any, tokenizer: Any, scorer: Scorer, collate: Collate
) -> dict[str, dict[str, float]]:
    from honed.evaluate.lm_eval_model import Requests, as_lm, run_tasks

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or DEFAULT_CONTEXT
    lm = as_lm(Requests(model, tokenizer, scorer=scorer, collate=collate, max_length=context))
    found = run_tasks(lm, args.lm_eval.split(","), limit=args.lm_eval_limit, seed=args.seed)
    if lm.cut:
        print(f"note: {counted(lm.cut, 'context')} lost the beginning: longer than {counted(context, 'token')}")
    return found


def table(compared: Sequence[Compared]) -> str:
    """All measures, one per line, with 95% intervals: of the difference if two models are compared."""
    from honed.cli.console import columns, pad

    versus = any(one.base is not None for one in compared)
    rows = [["", "base", "model", "difference", "95% interval"] if versus else ["", "model", "95% interval"]]
    for one in compared:
        rows += _lines(one, versus)
    widths = [max(columns(row[n]) for row in rows if n < len(row)) for n in range(len(rows[0]))]
    return "\n".join("  ".join(map(pad, row, widths)).rstrip() for row in rows)


def _lines(one: Compared, versus: bool) -> list[list[str]]:
    """A measure's line; the loss of all tokens is followed by its perplexity."""
    from honed.evaluate.measure import perplexity
    from honed.report.evaluation.cells import cell_text, interval_text

    shown = [one.base, one.value] if versus else [one.value]
    values = [cell_text(value, one.unit) for value in shown]
    change = [cell_text(one.difference, one.unit, signed=True)] if versus else []
    name = one.label + ("" if one.unit == "share" else f" ({one.unit})")
    lines = [[name, *values, *change, interval_text(one.low, one.high, one.unit, signed=versus)]]
    if one.name == "loss":
        lines.append(["perplexity", *(f"{perplexity(value):.3f}" for value in shown if value is not None)])
    return lines


def lm_eval_lines(found: dict[str, Any]) -> list[str]:
    """The harness's numbers, one per line."""
    return [
        f"{who} {task} {name}: {value:.4g}"
        for who, tasks in found.items()
        for task, numbers in tasks.items()
        for name, value in numbers.items()
    ]


def _write(args: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """Writes the requested files; returns their names."""
    import json

    from honed.errors import RunError
    from honed.report.evaluation.page import write_eval_page

    if args.json:
        try:
            text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
            args.json.write_bytes(text.encode("utf-8", "replace"))  # rows may contain unpaired surrogates
        except OSError as error:
            raise RunError(f"{args.json} could not be written: {error}.", fix="name another file") from None
    if args.html:
        write_eval_page(args.html, found)
    return [str(target) for target in (args.json, args.html) if target]
