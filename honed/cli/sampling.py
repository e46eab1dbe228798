"""Sampling settings as options of a verb."""

from __future__ import annotations

import argparse
import sys
from typing import Any, TypeVar

N = TypeVar("N", int, float)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `generate` and `chat` share."""
    parser.add_argument("--system", help="system prompt [the one of the run]")
    parser.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="longest answer [256]")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.0, metavar="T", help="0 takes the likeliest token [0]"
    )
    parser.add_argument(
        "--top-k", type=_whole, metavar="K", help="only the K likeliest tokens [the model's own, or 50]"
    )
    parser.add_argument("--top-p", type=share, metavar="P", help="only the likeliest, up to this probability [1]")
    parser.add_argument("--min-p", type=share, metavar="P", help="only tokens this share as likely as the first [0]")
    parser.add_argument("--repetition-penalty", type=_penalty, metavar="R", help="above 1 against repetition [1]")
    parser.add_argument("--seed", type=_whole, default=0, help="of sampling [0]")


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The options as arguments of transformers' `generate`; those not given are left to the model's own settings."""
    chosen = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    if args.temperature > 0:
        return {"do_sample": True, **chosen}
    penalty = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
    return {"do_sample": False, **penalty}


def positive(text: str) -> int:
    """Argparse type: an integer of at least 1."""
    return _checked(int(text), 1, "it must be 1 or more")


def share(text: str) -> float:
    """Argparse type: a number from 0 to 1."""
    return _checked(float(text), 0, "it must be between 0 and 1", most=1)


def _whole(text: str) -> int:
    return _checked(int(text), 0, "it must be 0 or more")


def _temperature(text: str) -> float:
    return _checked(float(text), 0, "it must be 0 or more, and not infinite")


def _penalty(text: str) -> float:
    return _checked(float(text), 1e-6, "it must be above 0, and not infinite")


def _checked(value: N, least: float, rule: str, *, most: float = sys.float_info.max) -> N:
    if not least <= value <= most:  # also refuses NaN
        raise argparse.ArgumentTypeError(rule)
    return value
