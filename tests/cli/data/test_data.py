"""`honed data check` and `honed data show` as their user sees them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.report.row.text import Style, shortened

Honed = Callable[..., Any]
ESCAPE = "\x1b"


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def asked(question: str, answer: str = "yes it is") -> dict[str, Any]:
    return chat(("user", question), ("assistant", answer))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines."""

    def call(rows: list[Any], name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return call


@pytest.fixture
def tokenizer_folder(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """What `data` needs of a model: its tokenizer and its configuration."""
    folder = tmp_path / "tiny"
    tiny_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return folder


def test_check_of_good_rows(honed: Honed, rows_file: Path, model_folder: Path) -> None:
    shown = honed("data", "check", rows_file, "--model", model_folder)
    assert shown.status == 0, shown
    assert "12 rows in, 12 trained, 0 dropped" in shown.out
    assert "trained turns end with '<|im_end|>' (14)" in shown.out


def test_a_tokenizer_without_a_model_is_enough(
    honed: Honed, rows_file: Path, model_folder: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    alone = tmp_path / "alone"
    tiny_tokenizer.save_pretrained(alone)
    assert not (alone / "config.json").exists()
    for arguments in (["check", rows_file], ["show", rows_file, "--row", "1"]):
        shown, of_model = (honed("data", *arguments, "--model", folder) for folder in (alone, model_folder))
        assert shown.status == 0, shown.err
        assert shown.out.replace(str(alone), str(model_folder)) == of_model.out


def test_check_without_a_model(honed: Honed, write: Callable[..., Path]) -> None:
    shown = honed("data", "check", write([asked("a"), asked("b")]))
    assert shown.status == 0
    assert "2 rows in, 2 can be read, 0 cannot" in shown.out and "Nothing was found." in shown.out
    assert "No model was named" in shown.out


@pytest.mark.parametrize(
    ("rows", "statuses"),
    [
        ([asked("a")], (0, 0, 0)),
        ([asked("a"), asked("a")], (0, 1, 0)),
        ([asked("a"), asked("b", "")], (1, 1, 0)),
    ],
)
def test_status_follows_fail_on(
    rows: list[Any], statuses: tuple[int, ...], honed: Honed, write: Callable[..., Path]
) -> None:
    file = write(rows)
    found = tuple(honed("data", "check", file, "--fail-on", way).status for way in ("error", "warning", "never"))
    assert found == statuses


def test_check_prints_where_and_how_to_mend(honed: Honed, write: Callable[..., Path]) -> None:
    file = write([asked("a"), asked("b", ""), {"q": f"{ESCAPE}[31m"}, asked(f"x{ESCAPE}[31m \ufffd")])
    shown = honed("data", "check", file)
    assert shown.status == 1
    assert f"{file}:2  message 2 (assistant) holds no text" in shown.out
    assert f"{file}:3  keys seen: q." in shown.out
    assert "fix: " in shown.out and "data.bad_rows=drop" in shown.out
    assert ESCAPE not in shown.out and "\\x1b[31m" in shown.out


def test_what_to_do_about_a_row_is_shown_whole(honed: Honed, write: Callable[..., Path]) -> None:
    shown = honed("data", "check", write([{"question": "a", "answer": "b"}] * 2)).out
    assert shown.count("data.columns='{prompt: question, completion: answer}'") == 1
    assert shown.count("columns={'instruction': 'question', 'output': 'answer'}") == 1
    shown = honed("data", "check", write([{"who": "a"}])).out
    assert "Formats known: tokens (input_ids); " in shown and "text (text)" in shown and "…" not in shown


def test_check_goes_on_behind_a_line_that_is_not_json(honed: Honed, write: Callable[..., Path]) -> None:
    file = write([asked("a"), asked("b")])
    file.write_text("{'a': 1}\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    shown = honed("data", "check", file)
    assert shown.status == 1 and f"{file}:1  Expecting property name" in shown.out
    assert "3 rows in, 2 can be read, 1 cannot" in shown.out
    assert honed("data", "show", file, "--row", 2).status == 0
    assert "This row cannot be trained on: not JSON" in honed("data", "show", file, "--row", 1).out


def test_check_as_json(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path) -> None:
    file = write([asked("a <|im_end|>"), asked("b"), asked("b"), asked("c", "")])
    held_out = write([asked("b")], "held_out.jsonl")
    shown = honed("data", "check", file, "--model", tokenizer_folder, "--eval", held_out, "--json", "bad_rows=drop")
    report = json.loads(shown.out)
    assert shown.status == 1 and shown.out.isascii()
    assert report["ledger"]["rows_in"] == 4 and report["ledger"]["rows_dropped"] == {"empty answer": 1}
    assert {f["kind"]: (f["severity"], f["count"]) for f in report["findings"]} == {
        "eval_overlap": ("error", 2),
        "unusable": ("warning", 1),
        "duplicate": ("warning", 1),
        "control_token": ("warning", 1),
    }
    assert report["lengths"]["unit"] == "tokens" and report["found"]["error"] == 1


def test_options_reach_the_check(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path) -> None:
    file = write([chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "word " * 50))])
    ways = (("--max-length", 20), ("data.max_length=20",), ("max_length=20", "--train-on", "last"))
    for way in ways:
        shown = honed("data", "check", file, "--model", tokenizer_folder, *way)
        assert "overlong" in shown.out, way
    last = honed("data", "check", file, "train_on=last", "--model", tokenizer_folder, "--json")
    every = honed("data", "check", file, "--model", tokenizer_folder, "--json")
    trained = [json.loads(shown.out)["ledger"]["trained_tokens"] for shown in (last, every)]
    assert trained[0] < trained[1]


def test_a_recipe_names_data_and_model(
    honed: Honed, write: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "run.yaml"
    data = {"files": [str(write([asked("a")]))], "held_out": str(write([asked("a")], "eval.jsonl"))}
    recipe.write_text(json.dumps({"model": str(tokenizer_folder), "data": data}))
    shown = honed("data", "check", recipe)
    assert shown.status == 1 and "eval overlap" in shown.out and "1 trained" in shown.out


def test_without_a_number_the_first_row_is_shown(tmp_path: Path, honed: Honed) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('\n\n{"text": "the first"}\n{"text": "the second"}\n', encoding="utf-8")
    shown = honed("data", "show", file, file)
    assert shown.status == 0 and shown.out.startswith(f"{file}:3\n")
    assert "the first" in shown.out and "the second" not in shown.out and "--row N shows another" in shown.out
    assert shown.out.startswith(honed("data", "show", file, "--row", 3).out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "nope.jsonl"), "nope.jsonl does not exist"),
        (("check", "starter", "max_lenght=5"), "'max_length'"),
        (("check", "starter", "learning_rate=5"), "not in the data section"),
        (("check", "starter", "--model", "./nope"), "No such model folder"),
        (("check", "starter", "max_length=1"), "max_length is 1"),
        (("check", "a=b"), "Name files with rows"),
        (("show", "starter", "--row", "5000"), "has no row 5000; its last is 200"),
        (("show", "starter", "starter", "--row", "1"), "2 are named"),
        (("show", "starter", "--html", "no/such/folder/a.html"), "could not be written"),
    ],
)
def test_unusable_input(arguments: tuple[str, ...], says: str, honed: Honed) -> None:
    shown = honed("data", *arguments)
    assert shown.status == 2 and says in shown.err and "fix: " in shown.err


