"""What a rule is, in the tables of `rules` and `rules_of_ranks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from honed.train.options.config import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`when` tells whether the rule applies; one that does not refuse gives a note."""

    name: str
    when: Callable[[SFTConfig], bool]
    message: str
    fix: str
    refuses: bool = True
