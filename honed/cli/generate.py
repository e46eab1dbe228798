"""Answer one question, or every prompt of a file, with a trained model (or any other).

  honed generate runs/demo "Why is the sky blue?"
  honed generate runs/demo --data prompts.jsonl --out answers.jsonl
  honed generate runs/demo --data rows.jsonl --prompt-template 'Translate: {text}' --out answers.jsonl
  honed generate runs/demo --data prompts.jsonl --samples 4 --temperature 0.8 --out answers.jsonl
  honed generate runs/demo --seeds tasks.jsonl --shots 3 --count 100 --temperature 1 --out new.jsonl

A batch that was stopped goes on with the same command. Beside OUT lie OUT.journal (every answer as it came) and
OUT.ledger.json (what was dropped, and why).
"""

from __future__ import annotations

import argparse
import math
from typing import Any, TypeVar

N = TypeVar("N", int, float)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="DIR", help="folder of a run or a model, or a model's name")
    parser.add_argument("prompt", nargs="?", help="the question; not with --data or --seeds")
    add_sampling(parser)
    batch = parser.add_argument_group("a whole file")
    batch.add_argument("--data", help="prompts: JSON lines and the other forms that training reads")
    batch.add_argument("--seeds", metavar="FILE", help="tasks from which the model makes new ones, then answers them")
    batch.add_argument("--shots", type=_positive, default=3, help="seed tasks shown at a time [3]")
    batch.add_argument("--count", type=_positive, default=100, help="new tasks asked for [100]")
    batch.add_argument("--out", metavar="FILE", help="where the answers go, as conversations to train on")
    batch.add_argument("--prompt-template", metavar="TEXT", help="the question, with {column} for a row's column")
    batch.add_argument("--samples", type=_positive, default=1, metavar="K", help="answers per prompt [1]")
    batch.add_argument("--stop", action="append", default=[], metavar="TEXT", help="a text that ends an answer")
    batch.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="rows at a time [16]")
    batch.add_argument("--engine", choices=("honed", "vllm"), default="honed", help="what computes answers [honed]")
    kept = parser.add_argument_group("which answers are kept")
    kept.add_argument("--min-length", type=_positive, default=1, metavar="N", help="characters [1]")
    kept.add_argument("--max-length", type=_positive, metavar="N", help="characters [any]")
    kept.add_argument("--only-stopped", action="store_true", help="only answers that ended by themselves")
    kept.add_argument(
        "--drop-near",
        type=_share,
        nargs="?",
        const=0.8,
        metavar="S",
        help="no near duplicates, from similarity S [0.8]",
    )
    kept.add_argument("--verify", metavar="MODULE:FUNCTION", help="called with the row and the answer; False drops it")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options that `chat` has as well."""
    parser.add_argument("--system", help="system prompt [the one of the run]")
    parser.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest answer [256]")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, metavar="T", help="0 takes the likeliest token [0]"
    )
    parser.add_argument(
        "--top-k", type=_whole, metavar="K", help="only the K likeliest tokens [the model's own, or 50]"
    )
    parser.add_argument("--top-p", type=_share, metavar="P", help="only the likeliest, up to this probability [1]")
    parser.add_argument("--min-p", type=_share, metavar="P", help="only tokens this share as likely as the first [0]")
    parser.add_argument("--repetition-penalty", type=_penalty, metavar="R", help="above 1 against repetition [1]")
    parser.add_argument("--seed", type=_whole, default=0, help="of sampling [0]")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The options as arguments of transformers' `generate`; what was not given is left to the model's own settings."""
    chosen = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    if args.temperature > 0:
        return {"do_sample": True, **chosen}
    penalty = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
    return {"do_sample": False, **penalty}


def _positive(text: str) -> int:
    return _checked(int(text), 1, "it must be 1 or more")


def _whole(text: str) -> int:
    return _checked(int(text), 0, "it must be 0 or more")


def _temperature(text: str) -> float:
    return _checked(float(text), 0, "it must be 0 or more, and not infinite")


def _penalty(text: str) -> float:
    return _checked(float(text), 1e-6, "it must be above 0, and not infinite")


def _share(text: str) -> float:
    value = _checked(float(text), 0, "it must be between 0 and 1")
    if value > 1:
        raise argparse.ArgumentTypeError("it must be between 0 and 1")
    return value


def _checked(value: N, least: float, rule: str) -> N:
    if not least <= value < math.inf:  # NaN is neither
        raise argparse.ArgumentTypeError(rule)
    return value


def run(args: argparse.Namespace, command: str) -> int:
    """One answer on standard output, or a file of them."""
    from honed.errors import RecipeError

    asked = [name for name in ("prompt", "data", "seeds") if getattr(args, name) is not None]
    if len(asked) != 1:
        raise RecipeError(
            f"Found {' and '.join(asked) or 'nothing to answer'}.",
            fix="give one of: a question, --data FILE, --seeds FILE",
        )
    if asked != ["prompt"]:
        from honed.cli.generate_data import run_batch

        return run_batch(args)
    return _answer_one(args)


def _answer_one(args: argparse.Namespace) -> int:
    """Prints the answer; says on standard error when it was cut."""
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
        print(f"[cut after {answer.tokens} tokens; raise --max-new-tokens]", file=sys.stderr)
    return 0
