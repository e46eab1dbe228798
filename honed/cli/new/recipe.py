"""`honed new recipe`: recognises another trainer's YAML, translates it, checks the recipe, and writes it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from honed.cli.recipe_arguments import foreign_keys
from honed.errors import RecipeError, RunError, storage_errors
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.cli.new.translate import Draft, Trainer


def new_recipe(args: argparse.Namespace) -> None:
    """Creates a recipe from YAML of LLaMA-Factory, axolotl or `trl sft`; comments list what it leaves out."""
    from honed.cli.console import quiet_libraries
    from honed.cli.new.llamafactory import LLAMAFACTORY
    from honed.cli.new.llamafactory_v1 import LLAMAFACTORY_V1, is_v1
    from honed.cli.new.page import page
    from honed.cli.new.translate import translate

    quiet_libraries()
    if args.out is not None and args.out.exists():
        raise RunError(f"{args.out} exists already.", fix="name another file, or delete that one")
    theirs = read(args.theirs)
    trainer, how = whose(args.theirs, args.kind)
    trainer = LLAMAFACTORY_V1 if trainer is LLAMAFACTORY and is_v1(theirs) else trainer
    draft = translate(theirs, trainer, args.theirs)
    if draft.refused and not args.partly:
        raise RecipeError(_problem(args.theirs, trainer, draft, theirs), fix="fix them, or add --partly")
    _need(draft, trainer, args.theirs)
    jinja = _template_file(draft, args.out)
    text = page(draft, theirs, of=f"{trainer.name}'s {args.theirs.name} ({how})")
    check(text, args.theirs)
    if args.out is None:
        print(text, end="")
    else:
        _write(args.out, text)
        if draft.template:
            _write(jinja, draft.template)
            print(f"{jinja}: the chat template that the recipe names", file=sys.stderr)
    print(summary(draft, trainer, args.theirs), file=sys.stderr)


def read(path: Path) -> dict[str, Any]:
    """Reads the keys and values of the other trainer's file.

    Raises:
        RecipeError: it cannot be read, or has no keys.
    """
    import yaml

    from honed.recipe import strict_yaml

    try:
        tree = strict_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}", fix="name a YAML file") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}", fix="fix that line") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise RecipeError(f"{path} holds no `key: value` lines.", fix="name the YAML that the other trainer is given")
    return tree


def whose(path: Path, kind: str | None) -> tuple[Trainer, str]:
    """Returns the trainer that a file is for, and how that is known.

    Raises:
        RecipeError: it has the keys of no trainer, or of several.
    """
    from honed.cli.new.axolotl import AXOLOTL
    from honed.cli.new.llamafactory import LLAMAFACTORY
    from honed.cli.new.trl import TRL

    trainers = {"llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL, "trl": TRL}
    if kind is not None:
        return trainers[kind], f"--kind {kind}"
    found = foreign_keys(path)
    if not found:
        raise RecipeError(
            f"{path} has no key by which LLaMA-Factory, axolotl or TRL would be known.",
            fix="name their training YAML, or say whose it is with --kind",
        )
    if len(found) > 1:
        both = "; ".join(f"{trainers[name].name}: {', '.join(keys)}" for name, keys in found.items())
        raise RecipeError(f"{path} could be of several trainers ({both}).", fix=f"add --kind {' or '.join(found)}")
    [(name, keys)] = found.items()
    return trainers[name], f"known by {', '.join(keys[:3])}"


def check(text: str, path: Path) -> None:
    """Loads the recipe as `honed train` does, and checks what training refuses before it reads data.

    Raises:
        RecipeError: it is not a valid recipe.
    """
    import dataclasses

    from honed.data.prepare.options import PrepareOptions
    from honed.recipe import load_recipe
    from honed.train.options.optim import known_optimizer
    from honed.train.run.data import check_data

    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(text, encoding="utf-8")
            recipe = load_recipe(file)
        names = {f.name for f in dataclasses.fields(PrepareOptions)} - {"share_prefixes"}
        PrepareOptions(**{name: getattr(recipe.data, name) for name in names})
        check_data(recipe.data, seed=0, max_steps=int(recipe.train.get("max_steps") or -1))
        known_optimizer(recipe.train.get("optim", "adamw_torch"))
    except RecipeError as error:
        raise RecipeError(f"{path} gives no recipe that honed takes: {error.problem}", fix=error.fix) from None


def summary(draft: Draft, trainer: Trainer, path: Path) -> str:
    """Summarises how many keys there were, and how they were handled."""
    counts = {
        "translated": len(draft.translated),
        "below train as they are": len(draft.passed),
        "needless here": len(draft.needless),
        "not taken": len(draft.refused),
    }
    parts = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"{trainer.name}'s {path.name}: {counted(sum(counts.values()), 'key')}: {parts}"


def _write(path: Path, text: str) -> None:
    with storage_errors(path, elsewhere="name another file", every=True), path.open("x", encoding="utf-8") as file:
        file.write(text)


def _template_file(draft: Draft, out: Path | None) -> Path:
    """Returns the file for the chat template that the recipe names, if it needs its own."""
    path = (out or Path("recipe.yaml")).with_suffix(".jinja")
    if draft.template and out is None:
        raise RecipeError("This recipe needs a chat template in the same folder.", fix="name a file for it: OUT.yaml")
    if draft.template and path.exists():
        raise RunError(f"{path} exists already, and this recipe needs a chat template.", fix="name another OUT.yaml")
    if draft.template:
        draft.put("data.template", str(path), "their prompts, made with this recipe; {{ bos_token }} as Llama begins")
    return path


def _problem(path: Path, trainer: Trainer, draft: Draft, theirs: Mapping[str, Any]) -> str:
    from honed.cli.new.page import shown

    lines = [
        f"  {shown(key, theirs[key])} -- {refusal.why}; fix: {refusal.fix}" for key, refusal in draft.refused.items()
    ]
    many = counted(len(lines), "key")
    return "\n".join([f"{path} ({trainer.name}) has {many} that cannot be translated:", *lines])


def _need(draft: Draft, trainer: Trainer, path: Path) -> None:
    """Refuses a file without a model or data, which would train honed's default ones."""
    if "model" not in draft.lines:
        raise RecipeError(f"{path} names no model.", fix=f"name {trainer.name}'s YAML of a training")
    if not {"data.files", "data.sources"} & draft.lines.keys():
        raise RecipeError(f"{path} names no data to train on.", fix=f"name {trainer.name}'s YAML of a training")
