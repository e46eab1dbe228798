"""The pages: each `honed` command on them is read, most run on a tiny model, and so do their snippets of Python."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.cli.main import read_arguments
from honed.cli.recipe_arguments import recipe_of

pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
# A command ends where its line does, or where a comment, an explanation, what may be left out or a `>` begins.
COMMAND = re.compile(r"^ {4}(honed .+?)(?= {3,}| +#| +\[-| +>|$)", flags=re.MULTILINE)
SNIPPET = re.compile(r"^```(python|yaml)\n(.+?)^```", flags=re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
HUB_NAMES = ("Qwen/Qwen3-0.6B", "M", "BASE")


def commands(page: Path) -> list[str]:
    found = COMMAND.findall(page.read_text(encoding="utf-8"))
    return [command for command in found if "..." not in command]


def snippet(page: str, word: str) -> str:
    """The one on that page that holds the word."""
    found = [text for _, text in SNIPPET.findall((ROOT / page).read_text(encoding="utf-8")) if word in text]
    assert len(found) == 1
    return str(found[0])


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of; a tiny model stands where they name one of the Hub."""
    for name in HUB_NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(model_folder)
    rows = rows_file.read_text(encoding="utf-8")
    for name in ("rows.jsonl", "my_rows.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "why 1"}\n{"prompt": "why 2"}\n', encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("model: M\ndata: {files: rows.jsonl}\n", encoding="utf-8")
    (tmp_path / "mine.yaml").symlink_to("recipe.yaml")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").symlink_to("../../recipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_links_lead_to_headings() -> None:
    """That they lead to files: tests/test_house.py."""
    for page in [*PAGES, ROOT / "examples" / "README.md"]:
        for file, heading in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text(encoding="utf-8")):
            there = (page.parent / file if file else page).resolve()
            headings = HEADING.findall(there.read_text(encoding="utf-8"))
            assert heading in map(anchor, headings), f"{page.name}: {file}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_is_read(page: Path, here: Path) -> None:
    """No option and no key of a recipe is unknown."""
    for command in commands(page):
        args = read_arguments(shlex.split(command)[1:])
        if args.verb in ("train", "prove") and hasattr(args, "items"):
            recipe_of(args)


def test_what_the_readme_shows_runs(honed: Any, here: Path) -> None:
    (here / "runs" / "mine" / "recipe.yaml").unlink()
    said = [line for line in commands(ROOT / "README.md") if re.search(r"runs/mine|data (check|show)", line)]
    ran = {command.split()[1] for command in said}
    assert ran == {"train", "chat", "generate", "data", "eval", "export"}
    for command in said:
        if "chat" in command:  # asks at the keyboard: tests/cli/chat
            continue
        more = ["--max-new-tokens", "4"] * (" generate " in command or " eval " in command)
        shown = honed(*shlex.split(command)[1:], *more)
        assert shown.status == 0, (command, shown.err)
    assert (here / "answers.jsonl").is_file() and (here / "merged" / "model.safetensors").is_file()


def test_the_same_commands_stand_in_both_languages() -> None:
    english, chinese = (commands(page) for page in PAGES[:2])
    assert [one.replace("天空为什么是蓝的？", "Why is the sky blue?") for one in chinese] == english


def test_the_exports_of_the_page_do_not_meet() -> None:
    folders = [shlex.split(command)[3] for command in commands(ROOT / "docs/adapters.md") if " export " in command]
    assert len(set(folders)) == len(folders) == 3


def test_the_readmes_python_runs(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    datasets = pytest.importorskip("datasets")
    lines = (here / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = datasets.Dataset.from_list([json.loads(line) for line in lines])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *, split: rows)
    texts = [SNIPPET.findall(page.read_text(encoding="utf-8"))[0][1] for page in PAGES[:2]]
    assert len({re.sub(r"#.*", "", text) for text in texts}) == 1
    exec(compile(texts[0], "README.md", "exec"), {})
    assert "12 rows in, 12 trained, 0 dropped" in capsys.readouterr().out


def test_the_loops_python_runs(here: Path) -> None:
    text = snippet("docs/loop.md", "LoopConfig").replace("save_every=100", 'save_every=1, device="cpu"')
    exec(compile(text, "loop.md", "exec"), {})
    assert (here / "runs" / "loop" / "metrics.jsonl").is_file()


def test_the_engines_python_runs(tiny_model: Callable[..., Any], tiny_tokenizer: Any, capsys: Any) -> None:
    batch = tiny_tokenizer(["why", "why fox"], padding=True, return_tensors="pt")
    text = snippet("docs/generation.md", "Engine")
    exec(compile(text, "generation.md", "exec"), {"model": tiny_model(), "tokenizer": tiny_tokenizer, "batch": batch})
    assert capsys.readouterr().out.count("[") >= 2


def test_the_planners_python_runs() -> None:
    lines = snippet("docs/planning.md", "job_for").splitlines()
    space: dict[str, Any] = {}
    exec("\n".join(lines[:3]), space)
    values = [eval(line.partition("#")[0], space) for line in lines[3:]]
    assert len(values) == 3 and values[1] is True and values[2] > 0


def test_the_planners_page_shows_what_it_prints(honed: Any) -> None:
    page = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
    shown = honed(*shlex.split(commands(ROOT / "docs/planning.md")[0])[1:])
    table = re.findall(r"^```\n(.+?)^```", page, flags=re.MULTILINE | re.DOTALL)[0]
    assert table in shown.out


def test_the_tasks_of_the_page_are_read(here: Path) -> None:
    from honed.evaluate.tasks import read_tasks

    pytest.importorskip("jsonschema")
    (here / "tasks.yaml").write_text(snippet("docs/evaluation.md", "json_schema"), encoding="utf-8")
    assert len(read_tasks(here / "tasks.yaml")) == 4
