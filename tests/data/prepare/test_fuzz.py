"""Ten thousand broken rows: each ends in the ledger or in one error with file:line, and no neighbour changes."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed.data.example import RowError
from honed.data.lint.lint import check
from honed.data.mix.mixture import as_mixture
from honed.data.mix.split import split
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.read.sources import read_rows, starter_file
from honed.errors import DataError

CALL = {"name": "add", "arguments": '{"a": 1}'}
GOOD: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "why"}]},
            {"role": "assistant", "content": "no"},
        ]
    },
    {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}]},
    {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}], "tools": "[]"},
    {"conversations": [{"from": "human", "value": "one"}, {"from": "function_call", "value": json.dumps(CALL)}]},
    {"instruction": "say", "input": "it", "output": "fox", "history": [["a", "b"]], "system": "be"},
    {"prompt": "the quick", "completion": " brown fox"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"text": "the quick brown fox"},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]},
]
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, 10**400, "", " ", "\0", "\ud800", "\u2028", "<|im_end|>", "a" * 3000, [], {},
    [None], [[]], {"role": 5}, [{"role": "assistant"}], {"a": {"b": {}}}, "{", "[1", [1, "2"], [-5], [float("nan")],
]  # fmt: skip


def mutated(value: Any, chance: random.Random) -> Any:  # noqa: PLR0911
    """The value with one place in it broken: replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        kind = chance.randrange(5)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {(k if k != key else k.upper() + "?"): v for k, v in value.items()}
        return {**value, key: mutated(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        kind = chance.randrange(4)
        if kind == 0:
            return value[:place] + value[place + 1 :]
        if kind == 1:
            return [*value, value[place]]
        return [*value[:place], mutated(value[place], chance), *value[place + 1 :]]
    if isinstance(value, str) and value and chance.random() < 0.3:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice(["\0", "\ud83d", "<|im_start|>", "\r\n", "é", ""]) + value[place + 1 :]
    return chance.choice(ODD)


def documents(prepared: Any) -> dict[bytes, int]:
    table = prepared.rows.table
    found: dict[bytes, int] = {}
    for number in range(len(table)):
        row = table.row([number])
        key = row.input_ids.tobytes() + row.weights.tobytes()
        found[key] = found.get(key, 0) + 1
    return found


def broken_rows(good: list[Any], count: int, chance: random.Random) -> list[Any]:
    """`count` rows, each unlike every other and unlike those that they were made of."""
    found: dict[str, Any] = {}
    before = set(map(repr, good))
    while len(found) < count:
        row = mutated(chance.choice(good), chance)
        while chance.random() < 0.4:
            row = mutated(row, chance)
        if (key := repr(row)) not in before:
            found[key] = row
    return list(found.values())


def real_rows() -> list[Any]:
    """Conversations that people wrote: the starter set."""
    return [row for _, row in read_rows(str(starter_file("train.jsonl")))]


@pytest.mark.parametrize("rows_of", [lambda: GOOD, real_rows], ids=["every format", "a real file"])
@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_broken_rows_end_in_the_ledger(rows_of: Any, seed: int, tiny_tokenizer: Any) -> None:
    """A thousand at a time, sound ones between them; the sound ones' tokens must all be there."""
    broken = broken_rows(rows_of(), 1000, random.Random(seed))
    sound = {"messages": [{"role": "user", "content": "sound"}, {"role": "assistant", "content": "neighbour"}]}
    rows = [row for one in broken for row in (one, sound)]
    options = PrepareOptions(bad_rows="drop", train_on=("assistant", "completion")[seed % 2], max_length=None)
    prepared = prepare(rows, tiny_tokenizer, options)
    ledger = prepared.ledger
    assert ledger.rows_in == 2000 == ledger.rows_trained + ledger.rows_dropped.total()
    [alone] = documents(prepare([sound], tiny_tokenizer, options))
    assert documents(prepared)[alone] == 1000
    assert ledger.rows_dropped.total() > 100, "hardly anything was broken"


def lines() -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") for row in GOOD]


def broken_bytes(line: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(line))
    junk = chance.choice([b"\x00", b"\xff\xfe", b"\n", b"\r\n", b'"', b"}", b"[", b"\\u", b"", b"\xef\xbb\xbf", b"  "])
    return line[:place] + junk + line[place + chance.randrange(3) :]


def test_broken_files_give_one_error_with_the_line_or_their_rows(tmp_path: Path) -> None:
    """Every file holds one broken line at a known place."""
    chance = random.Random(0)
    path = tmp_path / "rows.jsonl"
    errors = 0
    for _ in range(1500):
        content = lines()
        place = chance.randrange(len(content))
        content[place] = broken_bytes(content[place], chance)
        path.write_bytes(b"\n".join(content))
        try:
            rows = list(read_rows(str(path)))
        except DataError as error:
            errors += 1
            assert f"{path}:{place + 1}" in str(error) or f"{path}:{place + 2}" in str(error)
            assert len(str(error)) < 1500
        else:
            broken = [(source.row, row) for source, row in rows if isinstance(row, RowError)]
            errors += bool(broken)
            assert all(n in (place + 1, place + 2) and len(str(row)) < 1500 for n, row in broken)
            sound = [row for n, row in enumerate(GOOD) if n != place]
            assert [row for _, row in rows if row in sound] == sound
    assert errors > 300


USER, ANSWER = {"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}
DEEP: dict[str, Callable[[Any], Any]] = {
    "row": lambda deep: deep,
    "unknown column": lambda deep: {"y": deep},
    "key of a message": lambda deep: {"messages": [{**USER, "x": deep}, ANSWER]},
    "content": lambda deep: {"messages": [{**USER, "content": deep}, ANSWER]},
    "role": lambda deep: {"messages": [{**USER, "role": deep}, ANSWER]},
    "train": lambda deep: {"messages": [USER, {**ANSWER, "train": deep}]},
    "tools": lambda deep: {"messages": [USER, ANSWER], "tools": [{"name": "f", "parameters": deep}]},
    "arguments": lambda deep: {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": deep}]}]},
    "history": lambda deep: {"instruction": "a", "output": "b", "history": deep},
    "text": lambda deep: {"text": deep},
    "labels": lambda deep: {"input_ids": [1], "labels": deep},
}


def nested(depth: int, *, lists: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("where", DEEP)
def test_rows_nested_more_deeply_than_python_can_walk(where: str, lists: bool, tokenizer_with: Any) -> None:
    """The template prints tools and all of a message, so what stands there is walked through many times."""
    prints_all = (
        "{{- tools | tojson if tools }}{%- for m in messages %}{{- '<|im_start|>' + m.role + (m.tool_calls | tojson "
        "if m.tool_calls else '') + (m.x | tojson if m.x else '') + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant' }}{%- endif %}"
    )
    tokenizer = tokenizer_with(prints_all)
    sound = [{"messages": [USER, {**ANSWER, "content": f"neighbour {n} " + "why " * n}]} for n in range(3)]
    for depth in (90, 400, 5000):
        rows = [DEEP[where](nested(depth, lists=lists)), *sound]
        ledger = prepare(rows, tokenizer, PrepareOptions(bad_rows="drop", max_length=None)).ledger
        assert (ledger.rows_in, ledger.rows_trained + ledger.rows_dropped.total()) == (4, 4)
        assert ledger.rows_trained >= 3
        if where in ("key of a message", "tools", "arguments"):
            assert ledger.rows_trained == 4 if depth < 100 else ledger.rows_dropped == {"nested too deeply": 1}
        checked = check(rows, PrepareOptions(bad_rows="drop"), tokenizer=tokenizer, evaluation=rows, keep=range(4))
        assert checked.ledger.rows_trained == ledger.rows_trained
        assert split(as_mixture(rows), 0.3, seed=0).note.startswith("1 of 4 rows")


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting(depth: int, tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "deep.jsonl"
    deep = "[" * depth + "]" * depth
    path.write_text('{"messages": ' + deep + "}\n" + json.dumps(GOOD[0]) + "\n", encoding="utf-8")
    try:
        ledger = prepare(str(path), tiny_tokenizer, PrepareOptions(bad_rows="drop")).ledger
    except DataError as error:
        assert f"{path}:1" in str(error)
    else:
        assert (ledger.rows_in, ledger.rows_trained) == (2, 1)


def test_a_line_of_two_megabytes(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "fox " * 500_000, "completion": "no"}, GOOD[0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ledger = prepare(str(path), tiny_tokenizer, PrepareOptions(max_length=64)).ledger
    assert (ledger.rows_in, ledger.rows_trained, dict(ledger.rows_dropped)) == (2, 1, {"overlong": 1})
