"""Attention over flat rows, held against one dense masked softmax in float64: outputs and gradients."""

from __future__ import annotations

import pickle
from itertools import accumulate
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda, needs_fake_cuda
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.errors import ModelError
from honed.ops import attention, attention_tiles
from honed.ops.attention_layout import Layout, Remembered, layout_of_bounds

B, H, K, E = 1, 4, 2, 8
LAYER = torch.nn.Identity()
RULES: list[dict[str, Any]] = [
    {},
    {"scaling": 0.7},
    {"sliding_window": 4},
    {"sliding_window": 1},
    {"sliding_window": 100},
    {"softcap": 0.5},
    {"s_aux": True},
    {"softcap": 2.0, "s_aux": True, "sliding_window": 3, "scaling": 0.4},
]
# (length, parent, how many tokens of the parent's path and text are seen); a parent stands before its children
TREE = [(5, -1, 0), (3, 0, 5), (3, 0, 4), (6, 2, 6), (1, 3, 12), (4, -1, 0), (4, -1, 0), (7, -1, 0)]


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    tree: list[tuple[int, int, int]] = []
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.integers(-1, number - 1))
        most = tree[parent][0] + tree[parent][2] if parent >= 0 else 0
        seen = draw(st.integers(1, most)) if parent >= 0 else 0
        tree.append((draw(st.integers(1, 9)), parent, seen))
    return tree


def bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def places(tree: list[tuple[int, int, int]], segment: int) -> list[int]:
    """Where in the row the tokens stand that lead to and make up a segment."""
    length, parent, seen = tree[segment]
    start = sum(n for n, _, _ in tree[:segment])
    return (places(tree, parent)[:seen] if parent >= 0 else []) + list(range(start, start + length))


def visible(tree: list[tuple[int, int, int]], window: int | None) -> torch.Tensor:
    """bool (T, T), token by token."""
    total = sum(length for length, _, _ in tree)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for segment, (length, _, _) in enumerate(tree):
        path = places(tree, segment)
        for n in range(len(path) - length, len(path)):
            first = 0 if window is None else max(0, n + 1 - window)
            mask[path[n], path[first : n + 1]] = True
    return mask


