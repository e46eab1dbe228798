"""The page of a run: what it says, what it survives, and that nothing from a dataset becomes markup."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from honed.data.ledger import Ledger
from honed.errors import RunError
from honed.report.ledger import parse_ledger
from honed.report.ledger_section import ledger_problem
from honed.report.markup import Html, tag
from honed.report.run.record import RUN_FILES, read_run
from honed.report.run.report import render_run_report, write_run_report

HOSTILE = "<script>document.title='hacked'</script>"
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page as a browser would: its elements, and its text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def page_of(folder: Path) -> Page:
    return Page(render_run_report(read_run(folder)))


def put(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")


def test_the_headline_says_what_the_run_did(run_folder: Path) -> None:
    text = page_of(run_folder).text
    for words in (
        "HuggingFaceTB/SmolLM2-135M", "Finished", "2026-07-24 14:05 UTC", "120 steps, 3 epochs",
        "4.81 → 0.296", "evaluation 1.78 → 0.427", "9,000", "60% of 15,000", "77 s", "62 s of it training",
        "13 → 16", "0 → 15", "2.4 GB", "honed train demo.yaml", "135M parameters, 3.6% trained",
    ):  # fmt: skip
        assert words in text


def test_every_chart_is_there_with_its_lines(run_folder: Path) -> None:
    page = page_of(run_folder)
    titles = [attributes.get("id") for name, attributes in page.elements if name == "title"]
    assert {"loss-title", "learning-rate-title", "throughput-title", "memory-title"} <= set(titles)
    assert "train, mean of" in page.text and "trained tokens" in page.text and "nats per trained token" in page.text


def test_the_page_is_well_formed_and_asks_for_nothing(run_folder: Path) -> None:
    source = render_run_report(read_run(run_folder))
    page = Page(source)
    assert page.open == []
    assert "http://" not in source and "https://" not in source
    for name, attributes in page.elements:
        assert name not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "href", "style", "xlink:href"} & set(attributes)
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in source and "url(" not in source


def test_the_policy_allows_only_the_pages_own_style_and_script_by_hash(run_folder: Path) -> None:
    page = page_of(run_folder)
    (policy,) = (a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "*" not in policy
    assert [name for name, _ in page.elements].count("script") == 1


@pytest.mark.parametrize(
    "text", [HOSTILE, "</script><img src=x onerror=alert(1)>", '"><b>', "</title><b>", "]]>", "$title"]
)
def test_text_from_any_file_is_shown_and_never_markup(run_folder: Path, text: str) -> None:
    clean = [name for name, _ in page_of(run_folder).elements]
    put(run_folder, "recipe.yaml", text)
    put(
        run_folder,
        "metrics.jsonl",
        json.dumps({"step": 1, "loss": 2.0, text: text, f"eval_{text}_loss": 1}) + "\n",
    )
    put(run_folder, "ledger.json", {
        "rows_in": 1, "rows_trained": 0, "rows_dropped": {text: 1}, "rows_cut": {text: 1}, "notes": [text],
        "stop_tokens": [text], "examples": [{"source": text, "reason": text, text: text}], text: text,
    })  # fmt: skip
    put(
        run_folder,
        "samples.json",
        {"rule": text, "answers": [{"prompt": text, "before": text, "after": text}]},
    )
    put(run_folder, "run.json", {
        "status": text, "started": text, "model": text, "honed_command": text, "seconds": {text: 1},
        "versions": {text: text, "honed": text}, "device": {"name": text, text: text}, text: text,
    })  # fmt: skip
    page = page_of(run_folder)
    names = [name for name, _ in page.elements]
    assert names.count("script") == 1
    assert {*names} <= {*clean} and "img" not in names
    assert page.open == []
    assert page.text.count(text) > 20


@pytest.mark.parametrize("absent", list(RUN_FILES))
def test_a_missing_file_is_named_and_the_rest_is_shown(run_folder: Path, absent: str) -> None:
    (run_folder / absent).unlink()
    text = page_of(run_folder).text
    assert f"{absent} is missing: {RUN_FILES[absent]}." in text
    for title in ("How it learned", "Before and after", "What was trained on", "What it was made of"):
        assert title in text


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert all(f"{name} is missing" in page.text for name in RUN_FILES)
    assert "Status unknown" in page.text and tmp_path.name in page.text
    assert not [name for name, _ in page.elements if name == "figure"]


@pytest.mark.parametrize("garbage", ["", "{", "[1, 2]", "null", '"text"', "[" * 100_000, "\x00\x01", "{}"])
def test_garbled_files_never_fail(run_folder: Path, garbage: str) -> None:
    for name in RUN_FILES:
        put(run_folder, name, garbage)
    page = page_of(run_folder)
    assert page.open == []
    if garbage != "{}":
        assert "ledger.json does not hold a JSON object" in page.text


@pytest.mark.parametrize("wrong", [None, 5, "text", [1, None, "x"], {"a": {"b": None}}, True])
def test_values_of_the_wrong_kind_never_fail(run_folder: Path, wrong: object) -> None:
    for name in ("ledger.json", "samples.json", "run.json"):
        keys = json.loads((run_folder / name).read_text(encoding="utf-8"))
        put(run_folder, name, dict.fromkeys(keys, wrong))
    put(run_folder, "metrics.jsonl", json.dumps(dict.fromkeys(("step", "loss", "learning_rate"), wrong)))
    assert page_of(run_folder).open == []


def test_a_folder_in_place_of_a_file_is_reported(run_folder: Path) -> None:
    (run_folder / "ledger.json").unlink()
    (run_folder / "ledger.json").mkdir()
    assert "ledger.json could not be read" in page_of(run_folder).text


def test_a_cut_off_last_line_is_skipped_and_counted(run_folder: Path) -> None:
    whole = (run_folder / "metrics.jsonl").read_text(encoding="utf-8")
    put(run_folder, "metrics.jsonl", whole + '{"step": 121, "lo')
    text = page_of(run_folder).text
    assert "metrics.jsonl: 1 line could not be read and was skipped (the last one" in text
    assert "120 steps" in text


def test_nan_null_and_text_values_leave_a_gap_that_is_named(run_folder: Path) -> None:
    put(run_folder, "metrics.jsonl",
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": "nan"}\n'
        '{"step": 4, "loss": null}\n{"step": 5, "loss": 1e999}\n{"step": 6, "loss": 1.5}\n')  # fmt: skip
    page = page_of(run_folder)
    assert "train: 4 values are null or not finite (the first at step 2); the line breaks there." in page.text
    assert "3 → 1.5" in page.text
    (path,) = (a["d"] or "" for n, a in page.elements if n == "path")
    assert "nan" not in path.lower() and path.count("M") == 2
    assert "Not logged in this run: learning rate, throughput, memory." in page.text


def test_a_run_that_ended_in_nan_does_not_show_its_last_good_loss(run_folder: Path) -> None:
    lines = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": NaN}\n'
    put(run_folder, "metrics.jsonl", lines)
    assert "3 → NaN" in page_of(run_folder).text


def test_lines_without_step_and_repeated_steps_are_counted(run_folder: Path) -> None:
    put(run_folder, "metrics.jsonl", '{"loss": 3}\n{"step": 1, "loss": 3}\n{"step": 1, "loss": 2}\n')
    text = page_of(run_folder).text
    assert "1 of 3 lines name no step and are not drawn" in text
    assert "1 of 2 training lines repeat a step" in text


def test_several_evaluation_sets_get_a_line_each(run_folder: Path) -> None:
    put(
        run_folder,
        "metrics.jsonl",
        '{"step": 1, "loss": 3}\n{"step": 1, "eval_chat_loss": 2, "eval_code_loss": 1}\n',
    )
    text = page_of(run_folder).text
    assert "evaluation: chat" in text and "evaluation: code" in text


def test_the_ledger_that_adds_up_says_so_and_shows_each_reason(run_folder: Path) -> None:
    text = page_of(run_folder).text
    assert "Adds up: every row is accounted for." in text
    for words in (
        "dropped: overlong", "dropped: empty answer", "train.jsonl:17", "<|im_end|>", "duplicate_rows",
        "tokens: 4,211", "Cut: overlong",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            {"rows_in": 176, "rows_trained": 170, "rows_dropped": {"a": 1, "b": 2}},
            "= 173 (3 rows unaccounted for)",
        ),
        ({"rows_in": 10, "rows_trained": 10, "rows_dropped": {"a": 1}}, "= 11 (1 row too many)"),
        ({"rows_trained": 10}, "does not say rows_in or rows_dropped"),
    ],
)
def test_a_ledger_that_does_not_add_up_says_so(run_folder: Path, raw: dict[str, object], words: str) -> None:
    assert words in ledger_problem(parse_ledger(raw))
    put(run_folder, "ledger.json", raw)
    text = page_of(run_folder).text
    assert words in text and "Adds up" not in text


def test_a_known_ledger_key_of_the_wrong_kind_is_still_shown() -> None:
    ledger = parse_ledger({"rows_in": "many", "rows_dropped": {"a": "b"}, "notes": ["n"], "extra": 1})
    assert ledger.rows_in is None and ledger.notes == ("n",)
    assert ledger.others == {"rows_in": "many", "rows_dropped": {"a": "b"}, "extra": 1}


def test_answers_stand_side_by_side_with_badges_and_their_spaces(run_folder: Path) -> None:
    source = render_run_report(read_run(run_folder))
    text = Page(source).text
    assert all(badge in text for badge in ("ran on", "stopped", "no form", "empty answer", "2 more answers"))
    assert "I can&#x27;t\n    keep  spaces" in source
    assert "地点:杭州\n特点:湖光山色" in source


def test_unrecorded_flags_give_no_badge(run_folder: Path) -> None:
    put(run_folder, "samples.json", {"answers": [{"prompt": "p", "after": "a"}]})
    page = page_of(run_folder)
    assert not [a for _, a in page.elements if "badge" in (a.get("class") or "")]
    assert "not recorded" in page.text


def test_an_interrupted_run_says_so(run_folder: Path) -> None:
    put(run_folder, "run.json", {"status": "interrupted", "model": "m"})
    text = page_of(run_folder).text
    assert "Interrupted" in text and "covers the part that ran" in text


def test_the_recipe_is_verbatim(run_folder: Path) -> None:
    recipe = (run_folder / "recipe.yaml").read_text(encoding="utf-8")
    assert recipe in "".join(page_of(run_folder).texts)


def test_writing_leaves_one_whole_file_and_is_repeatable(run_folder: Path) -> None:
    before = {path.name for path in run_folder.iterdir()}
    first = write_run_report(run_folder)
    content = first.read_bytes()
    assert write_run_report(run_folder) == run_folder / "report.html" == first
    assert first.read_bytes() == content
    assert {path.name for path in run_folder.iterdir()} == before | {"report.html"}


def test_half_a_surrogate_pair_can_be_written(run_folder: Path) -> None:
    put(run_folder, "samples.json", '{"answers": [{"prompt": "\\ud83d", "before": "a", "after": "b"}]}')
    assert write_run_report(run_folder).read_text(encoding="utf-8").endswith("</html>\n")


def test_a_failed_write_keeps_the_old_page_and_no_rubbish(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(run_folder, "report.html", "old")

    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(RunError, match=r"report\.html could not be written"):
        write_run_report(run_folder)
    assert (run_folder / "report.html").read_text(encoding="utf-8") == "old"
    assert not list(run_folder.glob(".*"))


def test_no_run_folder_is_refused_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a folder") as caught:
        write_run_report(tmp_path / "nowhere")
    assert "output folder" in caught.value.fix


def test_markup_escapes_whatever_is_not_html() -> None:
    assert tag("p", "<b>", tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert tag("p", tag("i") + tag("b")) == "<p>&lt;i&gt;&lt;/i&gt;&lt;b&gt;&lt;/b&gt;</p>"
    assert isinstance(tag("details", open=True, hidden=None), Html)


def test_stop_tokens_are_shown_as_the_ledger_writes_them() -> None:
    ledger = parse_ledger(Ledger(stop_tokens=Counter({"<|im_end|>": 3})).as_dict())
    assert ledger.stop_tokens == ("<|im_end|>",) and "stop_tokens" not in ledger.others
