"""Devices, distributed processes, SIGTERM and Ctrl-C."""

from __future__ import annotations

import atexit
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from honed.data.batch.collate import Batch
from honed.errors import RunError
from honed.model.device import named_device, pick_device

# gloo has no error class for a process that has ended or hangs.
_LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket closed|No route to host", re.I
)
# Tells data loader workers to end; other processes ignore this signal. Windows lacks it and does not need it.
_END: signal.Signals | None = getattr(signal, "SIGURG", None)
_OUTLASTS = 600  # seconds, longer than saving a checkpoint takes


class Stopped(Exception):
    """A run was stopped early by SIGTERM or Ctrl-C; its newest checkpoint is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process's place among those that train together; `world` is 1 for a single process."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def sum(self, *values: float) -> list[float]:
        """Returns the sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(total)
        return list(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Returns all ranks' values, ordered by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_device(self, batch: Batch) -> Batch:
        """Returns the batch with everything that can be moved on this rank's device.

        On CUDA the copies are asynchronous, because waiting for them means waiting for all work queued before. torch's
        allocator does not reuse pinned memory before a copy is finished.
        """
        at_once = self.device.type == "cuda"
        moved = {
            key: value.to(self.device, non_blocking=at_once) for key, value in batch.items() if hasattr(value, "to")
        }
        return {**batch, **moved}

    def precision(self, dtype: str) -> AbstractContextManager[Any]:
        """Returns autocast to this dtype; weights and checkpoints keep theirs."""
        return nullcontext() if dtype == "float32" else torch.autocast(self.device.type, dtype=getattr(torch, dtype))

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wraps the model in DistributedDataParallel if there are several ranks."""
        if self.world == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def syncing(self, model: nn.Module, now: bool) -> Any:
        """Returns a context whose backward pass averages gradients over ranks only if `now`."""
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) and not now else nullcontext()


def tensor_parallel_size(model: nn.Module) -> int:
    """Returns the number of ranks that share each layer through transformers' `tp_plan`; 1 without it."""
    return getattr(model, "_tp_size", None) or 1


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started; the process group is destroyed when the block ends.

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
    """A block in which ranks wait for each other: if one has ended, the error says so instead of "connection lost".

    Raises:
        RunError: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        again = "" if folder is None else f"; the same command resumes from the newest checkpoint in {folder}"
        raise RunError("Another process of this run has ended, or hangs.", fix=f"see what it said{again}") from error


def is_lost_rank(error: Exception) -> bool:
    """Whether an error means that another process has ended or hangs."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))


@contextmanager
def until_sigterm() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets instead of ending the process; it is never set outside the main thread."""
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
    """Yields an event that Ctrl-C sets instead of interrupting, if `heard` allows; the next one interrupts at once.

    It is never set outside the main thread, or if the program has its own handler for Ctrl-C.
    """
    asked = threading.Event()
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # also in a notebook while a cell runs
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
    """Makes a worker process survive signals to the whole group: the main process saves and then ends the workers.

    It survives for a limited time, because torch also sends SIGTERM to the workers of a loader that is discarded.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes
    if _END is None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_OUTLASTS))  # SIGALRM ends a process
    signal.signal(_END, lambda *_: os._exit(0))


def keep_workers(loader: Any) -> Any:
    """Makes the loader's workers ignore SIGTERM and Ctrl-C: the main process saves and then ends them."""
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
    return loader


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    keep_on_sigterm(worker)
    if init is not None:
        init(worker)


@atexit.register  # registered after multiprocessing's handler, so called before it
def _end_workers() -> None:
    """Ends the remaining workers: Python would send SIGTERM, which they ignore, and wait for them."""
    if _END is None:
        return
    for process in active_children():
        if process.daemon and process.pid is not None:
            os.kill(process.pid, _END)
