"""Encodes texts as the tokenizer does, but faster.

Texts seen before are looked up. New ones are encoded by `bpe.FastBPE` if it is proven to produce the same ids and there
is enough text for the proof to pay off, else by the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from honed.data.encode.bpe import Encode, FastBPE, as_arrays
from honed.data.encode.bpe_cache import cached_bpe

USUAL_CHARACTERS = 1_000_000  # the proof takes as long as encoding about two million characters
_MOST_REMEMBERED = 1 << 24  # characters of texts, and their ids


class Encoder:
    """Encodes texts without adding special tokens.

    Args:
        tokenizer: a transformers tokenizer; its state is not changed.
        usual: characters to encode with the tokenizer before `FastBPE` is tried.
    """

    def __init__(self, tokenizer: Any, *, usual: int = USUAL_CHARACTERS) -> None:
        self._tokenizer = tokenizer
        self._usual = usual_encoder(tokenizer)
        self._fast: FastBPE | None = None
        self._left: float = usual
        self._known: dict[str, np.ndarray] = {}
        self._room = _MOST_REMEMBERED

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of `tokenizer(text, add_special_tokens=False)` for each text, int32, read-only."""
        found = list(map(self._known.get, texts))
        new = list(dict.fromkeys(text for text, ids in zip(texts, found, strict=True) if ids is None))
        if not new:
            return found  # type: ignore[return-value]
        learned = self._learn(new)
        return [learned[text] if ids is None else ids for text, ids in zip(texts, found, strict=True)]

    def get_ready(self) -> None:
        """Tries `FastBPE` at once instead of after the first million characters."""
        if self._left < float("inf"):
            self._left = 0
        self.is_fast()

    def is_fast(self) -> bool:
        """Whether the next texts are encoded by `FastBPE`."""
        if self._left <= 0:
            self._left = float("inf")
            self._fast = cached_bpe(self._tokenizer, self._usual)
        return self._fast is not None

    def _learn(self, texts: list[str]) -> dict[str, np.ndarray]:
        characters = sum(map(len, texts))
        if not self.is_fast():
            self._left -= characters
        ids = self._fast(texts) if self._fast else as_arrays(self._usual(texts))
        if self._room < characters:
            self._known, self._room = {}, _MOST_REMEMBERED
        self._room -= characters
        learned = dict(zip(texts, ids, strict=True))
        self._known |= learned
        return learned


def usual_encoder(tokenizer: Any) -> Encode:
    """Returns the tokenizer's own encoding, by the underlying library unless padding or truncation is set.

    Calls of the tokenizer set these permanently; image processors, for example, pad their texts.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    splits_special = bool(getattr(tokenizer, "split_special_tokens", False))

    def encode(texts: list[str]) -> list[list[int]]:
        if fast is not None and fast.padding is None and fast.truncation is None and not splits_special:
            return [coded.ids for coded in fast.encode_batch(texts, add_special_tokens=False)]
        found = tokenizer(texts, add_special_tokens=False, padding=False, truncation=False, return_attention_mask=False)
        return [list(ids) for ids in found["input_ids"]]

    return encode
