"""The rules in the tables of `rules` and `rules_of_ranks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from honed.train.options.config import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule about options. `when` returns whether it applies; it then gives an error if it `refuses`, else a note."""

    name: str
    when: Callable[[SFTConfig], bool]
    message: str
    fix: str
    refuses: bool = True
