"""Texts that were met before, and the change from the tokenizer's own way to the fast one."""

from typing import Any

import pytest

from honed.data.encode import encode
from honed.data.encode.encode import Encoder


def usual(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_the_first_texts_are_encoded_as_usual(tiny_tokenizer: Any) -> None:
    encoder = Encoder(tiny_tokenizer, usual=10)
    assert not encoder.is_fast()
    first = encoder(["twelve chars"])
    assert encoder.is_fast()
    texts = ["and the rest", "twelve chars", "and the rest"]
    assert [ids.tolist() for ids in first + encoder(texts)] == usual(tiny_tokenizer, ["twelve chars", *texts])


def test_for_much_text_the_fast_way_is_looked_for_once(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    real = encode.cached_bpe
    monkeypatch.setattr(encode, "cached_bpe", lambda *args: looked.append(args) or real(*args))
    encoder = Encoder(tiny_tokenizer)
    encoder.get_ready()
    encoder.get_ready()
    assert encoder.is_fast() and len(looked) == 1
    assert [ids.tolist() for ids in encoder(["at once"])] == usual(tiny_tokenizer, ["at once"])


def test_a_text_is_encoded_once(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_tokenizer)
    [ids] = encoder(["again"])
    monkeypatch.setattr(encoder, "_usual", None)
    assert encoder(["again", "again"])[1] is ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 7


def test_memory_is_bounded(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MOST_REMEMBERED", 100)
    encoder = Encoder(tiny_tokenizer)
    for number in range(40):
        texts = [f"word{number} other{number} {number}" * 3]
        assert [ids.tolist() for ids in encoder(texts)] == usual(tiny_tokenizer, texts)
        assert sum(map(len, encoder._known)) <= 150


def test_no_texts(tiny_tokenizer: Any) -> None:
    assert Encoder(tiny_tokenizer)([]) == []


def test_padding_and_cuts_that_others_set_in_the_meantime_are_not_ours(tiny_tokenizer: Any) -> None:
    texts = ["a", "a longer text than the other", "of three"]
    expected = [usual(tiny_tokenizer, [text])[0] for text in texts]
    encoder = Encoder(tiny_tokenizer)
    tiny_tokenizer(["short", "and much longer"], padding=True)
    assert [ids.tolist() for ids in encoder(texts)] == expected
    tiny_tokenizer(texts, truncation=True, max_length=2)
    assert [ids.tolist() for ids in Encoder(tiny_tokenizer)(texts)] == expected
