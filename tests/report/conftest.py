"""A run folder as `honed train` leaves it, with the kind of text that breaks pages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "<script>document.title='hacked'</script>"


def training_line(step: int) -> dict[str, Any]:
    wobble = math.sin(step * 1.7) * 0.12 + math.cos(step * 0.61) * 0.08
    loss = 0.3 + 4.5 * math.exp(-step / 18) + wobble * (0.4 + math.exp(-step / 30))
    return {
        "step": step,
        "epoch": round(step / 40, 3),
        "loss": round(loss, 4),
        "learning_rate": 2e-4 * min(1, step / 12) * (0.5 + 0.5 * math.cos(math.pi * step / 120)),
        "grad_norm": round(1.1 + 2.4 * math.exp(-step / 25) + abs(wobble), 3),
        "tokens_per_second": round(612 + 40 * wobble * 3, 1),
        "trained_tokens_per_second": round(301 + 22 * wobble * 3, 1),
        "memory_gb": 2.1 if step < 7 else 2.38,
        "mean_token_accuracy": round(0.94 - 0.63 * math.exp(-step / 22) + wobble / 20, 4),
        "entropy": round(0.25 + 1.9 * math.exp(-step / 25) + wobble / 6, 4),
        "num_tokens": 512 * step,
        "seconds": round(0.52 * step, 2),
    }


def evaluation_line(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "eval_loss": round(0.42 + 3.9 * math.exp(-step / 19), 4),
        "eval_mean_token_accuracy": round(0.91 - 0.6 * math.exp(-step / 22), 4),
    }


def metric_lines() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, 121):
        lines.append(training_line(step))
        if step % 20 == 0:
            lines.append(evaluation_line(step))
    return lines


def ledger() -> dict[str, Any]:
    return {
        "rows_in": 176,
        "rows_trained": 174,
        "rows_dropped": {"overlong": 1, "empty answer": 1},
        "rows_cut": {"overlong": 3},
        "conversations_split_into_views": 2,
        "tokens": 15000,
        "trained_tokens": 9000,
        "padding_share": 0.034,
        "packed_rows": 40,
        "examples": [
            {"source": "train.jsonl:17", "reason": "empty answer"},
            {"source": "train.jsonl:98", "reason": "overlong", "tokens": 4211},
        ],
        "stop_tokens": ["<|im_end|>"],
        "notes": ["3 rows were cut at 2,048 tokens; the cut never falls inside a trained turn."],
        "duplicate_rows": 4,
    }


def answer(prompt: str, before: str, after: str, **flags: bool) -> dict[str, Any]:
    states = {"before_stopped": False, "after_stopped": True, "before_follows": False, "after_follows": True}
    return {"prompt": prompt, "before": before, "after": after, **states, **flags}


def samples() -> dict[str, Any]:
    ramble = "Tea is a drink. Tea is a drink made from leaves. " * 6
    answers = [
        answer("How do I make green tea?", ramble, "Heat: 80 °C\nLeaves: 2 g\nTime: 2 minutes"),
        answer(
            "请用三行介绍一下西湖。",
            "西湖是一个湖,西湖是一个湖,西湖是一个湖," * 4,
            "地点:杭州\n特点:湖光山色\n季节:春天",
        ),
        answer(HOSTILE, "I can't\n    keep  spaces", "Kind: script\nRisk: none\nShown: yes", before_stopped=True),
        answer("Say nothing.", "", "Kind: silence\nLength: 0\nMood: calm", after_follows=False),
    ]
    return {
        "before": {"stopped": 13, "followed_form": 0, "of": 16},
        "after": {"stopped": 16, "followed_form": 15, "of": 16},
        "rule": "three lines, each with a label, a colon and a value",
        "answers": answers * 2,
    }


def run_facts() -> dict[str, Any]:
    return {
        "status": "finished",
        "started": "2026-07-24T14:05:09Z",
        "seconds": {"load": 3.1, "prepare": 0.4, "train": 62.0, "samples": 11.2},
        "versions": {"honed": "0.1.0", "torch": "2.11.0", "transformers": "5.17.0", "python": "3.11.7"},
        "device": {"name": "AMD EPYC 7B13", "type": "cpu", "dtype": "float32", "threads": 2},
        "model": "HuggingFaceTB/SmolLM2-135M",
        "parameters": 134515008,
        "trainable_parameters": 4884480,
        "honed_command": "honed train demo.yaml",
        "peak_memory_gb": 2.4,
    }


RECIPE = """\
# Three labelled lines, whatever the question.
model: HuggingFaceTB/SmolLM2-135M
data: train.jsonl   # </script><b>not bold</b> & $title
adapter: {kind: lora, rank: 16}
learning_rate: 2.0e-4
"""


def write_run(folder: Path) -> Path:
    """Writes all five files of a finished run into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line) + "\n" for line in metric_lines())
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (folder / "ledger.json").write_text(json.dumps(ledger()), encoding="utf-8")
    (folder / "samples.json").write_text(json.dumps(samples(), ensure_ascii=False), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(run_facts()), encoding="utf-8")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo-run")