@pytest.mark.parametrize(
    "arguments", [["data"], ["data", "show", "f", "--row", "0"], ["data", "show", "f", "--rows", "5-2"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    from honed.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_show_marks_what_is_trained(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path) -> None:
    file = write([asked("a"), asked(f"why {ESCAPE}]0;title\x07 \u202e", "fox\nyes")])
    shown = honed("data", "show", file, "--row", 2, "--model", tokenizer_folder)
    assert shown.status == 0 and ESCAPE not in shown.out and "\u202e" not in shown.out
    assert "<|im_start|>user\nwhy \\x1b]0;title\\x07 \\u202e<|im_end|>" in shown.out
    assert "<|im_start|>assistant\n«fox\nyes<|im_end|>»" in shown.out
    assert f"{file}:2" in shown.out and "view 1 of 1" in shown.out


def test_show_weights_and_ids(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path) -> None:
    file = write([{"input_ids": [70, 71, 72, 2], "loss_mask": [0, 0.5, 1, 1]}])
    shown = honed("data", "show", file, "--row", 1, "--model", tokenizer_folder, "--ids")
    assert "«0.5:|" in shown.out and "⟨71⟩»«|" in shown.out and "|<|im_end|>⟨2⟩»" in shown.out


def test_show_leaves_out_long_context(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path) -> None:
    file = write([asked("fox " * 500, "word " * 500)])
    brief = honed("data", "show", file, "--row", 1, "--model", tokenizer_folder).out
    whole = honed(
        "data", "show", file, "--row", 1, "--model", tokenizer_folder, "--context", "all", "max_length=64"
    ).out
    assert "characters; --context all shows them" in brief and brief.count("fox") < 200
    assert whole.count("fox") == 500 and brief.count("word") == whole.count("word") == 500
    assert "longer than max_length" in whole


def test_show_without_a_model_and_of_a_bad_row(
    honed: Honed, write: Callable[..., Path], tokenizer_folder: Path
) -> None:
    file = write([asked("why", "so"), {"q": f"{ESCAPE}[2J"}])
    shown = honed("data", "show", file, "--row", 1)
    assert "\nuser:\nwhy\n\nassistant:\nso\n" in shown.out and "name a model" in shown.out
    for model in ((), ("--model", tokenizer_folder)):
        shown = honed("data", "show", file, "--row", 2, *model)
        assert "cannot be trained on: unknown format" in shown.out and ESCAPE not in shown.out


def test_style_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style.of(Terminal()).paint == "colour" and Style.of(io.StringIO()).paint == "brackets"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(Terminal()).paint == "reverse"
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(Terminal()).paint == "brackets"


def test_colours_end_before_the_line_does() -> None:
    painted = Style(paint="colour").around("a\nb\n", 1.0, False)
    assert painted == "\x1b[30;42ma⏎\x1b[0m\n\x1b[30;42mb⏎\x1b[0m\n"
    assert Style(paint="reverse").around("a", 0.5, False) == "\x1b[7m0.5:a\x1b[0m"
    assert Style(paint="colour").around("plain", 0.0, False) == "plain"


def test_short_context_is_kept_whole() -> None:
    assert shortened("x" * 500) == "x" * 500
    assert len(shortened("x" * 5000)) < 600


def test_the_page_is_written(honed: Honed, write: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path) -> None:
    file = write([asked(f"question {n}", f"answer {n}") for n in range(30)])
    out = tmp_path / "data.html"
    shown = honed("data", "show", file, "--html", out, "--model", tokenizer_folder, "--rows", "11-30", "--limit", 5)
    assert shown.status == 0 and "30 rows checked, 5 of them to look at" in shown.out
    page = out.read_text(encoding="utf-8")
    assert page.count("<article") == 5 and 'id="row-11"' in page and 'id="row-16"' not in page
    assert [path.name for path in tmp_path.glob(".*")] == []
