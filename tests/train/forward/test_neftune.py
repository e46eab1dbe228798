"""NEFTune: noise of the paper's size for each document, however rows are batched, and only while training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from honed.data.batch.collate import FlatCollator, PaddedCollator
from honed.train.forward.neftune import noisy_embeddings, token_lengths

ALPHA = 5.0


@pytest.fixture
def rows(make: Callable[..., Any], chat_rows: list[dict[str, Any]]) -> list[Any]:
    dataset = make(chat_rows).train_dataset
    return [dataset[n] for n in range(4)]


def noise(batch: dict[str, Any], size: int = 512) -> torch.Tensor:
    embeddings = nn.Embedding(400, size)
    with noisy_embeddings(embeddings, ALPHA, batch):
        return (embeddings(batch["input_ids"]) - embeddings.weight[batch["input_ids"]]).detach()


def test_the_noise_of_a_document_is_the_same_size_in_every_batch(rows: list[Any]) -> None:
    """Uniform within alpha / sqrt(L * D), so its standard deviation is that over sqrt(3)."""
    size = 512
    flat, padded = noise(FlatCollator()(rows), size)[0], noise(PaddedCollator(pad_token_id=0)(rows), size)
    start = 0
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        bound = ALPHA / math.sqrt(length * size)
        for found in (flat[start : start + length], padded[number, :length]):
            assert 0.98 * bound < found.abs().max() <= bound * 1.001
            assert found.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        start += length
    assert start == len(flat)


def test_one_row_gets_the_noise_of_transformers(rows: list[Any]) -> None:
    from transformers.integrations.neftune import neftune_post_forward_hook

    ids = torch.from_numpy(rows[0].input_ids).long()[None]
    embeddings = nn.Embedding(400, 16)
    torch.manual_seed(3)
    with noisy_embeddings(embeddings, ALPHA, {"input_ids": ids}):
        ours = embeddings(ids)
    embeddings.neftune_noise_alpha = ALPHA
    embeddings.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, embeddings(ids))


def test_no_noise_in_evaluation_without_alpha_or_afterwards() -> None:
    ids = torch.arange(6)[None]
    embeddings = nn.Embedding(8, 4)
    clean = embeddings(ids)
    with noisy_embeddings(embeddings, None, {"input_ids": ids}):
        assert torch.equal(embeddings(ids), clean)
    embeddings.eval()
    with noisy_embeddings(embeddings, ALPHA, {"input_ids": ids}):
        assert torch.equal(embeddings(ids), clean)
    embeddings.train()
    with pytest.raises(RuntimeError, match="stop"), noisy_embeddings(embeddings, ALPHA, {"input_ids": ids}):
        assert not torch.equal(embeddings(ids), clean)
        raise RuntimeError("stop")
    assert torch.equal(embeddings(ids), clean)


def test_lengths_leave_padding_out() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert token_lengths({"input_ids": mask, "attention_mask": mask}).tolist() == [[3.0], [4.0]]
    flat = {"input_ids": torch.zeros(1, 5), "cu_seq_lens_q": torch.tensor([0, 2, 5], dtype=torch.int32)}
    assert token_lengths(flat).tolist() == [[2.0, 2.0, 3.0, 3.0, 3.0]]


def test_training_with_noise(make: Callable[..., Any], chat_rows: list[dict[str, Any]]) -> None:
    """The first loss moves, the evaluation loss of the same weights does not, and nothing stays behind."""
    losses = {}
    for alpha in (None, 50.0):
        trainer = make(chat_rows, eval_dataset=chat_rows, neftune_noise_alpha=alpha, learning_rate=0.0, max_steps=1)
        trainer.train()
        losses[alpha] = (trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"])
        embeddings = trainer.model.get_input_embeddings()
        assert not hasattr(embeddings, "neftune_noise_alpha")
        hooked = [hook.__name__ for hook in embeddings._forward_hooks.values()]
        assert not any("nois" in name or "neftune" in name for name in hooked)
    assert losses[50.0][0] != pytest.approx(losses[None][0], rel=1e-3)
    assert losses[50.0][1] == losses[None][1]
