"""Flat and padded batches, held against plain loops over the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.data.batch.table import PackedRow
from honed.ops.attention_layout import layout_of_bounds

PAD = 2  # also the EOS of these documents

documents = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6).map(
    lambda pairs: [(pairs[0][0], 0.0), *pairs[1:], (PAD, 1.0)]
)


def packed(*docs: list[tuple[int, float]]) -> PackedRow:
    return PackedRow(
        input_ids=np.array([token for doc in docs for token, _ in doc], dtype=np.int32),
        weights=np.array([weight for doc in docs for _, weight in doc], dtype=np.float32),
        lengths=tuple(map(len, docs)),
    )


def labels_of(doc: Sequence[tuple[int, float]]) -> list[int]:
    return [token if weight else -100 for token, weight in doc]


@settings(deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=4))
def test_flat(rows: list[list[list[tuple[int, float]]]]) -> None:
    batch = FlatCollator()([packed(*row) for row in rows])
    docs = [doc for row in rows for doc in row]
    tokens = [pair for doc in docs for pair in doc]
    assert batch["input_ids"].tolist() == [[token for token, _ in tokens]]
    assert batch["loss_weights"].tolist() == [[weight for _, weight in tokens]]
    assert batch["labels"].tolist() == [[label for doc in docs for label in labels_of(doc)]]
    assert batch["position_ids"].tolist() == [[n for doc in docs for n in range(len(doc))]]
    bounds = batch["cu_seq_lens_q"]
    assert bounds.tolist() == batch["cu_seq_lens_k"].tolist() == [sum(map(len, docs[:n])) for n in range(len(docs) + 1)]
    assert batch["max_length_q"] == batch["max_length_k"] == max(map(len, docs))
    assert batch["num_tokens"] == len(tokens)
    assert batch["num_targets"] == sum(weight > 0 for _, weight in tokens)
    assert (batch["labels"][0, bounds[:-1].long()] == -100).all()  # nothing stands before the first token of a document
    assert bounds.dtype == torch.int32
    assert {batch[key].dtype for key in ("input_ids", "labels", "position_ids")} == {torch.int64}


@settings(deadline=None, derandomize=True)
@given(docs=st.lists(documents, min_size=1, max_size=5), multiple=st.sampled_from([1, 4, 32]), share=st.booleans())
def test_flat_filled_up(docs: list[list[tuple[int, float]]], multiple: int, share: bool) -> None:
    rows = [packed(doc) for doc in docs]
    plain = FlatCollator(share_prefixes=share)(rows)
    batch = FlatCollator(share_prefixes=share, multiple_of=multiple, pad_token_id=PAD)(rows)
    tokens, width = plain["input_ids"].shape[1], batch["input_ids"].shape[1]
    assert width % multiple == 0 and 0 <= width - tokens < multiple
    for name in ("input_ids", "labels", "loss_weights", "position_ids"):
        assert torch.equal(batch[name][:, :tokens], plain[name])
    assert (batch["labels"][:, tokens:] == -100).all() and not batch["loss_weights"][:, tokens:].any()
    bounds, found = plain["cu_seq_lens_q"].tolist(), batch["cu_seq_lens_q"].tolist()
    assert found[: len(bounds)] == bounds and found[-1] == width
    for name in ("num_tokens", "num_targets", "max_length_q"):
        assert batch[name] == plain[name]
    told, read = batch["layout"], layout_of_bounds(batch["cu_seq_lens_q"], batch.get("shared_prefixes"))
    assert (told.runs, told.longest, told.most_keys) == (read.runs, read.longest, read.most_keys)
    filled = len(found) - len(bounds)
    assert ("shared_prefixes" in batch) is ("shared_prefixes" in plain)
    if "shared_prefixes" in plain:
        tree = batch["shared_prefixes"].tolist()
        assert tree == [
            before + [value] * filled for before, value in zip(plain["shared_prefixes"].tolist(), (-1, 0), strict=True)
        ]


@settings(deadline=None, derandomize=True)
@given(docs=st.lists(documents, min_size=1, max_size=5), multiple=st.sampled_from([1, 4]))
def test_padded(docs: list[list[tuple[int, float]]], multiple: int) -> None:
    batch = PaddedCollator(pad_token_id=PAD, multiple_of=multiple)([packed(doc) for doc in docs])
    width = batch["input_ids"].shape[1]
    assert width % multiple == 0
    assert 0 <= width - max(map(len, docs)) < multiple
    assert batch["num_tokens"] == sum(map(len, docs))
    assert batch["num_targets"] == sum(weight > 0 for doc in docs for _, weight in doc)
    for row, doc in enumerate(docs):
        rest = width - len(doc)
        assert batch["input_ids"][row].tolist() == [token for token, _ in doc] + [PAD] * rest
        assert batch["labels"][row].tolist() == labels_of(doc) + [-100] * rest  # the EOS is kept, its twin is not
        assert batch["loss_weights"][row].tolist() == [weight for _, weight in doc] + [0.0] * rest
        assert batch["attention_mask"][row].tolist() == [1] * len(doc) + [0] * rest


def test_padded_batches_refuse_packed_rows() -> None:
    with pytest.raises(ValueError, match="would let documents see each other"):
        PaddedCollator(pad_token_id=PAD)([packed([(5, 0.0)], [(6, 0.0)])])
