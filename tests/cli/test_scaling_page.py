"""docs/scaling.md: its commands run, and its numbers are what they and the recorded simulation give."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from honed.cli.recipe_arguments import recipe_of
from honed.cli.train.train import add_arguments

pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (.+)$", PAGE, flags=re.MULTILINE)
PLANS = [command for command in COMMANDS if command.startswith("honed plan")]
RESULT = json.loads((ROOT / "benchmarks/results/scaling-simulation-cpu-2026-11-22.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", PLANS)
def test_the_planners_numbers(honed: Any, command: str) -> None:
    shown = honed(*shlex.split(command)[1:], "--json")
    assert shown.status == 0, shown.err
    gpus = int(command.rpartition(" ")[2])
    rows = re.findall(rf"^\| (\w+), (\w+) \| {gpus:,} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert rows
    for method, way, cells in rows:
        found = json.loads(shown.out)["ranks"]
        one = next(one for one in found if (one["name"], one["way"]) == (f"{method}, checkpointing", way))
        low, high = one["efficiency"]
        memory, sent = f"{one['peak_bytes'] / 1e9:.1f} GB", f"{one['sent_bytes_per_gpu'] / 1e9:.1f} GB"
        assert cells == f"{memory} | {sent} | {low:.0%} to {high:.0%} | {one['tokens_per_second']:,.0f}"


def test_the_numbers_of_short_rows(honed: Any) -> None:
    shown = honed("plan", "--model", "Qwen3-8B", "--gpu", "h100", "--gpus", "1024", "--json")
    found = {(one["name"], one["way"]): one["efficiency"] for one in json.loads(shown.out)["ranks"]}
    for way in ("fsdp", "hybrid"):
        low, high = found["full, checkpointing", way]
        assert f"{low:.0%} to {high:.0%}" in " ".join(PAGE.split())


def test_the_simulations_numbers() -> None:
    for name, share in RESULT["fill"].items():
        assert f"| {name} | {share:.2%} |" in PAGE
    for one in (one for one in RESULT["load"] if one["ranks"] == 1024):
        shares = [f"{one[name]:.1%}" for name in ("share_on_real_tokens", "share_if_work_were_even")]
        cells = f"{one['work_max_over_mean']:.2f} | {shares[0]} | {shares[1]} |"
        assert re.search(rf"^\| {re.escape(one['layout'])} \| .* {re.escape(cells)}$", PAGE, flags=re.MULTILINE)
    last = RESULT["order"][-1]
    assert last["ranks"] == 1024 and last["each_row_once"] and last["order_of_one_rank"]


def test_what_torchrun_starts_is_read_by_honed() -> None:
    from torch.distributed.run import get_args_parser

    launches = [command for command in COMMANDS if command.startswith("torchrun")]
    assert len(launches) == 2
    for command in launches:
        launched = get_args_parser().parse_args(shlex.split(command)[1:])
        assert launched.training_script == "honed" and launched.training_script_args[0] == "train"
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        assert recipe_of(parser.parse_args(launched.training_script_args[1:])).model.endswith("Qwen3-0.6B")


def test_the_simulations_command_is_there() -> None:
    command = next(command for command in COMMANDS if "scaling_simulation" in command)
    assert (ROOT / shlex.split(command)[1]).is_file() and (ROOT / shlex.split(command)[3]).is_file()
