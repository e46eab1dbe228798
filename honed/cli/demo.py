"""Watch a small model learn from instructions: the recipe `demo` from start to end.

The model (SmolLM2-135M-Instruct, 93 MB download, once) answers 16 questions, is trained on 200 short conversations
for about two minutes on two cores, and answers again. Run it again to see the result again.
"""

from __future__ import annotations

import argparse

from honed.errors import RunError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("items", nargs="*", metavar="key=value", help="changes to the recipe, as for `honed train`")
    parser.add_argument("--again", action="store_true", help="train again, replacing the earlier result")


def run(args: argparse.Namespace, command: str) -> int:
    """Trains, or shows the result of a finished run of the same recipe."""
    from honed.cli.console import quiet_libraries, show_result
    from honed.cli.recipe_arguments import find_recipe
    from honed.recipe import load_recipe
    from honed.train.run_folder.folder import RunFolder
    from honed.train.run_folder.secrets import masked_yaml

    recipe = load_recipe(find_recipe("demo"), args.items)
    folder = RunFolder(recipe.output)
    if folder.finished(masked_yaml(recipe)) and not args.again:
        print(f"This demo ran before; here is its result. `{command} --again` trains again.")
        show_result(folder.path, folder.read_json("samples.json"))
        return 0
    if folder.state().get("status") == "finished" and not args.again:
        raise RunError(f"{folder.path} holds a finished run of another recipe.", fix="add --again to replace it")
    quiet_libraries()
    from honed.train.run.run import run as run_recipe

    result = run_recipe(recipe, command=command, say=print, overwrite=True)
    show_result(result.folder, result.samples)
    return 0
