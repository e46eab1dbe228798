"""The KV cache of the running rows: one slot per row, each with its own length.

    slot 0   [prompt .......... answer ....]
    slot 1   [prompt . answer ...............]      one tensor per layer, written in place
    slot 2   (free: its content is overwritten, and nothing reads beyond a row's length)

A forward computes one flat row of tokens: first whole new prompts, then one token of each running row. `Step` says
which token goes where. The model passes it to the attention layers as a keyword argument, like document boundaries.

Shapes: S slots, C capacity, K key/value heads, E head size, T tokens of the step, N tokens whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 128  # capacity is a multiple of this


@dataclass(slots=True, kw_only=True)
class Step:
    """What one forward computes.

    Attributes:
        cache: the keys and values.
        input_ids_1T, position_ids_1T: int64; prompts first, then one token per running row in the order of slots.
        slots_T: int64, the slot to which each token is written, at its position.
        bounds_N: int32, where prompts start and end, as `cu_seq_lens`; None if no prompt starts.
        bounds: the same as numbers, which need not be read from the device; () if no prompt starts.
        entries: the largest number of cache entries that a row has after this step.
        prompt_tokens: number of prompt tokens in the step.
        slots: slots of the running rows, ascending.
        lengths: entries of each running row, including this step's.
        last_N: int64, the last token of each prompt and each running row, in order.
        kept: values that the attention layers of a step share; computed by the first layer.
    """

    cache: RowCache
    input_ids_1T: torch.Tensor
    position_ids_1T: torch.Tensor
    slots_T: torch.Tensor
    bounds_N: torch.Tensor | None
    bounds: tuple[int, ...]
    entries: int
    prompt_tokens: int
    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    last_N: torch.Tensor
    kept: dict[Any, Any] = field(default_factory=dict)


def plan_step(
    cache: RowCache,
    prompts: Sequence[tuple[int, Sequence[int]]],
    running: Sequence[tuple[int, int, int]],
    device: torch.device,
) -> Step:
    """The step that computes `prompts` and one token of each running row.

    Args:
        prompts: (slot, ids) of each.
        running: (slot, next token, its position) of each, by ascending slot.
    """
    ids = [token for _, prompt in prompts for token in prompt] + [token for _, token, _ in running]
    positions = [place for _, prompt in prompts for place in range(len(prompt))] + [place for *_, place in running]
    slots = [slot for slot, prompt in prompts for _ in prompt] + [slot for slot, *_ in running]
    ends = list(accumulate(len(prompt) for _, prompt in prompts))
    count = ends[-1] if ends else 0

    def tensor(values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Step(
        cache=cache,
        input_ids_1T=tensor(ids)[None],
        position_ids_1T=tensor(positions)[None],
        slots_T=tensor(slots),
        bounds_N=tensor([0, *ends], torch.int32) if ends else None,
        bounds=(0, *ends) if ends else (),
        entries=max(positions) + 1,
        prompt_tokens=count,
        slots=tuple(slot for slot, *_ in running),
        lengths=tuple(place + 1 for *_, place in running),
        last_N=tensor([end - 1 for end in ends] + list(range(count, len(ids)))),
    )


class RowLayer(CacheLayerMixin):
    """One layer's keys and values, float (S, K, C, E) each, in the model's own dtype."""

    def __init__(self, rows: RowCache) -> None:
        super().__init__()
        self._rows = rows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates memory for all slots; called by the first `update`."""
        self.keys, self.values = (self._room(states.shape, states) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the step's keys and values, (1, K, T, E), into their slots, and returns them unchanged."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots_T, positions_T = self._rows.places
        self.keys[slots_T, :, positions_T] = key_states[0].transpose(0, 1)
        self.values[slots_T, :, positions_T] = value_states[0].transpose(0, 1)
        return key_states, value_states

    def grow(self) -> None:
        """Moves the entries into larger tensors."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._room(old.shape, old)
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first entries of one slot into another."""
        for states in (self.keys, self.values):
            states[target, :, :length] = states[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No mask is needed: attention knows each row's length."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """0: rows differ in length, and positions are always given."""
        return 0

    def get_max_length(self) -> int:
        """-1: the cache grows as needed."""
        return -1

    def _room(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = shape
        # zeros, because entries beyond a row's length are multiplied by a weight of 0, and 0 times NaN is NaN
        return like.new_zeros((self._rows.slots, heads, self._rows.capacity, size))


class RowCache(Cache):
    """The cache of all layers, for at most `slots` rows at a time."""

    def __init__(self, slots: int) -> None:
        super().__init__(layer_class_to_replicate=partial(RowLayer, self))
        self.slots, self.capacity = slots, 0
        self.places: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def begin(self, step: Step) -> None:
        """Reserves memory for a step and sets where its tokens go."""
        self._reserve(step.entries)
        self.places = (step.slots_T, step.position_ids_1T[0])

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first entries of one slot into another, in every layer."""
        for layer in self.layers:
            layer.copy(source, target, length)

    def _reserve(self, length: int) -> None:
        if length > self.capacity:
            # grow by half, so that the amortised cost of copying is constant per entry
            self.capacity = -(-max(length, self.capacity * 3 // 2) // GROWTH) * GROWTH
            for layer in self.layers:
                layer.grow()
