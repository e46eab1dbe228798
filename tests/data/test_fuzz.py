"""Ten thousand broken rows: each ends in the ledger or in one error with file:line, and no neighbour changes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from honed.data.prepare import PrepareOptions, prepare
from honed.data.sources import read_rows
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
    None, True, 0, -1, 1.5, 1e308, 10**30, "", " ", "\0", "\ud800", "\u2028", "<|im_end|>", "a" * 3000, [], {}, [None],
    [[]], {"role": "user"}, [{"role": "assistant"}], {"a": {"b": {}}}, "{", "[1", [1, "2"], [-5], [float("nan")],
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


@pytest.mark.parametrize("train_on", ["assistant", "completion"])
@pytest.mark.parametrize("seed", range(5))
def test_broken_rows_end_in_the_ledger(train_on: str, seed: int, tiny_tokenizer: Any) -> None:
    """A thousand broken rows at a time, sound ones between them; the sound ones' tokens must all be there."""
    chance = random.Random(seed)
    broken = [mutated(chance.choice(GOOD), chance) for _ in range(1000)]
    for _ in range(2):
        broken = [mutated(row, chance) if chance.random() < 0.2 else row for row in broken]
    sound = {"messages": [{"role": "user", "content": "sound"}, {"role": "assistant", "content": "neighbour"}]}
    rows = [row for one in broken for row in (one, sound)]
    options = PrepareOptions(bad_rows="drop", train_on=train_on, max_length=None)
    prepared = prepare(rows, tiny_tokenizer, options)
    ledger = prepared.ledger
    assert ledger.rows_in == 2000 == ledger.rows_trained + ledger.rows_dropped.total()
    [alone] = documents(prepare([sound], tiny_tokenizer, options))
    assert documents(prepared)[alone] >= 1000
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
            sound = [row for n, row in enumerate(GOOD) if n != place]
            assert [row for _, row in rows if row in sound] == sound
    assert errors > 300


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


def test_a_line_of_ten_megabytes(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "fox " * 2_500_000, "completion": "no"}, GOOD[0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ledger = prepare(str(path), tiny_tokenizer, PrepareOptions(max_length=64)).ledger
    assert (ledger.rows_in, ledger.rows_trained, dict(ledger.rows_dropped)) == (2, 1, {"overlong": 1})