def draw_qkv(tokens: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(B, heads, tokens, E, dtype=torch.float64, requires_grad=True) for heads in (H, K, K))


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,  # in the mask already
) -> torch.Tensor:
    """The reference: all scores, keys and values repeated for grouped heads."""
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)
    scores = torch.einsum("bhqe,bhse->bhqs", q, k) * (E**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    exps = torch.where(mask, scores, -torch.inf).exp()
    total = exps.sum(-1, keepdim=True)
    if s_aux is not None:
        total = total + s_aux.exp()[None, :, None, None]
    return torch.einsum("bhqs,bhse->bqhe", exps / total, v)


def assert_like_dense(tree: list[tuple[int, int, int]], rule: dict[str, Any]) -> None:
    leaves = draw_qkv(sum(length for length, _, _ in tree))
    if rule.get("s_aux"):
        rule = {**rule, "s_aux": torch.randn(H, dtype=torch.float64, requires_grad=True)}
        leaves = (*leaves, rule["s_aux"])
    lengths, parents, seen = zip(*tree, strict=True)
    structure = {"cu_seq_lens_q": bounds(list(lengths))}
    if any(parent >= 0 for parent in parents):
        structure["shared_prefixes"] = torch.tensor([parents, seen], dtype=torch.int32)
    found, weights = attention.document_attention(LAYER, *leaves[:3], None, **structure, **rule)
    expected = dense(*leaves[:3], visible(tree, rule.get("sliding_window")), **rule)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("tile", [2, 128])
def test_documents_and_trees_equal_the_dense_mask(
    rule: dict[str, Any], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tiles, "TILE_QUERIES", tile)
    assert_like_dense([(5, -1, 0), (1, -1, 0), (9, -1, 0), (3, -1, 0), (3, -1, 0)], rule)
    assert_like_dense(TREE, rule)
    # answers of equal length to one question, with a shorter one among them and a further turn behind the last
    answers = [(3, 1, 7)] * 3 + [(2, 1, 7), (3, 1, 6), (3, 1, 7), (3, 1, 7), (2, 7, 10)]
    assert_like_dense([(5, -1, 0), (4, 0, 4), *answers], rule)


@needs_fake_cuda
@pytest.mark.parametrize("window", [None, 3])
def test_on_cuda_grouped_heads_are_not_left_to_sdpa(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flash attention only its `math` kernel takes them, which stores the weights of all queries and keys."""
    heads: list[tuple[int, int]] = []

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        assert not options["enable_gqa"] and k.shape == v.shape
        heads.append((q.shape[1], k.shape[1]))
        return q + k.mean() + v.mean()

    monkeypatch.setattr(attention_tiles.F, "scaled_dot_product_attention", sdpa)
    with fake_cuda(monkeypatch):
        qkv = [torch.empty(1, heads, 9, E, device="cuda", requires_grad=True) for heads in (H, K, K)]
        found, _ = attention.document_attention(
            LAYER, *qkv, None, cu_seq_lens_q=bounds([5, 4]).to("cuda"), sliding_window=window
        )
        gradients = torch.autograd.grad(found.sum(), qkv)
    assert heads == [(H, H)] * 2
    assert [tuple(gradient.shape) for gradient in gradients] == [(1, heads, 9, E) for heads in (H, K, K)]


def test_answers_of_equal_length_are_one_call() -> None:
    layout = Layout([6, *[4] * 8], [-1, *[0] * 8], [0, *[6] * 8])
    assert [(run.count, run.length, run.path) for run in layout.runs] == [(1, 6, ()), (8, 4, ((0, 6),))]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(tree=trees(), rule=st.sampled_from(RULES))
def test_any_tree_equals_the_dense_mask(tree: list[tuple[int, int, int]], rule: dict[str, Any]) -> None:
    assert_like_dense(tree, rule)


def test_a_long_document_is_computed_in_tiles_of_its_window() -> None:
    assert_like_dense([(300, -1, 0), (40, -1, 0), (150, 0, 290)], {"sliding_window": 20})


def test_a_document_does_not_see_another() -> None:
    q, k, v = (t.detach() for t in draw_qkv(18))
    run = attention.document_attention
    before, _ = run(LAYER, q, k, v, None, cu_seq_lens_q=bounds([5, 1, 9, 3]))
    k, v = k.clone(), v.clone()
    k[:, :, :5] += 1.0
    v[:, :, :5] -= 3.0
    after, _ = run(LAYER, q, k, v, None, cu_seq_lens_q=bounds([5, 1, 9, 3]))
    assert not torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 5:], after[:, 5:])


def test_positions_alone_isolate_someone_elses_flat_batch() -> None:
    q, k, v = (t.detach() for t in draw_qkv(18))
    positions = torch.cat([torch.arange(n) for n in (5, 1, 9, 3)])[None]
    by_positions, _ = attention.document_attention(LAYER, q, k, v, None, position_ids=positions)
    by_bounds, _ = attention.document_attention(LAYER, q, k, v, None, cu_seq_lens_q=bounds([5, 1, 9, 3]))
    assert torch.equal(by_positions, by_bounds)


def test_boundaries_are_read_once_per_batch_and_again_when_they_change() -> None:
    q, k, v = (t.detach() for t in draw_qkv(6))
    ends, calls = bounds([2, 4]), []

    class Counted(torch.Tensor):
        def tolist(self) -> Any:
            calls.append(1)
            return super().tolist()

    ends = ends.as_subclass(Counted)
    first, _ = attention.document_attention(LAYER, q, k, v, None, cu_seq_lens_q=ends)
    attention.document_attention(LAYER, q, k, v, None, cu_seq_lens_q=ends)
    assert len(calls) == 1
    ends[1] = 3
    moved, _ = attention.document_attention(LAYER, q, k, v, None, cu_seq_lens_q=ends)
    assert len(calls) == 2 and not torch.equal(first, moved)


def ordinary_layer() -> Any:
    layer: Any = torch.nn.Identity()
    layer.num_key_value_groups, layer.is_causal = H // K, True
    return layer


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_ordinary_batch_of_two_rows(rule: dict[str, Any]) -> None:
    rule = {**rule, "s_aux": torch.randn(H, dtype=torch.float64)} if "s_aux" in rule else rule
    rows = [tuple(t.detach() for t in draw_qkv(7)) for _ in range(2)]
    q, k, v = (torch.cat(parts) for parts in zip(*rows, strict=True))
    found, _ = attention.document_attention(ordinary_layer(), q, k, v, None, **rule)
    mask = visible([(7, -1, 0)], rule.get("sliding_window"))
    expected = torch.cat([dense(*row, mask, **rule) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", [{}, {"softcap": 0.5, "s_aux": True}], ids=str)
def test_padding_and_decoding_with_a_cache(rule: dict[str, Any]) -> None:
    rule = {**rule, "s_aux": torch.randn(H, dtype=torch.float64)} if "s_aux" in rule else rule
    q, k, v = (t.detach() for t in draw_qkv(7))
    mask = visible([(7, -1, 0)], None) & (torch.arange(7) >= 2)
    mask[:2, :2] = torch.eye(2, dtype=torch.bool)  # padding sees itself, or nothing would be left of its softmax
    padded, _ = attention.document_attention(ordinary_layer(), q, k, v, mask[None, None], **rule)
    torch.testing.assert_close(padded, dense(q, k, v, mask, **rule), rtol=1e-11, atol=1e-11)
    last, _ = attention.document_attention(ordinary_layer(), q[:, :, -1:], k, v, None, **rule)
    torch.testing.assert_close(last, dense(q[:, :, -1:], k, v, torch.ones(1, 7, dtype=torch.bool), **rule))


def test_dropout_and_shared_prefixes_exclude_each_other() -> None:
    structure = {"cu_seq_lens_q": bounds([4, 2]), "shared_prefixes": torch.tensor([[-1, 0], [0, 4]])}
    with pytest.raises(ModelError, match="dropout"):
        attention.document_attention(LAYER, *draw_qkv(6), None, dropout=0.1, **structure)


@pytest.mark.parametrize("rule", [{}, {"softcap": 50.0}], ids=str)
def test_dropout_keeps_the_expectation(rule: dict[str, Any]) -> None:
    q, k, v = (t.detach() for t in draw_qkv(300))
    found, _ = attention.document_attention(
        LAYER, q, k, torch.ones_like(v), None, dropout=0.3, cu_seq_lens_q=bounds([200, 100]), **rule
    )
    assert (found - 1).abs().max() > 0.1
    assert abs(found.mean() - 1) < 0.02


def test_a_segment_cannot_see_more_than_stands_before_it() -> None:
    structure = {"cu_seq_lens_q": bounds([4, 2]), "shared_prefixes": torch.tensor([[-1, 0], [0, 5]])}
    with pytest.raises(ValueError, match="1 tokens more"):
        attention.document_attention(LAYER, *draw_qkv(6), None, **structure)


def test_attention_that_looks_ahead_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="looks ahead"):
        attention.document_attention(LAYER, *draw_qkv(6), None, cu_seq_lens_q=bounds([6]), is_causal=False)


def test_padded_batches_get_a_mask_and_flat_ones_none() -> None:
    shape = {"batch_size": 1, "q_length": 4, "kv_length": 4}
    assert attention.document_mask(**shape, attention_mask=None) is None
    padded = attention.document_mask(**shape, attention_mask=torch.tensor([[False, True, True, True]]))
    assert padded is not None and padded.shape == (1, 1, 4, 4)
    assert not padded[0, 0, 3, 0] and padded[0, 0, 3, 1]


def test_a_layout_that_is_told_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training, where the collator knows the boundaries: the same attention, and no look at the device."""
    bounds = torch.tensor([0, 6, 10, 15], dtype=torch.int32)
    tree = torch.tensor([[-1, 0, -1], [0, 6, 0]], dtype=torch.int32)
    qkv = [torch.randn(1, heads, 15, 8, dtype=torch.float64) for heads in (4, 2, 2)]

    def attend() -> torch.Tensor:
        arguments = {"cu_seq_lens_q": bounds, "shared_prefixes": tree}
        return attention.document_attention(torch.nn.Identity(), *qkv, None, **arguments)[0]

    expected = attend()
    told = pickle.loads(pickle.dumps(Layout([6, 4, 5], *tree.tolist())))  # as a worker hands it over
    monkeypatch.setattr(attention, "_layouts", Remembered())
    read: list[torch.Tensor] = []
    monkeypatch.setattr(
        attention, "layout_of_bounds", lambda *tensors: read.extend(tensors) or layout_of_bounds(*tensors)
    )
    there = told.to(torch.device("cpu"), non_blocking=True)
    attention.remember({"layout": there, "cu_seq_lens_q": bounds, "shared_prefixes": tree})
    assert torch.equal(attend(), expected) and not read
    tree[:, 1] = torch.tensor([-1, 0])  # somebody else's idea of the row
    assert not torch.equal(attend(), expected) and read


def test_a_layout_moves_as_a_tensor_does() -> None:
    layout = Layout([6, 4, 5], [-1, 0, -1], [0, 6, 0])
    moved = layout.to(torch.device("meta"))
    assert {tensor.device.type for tensor in (moved.bounds, *moved.keys)} == {"meta"} == {moved.device.type}
    assert layout.device == layout.bounds.device == torch.device("cpu")
    assert (moved.runs, moved.longest, moved.most_keys) == (layout.runs, layout.longest, layout.most_keys)
