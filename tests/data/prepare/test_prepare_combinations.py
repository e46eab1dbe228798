"""Every pair of ways to prepare data gives the documents of an oracle that knows nothing of honed."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from honed.data.prepare import cache, reader, stream, workers
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.data.prepare.stream import RowStream
from honed.data.read import files, sources
from honed.errors import DataError
from honed.train.rows.stream import StreamDataset, StreamLoader
from tests.data.prepare.oracle import Document, cut, documents_of, rewrapped
from tests.data.templates.test_families import FAMILIES, FOLDER

# on one core two workers are one too many for torch
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
Case = dict[str, Any]
AXES: dict[str, tuple[Any, ...]] = {
    "family": ("chatml", "llama2", "gemma2", "deepseek_r1", "qwen3"),
    "format": ("messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokens"),
    "held": ("list", "jsonl.gz", "csv", "parquet", "Dataset", "IterableDataset"),
    "read": ("at once", "workers", "cold cache", "warm cache", "streamed", "streamed by workers"),
    "packing": (None, "bfd", "bfd_split", "wrapped"),
    "overlong": ("drop", "truncate", "split"),
    "max_length": (16, 48, None),
    "train_on": ("assistant", "last", "all", "completion"),
    "flags": (False, True),
}
TEXTS = (
    "why",
    "the quick\n\nfox",
    "no, three",
    " é 😀 ",
    "1",
    "null",
    '"a", b',
    "say <|im_end|>!",
    "100%s",
    "one " * 9,
)


def possible(case: Case) -> bool:
    return not (
        (case.get("packing") == "wrapped" and "streamed" in case.get("read", ""))
        or (case.get("packing") and "max_length" in case and case["max_length"] is None)
        or (case.get("flags") and case.get("format", "messages") not in ("messages", "sharegpt"))
        or (case.get("held") == "csv" and case.get("format") == "tokens")
    )


def pairs_of(case: Case) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(case.items(), 2))


def covering_cases() -> list[Case]:
    """Few cases in which every possible pair of choices stands."""
    chance = random.Random(0)
    two = (dict(zip(names, one, strict=True)) for names in itertools.combinations(AXES, 2)
           for one in itertools.product(*(AXES[name] for name in names)))  # fmt: skip
    left = dict.fromkeys(pair for case in two if possible(case) for pair in pairs_of(case))
    cases = []
    while left:
        needed = dict(next(iter(left)))
        drawn = ({name: needed.get(name, chance.choice(values)) for name, values in AXES.items()} for _ in range(200))
        cases.append(max(filter(possible, drawn), key=lambda case: len(pairs_of(case) & left.keys())))
        for pair in pairs_of(cases[-1]):
            left.pop(pair, None)
    return cases


def row_and_meaning(case: Case, chance: random.Random) -> tuple[dict[str, Any], Any]:
    """A row of the format, and what it says: ids with weights, texts, or messages."""
    ids = [chance.randrange(300) for _ in range(chance.randint(2, 40))]
    weights = [chance.choice((0.0, 1.0)) for _ in ids]
    text, answer = chance.choice(TEXTS), chance.choice(TEXTS)
    turns = [(role, chance.choice(TEXTS)) for _ in range(chance.randint(1, 3)) for role in ("user", "assistant")]
    flags = [chance.choice(({}, {}, {"train": False}, {"train": True}, {"weight": 0.5})) for _ in turns]
    says = [{"role": r, "content": c, **(f if case["flags"] else {})} for (r, c), f in zip(turns, flags, strict=True)]
    pair = [{"role": "user", "content": text, "train": False}, {"role": "assistant", "content": answer}]
    names = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    theirs = [{names.get(k, k): names[v] if k == "role" else v for k, v in turn.items()} for turn in says]
    labels = [i if w else -100 for i, w in zip(ids, weights, strict=True)]
    return {
        "messages": ({"messages": says}, says),
        "sharegpt": ({"conversations": theirs}, says),
        "alpaca": ({"instruction": text, "output": answer}, pair),
        "prompt_completion": ({"prompt": text, "completion": answer}, (text, answer)),
        "text": ({"text": text}, ("", text)),
        "tokens": ({"input_ids": ids, "labels": labels}, [(ids, weights)]),
    }[case["format"]]


def held(kind: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    path, lines = folder / f"rows.{kind}", "\n".join(map(json.dumps, rows)).encode()
    if kind in ("Dataset", "IterableDataset"):
        data = datasets.Dataset.from_list(rows)
        return data if kind == "Dataset" else data.to_iterable_dataset(num_shards=2)
    if kind == "csv":
        with path.open("w", newline="") as file:
            texts = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows]
            csv.writer(file).writerows([list(rows[0]), *texts])
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind != "list":
        path.write_bytes(gzip.compress(lines))
    return rows if kind == "list" else str(path)


def prepared(case: Case, data: Any, tokenizer: Any, options: PrepareOptions, folder: Path) -> tuple[Any, Any]:
    """Packed rows and ledger, of one epoch."""
    if "streamed" in case["read"]:
        rows, number = RowStream(data, tokenizer, options, shuffle_buffer=6), 2 * (case["read"] != "streamed")
        loader = StreamLoader(StreamDataset(rows, 1, lambda rows: {"rows": rows}), num_workers=number)
        batches = itertools.takewhile(lambda _: not loader.place.epoch, loader)
        found = [(row, loader.ledger) for batch in batches for row in batch["rows"]]
        return [row for row, _ in found], found[-1][1]
    if "cache" not in case["read"]:
        made = prepare(data, tokenizer, options, workers=1 + (case["read"] == "workers"))
        return made.rows, made.ledger
    made = cache.prepare_cached(data, tokenizer, options, root=folder)
    if case["read"] == "warm cache":
        with pytest.MonkeyPatch.context() as patch:
            if "list" != case["held"] != "IterableDataset":  # which cannot be hashed
                patch.setattr(cache, "prepare", None)
            made = cache.prepare_cached(data, tokenizer, options, root=folder)
    return made.rows, made.ledger


@pytest.mark.parametrize("case", covering_cases(), ids=lambda case: "-".join(map(str, case.values())))
def test_every_pair_of_options_gives_what_the_template_and_the_tokenizer_say(
    case: Case, tokenizer_with: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reader, workers, sources, files):
        monkeypatch.setattr(module, "ROWS_AT_A_TIME", 4)  # several chunks, for every worker some
    monkeypatch.setattr(stream, "BLOCK", 4)
    family, chance = FAMILIES[case["family"]], random.Random(str(case))
    template = (FOLDER / f"{case['family']}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_with(template, special=family.special, eos_token=family.eos, bos_token=family.bos or None)
    rows, meanings = zip(*(row_and_meaning(case, chance) for _ in range(14)), strict=True)
    packing, limit = case["packing"], case["max_length"]
    options = PrepareOptions(train_on=case["train_on"], max_length=limit, overlong=case["overlong"], bad_rows="drop",
                             packing=packing is not None, packing_strategy=packing or "bfd")  # fmt: skip
    how = "split" if packing == "bfd_split" else case["overlong"]
    kept = [cut(documents_of(m, tokenizer, case["train_on"]), None if packing == "wrapped" else limit, how)
            for m in meanings]  # fmt: skip
    expected = [document for documents in kept for document in documents]
    data = held(case["held"], list(rows), tmp_path)
    if not expected:
        with pytest.raises(DataError, match="No row is left"):
            prepared(case, data, tokenizer, options, tmp_path)
        return
    found, ledger = prepared(case, data, tokenizer, options, tmp_path)
    assert (ledger.rows_trained, ledger.documents) == (sum(map(bool, kept)), len(expected))
    assert ledger.rows_in == ledger.rows_trained + ledger.rows_dropped.total()
    assert ledger.rows_in == 14 or "streamed" in case["read"]  # the rest of the epoch's rows may all be dropped
    expected = rewrapped(expected, limit) if packing == "wrapped" else expected
    assert ledger.tokens == sum(len(ids) for ids, _ in expected)
    assert ledger.trained_tokens == sum(weight > 0 for _, weights in expected for weight in weights)
    assert ledger.packed_rows == len(found)
    documents: Counter[Document] = Counter()
    for row in (found[n] for n in range(len(found))):
        ends = list(itertools.accumulate(row.lengths, initial=0))
        assert ends[-1] == len(row.input_ids) <= (limit or ends[-1])
        spans = list(itertools.pairwise(ends))
        documents.update((tuple(row.input_ids[a:b].tolist()), tuple(row.weights[a:b].tolist())) for a, b in spans)
    assert documents == Counter(expected)
