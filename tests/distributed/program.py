"""The ranks of distributed runs: a program that the tests of this folder start. It is no test itself.

It imports what training needs, once, and then forks the ranks of each job that it reads from its input:

    {"world": 2, "out": FOLDER, "rows": 8, "eval_rows": 5, "lora": false, "train": {...}, ...}

    {"world": 2, "out": FOLDER, "command": ["train", "multi_gpu", ...]}

A job's answer is a line with the ranks' exit statuses. `second` is what the second rank has instead. What rank N logged
is in OUT/log-N.json, what it printed in OUT/out-N.txt and OUT/err-N.txt.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from combined import train_all
from sequences import compare_all, mixes_outside_of_attention
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.conversion_mapping import get_model_conversion_mapping

from honed.cli.main import main as main_of_honed
from honed.data.batch.table import PackedRows, TokenTable
from honed.errors import HonedError
from honed.model.adapters.adapters import lora_config
from honed.model.load.load import load_model
from honed.train.options.config import SFTConfig
from honed.train.run.ranks import RunRanks
from honed.train.trainer.trainer import SFTTrainer

VOCABULARY = 64
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3, "attention_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.01, "logging_steps": 1,
    "lr_scheduler_type": "cosine", "num_train_epochs": 1, "adam_epsilon": 1e-3, "seed": 0, "use_cpu": True,
    "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False,
    "average_tokens_across_devices": True,
}  # fmt: skip


def make_rows(count: int) -> PackedRows:
    """Packed rows of one to three documents of 4 to 20 tokens with random weights: no two ranks get the same work."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 4, size=count)
    starts = np.cumsum([0, *draw.integers(4, 21, size=sizes.sum())], dtype=np.int64)
    ids = draw.integers(3, VOCABULARY, size=starts[-1]).astype(np.int32)
    weights = draw.choice([0.0, 0.5, 1.0], size=starts[-1]).astype(np.float32)
    weights[starts[1:] - 1], weights[starts[:-1]] = 1.0, 0.0
    first = np.cumsum([0, *sizes])
    rows = [list(range(first[n], first[n + 1])) for n in range(count)]
    return PackedRows(TokenTable.of(ids, weights, starts), rows)


def make_model(**changes: Any) -> LlamaForCausalLM:
    """A Llama of two layers; the same weights in every process."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


class DiesAt(TrainerCallback):
    """Signals one rank at the end of a step: kills it, as the system does when memory runs out, unless told another."""

    def __init__(self, *, step: int, rank: int, by: int = signal.SIGKILL) -> None:
        self._step, self._rank, self._by = step, rank, by

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the step's own checkpoint."""
        if state.global_step == self._step and int(os.environ["RANK"]) == self._rank:
            os.kill(os.getpid(), self._by)


def make_arguments(job: dict[str, Any]) -> SFTConfig:
    """Of a job. accelerate shards on GPUs only, and trains with DDP elsewhere: for FSDP and TP this says they are."""
    args = SFTConfig(output_dir=job["out"], **{**TRAIN, **job.get("train", {})})
    if args.fsdp or "tp_plan" in (args.model_init_kwargs or {}):
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    if args.deepspeed:  # on CPUs it would begin with the engine, after the model that ZeRO-3 parts while it is loaded
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    return args


def make_trainer(job: dict[str, Any], args: SFTConfig) -> SFTTrainer:
    """The trainer of a job: `rows`, `eval_rows`, `lora`, `model` or a folder of one as `base`, `losses`, ..."""
    model = job.get("base") or make_model(**job.get("model", {}))
    if job.get("quantization"):
        model = load_model(model, device=torch.device("cpu"), dtype="float32", quantization=job["quantization"])
    if job.get("lacks_memory"):
        model.model.layers[0].register_full_backward_pre_hook(lacks_memory)
    if job.get("mixes"):
        mixes_outside_of_attention(model)
    return SFTTrainer(
        model,
        args=args,
        train_dataset=make_rows(job["rows"]),
        eval_dataset=make_rows(job["eval_rows"]) if job.get("eval_rows") else None,
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
        peft_config=lora_config(r=4) if job.get("lora") else None,
        callbacks=[DiesAt(**job["dies"])] if job.get("dies") else None,
        compute_metrics=(lambda found: {"losses": float(found.losses.mean())}) if job.get("losses") else None,
    )


def lacks_memory(*_: Any) -> None:
    """A hook; as torch says it."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def logits_of(model: Any) -> list[list[float]]:
    """Of 20 tokens; of a sharded model, all ranks must ask for them."""
    with torch.no_grad():
        return model.eval()(torch.arange(3, 23)[None]).logits[0].tolist()


def run(job: dict[str, Any], rank: int) -> None:
    """Trains, evaluates where there is what to evaluate on, and saves the model in OUT/model.

    With `slow`, the first rank works that many seconds before, as it does while it prepares the data. With `runs`, a
    job is what `combined.py` does instead; with `sequences`, what `sequences.py` does.
    """
    if job.get("runs"):
        train_all(job, rank)
        return
    if job.get("sequences"):
        compare_all(job, rank)
        return
    out = Path(job["out"])
    args = make_arguments(job)
    if job.get("slow"):
        with RunRanks.of(args).one_per_node_first():
            time.sleep(0 if rank else job["slow"])
    trainer = make_trainer(job, args)
    before = trainer.evaluate() if job.get("evaluates_first") else None
    trainer.train(resume_from_checkpoint=job.get("resume"))
    told: dict[str, Any] = {"log": trainer.state.log_history, "wrapper": type(trainer.model_wrapped).__name__}
    told["before"] = before
    told["worst_steps"] = trainer.worst_steps()
    if job.get("eval_rows"):
        told["after"] = trainer.evaluate()
    trainer.save_model(str(out / "model"))
    told["logits"] = logits_of(trainer.model)
    (out / f"log-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def rank_main(job: dict[str, Any], rank: int, port: int) -> int:
    """One rank, with the environment that torchrun gives; an error of honed's is told as the command line tells it."""
    out = Path(job["out"])
    if rank == 1 and (other := job.get("second")):
        job = {**job, **other, "train": {**job.get("train", {}), **other.get("train", {})}}
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(out / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": job["world"],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in {**own, **job.get("env", {})}.items()})
    try:
        if job.get("command"):
            return main_of_honed(job["command"])
        run(job, rank)
    except HonedError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(job: dict[str, Any], rank: int, port: int) -> int:
    """Starts a rank; gives its process id."""
    if child := os.fork():
        return child
    status = rank_main(job, rank, port)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def ranks_of(job: dict[str, Any]) -> list[int]:
    """Runs a job; gives the exit statuses of its ranks, negative for signals. Ranks that hang are killed."""
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = [fork(job, rank, port) for rank in range(job["world"])]
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + job.get("limit", 60)
    while len(statuses) < len(children):
        for child in set(children) - statuses.keys():
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [statuses[child] for child in children]


def main() -> None:
    """Until a line says no more, as the input may never end: whoever was forked meanwhile holds it open, too.

    What each rank would do again is done once: transformers' table of renamed weights, half a second, and a collection
    over what was imported, which accelerate asks for at each start.
    """
    torch.set_num_threads(1)
    get_model_conversion_mapping(make_model())
    gc.collect()
    gc.freeze()
    for line in iter(sys.stdin.readline, "\n"):
        sys.stdout.write(json.dumps(ranks_of(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
