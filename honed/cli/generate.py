"""Answer one question with a trained model (or any other) and exit.

honed generate runs/demo "Why is the sky blue?"
"""

from __future__ import annotations

import argparse
import math
from typing import Any, TypeVar

N = TypeVar("N", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="DIR", help="folder of a run or a model, or a model's name")
    parser.add_argument("prompt", help="the question")
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options that `chat` has as well."""
    parser.add_argument("--system", help="system prompt [the one of the run]")
    parser.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest answer [256]")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, metavar="T", help="0 takes the likeliest token [0]"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of sampling [0]")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The options as arguments of transformers' `generate`."""
    return {"do_sample": True, "temperature": args.temperature} if args.temperature > 0 else {"do_sample": False}


def _positive(text: str) -> int:
    return _checked(int(text), 1, "it must be 1 or more")


def _seed(text: str) -> int:
    return _checked(int(text), 0, "it must be 0 or more")


def _temperature(text: str) -> float:
    return _checked(float(text), 0, "it must be 0 or more, and not infinite")


def _checked(value: N, least: int, rule: str) -> N:
    if not least <= value < math.inf:  # NaN is neither
        raise argparse.ArgumentTypeError(rule)
    return value


def run(args: argparse.Namespace, command: str) -> int:
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
        **sampling(args),
    )[0]
    print(answer.text)
    if not answer.stopped:
        print(f"[cut after {answer.tokens} tokens; raise --max-new-tokens]", file=sys.stderr)
    return 0
