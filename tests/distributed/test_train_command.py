"""`honed train` on two processes trains what one does, and only the first leaves anything behind.

One run and its end by a signal are torchrun's own; others get what torchrun gives, without its start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from safetensors.torch import load_file

from honed.cli.main import main

if TYPE_CHECKING:
    from conftest import Ranks

ROOT = Path(__file__).resolve().parents[2]


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


def under_torchrun(arguments: list[str], folder: Path) -> tuple[str, str]:
    """What both processes printed."""
    done = subprocess.run(
        [*LAUNCHER, *arguments],
        env=surroundings(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def forked(ranks: Ranks, arguments: list[str], folder: Path) -> tuple[str, str]:
    """The same without the start of torchrun and the imports of two processes."""
    ended = ranks("command", out=folder / "said", command=arguments, env={"HONED_CACHE": str(folder / "cache")})
    assert ended.statuses == [0, 0], ended.err(0) + ended.err(1)
    printed = ("".join((ended.out / f"{name}-{rank}.txt").read_text() for rank in (0, 1)) for name in ("out", "err"))
    return next(printed), next(printed)


def same_adapter(two: Path, one: Path) -> None:
    weights, expected = (load_file(folder / "adapter_model.safetensors") for folder in (two, one))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((weights[name] - tensor).norm()) <= 1e-6 * float(tensor.norm()), name
    assert any(bool(tensor.any()) for name, tensor in expected.items() if "lora_B" in name)  # it has learned


@pytest.mark.parametrize(
    "shares",
    [("per_device_train_batch_size=2",), ("per_device_train_batch_size=4", "sequence_parallel_size=2")],
    ids=["rows of their own", "each row together"],
)
def test_two_processes_train_what_one_does(
    shares: tuple[str, ...], command: list[str], ranks: Ranks, tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    job = [*command, *shares, f"output={two}"]
    said, errors = under_torchrun(job, tmp_path) if len(shares) == 1 else forked(ranks, job, tmp_path)
    assert main([*command, "per_device_train_batch_size=4", f"output={one}"]) == 0

    same_adapter(two, one)
    logs = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (two, one)]
    losses, wanted = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert len(wanted) == 3
    assert losses == pytest.approx(wanted, rel=1e-6)

    # said once, written once, prepared once
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert said.count("8 rows in, 8 trained") == said.count("honed chat") == 1
    assert errors.count("Preparing train data") == errors.count("Answering before") == 1
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


def test_steps_chosen_by_tokens_are_the_same_on_two_processes(command: list[str], ranks: Ranks, tmp_path: Path) -> None:
    """Several micro-batches a step; only the last of them averages gradients over the processes."""
    two, one = tmp_path / "two", tmp_path / "one"
    small = ["per_device_train_batch_size=1", "data.max_length=32", "data.overlong=truncate"]
    job = [*command, "tokens_per_step=150", *small]
    forked(ranks, [*job, f"output={two}"], tmp_path)
    assert main([*job, f"output={one}"]) == 0
    same_adapter(two, one)
