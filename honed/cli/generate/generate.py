"""Answer one question, or every prompt of a file, with a trained model (or any other).

  honed generate runs/demo "Why is the sky blue?"
  honed generate runs/demo --data prompts.jsonl --out answers.jsonl
  honed generate runs/demo --data rows.jsonl --prompt-template 'Translate: {text}' --out answers.jsonl
  honed generate runs/demo --data prompts.jsonl --samples 4 --temperature 0.8 --out answers.jsonl
  honed generate runs/demo --seeds tasks.jsonl --shots 3 --count 100 --temperature 1 --out new.jsonl

The same command resumes an interrupted batch. Two files are written next to OUT: OUT.journal (every answer as it came)
and OUT.ledger.json (what was dropped, and why).
"""

from __future__ import annotations

import argparse

from honed.cli.sampling import add_sampling, positive, sampling, share
from honed.quantities import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run or a model, or a model's name")
    parser.add_argument("prompt", nargs="?", help="the question; not with --data or --seeds")
    add_sampling(parser)
    batch = parser.add_argument_group("a whole file")
    batch.add_argument("--data", help="prompts: JSON lines and the other forms that training reads")
    batch.add_argument("--seeds", metavar="FILE", help="tasks from which the model makes new ones, then answers them")
    batch.add_argument("--shots", type=positive, default=3, help="seed tasks shown at a time [3]")
    batch.add_argument("--count", type=positive, default=100, help="new tasks asked for [100]")
    batch.add_argument("--out", metavar="FILE", help="where the answers go, as conversations to train on")
    batch.add_argument("--prompt-template", metavar="TEXT", help="the question, with {column} for a row's column")
    batch.add_argument("--samples", type=positive, default=1, metavar="K", help="answers per prompt [1]")
    batch.add_argument("--stop", action="append", default=[], metavar="TEXT", help="a text that ends an answer")
    batch.add_argument("--batch-size", type=positive, default=16, metavar="N", help="rows at a time [16]")
    batch.add_argument("--engine", choices=("honed", "vllm"), default="honed", help="what computes answers [honed]")
    kept = parser.add_argument_group("which answers are kept")
    kept.add_argument("--min-length", type=positive, default=1, metavar="N", help="characters [1]")
    kept.add_argument("--max-length", type=positive, metavar="N", help="characters [any]")
    kept.add_argument("--only-stopped", action="store_true", help="only answers that ended by themselves")
    kept.add_argument(
        "--drop-near",
        type=share,
        nargs="?",
        const=0.8,
        metavar="S",
        help="no near duplicates, from similarity S [0.8]",
    )
    kept.add_argument("--verify", metavar="MODULE:FUNCTION", help="called with the row and the answer; False drops it")


def run(args: argparse.Namespace, command: str) -> int:
    """One answer on standard output, or a file of answers."""
    from honed.errors import RecipeError

    asked = [name for name in ("prompt", "data", "seeds") if getattr(args, name) is not None]
    if len(asked) != 1:
        raise RecipeError(
            f"Found {' and '.join(asked) or 'nothing to answer'}.",
            fix="give one of: a question, --data FILE, --seeds FILE",
        )
    if asked != ["prompt"]:
        from honed.cli.generate.batch import run_batch

        return run_batch(args)
    return _answer_one(args)


def _answer_one(args: argparse.Namespace) -> int:
    """Prints the answer; reports on standard error if it was cut."""
    import sys

    from honed.cli.console import load_speaker, quiet_libraries
    from honed.generate.answer import answers, ask

    quiet_libraries()
    speaker = load_speaker(args.model, seed=args.seed)
    answer = answers(
        speaker.model,
        speaker.tokenizer,
        speaker.template,
        [ask(args.prompt, args.system or speaker.system)],
        max_new_tokens=args.max_new_tokens,
        show=False,
        seed=args.seed,
        **sampling(args),
    )[0]
    print(answer.text)
    if not answer.stopped:
        print(f"[cut after {counted(answer.tokens, 'token')}; raise --max-new-tokens]", file=sys.stderr)
    return 0
