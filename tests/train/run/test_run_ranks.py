"""`honed train` under torchrun: two processes train what one does, and only the first leaves anything behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from honed.cli.main import main
from honed.errors import RecipeError, RunError
from honed.train.options.config import SFTConfig
from honed.train.run.ranks import RunRanks, check_ranks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, chat_rows: list[dict[str, Any]]
) -> list[str]:
    """The recipe for several GPUs on a tiny model and two CPU processes: eight rows, three steps, a question."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows[:8]))
    (tmp_path / "questions.jsonl").write_text('{"prompt": "why fox"}\n')
    given = {"model": tmp_path / "tiny", "data.files": tmp_path / "rows.jsonl", "dtype": "float64"}
    small = {"max_steps": 3, "gradient_accumulation_steps": 1, "use_cpu": "true", "data.packing": "false"}
    asks = {"samples.prompts": tmp_path / "questions.jsonl", "samples.max_new_tokens": 4, "learning_rate": 0.01}
    logs = {"logging_steps": 1, "save_strategy": "no", "bf16": "false"}
    return ["train", "multi_gpu", *(f"{key}={value}" for key, value in {**given, **small, **asks, **logs}.items())]


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "honed"]


def surroundings(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HONED_CACHE": str(folder / "cache")}


def under_torchrun(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCHER, *arguments],
        env=surroundings(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "shares",
    [("per_device_train_batch_size=2",), ("per_device_train_batch_size=4", "sequence_parallel_size=2")],
    ids=["rows of their own", "each row together"],
)
def test_two_processes_train_what_one_does(shares: tuple[str, ...], command: list[str], tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    done = under_torchrun([*command, *shares, f"output={two}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([*command, "per_device_train_batch_size=4", f"output={one}"]) == 0

    weights, expected = (load_file(folder / "adapter_model.safetensors") for folder in (two, one))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((weights[name] - tensor).norm()) <= 1e-6 * float(tensor.norm()), name
    assert any(bool(tensor.any()) for name, tensor in expected.items() if "lora_B" in name)  # it has learned
    logs = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (two, one)]
    losses, wanted = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert len(wanted) == 3
    assert losses == pytest.approx(wanted, rel=1e-6)

    # said once, written once, prepared once
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert done.stdout.count("8 rows in, 8 trained") == done.stdout.count("honed chat") == 1
    assert done.stderr.count("Preparing train data") == done.stderr.count("Answering before") == 1
    assert json.loads((two / "run.json").read_text())["status"] == "finished"
    assert (two / "samples.json").read_text() == (one / "samples.json").read_text()


def test_sigterm_to_the_second_ends_both_well(command: list[str], tmp_path: Path) -> None:
    """Also for torchrun, which calls a run failed if one process ends otherwise than with status 0."""
    out = tmp_path / "stopped"
    more = ["max_steps=100000", "save_strategy=steps", "save_steps=2", "samples.prompts=null", f"output={out}"]
    with subprocess.Popen(
        [*LAUNCHER, *command, *more],
        env=surroundings(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launched:
        try:
            while not list(out.glob("checkpoint-*")) and launched.poll() is None:
                time.sleep(0.1)
            second = next(one for one in psutil.Process(launched.pid).children() if one.environ().get("RANK") == "1")
            second.send_signal(signal.SIGTERM)
            said, errors = launched.communicate(timeout=120)
        finally:
            launched.kill()
    assert launched.returncode == 0, errors
    assert said.count("Stopped at step") == 1 and "Traceback" not in errors
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"


def test_alone_there_is_nobody_to_wait_for(tmp_path: Path) -> None:
    ranks = RunRanks.of(SFTConfig(output_dir=str(tmp_path), use_cpu=True))
    with ranks.one_per_node_first():
        assert ranks.first


@pytest.mark.parametrize("local_rank", [0, 1])
def test_the_first_of_a_machine_goes_first(local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("torch.distributed.barrier", lambda group: steps.append("waits"))
    with RunRanks(rank=4 + local_rank, local_rank=local_rank, group=object()).one_per_node_first():
        steps.append("works")
    assert steps == (["waits", "works"] if local_rank else ["works", "waits"])


def test_the_end_of_another_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def barrier(group: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.barrier", barrier)
    with pytest.raises(RunError, match="Another process"):
        RunRanks(rank=1, local_rank=1, group=object()).wait()


class Several:
    """Arguments of one process of two."""

    world_size, fsdp, deepspeed = 2, "", None


@pytest.mark.parametrize(
    ("engine", "asks", "fsdp", "says"),
    [("plain", False, "", "one process"), ("trainer", True, "full_shard", "is sharded over all of them")],
)
def test_what_several_processes_cannot_do(engine: str, asks: bool, fsdp: str, says: str) -> None:
    args: Any = Several()
    args.fsdp = fsdp
    with pytest.raises(RecipeError, match=says):
        check_ranks(args, engine=engine, asks=asks)


def test_accelerate_says_that_it_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    args: Any = Several()
    check_ranks(args, engine="trainer", asks=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_ranks(args, engine="trainer", asks=False)
    with pytest.raises(RecipeError, match="is sharded over all of them"):
        check_ranks(args, engine="trainer", asks=True)


def test_steps_chosen_by_tokens_are_the_same_on_two_processes(command: list[str], tmp_path: Path) -> None:
    """Several micro-batches a step; only the last of them averages gradients over the processes."""
    two, one = tmp_path / "two", tmp_path / "one"
    job = [
        *command,
        "tokens_per_step=150",
        "per_device_train_batch_size=1",
        "data.max_length=32",
        "data.overlong=truncate",
    ]
    done = under_torchrun([*job, f"output={two}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([*job, f"output={one}"]) == 0
    weights, expected = (load_file(folder / "adapter_model.safetensors") for folder in (two, one))
    assert any(bool(tensor.any()) for name, tensor in expected.items() if "lora_B" in name)
    for name, tensor in expected.items():
        assert float((weights[name] - tensor).norm()) <= 1e-6 * float(tensor.norm()), name
