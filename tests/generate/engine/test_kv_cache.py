"""Slots grow without losing anything, and rows are grouped as cheaply as can be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda, needs_fake_cuda, to_gpu
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.generate.engine.cache import GROWTH, RowCache, plan_step
from honed.generate.engine.engine import Engine
from honed.generate.engine.row_attention import partition
from honed.generate.request import Request, complete


def test_a_long_answer_outgrows_its_room(tiny_model: Callable[..., Any], alone: Callable[..., Any]) -> None:
    model = tiny_model(dtype=torch.float64)
    prompts, new = [[5, 6, 7], [8] * 20], GROWTH * 2 + 9
    with Engine(model) as engine:
        found = complete(engine, [Request(prompt_ids=prompt, max_new_tokens=new) for prompt in prompts])
    assert [list(answers[0].ids) for answers in found] == alone(model, prompts, new, eos_token_id=None)


def test_a_step_says_where_each_token_goes() -> None:
    step = plan_step(RowCache(4), [(3, [7, 8, 9]), (0, [5])], [(1, 42, 6), (2, 43, 0)], torch.device("cpu"))
    assert step.input_ids_1T.tolist() == [[7, 8, 9, 5, 42, 43]]
    assert step.position_ids_1T.tolist() == [[0, 1, 2, 0, 6, 0]]
    assert step.slots_T.tolist() == [3, 3, 3, 0, 1, 2]
    assert step.bounds_N is not None and step.bounds_N.tolist() == [0, 3, 4]
    assert step.bounds == (0, 3, 4) and step.entries == 7
    assert (step.prompt_tokens, step.slots, step.lengths) == (4, (1, 2), (7, 1))
    assert step.last_N.tolist() == [2, 3, 4, 5]


@needs_fake_cuda
@pytest.mark.parametrize(
    ("family", "shape"),
    [("qwen3", {}), ("gemma3_text", {"sliding_window": 4}), ("gpt_oss", {"num_local_experts": 4})],
)
def test_on_cuda_a_step_reads_its_tokens_alone(
    family: str, shape: dict[str, Any], tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides that, what is copied to the device waits: what the step is, and which entries rows of a group see."""
    model = tiny_model(family, dtype=torch.bfloat16, **shape)
    requests = [Request(prompt_ids=[5] * n, max_new_tokens=n, stop_ids=frozenset({399})) for n in range(2, 7)]
    with fake_cuda(monkeypatch) as gpu, Engine(to_gpu(model), slots=3) as engine:
        gpu.waits.clear()
        assert len(complete(engine, requests)) == 5
    assert {wait.rpartition(" ")[2] for wait in gpu.waits} == {"choose", "tensor", "groups_of"}


def cost(runs: list[tuple[int, int]], lengths: tuple[int, ...], call: int) -> int:
    return sum(call + (last - first) * max(lengths[first:last]) for first, last in runs)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.dictionaries(st.integers(0, 9), st.integers(1, 400), min_size=1, max_size=7),
    call=st.sampled_from([0, 10, 96, 10**6]),
)
def test_no_way_to_group_rows_is_cheaper(rows: dict[int, int], call: int) -> None:
    """Against every way to cut them into runs."""
    slots = tuple(sorted(rows))
    lengths = tuple(rows[slot] for slot in slots)
    found = partition(slots, lengths, call)

    def allowed(runs: list[tuple[int, int]]) -> bool:
        return all(slots[last - 1] - slots[first] == last - 1 - first for first, last in runs)

    ways = []
    for count in range(len(slots)):
        for cuts in combinations(range(1, len(slots)), count):
            ways.append(list(pairwise([0, *cuts, len(slots)])))
    assert allowed(found)
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    assert cost(found, lengths, call) == min(cost(way, lengths, call) for way in ways if allowed(way))


def test_the_cache_tells_models_nothing_that_is_wrong() -> None:
    cache = RowCache(2)
    assert cache.get_seq_length() == 0
    assert cache.get_max_length(0) == -1


@pytest.mark.parametrize("window", [None, 4])
def test_grouping_changes_no_logits(window: int | None, tiny_model: Callable[..., Any]) -> None:
    """Rows of very different lengths, read in one masked call and row by row."""
    from honed.generate.engine import row_attention

    model = tiny_model("mistral", dtype=torch.float64, sliding_window=window)
    found = []
    for call in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch, Engine(model, slots=3) as engine:
            patch.setitem(row_attention.CALL_ENTRIES, "cpu", call)
            cache = RowCache(3)
            prompts = [(0, [5]), (1, list(range(3, 40))), (2, [9, 8, 7])]
            engine.forward(plan_step(cache, prompts, [], model.device))
            step = plan_step(cache, [], [(0, 3, 1), (1, 4, 37), (2, 5, 3)], model.device)
            found.append(engine.forward(step))
            assert len(step.kept[window, "groups"]) == (3 if call == 0 else 1)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
