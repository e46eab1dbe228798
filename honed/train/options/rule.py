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


def order_is_fixed(args: SFTConfig) -> bool:
    """Whether the seed and the step alone determine which rows a step has."""
    seeded = args.accelerator_config.use_seedable_sampler or args.tokens_per_step is not None
    drawn = args.train_sampling_strategy == "random" and not seeded  # from torch's generator when an epoch begins
    return not drawn and (args.dataloader_in_order or args.dataloader_num_workers == 0)
