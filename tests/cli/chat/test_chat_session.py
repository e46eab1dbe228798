"""The commands of a talk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from honed.cli.chat.session import Session, read_param, system_of_rows
from honed.recipe import DataRecipe


@pytest.fixture
def session() -> Session:
    return Session(
        system="s",
        params={"temperature": 0.0, "top_k": None, "max_new_tokens": 9},
        turns=[("q", ["a", "A"]), ("r", ["b", "B"])],
    )


def test_each_speaker_knows_its_own_answers(session: Session) -> None:
    told = [[(m.role, m.content) for m in session.messages("next", speaker=n)] for n in range(2)]
    assert told[0] == [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"),
                       ("user", "next")]  # fmt: skip
    assert [text for role, text in told[1] if role == "assistant"] == ["A", "B"]


def test_undo_and_reset(session: Session) -> None:
    assert session.command("/undo") == "(taken back: r)"
    assert len(session.turns) == 1
    assert session.command("/reset") == "(begun anew)"
    assert session.turns == []
    assert session.command("/undo") == "(nothing to take back)"


def test_system(session: Session) -> None:
    assert session.command("/system") == "(system: s)"
    assert session.command("/system be kind, and short") == "(system: be kind, and short)"
    assert session.messages()[0].content == "be kind, and short"


def test_params(session: Session) -> None:
    assert session.command("/params") == "(temperature=0.0, top_k=own, max_new_tokens=9)"
    assert session.command("/params temperature=0.5 top_k=3") == "(temperature=0.5, top_k=3, max_new_tokens=9)"
    assert "top_k=own" in session.command("/params top_k=own")
    before = dict(session.params)
    assert "no setting 'heat'" in session.command("/params temperature=1 heat=2")
    assert "must be 1 or more" in session.command("/params max_new_tokens=0")
    assert "max_new_tokens=x" in session.command("/params max_new_tokens=x")
    assert session.params == before


def test_save_adds_rows(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    assert session.command(f"/save {file}") == session.command(f"/save {file}") == f"(added to {file})"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == rows[1]
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert "cannot be written" in session.command(f"/save {tmp_path / 'no' / 'folder.jsonl'}")
    assert "needs a file" in session.command("/save")
    session.turns.clear()
    assert "nothing to save" in session.command(f"/save {file}")


def test_help_and_what_is_none(session: Session) -> None:
    shown = session.command("/help")
    assert all(name in shown for name in ("/reset", "/undo", "/system", "/params", "/save", "/exit"))
    assert "there is no /quit" in session.command("/quit now")


@pytest.mark.parametrize("wrong", [("temperature", "-1"), ("temperature", "own"), ("top_p", "2"), ("seed", "")])
def test_settings_are_held_to_the_options_rules(wrong: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        read_param(*wrong)


@pytest.mark.parametrize(
    ("systems", "found"),
    [(["s", "s"], "s"), (["s", "t"], None), (["s", None], None), ([None, None], None)],
)
def test_the_system_prompt_of_the_training_rows(systems: list[str | None], found: str | None, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": [*([{"role": "system", "content": s}] if s else []), *talk]} for s in systems]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert system_of_rows(DataRecipe(files=(str(file),))) == found
    file.write_text("not a row\n", encoding="utf-8")
    assert system_of_rows(DataRecipe(files=(str(file),))) is None
    file.unlink()
    assert system_of_rows(DataRecipe(files=(str(file),))) is None
    assert system_of_rows(DataRecipe(files=("owner/rows",))) is None
