"""Pieces of text while tokens come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.generate.text import TextStream

TEXTS = ("the quick brown fox", "狐狸为什么问？", "👩‍👩‍👧‍👦 emoji 🎉🎉", "a\n\nb  c", "é̂ naïve — “quotes”", "")


def fed(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.feed(token) for token in ids), stream.close()]


def bytes_decode(ids: list[int]) -> str:
    """A tokenizer of single bytes: every character of more than one is split."""
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_tokenizer_join_to_its_text(text: str, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tiny_tokenizer.decode)
    pieces = fed(stream, ids)
    assert "".join(pieces) == stream.text == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_comes_when_its_last_byte_does(text: str) -> None:
    stream = TextStream(bytes_decode)
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=30))
def test_broken_bytes_join_as_well(ids: list[int]) -> None:
    stream = TextStream(bytes_decode)
    pieces = fed(stream, ids)
    assert "".join(pieces) == stream.text == bytes_decode(ids)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab\n狐", max_size=25),
    stops=st.lists(st.text("ab\n狐", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 60), max_size=12),
)
def test_stop_strings_end_the_text_wherever_tokens_are_cut(text: str, stops: list[str], cuts: set[int]) -> None:
    """Against looking for them in the whole text after each token."""
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(edges)]
    stream = TextStream(lambda ids: b"".join(tokens[i] for i in ids).decode("utf-8", "replace"), stops)
    pieces = fed(stream, list(range(len(tokens))))
    expected = text
    for end in range(1, len(tokens) + 1):
        known = b"".join(tokens[:end]).decode("utf-8", "ignore")
        found = [known.index(stop) for stop in stops if stop in known]
        if found:
            expected = known[: min(found)]
            break
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped is any(stop in text for stop in stops)


def test_nothing_is_held_back_that_cannot_be_a_stop_string() -> None:
    stream = TextStream(bytes_decode, ["END"])
    assert [stream.feed(byte) for byte in b"xEyENz"] == ["x", "", "Ey", "", "", "ENz"]
