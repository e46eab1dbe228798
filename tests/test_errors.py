"""The exception tree: what users read, and that one `except` catches all."""

from __future__ import annotations

import pytest

from honed import errors


def test_message_and_fix() -> None:
    assert str(errors.DataError("a.jsonl:3: no.", fix="correct it")) == "a.jsonl:3: no.\n  fix: correct it"
    assert str(errors.DataError("no.")) == "no."
    assert str(errors.MissingExtraError("wandb", "track")).endswith("fix: pip install 'honed[track]'")


def test_the_docstring_draws_the_tree() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    lines = [line.replace("|--", "").replace("`--", "").split() for line in (errors.__doc__ or "").split("\n")]
    drawn = {words[0] for words in lines if words}
    assert {kind.__name__ for kind in kinds} <= drawn
    assert all(issubclass(kind, errors.HonedError) for kind in kinds)


def test_caught_by_the_base() -> None:
    with pytest.raises(errors.HonedError) as caught:
        raise errors.RunError("x is in use.", fix="wait")
    assert (caught.value.problem, caught.value.fix) == ("x is in use.", "wait")


def test_the_first_line_of_anothers_error() -> None:
    assert errors.first_line(ValueError("\n  no such file \nmore")) == "ValueError: no such file"
    assert errors.first_line(KeyError()) == "KeyError: no message"


def test_wrong_input_is_a_value_error_and_a_machine_in_trouble_is_none() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HonedError)]
    caught = {kind.__name__ for kind in kinds if issubclass(kind, ValueError)}
    assert caught == {"DataError", "TemplateError", "RecipeError"}
