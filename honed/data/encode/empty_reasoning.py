"""Trained answers that begin with an empty reasoning block, as templates of thinking models write it for plain data.

    <|im_start|>assistant\\n | <think>\\n\\n</think>\\n\\nAnswer<|im_end|>      trained from | on

Asked to think, such a model is trained to close the block at once.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from honed.quantities import counted

_OPENED = re.compile(r"<think>\s*$")
_CLOSINGS = ("</think>", "</think>\n", "</think>\n\n")  # where the tag is no token of its own, line ends join its last
_LONGEST = 8  # tokens of the opening tag and the white space behind it


class EmptyReasoning:
    """Counts them."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        coded = tokenizer(list(_CLOSINGS), add_special_tokens=False)["input_ids"]
        # where </think> is one token, it is enough to look for that
        self._closings = {tuple(ids[:1] if len(coded[0]) == 1 else ids) for ids in coded}
        self._may_end: dict[int, bool] = {}

    def count(self, input_ids: np.ndarray, weights: np.ndarray) -> int:
        """How many empty blocks are trained, at least their closing tags.

        Args:
            input_ids: int32, shape (T,); of one document or of many, end to end.
            weights: float32, shape (T,).
        """
        places = {place for closing in self._closings for place in _trained(input_ids, weights, closing)}
        return sum(self._is_opened(input_ids, place) for place in places)

    def _is_opened(self, input_ids: np.ndarray, place: int) -> bool:
        """Whether nothing but white space stands between an opening tag and this place."""
        before = input_ids[max(0, place - _LONGEST) : place].tolist()
        if not before:
            return False
        last = before[-1]
        if last not in self._may_end:  # after most reasoning there are words: no need to look further
            text = self._decode([last]).rstrip()
            self._may_end[last] = not text or text.endswith(">")
        return self._may_end[last] and _OPENED.search(self._decode(before)) is not None


def note_of(count: int, train_on: str) -> str:
    """What to say of so many, and what to set so that answers are trained as they are served without thinking."""
    only = "" if train_on in ("assistant", "last") else "data.train_on=assistant (assistant_only_loss=True) and "
    return (
        f"{counted(count, 'answer begins', 'answers begin')} with an empty reasoning block, which is trained: "
        f"asked to think, the model learns not to. To train them as they are served without thinking, set {only}"
        "data.template_arguments="
        "{enable_thinking: false}: the block is context then, if the template knows this argument, as Qwen3's does"
    )


def _trained(input_ids: np.ndarray, weights: np.ndarray, wanted: tuple[int, ...]) -> list[int]:
    """Where these ids stand with a last one that is trained."""
    places = np.flatnonzero(input_ids[: len(input_ids) - len(wanted) + 1] == wanted[0])
    for n, token in enumerate(wanted[1:], start=1):
        places = places[input_ids[places + n] == token]
    return [int(place) for place in places[weights[places + len(wanted) - 1] > 0]]
