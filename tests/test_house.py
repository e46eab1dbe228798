"""The house rules, held by reading the tree itself; a failure names the file, the line and what to do."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "honed"
CODE = sorted(PACKAGE.rglob("*.py"))
ALL_CODE = [
    path for room in ("honed", "tests", "examples", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))
]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])

FILE_LINES = 400  # a file has fewer
TRAINER_LINES = 300  # and the trainer, which has hooks only, than this
FUNCTION_LINES = 100  # a function has at most as many, from `def` to its last line
SHORT_FUNCTION_LINES = 12  # at least half of all functions have fewer
NAMES_THAT_SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc"}
HEAVY = ("torch", "transformers", "numpy")

CODE_IN_A_PAGE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", flags=re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def each(paths: list[Path]) -> pytest.MarkDecorator:
    """Parametrises a test with `path`, shown relative to the checkout."""
    return pytest.mark.parametrize("path", paths, ids=[path.relative_to(ROOT).as_posix() for path in paths])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def is_below_train(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] not in {"train", "cli"}


@each(CODE)
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines: part it by what its halves do"


def test_the_trainer_is_hooks_only() -> None:
    assert len((PACKAGE / "train" / "trainer" / "trainer.py").read_text(encoding="utf-8").splitlines()) < TRAINER_LINES


@each(CODE)
def test_no_forward_is_replaced(path: Path) -> None:
    """Neither `x.forward = ...` nor `setattr(x, "forward", ...)`."""
    replaced = [
        place(path, node)
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and node.attr == "forward" and isinstance(node.ctx, ast.Store))
        or (isinstance(node, ast.Call) and any(isinstance(a, ast.Constant) and a.value == "forward" for a in node.args))
    ]
    assert not replaced, f"use a hook, or the model's own interface: {replaced}"


@each(CODE)
def test_no_function_is_long(path: Path) -> None:
    long = [f"{place(path, f)} {f.name}: {length(f)} lines" for f in functions(path) if length(f) > FUNCTION_LINES]
    assert not long, f"over {FUNCTION_LINES} lines, part them: {long}"


def test_half_of_all_functions_are_short() -> None:
    is_short = [length(f) < SHORT_FUNCTION_LINES for path in CODE for f in functions(path)]
    assert 2 * sum(is_short) >= len(is_short), (
        f"of {len(is_short)} functions only {sum(is_short)} have fewer than {SHORT_FUNCTION_LINES} lines;"
        " the rule is half: part those that do several things"
    )


@each(CODE)
def test_name_says_what_is_inside(path: Path) -> None:
    names = {part.strip("_") for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & NAMES_THAT_SAY_NOTHING, f"{path.relative_to(ROOT)}: name it after what it does"


def test_every_file_is_on_the_map() -> None:
    """In 'The rooms' of docs/architecture.md, where a reader looks for it; the command line has a module per verb."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", page.partition("\n## The rooms")[2].partition("\n## ")[0]))
    files = [path.relative_to(PACKAGE) for path in CODE if not path.name.startswith("__")]
    missing = [f"honed/{path}" for path in files if path.parts[0] != "cli" and path.stem not in named]
    assert not missing, f"say in docs/architecture.md, 'The rooms', what these files are for: {missing}"


@each(CODE)
def test_public_names_have_docstrings(path: Path) -> None:
    """Modules, and the functions and classes at their top level."""
    bare = [f"{place(path, node)} {node.name}" for node in public_definitions(path) if not ast.get_docstring(node)]
    if is_public_module(path) and not ast.get_docstring(tree(path)):
        bare.insert(0, "the module itself")
    assert not bare, f"{path.relative_to(ROOT)}, without a docstring: {bare}"


def public_definitions(path: Path) -> Iterator[Definition]:
    return (node for node in tree(path).body if isinstance(node, Definition) and not node.name.startswith("_"))


def is_public_module(path: Path) -> bool:
    return path.name == "__init__.py" or not path.name.startswith("_")


@each(CODE)
def test_only_the_command_line_prints(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "cli"):
        return
    prints = [
        place(path, node)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not prints, f"print() outside honed/cli, where a library is silent: {prints}"


@each([path for path in CODE if is_below_train(path)])
def test_training_arguments_stay_in_train(path: Path) -> None:
    uses = [place(path, node) for node in ast.walk(tree(path)) if "TrainingArguments" in names_in(node)]
    assert not uses, f"TrainingArguments below honed/train: pass the plain values instead: {uses}"


def names_in(node: ast.AST) -> set[str | None]:
    """The names that a node brings in or uses: `import a as b`, `a`, `x.a`."""
    return {getattr(node, field, None) for field in ("id", "attr", "name", "asname")}


@each(ALL_CODE)
def test_parses_as_python_3_10(path: Path) -> None:
    tree(path)


def test_no_files_import_each_other() -> None:
    """Neither straight nor in a circle, in functions and for types alike; `honed/__init__.py` names what is public."""
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in CODE if path.name != "__init__.py"
    }
    graph = {name: {module for module in imports(path) if module in known} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"move what they share into a file below: {' <- '.join(error.args[1])}")


def imports(path: Path) -> Iterator[str]:
    """All that a file imports by name, and names that may be modules."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", ["honed", "honed.cli.main"])
def test_import_is_light(module: str) -> None:
    assert_loads_none_of(HEAVY, [module], "import them inside the function that needs them")


def test_data_is_torch_free() -> None:
    files = (PACKAGE / "data").rglob("[!_]*.py")
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    torch_free = sorted(modules - {"honed.data.batch.collate"})
    assert_loads_none_of(("torch",), torch_free, "only honed.data.batch.collate may import torch")


def assert_loads_none_of(heavy: tuple[str, ...], modules: list[str], fix: str) -> None:
    """Imports `modules` in a fresh interpreter, for this one has loaded everything by now."""
    program = f"import sys, {', '.join(modules)}; print(*sorted(sys.modules.keys() & {set(heavy)}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing {', '.join(modules)} loads {done.stdout.strip()}: {fix}"


@each(PAGES)
def test_links_lead_to_files(path: Path) -> None:
    missing = [link for link in relative_links(path) if not (path.parent / link).exists()]
    assert not missing, f"{path.relative_to(ROOT)} links to files that are not there: {missing}"


def relative_links(page: Path) -> Iterator[str]:
    """`[text](here)`, `[name]: here`, HTML's src="here"; no code, no anchors, no addresses with a scheme."""
    for found in LINK.finditer(CODE_IN_A_PAGE.sub("", page.read_text(encoding="utf-8"))):
        link = next(filter(None, found.groups())).partition("#")[0]
        if link and not re.match(r"[a-z][a-z0-9+.-]*:", link, flags=re.IGNORECASE):
            yield link


def test_tests_are_offline() -> None:
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="offline"):
        client.connect(("192.0.2.1", 80))  # an address that is nobody's (RFC 5737)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
