"""Counts trained answers that begin with an empty reasoning block, which thinking models' templates add to plain data.

    <|im_start|>assistant\\n | <think>\\n\\n</think>\\n\\nAnswer<|im_end|>      trained from | on

A model trained this way closes the block at once when it is asked to think.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from honed.quantities import counted

_OPENED = re.compile(r"<think>\s*$")
_CLOSINGS = ("</think>", "</think>\n", "</think>\n\n")  # if the tag is several tokens, the last may include line breaks
_LONGEST = 8  # tokens of the opening tag and the whitespace after it


class EmptyReasoning:
    """Counts empty reasoning blocks for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.decode
        coded = tokenizer(list(_CLOSINGS), add_special_tokens=False)["input_ids"]
        # if </think> is one token, searching for it suffices
        self._closings = {tuple(ids[:1] if len(coded[0]) == 1 else ids) for ids in coded}
        self._may_end: dict[int, bool] = {}

    def count(self, input_ids: np.ndarray, weights: np.ndarray) -> int:
        """Returns the number of empty blocks with at least the closing tag trained.

        Args:
            input_ids: int32, shape (T,); one document, or many concatenated.
            weights: float32, shape (T,).
        """
        places = {place for closing in self._closings for place in _trained(input_ids, weights, closing)}
        return sum(self._is_opened(input_ids, place) for place in places)

    def _is_opened(self, input_ids: np.ndarray, place: int) -> bool:
        """Whether only whitespace separates an opening tag from this position."""
        before = input_ids[max(0, place - _LONGEST) : place].tolist()
        if not before:
            return False
        last = before[-1]
        if last not in self._may_end:  # reasoning usually ends with words: no need to decode more
            text = self._decode([last]).rstrip()
            self._may_end[last] = not text or text.endswith(">")
        return self._may_end[last] and _OPENED.search(self._decode(before)) is not None


def note_of(count: int, train_on: str) -> str:
    """Returns the warning for `count` answers, with the setting that trains them as served without thinking."""
    only = "" if train_on in ("assistant", "last") else "data.train_on=assistant (assistant_only_loss=True) and "
    return (
        f"{counted(count, 'answer begins', 'answers begin')} with an empty reasoning block, which is trained: "
        f"asked to think, the model learns not to. To train them as they are served without thinking, set {only}"
        "data.template_arguments="
        "{enable_thinking: false} (from Python: template_arguments): the block is context then, if the template knows "
        "this argument, as Qwen3's does"
    )


def _trained(input_ids: np.ndarray, weights: np.ndarray, wanted: tuple[int, ...]) -> list[int]:
    """Returns the positions where these ids occur and the last of them is trained."""
    places = np.flatnonzero(input_ids[: len(input_ids) - len(wanted) + 1] == wanted[0])
    for n, token in enumerate(wanted[1:], start=1):
        places = places[input_ids[places + n] == token]
    return [int(place) for place in places[weights[places + len(wanted) - 1] > 0]]
