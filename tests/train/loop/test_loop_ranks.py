"""Two processes train what one does, and what two processes of the Trainer do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loop_program import make_model, run_loop, trained
from safetensors.torch import load_file

HERE = Path(__file__).parents[1]
SETTINGS = {"batch_size": 1, "epochs": 2, "learning_rate": 0.01, "device": "cpu", "log_every": 1, "resume": None}
TRAINER = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "seed": 0,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def start_ranks(jobs: Path, world: int) -> list[subprocess.CompletedProcess[str]]:
    """The program on each rank, with the environment that torchrun gives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent.parent),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "loop_program.py"), str(jobs)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, "", error)
        for process, error in zip(processes, errors, strict=True)
    ]


def compare(found: Path, log: list[dict[str, float]], weights: dict[str, Any]) -> None:
    theirs = json.loads((found / "log.json").read_text())
    assert len(theirs) == len(log) > 2
    for line, wanted in zip(theirs, log, strict=True):
        for key in ("loss", "grad_norm", "learning_rate"):
            assert line[key] == pytest.approx(wanted[key], rel=1e-6), (key, line)
        assert line["num_tokens"] == wanted["num_tokens"]
    kept = load_file(found / "weights.safetensors")
    assert kept.keys() == weights.keys()
    for name, tensor in weights.items():
        assert float((kept[name] - tensor).norm() / tensor.norm()) < 1e-6, name


def test_two_ranks_train_what_one_does(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Seven rows of one: in the last step of an epoch the second rank has no row of its own left."""
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    two = {"engine": "loop", "rows": 7, "settings": {**SETTINGS, "accumulation": 2}, "out": str(tmp_path / "two")}
    even = {**two, "rows": 8, "out": str(tmp_path / "even")}
    trainer = {"engine": "trainer", "rows": 8, "settings": TRAINER, "out": str(tmp_path / "trainer")}
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([two, even, {**trainer, "tokenizer": str(tmp_path / "tokenizer")}]))
    done = start_ranks(jobs, world=2)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr

    one = {**two, "settings": {**SETTINGS, "accumulation": 4}, "keeps": False}
    outcome, model = run_loop(one)
    assert outcome.steps == 4
    compare(tmp_path / "two", outcome.log, trained(model))
    assert any((a != b).any() for a, b in zip(trained(model).values(), trained(make_model()).values(), strict=True))

    by_trainer = json.loads((tmp_path / "trainer" / "log.json").read_text())
    compare(tmp_path / "even", by_trainer, load_file(tmp_path / "trainer" / "weights.safetensors"))
