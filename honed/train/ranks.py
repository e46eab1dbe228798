"""The device, the other processes, SIGTERM and Ctrl-C."""

from __future__ import annotations

import atexit
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from honed.data.batch.collate import Batch
from honed.errors import RunError
from honed.model.device import named_device, pick_device

# gloo has no error class of its own for a process that is gone or late.
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket closed|No route to host", re.I
)
# Tells processes that make batches to end; others do not notice it. Windows has none, and needs none.
_END: signal.Signals | None = getattr(signal, "SIGURG", None)
_OUTLASTS = 600  # seconds; saving a checkpoint takes less


class Stopped(Exception):
    """SIGTERM ended a run before its end; its newest checkpoint is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together; `world` 1 where there is only one."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def sum(self, *values: float) -> list[float]:
        """The sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_device(self, batch: Batch) -> Batch:
        """The batch with everything that can be moved on this rank's device.

        On CUDA the copies are asynchronous: waiting for them would wait for all work queued before. torch's allocator
        does not reuse pinned memory before a copy has ended.
        """
        at_once = self.device.type == "cuda"
        moved = {
            key: value.to(self.device, non_blocking=at_once) for key, value in batch.items() if hasattr(value, "to")
        }
        return {**batch, **moved}

    def precision(self, dtype: str) -> AbstractContextManager[Any]:
        """Autocast to this dtype; weights and checkpoints keep theirs."""
        return nullcontext() if dtype == "float32" else torch.autocast(self.device.type, dtype=getattr(torch, dtype))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel, if there are several ranks."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def syncing(self, model: nn.Module, now: bool) -> Any:
        """A block whose backward pass averages gradients over ranks only if `now`."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) and not now else nullcontext()


def tensor_parallel_size(model: nn.Module) -> int:
    """How many ranks share each layer of the model, as transformers' `tp_plan` does it; 1 where none do."""
    return getattr(model, "_tp_size", None) or 1


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """This process among those that `torchrun` started; the process group ends with the block.

    Raises:
        RecipeError: there is no such device.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    here = pick_device() if device is None else named_device(device)
    if here.type == "cuda":  # the current device is also that of the random state, of pinned memory and of NCCL
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if here.index is None else here.index)
        torch.cuda.set_device(here)
    joins = world > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield Ranks(device=here, rank=rank, world=world)
    finally:
        if joins:
            dist.destroy_process_group()


@contextmanager
def others_alive(folder: str | Path | None) -> Iterator[None]:
    """A block in which ranks wait for each other: if one has ended, the error says so, not "connection lost".

    Raises:
        RunError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        again = "" if folder is None else f"; the same command goes on from the newest checkpoint in {folder}"
        raise RunError("Another process of this run has ended, or hangs.", fix=f"see what it said{again}") from error


def is_lost_rank(error: Exception) -> bool:
    """Whether an error tells that another process ended or hangs."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


@contextmanager
def until_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process; outside the main thread it is never set."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def until_ctrl_c(heard: Callable[[], bool]) -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of interrupting, if `heard` says so; the next one interrupts at once.

    It is never set elsewhere than in the main thread, nor where the program answers Ctrl-C in a way of its own.
    """
    asked = threading.Event()
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a notebook's, too, while a cell runs
    if threading.current_thread() is not threading.main_thread() or not default:
        yield asked
        return

    def press(number: int, frame: Any) -> None:
        if asked.is_set() or not heard():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, press)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_on_sigterm(worker: int) -> None:
    """Has a worker process outlast signals to the whole group: the main process saves and ends the workers.

    It does not outlast them for ever: torch sends SIGTERM, too, to workers of a loader that nobody holds any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all
    if _END is None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_OUTLASTS))  # SIGALRM ends a process
    signal.signal(_END, lambda *_: os._exit(0))


@atexit.register  # later than multiprocessing's own, and so called before it
def _end_workers() -> None:
    """Ends what still makes batches: Python would send SIGTERM, which it ignores, and wait for it for ever."""
    if _END is None:
        return
    for process in active_children():
        if process.daemon and process.pid is not None:
            os.kill(process.pid, _END)
