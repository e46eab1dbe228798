"""The notebooks for learners run from top to bottom, in small; what they claim, they assert themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 200_000  # bytes; a page beyond that is slow to look at

# Instead of the cell that is tagged "parameters", as papermill would do it. MODEL is a tiny one.
SMALL: dict[str, dict[str, Any]] = {
    "sft_in_plain_pytorch": {"STEPS": 4, "BATCH": 2, "LEARNING_RATE": 3e-3, "NEW_TOKENS": 6, "COMPARED": 2},
    "minimind_sft": {"DIM": 32, "VOCAB": 300, "TEXTS": 12, "PRETRAIN_STEPS": 4, "SFT_EPOCHS": 0.1, "NEW_TOKENS": 6},
    "qlora_medical": {"EPOCHS": 3, "LEARNING_RATE": 1e-2, "NEW_TOKENS": 4},
}
NEEDS = {
    "sft_in_plain_pytorch": ("peft",),
    "minimind_sft": ("peft",),
    "qlora_medical": ("peft", "datasets", "bitsandbytes"),
}


def each(names: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", names, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def execute(notebook: dict[str, Any], parameters: dict[str, Any], name: str) -> dict[str, Any]:
    """Runs all code cells in one namespace, as a kernel does."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{name}, code cell {number + 1}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            unknown = parameters.keys() - space.keys()
            assert not unknown, f"{name} has no such parameters: {unknown}"
            space |= parameters
    return space


@pytest.fixture
def model_folder(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> str:
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    tiny_model(max_position_embeddings=2048, hidden_size=64, head_dim=16).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def same_threads() -> Iterator[None]:
    """The pages set the number of threads, which would outlive them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_are_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys() == NEEDS.keys()


@each(NOTEBOOKS)
def test_runs(path: Path, model_folder: str, same_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS[path.stem]:
        pytest.importorskip(package)
    monkeypatch.chdir(FOLDER)  # where Jupyter runs it
    notebook = read(path)
    parameters = {**SMALL[path.stem], "THREADS": 1}
    if path.stem != "minimind_sft":  # it makes its own
        parameters["MODEL"] = model_folder
    files = {*FOLDER.rglob("*")}
    execute(notebook, parameters, path.name)
    assert {*FOLDER.rglob("*")} == files, "a page leaves files behind"


@each(NOTEBOOKS)
def test_is_a_notebook(path: Path) -> None:
    """nbformat 4.5, with outputs of one run from top to bottom and no errors among them."""
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert path.stat().st_size < LARGEST
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(0 < len(one) <= 64 for one in ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {output["output_type"] for cell in code for output in cell["outputs"]} == {"stream"}
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1


@each(NOTEBOOKS)
def test_every_text_is_in_both_languages(path: Path) -> None:
    """An English cell, and the Chinese one below it with as many headings."""
    texts = ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    assert len(texts) % 2 == 0
    for english, chinese in zip(texts[::2], texts[1::2], strict=True):
        chinese_letters = [sum("\u4e00" <= letter <= "\u9fff" for letter in text) for text in (english, chinese)]
        assert chinese_letters[0] == 0 < chinese_letters[1], english
        assert headings(english) == headings(chinese), english


def headings(text: str) -> list[int]:
    return [len(line) - len(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")]


@each(NOTEBOOKS)
def test_links_lead_to_files(path: Path) -> None:
    texts = ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links, "a page names where to read on"
    missing = [link for link in links if not (FOLDER / link).exists()]
    assert not missing
