"""The recipes for clusters, run with stand-ins for srun, scontrol and torchrun: what they start, and how they stop."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import honed.recipes
from honed.cli.recipe_arguments import find_recipe, recipe_of
from honed.cli.train.train import add_arguments
from honed.recipe import Recipe

CLUSTER = Path(honed.recipes.__file__).parent / "cluster"
SLURM, SKYPILOT = CLUSTER / "slurm.sh", CLUSTER / "skypilot.yaml"
GIVEN = ["multi_gpu", "model=Qwen/Qwen3-0.6B", "data.files=my rows.jsonl", "output=runs/mine"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("pkill")), reason="the recipes are for bash and pkill, not found here"
)

# Notes its arguments; then a child stands for a process that trains: it ends at once, fails, or waits for SIGTERM.
TORCHRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path
with open("torchrun.json", "w") as file:
    json.dump(sys.argv[1:], file)
worker = "import os, signal, sys, time; from pathlib import Path\\n" + {{
    "ends": "",
    "fails": "sys.exit(3)",
    "waits": "signal.signal(signal.SIGTERM, lambda *_: (Path('saved').touch(), sys.exit(0)))\\n"
             "Path('ready').touch(); time.sleep(60); sys.exit(4)",
}}[os.environ["WORKER"]]
sys.exit(subprocess.call([sys.executable, "-c", worker]))
"""
# Runs the task on this machine and, as Slurm before the time limit, signals it alone once it trains.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" &
if [[ $WORKER == waits ]]; then
  until [[ -e ready ]]; do sleep 0.05; done
  kill -USR1 $!
fi
wait $!
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'first\\nsecond\\n'; else echo "$@" >> scontrol.txt; fi
"""
SLURM_JOB = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "first,second",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder of programs that are found before others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def bash(
    arguments: list[str], stand_ins: Path, variables: dict[str, str], worker: str = "ends"
) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}", "WORKER": worker}
    return subprocess.run(
        ["bash", *arguments],
        cwd=stand_ins.parent,
        env={**os.environ, **path, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def started(folder: Path) -> tuple[Any, Recipe]:
    """What torchrun was given, read by torchrun's own parser, and the recipe, read by honed's."""
    from torch.distributed.run import get_args_parser

    launched = get_args_parser().parse_args(json.loads((folder / "torchrun.json").read_text(encoding="utf-8")))
    assert launched.module and launched.training_script == "honed"
    verb, *rest = launched.training_script_args
    assert verb == "train"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return launched, recipe_of(parser.parse_args(rest))


def test_slurm_starts_one_launcher_a_node(stand_ins: Path, tmp_path: Path) -> None:
    done = bash([str(SLURM), *GIVEN], stand_ins, SLURM_JOB)
    assert done.returncode == 0, done.stderr
    launched, recipe = started(tmp_path)
    assert (launched.nnodes, launched.nproc_per_node, launched.rdzv_backend) == ("2", "8", "c10d")
    assert (launched.rdzv_id, launched.rdzv_endpoint) == ("123456", "first:23456")
    assert (recipe.model, recipe.output, recipe.data.files) == ("Qwen/Qwen3-0.6B", "runs/mine", ("my rows.jsonl",))
    assert not (tmp_path / "scontrol.txt").exists()  # a run that came to its end is not started again


def test_slurm_saves_and_goes_back_into_the_queue(stand_ins: Path, tmp_path: Path) -> None:
    done = bash([str(SLURM), *GIVEN], stand_ins, SLURM_JOB, worker="waits")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 123456\n"
    assert not list(tmp_path.glob(".honed-stopped*"))


def test_slurm_tells_a_failure(stand_ins: Path, tmp_path: Path) -> None:
    assert bash([str(SLURM), *GIVEN], stand_ins, SLURM_JOB, worker="fails").returncode == 3
    assert not (tmp_path / "scontrol.txt").exists()


def test_slurm_is_asked_the_right_way(stand_ins: Path) -> None:
    done = bash([str(SLURM)], stand_ins, SLURM_JOB)
    assert done.returncode == 2 and "arguments of honed train" in done.stderr
    outside = bash([str(SLURM), *GIVEN], stand_ins, {"SLURM_JOB_ID": ""})
    assert outside.returncode != 0 and "sbatch" in outside.stderr


def test_slurm_has_time_to_save() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", SLURM.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert options["ntasks-per-node"] == "1" and options["signal"] == "USR1@300" and "requeue" in options


def test_skypilot_starts_honed(stand_ins: Path, tmp_path: Path) -> None:
    task = yaml.safe_load(SKYPILOT.read_text(encoding="utf-8"))
    assert task.keys() == {"name", "resources", "num_nodes", "volumes", "envs", "setup", "run"}
    assert all(isinstance(value, str) for value in task["envs"].values())
    # set by SkyPilot on every node (sky/skylet/constants.py)
    own = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "1"}
    own["SKYPILOT_NODE_IPS"] = "10.0.0.1\n10.0.0.2"
    used = set(re.findall(r"\$\{?([A-Z_]+)", task["run"]))
    assert used <= own.keys() | task["envs"].keys()
    done = bash(["-c", task["run"]], stand_ins, {**task["envs"], **own, "DATA": "my rows.jsonl"})
    assert done.returncode == 0, done.stderr
    launched, recipe = started(tmp_path)
    assert (launched.nnodes, launched.nproc_per_node, launched.node_rank) == ("2", "8", 1)
    assert (launched.master_addr, launched.master_port) == ("10.0.0.1", 8008)
    assert (recipe.train["save_strategy"], recipe.train["save_steps"]) == ("steps", 200)
    assert recipe.data.files == ("my rows.jsonl",) and find_recipe(task["envs"]["RECIPE"]).is_file()


def test_the_headers_name_what_is_there() -> None:
    launch, task = re.findall(r"sky jobs launch (.*)", SKYPILOT.read_text(encoding="utf-8"))[0], SKYPILOT
    envs = yaml.safe_load(task.read_text(encoding="utf-8"))["envs"]
    assert set(re.findall(r"--env (\w+)=", launch)) <= envs.keys()
    submit = re.search(r"sbatch .*?slurm\.sh\" (.*)", SLURM.read_text(encoding="utf-8"))
    assert submit is not None
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert recipe_of(parser.parse_args(submit[1].split())).output == "/shared/runs/mine"
