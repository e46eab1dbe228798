"""Create a tokenizer or a small model from scratch, or a recipe from another trainer's YAML.

  honed new tokenizer runs/tokenizer --data texts.jsonl --vocab 6400
  honed new minimind runs/model --dim 512 --layers 8 --tokenizer runs/tokenizer
  honed new minimind runs/model --weights minimind_sft_512.pth --tokenizer runs/tokenizer
  honed new recipe theirs.yaml mine.yaml       (LLaMA-Factory, axolotl or `trl sft`; printed without mine.yaml)

A model is a folder with random weights (or those of a MiniMind file), a tokenizer and a chat template.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from honed.cli.new.making import SHAPE, STARTER, VOCABULARY, new_minimind, new_tokenizer
from honed.cli.new.recipe import new_recipe
from honed.cli.recipe_arguments import SIGNS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the things to create, and their options."""
    things = parser.add_subparsers(title="things", dest="thing", required=True, metavar="THING")
    below = things.add_parser("tokenizer", help="a byte-level BPE tokenizer", description=new_tokenizer.__doc__)
    below.set_defaults(make=new_tokenizer)
    add_tokenizer(below)
    below = things.add_parser("minimind", help="a small language model", description=new_minimind.__doc__)
    below.set_defaults(make=new_minimind)
    below.add_argument("--tokenizer", metavar="DIR", help="its tokenizer; trained on --data when left out")
    for name, (field, text) in SHAPE.items():
        below.add_argument(f"--{name.replace('_', '-')}", dest=field, type=_at_least(1), metavar="N", help=text)
    below.add_argument("--moe", action="store_true", help="a mixture of experts")
    below.add_argument("--weights", metavar="FILE", help="weights of a MiniMind .pth file instead of random ones")
    below.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of the random weights [0]")
    add_tokenizer(below)
    add_recipe(things.add_parser("recipe", help="of another trainer's YAML", description=new_recipe.__doc__))


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Adds the options for a tokenizer's folder and training."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="what is made; must not hold anything yet")
    parser.add_argument("--data", nargs="+", metavar="FILE", help=f"rows whose text the tokenizer learns [{STARTER}]")
    parser.add_argument("--vocab", type=_at_least(1), metavar="N", help=f"most tokens [{VOCABULARY}]")
    parser.add_argument("--thinking", action="store_true", help="answers begin with <think>, as MiniMind 3's do")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the other trainer's file and the recipe."""
    parser.set_defaults(make=new_recipe)
    parser.add_argument(
        "theirs", metavar="THEIRS.yaml", type=Path, help="a YAML of LLaMA-Factory, axolotl or `trl sft`"
    )
    parser.add_argument("out", metavar="OUT.yaml", type=Path, nargs="?", help="the recipe; must not exist yet [shown]")
    parser.add_argument("--kind", choices=tuple(SIGNS), help="whose file it is [recognised by its keys]")
    parser.add_argument("--partly", action="store_true", help="make it without the keys that cannot be translated")


def run(args: argparse.Namespace, command: str) -> int:
    """Creates what the arguments name."""
    args.make(args)
    return 0


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"it must be {least} or more")
        return value

    return number
