"""English text that every Python brings along, as JSONL rows of `text`: the language reference and the docstrings of
the standard library. It stands in for a corpus where there is no network. Nothing is imported or run to get it.

    python examples/minimind/local_text.py texts.jsonl [--megabytes 3]
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 200  # characters; below that a docstring is a label rather than a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=3.0)
    args = parser.parse_args()
    left = args.megabytes * 1e6
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as out:
        for text in texts():
            left -= len(text)
            if left < 0:
                break
            out.write(json.dumps({"text": text}) + "\n")


def texts() -> Iterator[str]:
    """The reference's topics first, then docstrings in the order of their files; each text once."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    found = (*topics.values(), *docstrings(Path(sysconfig.get_path("stdlib"))))
    for text in map(str.strip, found):
        if len(text) >= SHORTEST and text not in seen:
            seen.add(text)
            yield text


def docstrings(folder: Path) -> Iterator[str]:
    """Of all modules, classes and functions below the folder, without installed packages and tests."""
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        if {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & {*parts}:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):  # files made to be broken
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main()
