"""DataCollatorForCompletionOnlyLM: trains on the text after a response template, searched for in each row's text.

    ### Question: why      ### Answer: so      ### Question: and      ### Answer: no <eos>
    |---- not trained ---------------| trained |----- not trained ---------------| trained |

Templates are searched for in the decoded text, not in the ids: "### Answer:" alone and "### Answer:" after a newline
are tokenised differently, so a search in the ids can miss it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from honed.data.batch.table import PackedRow
from honed.data.read.formats import IGNORE_INDEX
from honed.errors import RecipeError

SHOWN = 80  # characters of a row in a warning


class DataCollatorForCompletionOnlyLM:
    """Batches in which only the responses are trained. Same name and arguments as TRL's former class.

    Differences: templates are searched for in the text; padding is masked by length, so EOS is trained even if it is
    also the pad token; a row without trained tokens is reported and counted.

    Args:
        response_template: text (or token ids) after which a response begins. Without `instruction_template`, the last
            occurrence counts and everything after it is trained.
        instruction_template: text (or token ids) at which a response ends; then every response is trained.
        mlm: must be False.
        ignore_index: label of untrained tokens.
        tokenizer: decodes and pads.
        padding_free: concatenates all rows into one, with `position_ids`; for models with flash attention.

    Attributes:
        not_found: number of rows so far without a template, or without text after it.

    Raises:
        RecipeError: no tokenizer, an empty template, or mlm=True.
    """

    def __init__(
        self,
        response_template: str | Sequence[int],
        instruction_template: str | Sequence[int] | None = None,
        *,
        mlm: bool = False,
        ignore_index: int = IGNORE_INDEX,
        tokenizer: Any = None,
        padding_free: bool = False,
    ) -> None:
        if tokenizer is None or mlm:
            raise RecipeError(
                "DataCollatorForCompletionOnlyLM needs a tokenizer, and mlm=False.", fix="pass tokenizer=..."
            )
        self.tokenizer, self.ignore_index, self.padding_free = tokenizer, ignore_index, padding_free
        self.response_template, self.instruction_template = response_template, instruction_template
        self._response = self._as_texts(response_template)
        self._instruction = self._as_texts(instruction_template) if instruction_template is not None else ()
        self.not_found = 0

    def __call__(self, features: Sequence[Any], return_tensors: str = "pt") -> dict[str, Any]:
        """Returns input_ids, labels, attention_mask int64 (B, L); if `padding_free`, (1, T) and position_ids, no mask.

        Args:
            features: mappings with `input_ids`, or lists of ids; other keys are ignored.
            return_tensors: only "pt".
        """
        from honed.data.batch.collate import (  # needs torch, which honed.data does not require
            FlatCollator,
            PaddedCollator,
        )

        rows = [self._row(_ids(feature)) for feature in features]
        if self.padding_free:
            batch = FlatCollator()(rows)
            kept = ("input_ids", "labels", "position_ids")
        else:
            pad = self.tokenizer.pad_token_id
            batch = PaddedCollator(pad_token_id=self.tokenizer.eos_token_id if pad is None else pad)(rows)
            kept = ("input_ids", "labels", "attention_mask")
        batch["labels"][batch["labels"] == IGNORE_INDEX] = self.ignore_index
        return {key: batch[key] for key in kept}

    def trained(self, ids: Sequence[int]) -> np.ndarray:
        """Returns the mask of trained ids, bool (T,). A token across the border belongs to the response.

        All False if the templates are not found.
        """
        chosen = np.zeros(len(ids), dtype=bool)
        if spans := list(self._spans(self._text(ids))):
            for start, end in spans:
                first = self._tokens_within(ids, start)
                chosen[first : len(ids) if end is None else self._tokens_within(ids, end)] = True
        return chosen

    def _row(self, ids: list[int]) -> PackedRow:
        weights = self.trained(ids).astype(np.float32)
        weights[:1] = 0.0  # nothing predicts the first token
        if not weights.any():
            self._tell(ids)
        return PackedRow(input_ids=np.asarray(ids, dtype=np.int32), weights=weights, lengths=(len(ids),))

    def _tell(self, ids: list[int]) -> None:
        self.not_found += 1
        names = " and ".join(repr(texts[0]) for texts in (self._response, self._instruction) if texts)
        warnings.warn(
            f"Nothing is trained in a row: {names} not found, or nothing after it, in {self._text(ids)[:SHOWN]!r} ... "
            f"({self.not_found} so far). Check the template's text, and that max_length does not cut it off.",
            stacklevel=4,
        )

    def _spans(self, text: str) -> Iterator[tuple[int, int | None]]:
        """Yields [start, end) of each response in the text; end is None for the end of the row."""
        responses = _ends(text, self._response)
        if not self._instruction:
            yield from ((start, None) for start in responses[-1:])
            return
        starts = [end - len(template) for template in self._instruction for end in _ends(text, (template,))]
        for start, following in zip(responses, [*responses[1:], len(text)], strict=False):
            end = min((s for s in starts if s >= start), default=None)
            # Two responses without an instruction between them count as one.
            yield start, end if end is None or end <= following else following

    def _tokens_within(self, ids: Sequence[int], characters: int) -> int:
        """Returns the number of tokens that lie completely within the first `characters` characters of the text."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._text(ids[:middle])) <= characters:
                low = middle
            else:
                high = middle - 1
        return low

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _as_texts(self, template: str | Sequence[int]) -> tuple[str, ...]:
        """Returns the template's text; for ids, often a slice of a longer encoding, also without surrounding spaces."""
        text = template if isinstance(template, str) else self._text(list(template))
        if not text.strip():
            raise RecipeError(f"A template holds no text: {template!r}.", fix="pass the text before each response")
        return (text,) if isinstance(template, str) else (text, text.strip())


def _ends(text: str, templates: Sequence[str]) -> list[int]:
    """Returns the end of each occurrence of the first template that occurs in the text."""
    for template in templates:
        if template in text:
            parts = text.split(template)[:-1]
            return [int(end) for end in np.cumsum([len(part) + len(template) for part in parts])]
    return []


def _ids(feature: Any) -> list[int]:
    ids = feature["input_ids"] if isinstance(feature, Mapping) or hasattr(feature, "keys") else feature
    return [int(i) for i in ids]
