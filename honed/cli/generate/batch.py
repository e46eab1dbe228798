"""`honed generate --data` and `--seeds`: builds a batch from the options, and prints its ledger."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.cli.sampling import sampling
from honed.errors import RecipeError
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.cli.console import Speaker
    from honed.data.example import Message
    from honed.generate.batch.batch import Asking
    from honed.generate.batch.prompts import Prompt
    from honed.generate.request import TextEngine

LISTED = re.compile(r"^\s*(?:\d+[.)]|[-*])\s*")  # a number or a bullet before a task
TASK_LENGTH = 10  # minimum characters of a new task
TASK_NEAR = 0.7  # a task this similar to a seed or another task is not new


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """The engine for a batch, and its settings."""

    engine: TextEngine
    encode: Callable[[Sequence[Message]], list[int]]
    asking: Asking
    system: str | None


def run_batch(args: argparse.Namespace) -> int:
    """Answers a file of prompts, or makes tasks first; prints what was kept and dropped."""
    from honed.cli.console import quiet_libraries
    from honed.generate.batch.prompts import read_prompts, with_system

    if args.out is None:
        raise RecipeError("A batch needs a file for its answers.", fix="--out answers.jsonl")
    if args.samples > 1 and args.temperature == 0:
        raise RecipeError(
            f"--samples {args.samples} at temperature 0 would be the same answer each time.", fix="--temperature 0.8"
        )
    quiet_libraries()
    out = Path(args.out)
    prompts = None
    if args.data is not None:  # read before a model is loaded, to report errors at once
        prompts = list(read_prompts(args.data, template=args.prompt_template))
    with _importable_here(), _opened(args) as batch:
        if prompts is None:
            prompts = _new_tasks(args, batch, out)
        ledger = _answered(args, batch, [with_system(prompt, batch.system) for prompt in prompts], out)
    print(summary(ledger, out))
    return 0


def summary(ledger: dict[str, Any], out: Path) -> str:
    """How many answers were kept, and how many were dropped and why; the numbers add up."""
    answers = counted(ledger["answers"], "answer")
    lines = [f"{answers} to {counted(ledger['prompts'], 'prompt')} ({counted(ledger['tokens'], 'token')})"]
    if ledger["answered_before"]:
        lines.append(f"{ledger['answered_before']:>7} of them made before")
    if ledger["repaired_last_line"]:
        lines.append("        an incomplete last line was removed, its answer made again")
    lines += [f"{count:>7} dropped: {reason}" for reason, count in ledger["dropped"].items()]
    return "\n".join([*lines, f"{ledger['kept']:>7} kept   {out}"])


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[_Batch]:
    from honed.cli.console import load_speaker
    from honed.generate.choice import open_engine

    if args.engine == "vllm":
        from honed.generate.vllm_engine import VllmEngine

        vllm = VllmEngine(args.model)  # loads the weights itself
        yield _batch(args, load_speaker(args.model, seed=args.seed, weights=False), vllm)
        return
    speaker = load_speaker(args.model, seed=args.seed)
    with open_engine(speaker.model, speaker.tokenizer, slots=args.batch_size) as (engine, note):
        if note:
            print(f"honed: {note}", file=sys.stderr)
        yield _batch(args, speaker, engine)


def _batch(args: argparse.Namespace, speaker: Speaker, engine: TextEngine) -> _Batch:
    from honed.generate.answer import prompt_ids
    from honed.generate.batch.batch import Asking
    from honed.generate.choice import sampling_of, stop_ids

    asking = Asking(
        model=args.model,
        samples=args.samples,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling_of(speaker.model, sampling(args)),
        stop_ids=frozenset(stop_ids(speaker.model)),
        stop_strings=tuple(args.stop),
        seed=args.seed,
    )

    def encode(messages: Sequence[Message]) -> list[int]:
        return prompt_ids(speaker.tokenizer, speaker.template, [messages])[0]

    return _Batch(engine=engine, encode=encode, asking=asking, system=args.system or speaker.system)


def _answered(args: argparse.Namespace, batch: _Batch, prompts: list[Prompt], out: Path) -> dict[str, Any]:
    from honed.generate.batch.batch import answer_batch
    from honed.generate.batch.filters import Filters

    filters = Filters(
        min_length=args.min_length,
        max_length=args.max_length,
        only_stopped=args.only_stopped,
        near=args.drop_near,
        verify=args.verify,
    )
    return answer_batch(prompts, batch.engine, batch.encode, out=out, asking=batch.asking, filters=filters)


def _new_tasks(args: argparse.Namespace, batch: _Batch, out: Path) -> list[Prompt]:
    """Tasks generated from the seeds, saved next to `out`; those similar to a seed or each other are dropped."""
    from dataclasses import replace

    from honed.data.example import Message
    from honed.generate.batch.batch import answer_batch
    from honed.generate.batch.filters import Filters
    from honed.generate.batch.prompts import read_prompts, read_tasks, seed_prompts

    tasks = read_tasks(args.seeds)
    asked = list(seed_prompts(tasks, shots=args.shots, count=args.count, seed=args.seed))
    file = out.with_name(out.name + ".tasks.jsonl")
    asking = replace(batch.asking, samples=1, stop_strings=("\n",))
    filters = Filters(min_length=TASK_LENGTH, only_stopped=True, near=TASK_NEAR)
    ledger = answer_batch(asked, batch.engine, batch.encode, out=file, asking=asking, filters=filters, known=tasks)
    print(summary(ledger, file))
    if not ledger["kept"]:
        raise RecipeError("No new task was made.", fix="raise --count or --temperature, or use a larger model")
    made = []
    for prompt in read_prompts(str(file)):
        task = LISTED.sub("", prompt.row["messages"][-1]["content"])
        made.append(replace(prompt, messages=(Message(role="user", content=task),)))
    return made


@contextmanager
def _importable_here() -> Iterator[None]:
    """Allows `--verify` to import modules from the current folder, like `python -m`."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))
