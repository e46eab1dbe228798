"""NEFTune: noise as large as the paper says, for each document by its own length, and none afterwards."""

from __future__ import annotations

import pytest
import torch
from loop_program import make_rows
from torch import nn

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.train.loop.neftune import document_lengths, neftune

WIDE = 2048


def test_noise_is_uniform_up_to_alpha_over_the_root_of_length_times_width() -> None:
    embeddings = nn.Embedding(64, WIDE).requires_grad_(False)
    rows = [make_rows(3)[n] for n in range(3)]
    batch = FlatCollator()(rows)
    with neftune(embeddings, batch, 5.0):
        noise = (embeddings(batch["input_ids"]) - nn.Embedding.forward(embeddings, batch["input_ids"]))[0]
    at = 0
    for row in rows:
        own, bound = noise[at : at + len(row.input_ids)], 5.0 / (len(row.input_ids) * WIDE) ** 0.5
        assert 0.99 * bound < float(own.abs().max()) <= bound * (1 + 1e-3)
        assert float(own.std()) == pytest.approx(bound / 3**0.5, rel=0.03) and abs(float(own.mean())) < 0.03 * bound
        at += len(row.input_ids)


def test_a_document_counts_by_its_own_length_however_it_is_batched() -> None:
    rows = [make_rows(4)[n] for n in range(4)]
    alone = [len(row.input_ids) for row in rows]
    assert len(set(alone)) > 1
    flat = document_lengths(FlatCollator()(rows))[0]
    assert flat.tolist() == [length for length in alone for _ in range(length)]
    assert document_lengths(PaddedCollator(pad_token_id=0)(rows))[:, 0].tolist() == alone


@pytest.mark.parametrize("alpha", [None, 0.0, 5.0])
def test_there_is_no_hook_afterwards(alpha: float | None) -> None:
    embeddings, batch = nn.Embedding(64, 8), FlatCollator()([make_rows(1)[0]])
    with pytest.raises(ZeroDivisionError), neftune(embeddings, batch, alpha):
        assert bool(embeddings._forward_hooks) is bool(alpha)
        raise ZeroDivisionError
    assert not embeddings._forward_hooks
    assert torch.equal(embeddings(batch["input_ids"]), embeddings(batch["input_ids"]))
