"""Notes that a script trains user turns because it does not choose a mask."""

from __future__ import annotations

from typing import Any

from honed.data.encode.render import mode_of
from honed.data.example import Conversation, RowError
from honed.data.mix.mixture import as_mixture
from honed.data.prepare.options import PrepareOptions, reading_of
from honed.data.read.formats import read_example
from honed.data.read.sources import read_rows
from honed.train.options.config import SFTConfig

NOTE = (
    "Conversations are trained in full, user turns too, because nothing else was chosen and TRL does so. "
    "assistant_only_loss=True (or train_on_responses_only) trains only the answers; completion_only_loss=False keeps "
    "this as it is, without the note."
)


def notes_of_user_turns(dataset: Any, args: SFTConfig, options: PrepareOptions) -> list[str]:
    """Returns the note if `args` choose no mask and the first row is a conversation that is trained whole.

    Args:
        dataset: the dataset that was prepared; one that can be read only once is empty now, and gives no note.
        options: the options that it was prepared with.
    """
    if args.train_on is not None or args.assistant_only_loss or args.completion_only_loss is not None:
        return []
    found = next(iter(read_rows(as_mixture(dataset).parts[0].data)), None)
    if found is None:
        return []
    source, row = found
    try:
        example = read_example(row, source, reading_of(options), format=options.format)
    except RowError:  # reported when rows are prepared
        return []
    return [NOTE] if isinstance(example, Conversation) and mode_of(example, options.train_on) == "all" else []
