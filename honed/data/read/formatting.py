"""The caller's own function from a row to training data, in all forms that scripts use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from honed.data.example import RowError

EXPECTED = "it must return a text, a list of messages, a (prompt, completion) pair or a row"


class Formatting:
    """Calls a formatting function and converts its result to a row.

        row -> "text"                                   a document
        row -> [{"role": ..., "content": ...}, ...]     a conversation
        row -> ("prompt", "completion")                 the completion is trained; both may be lists of messages
        row -> {...}                                    another row, of any format
        {"column": [value, ...], ...} -> ["text", ...]  old TRL's form: a batch in, a list of texts out

    The old form is detected at the first row: if the function returns a list of texts for a row or fails on it, and
    returns one text for a batch of that row, it is called with batches of one from then on.

    Args:
        function: the caller's function.
        text_field: the column for a text.
    """

    def __init__(self, function: Callable[[Any], Any], text_field: str = "text") -> None:
        self._function, self._text_field = function, text_field
        self._batched: bool | None = None

    def __call__(self, row: Any) -> Any:
        """Returns the row to train on.

        Raises:
            RowError: the function fails on this row, or returns something else.
        """
        if isinstance(row, RowError):  # an unparsable line
            raise row
        if self._batched is None:
            self._batched = self._wants_batches(row)
        if not self._batched:
            return self._as_row(self._call(row))
        texts = self._call(_batch(row))
        if not (_is_texts(texts) and len(texts) == 1):
            raise RowError("formatting_func", f"for a batch of one row it must return one text; returned {texts!r:.80}")
        return {self._text_field: texts[0]}

    def _wants_batches(self, row: Any) -> bool:
        try:
            result = self._function(row)
        except Exception:  # the caller's code, on a row it may not expect; reported below if it fails again
            result = []
        if not isinstance(result, list) or not (not result or _is_texts(result)) or not isinstance(row, Mapping):
            return False
        try:
            texts = self._function(_batch(row))
        except Exception:  # not a batched function: the error on the row itself is reported
            return False
        return _is_texts(texts) and len(texts) == 1

    def _call(self, value: Any) -> Any:
        try:
            return self._function(value)
        except Exception as error:
            raise RowError("formatting_func failed", f"{type(error).__name__}: {error}") from None

    def _as_row(self, result: Any) -> Any:
        if isinstance(result, str):
            return {self._text_field: result}
        if isinstance(result, list) and result and all(isinstance(item, Mapping) for item in result):
            return {"messages": result}
        if isinstance(result, tuple) and len(result) == 2:
            return {"prompt": result[0], "completion": result[1]}
        if isinstance(result, Mapping):
            return result
        raise RowError("formatting_func", f"{EXPECTED}; returned {type(result).__name__}: {result!r:.80}")


def _batch(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [value] for key, value in row.items()}


def _is_texts(result: Any) -> bool:
    return isinstance(result, list) and bool(result) and all(isinstance(text, str) for text in result)
