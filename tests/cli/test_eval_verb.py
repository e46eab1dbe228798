"""`honed eval`: one model, two models, gates, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Honed = Callable[..., Any]
QUICK = ("--prompts", "3", "--max-new-tokens", "6")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, whatever this machine is best at."""
    import torch

    monkeypatch.setattr("honed.model.load.load.pick_dtype", lambda device: torch.float32)


@pytest.fixture
def other_model(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """The same tokenizer, larger weights: it is surer of itself, and more often wrong."""
    folder = tmp_path / "other"
    tiny_model(initializer_range=1.0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_one_model(honed: Honed, model_folder: Path, rows_file: Path, tmp_path: Path) -> None:
    shown = honed("eval", model_folder, "--data", rows_file, *QUICK, "--json", tmp_path / "e.json")
    assert shown.status == 0, shown.err
    found = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    measures = {measure["name"]: measure for measure in found["measures"]}
    loss = measures["loss"]
    assert loss["base"] is None and loss["low"] < loss["value"] < loss["high"]
    assert loss["of"] == found["rows"]["trained_tokens"] == 62
    assert sum(measures[f"loss.kind.{kind}"]["of"] for kind in ("first token", "answer body", "end of turn")) == 62
    assert measures["stops"]["of"] == len(found["answers"]) == 3
    assert f"{loss['value']:.4f}" in shown.out and f"{loss['perplexity']:.3f}" in shown.out
    assert "12 of 12 rows, 62 tokens to score" in shown.out
    assert "9 rows: beyond --prompts 3" in shown.out


def test_a_model_against_itself_differs_by_nothing(
    honed: Honed, model_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    gate = "loss=0,stops=0,distinct1=0,repetition=0"
    arguments = ("--against", model_folder, "--gate", gate, "--json", tmp_path / "e.json")
    shown = honed("eval", model_folder, "--data", rows_file, *QUICK, *arguments)
    assert shown.status == 0, shown.err
    found = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert {measure["difference"] for measure in found["measures"]} == {0.0}
    assert [verdict["passed"] for verdict in found["gate"]] == [True] * 4
    assert shown.out.count("pass  ") == 4


def test_a_gate_that_fails(
    honed: Honed, model_folder: Path, other_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    arguments = ("--data", rows_file, *QUICK, "--gate", "loss=0.02", "--json", tmp_path / "e.json")
    worse = honed("eval", other_model, "--against", model_folder, *arguments)
    assert worse.status == 1
    assert "FAIL  loss changed by +" in worse.out
    found = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    one = found["measures"][0]
    assert found["gate"][0]["change"] == pytest.approx(one["value"] / one["base"] - 1)
    assert one["low"] < one["difference"] < one["high"]
    assert honed("eval", model_folder, "--against", other_model, *arguments).status == 0


def test_a_run_is_measured_as_it_was_trained(
    honed: Honed, train: Any, model_folder: Path, rows_file: Path, tmp_path: Path
) -> None:
    """An adapter, a system prompt and roles from its recipe; tasks and a form; a page to look at."""
    done = train("data.system=be short", "data.train_roles=[user,assistant]", "use_cpu=true", "report_to=none")
    assert done.status == 0, done.err
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("- {prompt: <b>why</b>, expect: {regex: '.*'}}\n- {prompt: why, expect: {exact: never}}\n")
    arguments = ("--tasks", tasks, "--form", "(?s).*", "--html", tmp_path / "e.html", "--json", tmp_path / "e.json")
    shown = honed("eval", tmp_path / "run", "--data", rows_file, "--against", model_folder, *QUICK, *arguments)
    assert shown.status == 0, shown.err
    found = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    values = {measure["name"]: measure["value"] for measure in found["measures"]}
    assert {"loss.role.user", "loss.role.assistant"} <= values.keys()
    assert (values["form"], values["tasks"], values["regex"], values["exact"]) == (1.0, 0.5, 1.0, 0.0)
    assert len(found["answers"]) == 5
    assert found["answers"][0]["messages"][0] == {"role": "system", "content": "be short"}
    assert {"text", "stopped", "passed"} == found["answers"][4]["model"].keys() == found["answers"][4]["against"].keys()
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert "<b>why" not in page and "&lt;b&gt;why&lt;/b&gt;" in page


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be loaded, and lm-eval is not installed."""

    def load(*args: Any, **options: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("honed.model.adapters.load_trained.load_for_generation", load)
    monkeypatch.setattr("honed.evaluate.lm_eval_model.find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--gate", "loss=0.1"), "--against"),
        (("--gate", "speed=0.1", "--against", "x"), "names no measure"),
        (("--form", "("), "not a regular expression"),
        (("--tasks", "none.yaml"), "could not be read"),
        (("--html", "nowhere/e.html"), "no such folder"),
        (("--max-length", "1"), "--max-length is 1"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--lm-eval", "arc_easy"), "pip install 'honed[eval]'"),
    ],
)
@pytest.mark.usefixtures("unloadable")
def test_refused_before_anything_is_loaded(
    honed: Honed, model_folder: Path, rows_file: Path, arguments: tuple[str, ...], problem: str
) -> None:
    shown = honed("eval", model_folder, "--data", rows_file, *arguments)
    assert shown.status == 2
    assert problem in shown.err


def test_no_rows(honed: Honed, model_folder: Path, tmp_path: Path) -> None:
    assert "does not exist" in honed("eval", model_folder, "--data", tmp_path / "none.jsonl").err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": 1}\n')
    shown = honed("eval", model_folder, "--data", bad)
    assert shown.status == 2 and "No row can be scored" in shown.err


def test_another_tokenizer_is_refused(honed: Honed, model_folder: Path, other_model: Path, rows_file: Path) -> None:
    path = other_model / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["y"], vocabulary["z"] = vocabulary["z"], vocabulary["y"]
    vocabulary["Ġ"], vocabulary["q"] = vocabulary["q"], vocabulary["Ġ"]
    path.write_text(json.dumps(content), encoding="utf-8")
    shown = honed("eval", model_folder, "--data", rows_file, "--against", other_model, *QUICK)
    assert shown.status == 2 and "has other tokens" in shown.err


def test_tokens_beyond_the_other_models_vocabulary(
    honed: Honed, model_folder: Path, rows_file: Path, other_model: Path, tiny_model: Callable[..., Any]
) -> None:
    tiny_model(vocab_size=100).save_pretrained(other_model)
    shown = honed("eval", model_folder, "--data", rows_file, "--against", other_model, *QUICK)
    assert shown.status == 2 and "is beyond its 100" in shown.err


def test_plain_text_needs_no_template(honed: Honed, model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    rows = tmp_path / "text.jsonl"
    rows.write_text('{"text": "the quick brown fox"}\n{"prompt": "why", "completion": " yes"}\n')
    shown = honed("eval", model_folder, "--data", rows)
    assert shown.status == 0, shown.err
    assert "role: text" in shown.out and "role: completion" in shown.out
    assert "0 prompts to answer; 2 rows: no chat to answer, so only the loss" in shown.out
