"""Attention over flat rows, held against one dense masked SDPA in float64."""

import pytest
import torch
import torch.nn.functional as F

from honed.ops import attention

LENGTHS = (5, 1, 9, 3)
B, H, K, E = 1, 4, 2, 8
T = sum(LENGTHS)


def bounds() -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)


def draw() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(B, heads, T, E, dtype=torch.float64, requires_grad=True) for heads in (H, K, K))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, scaling: float | None) -> torch.Tensor:
    """The reference: one mask over all positions, keys and values repeated for grouped heads."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    age = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    mask = (document[:, None] == document[None, :]) & (age >= 0)
    if window is not None:
        mask &= age < window
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4, 1, 100])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_output_and_gradients_equal_the_dense_mask(window: int | None, scaling: float | None) -> None:
    q, k, v = draw()
    out, weights = attention.document_attention(
        torch.nn.Identity(), q, k, v, None, scaling=scaling, sliding_window=window, cu_seq_lens_q=bounds()
    )
    expected = dense(q, k, v, window, scaling)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), upstream)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_a_document_does_not_see_another() -> None:
    q, k, v = (t.detach() for t in draw())
    run = attention.document_attention
    before, _ = run(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=bounds())
    k, v = k.clone(), v.clone()
    k[:, :, : LENGTHS[0]] += 1.0
    v[:, :, : LENGTHS[0]] -= 3.0
    after, _ = run(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=bounds())
    assert not torch.equal(before[:, : LENGTHS[0]], after[:, : LENGTHS[0]])
    assert torch.equal(before[:, LENGTHS[0] :], after[:, LENGTHS[0] :])


def test_positions_alone_isolate_someone_elses_flat_batch() -> None:
    q, k, v = (t.detach() for t in draw())
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    by_positions, _ = attention.document_attention(torch.nn.Identity(), q, k, v, None, position_ids=positions)
    by_bounds, _ = attention.document_attention(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=bounds())
    assert torch.equal(by_positions, by_bounds)


def test_an_ordinary_batch_takes_the_ordinary_way() -> None:
    q, k, v = (t.detach() for t in draw())
    layer = torch.nn.Identity()
    layer.num_key_value_groups = H // K  # type: ignore[assignment]
    layer.is_causal = True  # type: ignore[assignment]
    out, _ = attention.document_attention(layer, q, k, v, None)
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_what_sdpa_cannot_do_is_refused(option: str) -> None:
    q, k, v = draw()
    with pytest.raises(NotImplementedError, match="model's own attention"):
        attention.document_attention(torch.nn.Identity(), q, k, v, None, cu_seq_lens_q=bounds(), **{option: 1.0})


def test_padded_batches_get_a_mask_and_flat_ones_none() -> None:
    shape = {"batch_size": 1, "q_length": 4, "kv_length": 4}
    assert attention.document_mask(**shape, attention_mask=None) is None
    padded = attention.document_mask(**shape, attention_mask=torch.tensor([[False, True, True, True]]))
    assert padded is not None and padded.shape == (1, 1, 4, 4)
    assert not padded[0, 0, 3, 0] and padded[0, 0, 3, 1]
