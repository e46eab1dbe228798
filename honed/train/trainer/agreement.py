"""Checks that all processes start with the same settings, rows, batches and, for FSDP2, weights.

If ranks differ, they hang waiting for each other, or silently train some rows twice and others never. If they do not
write to the same folder, checkpoints lack parts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from honed.data.batch.table import PackedRows
from honed.errors import RunError, storage_errors
from honed.train.run_folder.identity import digest_of_rows, digest_of_weights

# Arguments outside a checkpoint's identity that determine the steps and when ranks synchronise.
SETTINGS = (
    *("num_train_epochs", "max_steps", "max_grad_norm", "bf16", "fp16", "loss_type"),
    *("label_smoothing_factor", "logging_strategy", "logging_steps", "save_strategy", "save_steps"),
    *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "load_best_model_at_end"),
    *("early_stopping_patience", "early_stopping_threshold"),
)
ROWS, WEIGHTS, BATCHES = "the training rows", "the weights", "the layout of batches"
_FIXES = {
    ROWS: "give all processes the same files, and let nothing that prepares rows draw at random without a seed",
    WEIGHTS: "load the same weights in all processes, and make new ones (an added token's, a new head) from one seed",
    BATCHES: "set cpu_ram_efficient_loading=False: a rank without weights cannot try what the model takes",
}


def check(trainer: Any, identity: Mapping[str, Any]) -> None:
    """Compares all ranks' settings, rows, batches and weights; a no-op with one rank. Every rank must call it.

    Args:
        trainer: an `SFTTrainer` whose model is not wrapped yet.
        identity: see `ResumingTrainer.identity`. `model` may differ because DDP and DeepSpeed broadcast the first
            rank's weights, and `adapter` may differ because it contains the base model's folder.

    Raises:
        RunError: on all ranks, if any two of them differ, or if checkpoints will be written and `output_dir` is not
            the same folder for all of them.
    """
    if trainer.args.world_size == 1:
        return
    args = trainer.args.to_dict()
    settings = {key: value for key, value in identity.items() if key not in ("model", "adapter", "data")}
    saves = [] if trainer.args.save_strategy == "no" else ["output_dir"]  # all ranks write into a checkpoint
    mine = {**settings, **{name: args.get(name) for name in (*SETTINGS, *saves)}}
    mine |= {
        ROWS: _rows(trainer.train_dataset, identity["data"]),
        BATCHES: _batches(trainer),
        WEIGHTS: _weights(trainer),
    }
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    mine |= {f"the evaluation rows {name}".strip(): _rows(rows, digest_of_rows(rows)) for name, rows in sets.items()}
    refuse_differences(gather_object([mine]))
    if saves and not trainer.args.save_on_each_node:
        need_one_folder(Path(trainer.args.output_dir), first=trainer.args.process_index == 0)


def need_one_folder(folder: Path, *, first: bool) -> None:
    """Checks that all ranks see what the first one writes into a folder, because each writes its part of checkpoints.

    Raises:
        RunError: on all ranks, if one does not see it.
    """
    mark = folder / f".seen-{uuid.uuid4().hex}"
    if first:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    name = broadcast_object_list([mark.name])[0]
    seen = gather_object([_appears(folder / name)])
    mark.unlink(missing_ok=True)  # only the first rank created it
    if not all(seen):
        raise RunError(
            f"{folder} is not the same folder on rank 0 and rank {seen.index(False)}, whose parts would be lost.",
            fix="name a folder on a disk that all machines share, by its absolute path, or keep no checkpoints "
            "(save_strategy='no')",
        )


def _appears(file: Path, *, seconds: float = 5) -> bool:
    """Whether a file exists; on a network file system it may appear late."""
    end = time.monotonic() + seconds
    while not (found := file.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def refuse_differences(ranks: list[dict[str, Any]]) -> None:
    """Compares each rank's values with the first rank's.

    Raises:
        RunError: a value differs.
    """
    for rank, other in enumerate(ranks):
        for key in sorted(ranks[0].keys() | other.keys()):
            here, there = ranks[0].get(key), other.get(key)
            if here != there:
                verb = "are" if key.endswith("s") and key.startswith("the ") else "is"
                raise RunError(
                    f"The processes do not start alike: {key} {verb} {here!r:.80} on rank 0 and {there!r:.80} "
                    f"on rank {rank}.",
                    fix=_FIXES.get(key, _FIXES[ROWS] if "rows" in key else "give all processes the same arguments"),
                )


def _rows(rows: Any, digest: str) -> str:
    return f"{len(rows):,} with SHA-256 {digest[:12]}" if isinstance(rows, PackedRows) else digest


def _batches(trainer: Any) -> str:
    found = trainer.seams
    return f"{type(trainer.data_collator).__name__}, flat={found.flat}, scoring={found.scoring}, {found.transform}"


def _weights(trainer: Any) -> str | None:
    """A digest if each rank shards its own weights; None otherwise, as the first rank then broadcasts them."""
    if not trainer.is_fsdp_enabled or trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        return None
    if any(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters()):
        return None  # an earlier `train` has already sharded them
    return digest_of_weights(trainer.model)[:12]
