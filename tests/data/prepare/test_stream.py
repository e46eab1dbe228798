"""Streams: one sequence whoever reads it, resumed where it stood, in memory that does not grow."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest

from honed.data.encode import encode
from honed.data.mix.mixture import Mixture, Part
from honed.data.prepare import stream as streams
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.prepare.stream import Place, RowStream
from honed.errors import DataError, RecipeError

OPTIONS = PrepareOptions(max_length=64)


def rows(count: int, name: str = "fox") -> list[dict[str, str]]:
    return [{"text": f"{name} {n} " + "why " * (n % 7)} for n in range(count)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", 8)


@pytest.fixture
def files(tmp_path: Path) -> str:
    for number in range(3):
        lines = map(json.dumps, rows(25, f"file{number}"))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    return f"{tmp_path}/*.jsonl"


def texts(stream: RowStream, tokenizer: Any, count: int) -> list[str]:
    return [tokenizer.decode(row.input_ids) for _, row in islice(stream.rows(), count)]


def test_an_epoch_holds_every_row_once_and_each_in_another_order(files: str, tiny_tokenizer: Any) -> None:
    stream = RowStream(files, tiny_tokenizer, OPTIONS, shuffle_buffer=20)
    found = texts(stream, tiny_tokenizer, 150)
    expected = sorted(row["text"] + "<|im_end|>" for n in range(3) for row in rows(25, f"file{n}"))
    assert sorted(found[:75]) == sorted(found[75:]) == expected
    assert found[:75] != found[75:]
    assert found == texts(stream, tiny_tokenizer, 150), "a second reading is the same"
    assert found != texts(RowStream(files, tiny_tokenizer, OPTIONS, seed=1, shuffle_buffer=20), tiny_tokenizer, 150)
    plain = texts(RowStream(files, tiny_tokenizer, OPTIONS, shuffle_buffer=0), tiny_tokenizer, 75)
    assert plain == [row["text"] + "<|im_end|>" for n in range(3) for row in rows(25, f"file{n}")]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("buffer", [0, 8, 20, 1000])
def test_going_on_from_any_place_gives_the_rest(files: str, tiny_tokenizer: Any, packing: bool, buffer: int) -> None:
    options = PrepareOptions(max_length=64, packing=packing)

    def run(start: Place | None, count: int) -> list[Any]:
        stream = RowStream(files, tiny_tokenizer, options, shuffle_buffer=buffer)
        found = islice(stream.batches(3, start), count)
        return [(place, [(row.input_ids.tolist(), row.lengths) for row in batch]) for place, batch in found]

    whole = run(None, 40)
    assert whole[-1][0].epoch > 0 and whole[-1][0].batch == 39
    for number in range(0, 40, 3):
        assert run(whole[number][0], 40 - number) == whole[number:]


def test_packed_rows_hold_the_documents_of_a_prepared_data_set(files: str, tiny_tokenizer: Any) -> None:
    options = PrepareOptions(max_length=64, packing=True)
    stream, prepared = RowStream(files, tiny_tokenizer, options), prepare(files, tiny_tokenizer, options)
    found: Counter[tuple[int, ...]] = Counter()
    for place, row in stream.rows():
        if place.epoch:
            break
        first = [sum(row.lengths[:n]) for n in range(len(row.lengths))]
        found.update(tuple(row.input_ids[a : a + n]) for a, n in zip(first, row.lengths, strict=True))
    table = prepared.rows.table
    assert found == Counter(tuple(table.row([d]).input_ids) for d in range(len(table)))


def test_the_ledger_of_an_epoch_is_that_of_a_prepared_data_set(tiny_tokenizer: Any) -> None:
    given = [*rows(20), {"text": ""}, {"text": "why " * 99}]
    options = PrepareOptions(max_length=64, packing=True, bad_rows="drop")
    stream, prepared = RowStream(given, tiny_tokenizer, options), prepare(given, tiny_tokenizer, options)
    assert stream.stop_ids() == prepared.stop_ids
    last = None
    for place, _ in stream.rows():
        if place.epoch:
            break
        last = stream.ledger.as_dict()
    # the numbers of packed rows differ: a stream packs block by block
    assert last is not None and last["rows_in"] == 22
    for name in ("rows_trained", "rows_dropped", "documents", "tokens", "trained_tokens", "stop_tokens"):
        assert last[name] == prepared.ledger.as_dict()[name], name


@pytest.mark.parametrize("template", ["auto", "plain"])
def test_the_notes_are_those_of_a_prepared_data_set(template: str, tiny_tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "why <|im_end|>"}, {"role": "assistant", "content": "yes"}]
    given = [{"messages": talk}, {"messages": talk, "text": "both"}]
    options = PrepareOptions(max_length=512, template=template)
    stream, prepared = RowStream(given, tiny_tokenizer, options), prepare(given, tiny_tokenizer, options)
    list(islice(stream.rows(), 2))
    assert stream.ledger.notes == prepared.ledger.notes
    assert len(prepared.ledger.notes) == 2 + (template == "plain")


def test_weights_hold_after_any_number_of_rows(tiny_tokenizer: Any) -> None:
    parts = (Part(data=rows(5, "a"), name="a", weight=3), Part(data=rows(100, "b"), name="b", weight=1))
    stream = RowStream(Mixture(parts=parts), tiny_tokenizer, OPTIONS, shuffle_buffer=8)
    found = texts(stream, tiny_tokenizer, 80)
    for count in (8, 16, 40, 80):
        assert Counter(text[0] for text in found[:count]) == {"a": count * 3 // 4, "b": count // 4}
    assert Counter(found)["a 0 <|im_end|>"] == 12, "a source that ends begins again"


@pytest.mark.parametrize("packing", [False, True])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, tiny_tokenizer: Any, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file ten times as long, of rows that are all different: at most a tenth more."""
    options = PrepareOptions(max_length=64, packing=packing)
    monkeypatch.setattr(encode, "_MOST_REMEMBERED", 1 << 13)  # texts met before: full in the small file already

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(json.dumps({"text": f"row {n:05} why not the fox"}) for n in range(count)))
        stream = RowStream(str(path), tiny_tokenizer, options, shuffle_buffer=64)
        tracemalloc.start()
        try:
            places = (place for place, _ in stream.rows())
            assert sum(1 for _ in takewhile(lambda place: not place.epoch, places)) > count / 10
            assert stream.ledger.rows_trained >= count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(400)  # what is made once
    small, large = peak(400), peak(4000)
    assert large <= 1.1 * small


def test_what_cannot_be_streamed(tiny_tokenizer: Any) -> None:
    def stream(data: Any, **options: Any) -> RowStream:
        return RowStream(data, tiny_tokenizer, PrepareOptions(**options))

    with pytest.raises(DataError, match="No row is left"):
        next(stream([]).rows())
    with pytest.raises(DataError, match="No row is left"):
        next(stream([{"text": "why " * 99}], max_length=8).rows())
    with pytest.raises(DataError, match=r"row:9: empty text"):
        list(islice(stream([*rows(8), {"text": ""}]).rows(), 9))
    with pytest.raises(DataError, match=r"(?s)No row is left.*can be read only once"):  # a generator
        list(islice(stream(iter(rows(3))).rows(), 9))
    for part in (Part(data=[], cap=3), Part(data=[], repeat=2)):
        with pytest.raises(RecipeError, match="Source rows: cap and repeat do not work with streaming"):
            stream(Mixture(parts=(part,)))
    with pytest.raises(RecipeError, match="shuffle_buffer is -1"):
        RowStream([], tiny_tokenizer, OPTIONS, shuffle_buffer=-1)
