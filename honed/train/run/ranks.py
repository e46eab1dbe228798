"""Runs a recipe with several processes, as started by `torchrun` or `accelerate launch`.

The first rank manages the folder, answers the questions and writes the report; the others only train. There is no time
limit for long work on one rank (answers, data preparation); training's own group times out after `ddp_timeout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from honed.errors import RecipeError, RunError
from honed.train.options.config import SFTConfig
from honed.train.options.deepspeed import need_launcher, need_whole_model, zero_stage
from honed.train.options.surroundings import uses_fsdp

NEVER = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRanks:
    """This process's place among those of the run.

    Attributes:
        rank: its number among all processes.
        local_rank: its number among those on this machine.
        group: a process group of all ranks without a timeout; None for a single process.
    """

    rank: int = 0
    local_rank: int = 0
    group: Any = None

    @classmethod
    def of(cls, args: SFTConfig) -> RunRanks:
        """Returns this process's rank, with a new process group; all ranks must call it.

        Raises:
            RecipeError: DeepSpeed is used without a launcher.
        """
        need_launcher(args)
        if args.world_size == 1:
            return cls()
        # gloo on any device: waiting needs no GPU, and fails at once if a process ends
        group = dist.new_group(backend="gloo", timeout=NEVER)
        return cls(rank=args.process_index, local_rank=args.local_process_index, group=group)

    @property
    def first(self) -> bool:
        """Whether this rank manages the folder and writes output."""
        return self.rank == 0

    @contextmanager
    def one_per_node_first(self) -> Iterator[None]:
        """A block that the first rank of each machine runs before the others, so that they find what it cached.

        Raises:
            RunError: another process ended.
        """
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def wait(self) -> None:
        """Waits for all ranks.

        Raises:
            RunError: another process ended.
        """
        if self.group is None:
            return
        try:
            dist.barrier(group=self.group)
        except RuntimeError:
            raise RunError("Another process of this run has ended.", fix="see its output above") from None


def check_ranks(args: SFTConfig, *, engine: str, asks: bool) -> None:
    """Refuses what several processes cannot do.

    Args:
        engine: the recipe's engine.
        asks: whether questions are answered before and after training.

    Raises:
        RecipeError: the engine is "plain", the model that is asked is sharded, or ZeRO-3 is not configured to save
            whole weights.
    """
    need_whole_model(args)
    if args.world_size == 1:
        return
    if engine == "plain":
        raise RecipeError(
            "A recipe's plain engine runs in one process.",
            fix="set engine=trainer, or call honed.train.loop.loop.train",
        )
    if asks and (uses_fsdp(args) or zero_stage(args) == 3):
        raise RecipeError(
            "samples.prompts are answered by one process, but the model is sharded over all of them.",
            fix="set samples.prompts=null, and ask the trained model with `honed chat` or `honed generate`",
        )
