"""One optimizer step in several processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from honed.data.batch.table import PackedRows
    from honed.prove.engine import Step

# With a fork server, the libraries are imported only once.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def stepped_by_ranks(kind: type[Any], model: Any, rows: PackedRows, tokenizer: Any, *, world: int) -> Step:
    """Loss and gradient of a step whose documents are divided among `world` processes.

    Args:
        kind: SFTTrainer; must be importable by its module's name.
        model: is written to the disk.

    Raises:
        Exception: torch's, with the traceback of the process that failed.
    """
    from honed.prove.engine import Step

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    if START == "forkserver":
        multiprocessing.set_forkserver_preload(["honed.prove.engine"])
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.pt"
        torch.save((kind, model, rows, tokenizer), job)
        torch.multiprocessing.start_processes(_rank, (port, folder, world), nprocs=world, start_method=START)
        return Step(**torch.load(Path(folder) / "step.pt", weights_only=True))


def _rank(rank: int, port: int, folder: str, world: int) -> None:
    """What one process does, with the environment that torchrun would give it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own["OMP_NUM_THREADS"] = 1  # else accelerate sets it, with a message
    os.environ.update({name: str(value) for name, value in own.items()})
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # before it is imported, when it logs
    from honed.model.minimind.minimind import register
    from honed.prove.engine import one_step

    register()
    kind, model, rows, tokenizer = torch.load(Path(folder) / "job.pt", weights_only=False)  # written just now, by us
    own_rows = {"per_device_train_batch_size": len(rows) // world, "ddp_find_unused_parameters": False}
    step = one_step(kind, model, rows, tokenizer, **own_rows)
    if rank == 0:
        torch.save({"loss": step.loss, "gradient": step.gradient}, Path(folder) / "step.pt")
    torch.distributed.destroy_process_group()
