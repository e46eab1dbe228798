"""The error for data of which nothing can be trained: what the ledger counted, and how to fix most of it."""

from __future__ import annotations

from honed.data.ledger import Ledger
from honed.data.prepare.options import PrepareOptions
from honed.errors import DataError

_MASKED = (
    "nothing in these rows is trained: look at data.train_on and data.train_roles, at `train` and `weight` of "
    "messages, and at loss masks and labels"
)


def nothing_left(ledger: Ledger, options: PrepareOptions, *, images: bool = False) -> DataError:
    """The error, with a row for each reason, the most frequent first.

    Args:
        ledger: of all rows.
        options: that they were prepared with.
        images: whether rows may show images, and so cannot be cut.
    """
    lines = [_shown(ledger, reason) for reason, _ in ledger.rows_dropped.most_common()]
    problem = "\n".join(["No row is left to train on.", ledger.summary(), *filter(None, lines)])
    return DataError(problem, fix=_fix(ledger, options, images))


def _shown(ledger: Ledger, reason: str) -> str:
    first = next((example for example in ledger.examples if example["reason"] == reason), None)
    return "" if first is None else f"  {first['source']}: {reason}{first['detail'] and ': ' + first['detail']}"


def _fix(ledger: Ledger, options: PrepareOptions, images: bool) -> str:
    if not ledger.rows_in:
        return "pass at least one row"
    if ledger.rows_trained:  # of a stream, in an earlier epoch
        return "these rows can be read only once: pass a list, a file or a dataset, or fewer max_steps"
    [(reason, _)] = ledger.rows_dropped.most_common(1)
    if reason.startswith("overlong"):
        return f"raise max_length, which is {options.max_length}{_otherwise(options, images)}"
    return _MASKED if reason == "nothing to train" else "fix these rows; `honed data check` lists what is wrong"


def _otherwise(options: PrepareOptions, images: bool) -> str:
    if images:
        return ", or lower image_max_pixels"
    if options.overlong_policy == "drop":
        return ", or set data.overlong=split or data.overlong=truncate (from Python: overlong)"
    return ": nothing to be trained fits in"
