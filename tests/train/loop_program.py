"""A program that tests of the plain loop start, kill, and run several of at a time. It is no test itself.

    python loop_program.py JOBS.json

Each job is {"engine": "loop" | "trainer", "out": FOLDER, "settings": {...}, "rows": N, "lora": bool}; what it logs goes
to OUT/log.json and the weights to OUT/weights.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from honed.data.batch.table import PackedRows, TokenTable
from honed.train.loop.config import LoopConfig
from honed.train.loop.loop import Outcome, train

VOCABULARY = 64


def make_rows(count: int, *, packed: bool = False) -> PackedRows:
    """Documents of 4 to 12 random tokens with random weights; with `packed`, two to a row."""
    draw = np.random.default_rng(0)
    starts = np.cumsum([0, *draw.integers(4, 13, size=count)], dtype=np.int64)
    ids = draw.integers(3, VOCABULARY, size=starts[-1]).astype(np.int32)
    weights = draw.choice([0.0, 0.5, 1.0], size=starts[-1]).astype(np.float32)
    weights[starts[1:] - 1], weights[starts[:-1]] = 1.0, 0.0
    rows = [list(range(first, first + 1 + packed)) for first in range(0, count, 1 + packed)]
    return PackedRows(TokenTable.of(ids, weights, starts), rows)


def make_model(*, lora: bool = False, **changes: Any) -> Any:
    """A small Llama; with `lora`, an adapter with dropout on it."""
    from honed.model.adapters.adapters import attach, lora_config

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,
        "attention_dropout": 0.0,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    return attach(model, lora_config(r=2, dropout=0.2)) if lora else model


def run_loop(job: dict[str, Any], **options: Any) -> tuple[Outcome, Any]:
    """A job in this process."""
    model = make_model(lora=job.get("lora", False))
    rows = make_rows(job["rows"], packed=job.get("packed", False))
    folder = Path(job["out"]) if job.get("keeps", True) else None
    return train(model, rows, LoopConfig(**job["settings"]), folder=folder, **options), model


def run_trainer(job: dict[str, Any]) -> tuple[list[dict[str, float]], Any]:
    """The same work by `SFTTrainer`."""
    from transformers import AutoTokenizer

    from honed.train.options.config import SFTConfig
    from honed.train.trainer.trainer import SFTTrainer

    args = SFTConfig(output_dir=job["out"], **job["settings"])
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    trainer = SFTTrainer(make_model(), args=args, train_dataset=make_rows(job["rows"]), processing_class=tokenizer)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line], trainer.model


def trained(model: Any) -> dict[str, torch.Tensor]:
    """What was trained, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def main() -> None:
    """Runs the jobs one after the other; the first rank writes what came out."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        if job["engine"] == "trainer":
            log, model = run_trainer(job)
        else:
            outcome, model = run_loop(job)
            log = outcome.log
            if outcome.stopped:
                continue
        if os.environ.get("RANK", "0") == "0":
            (out / "log.json").write_text(json.dumps(log), encoding="utf-8")
            save_file(trained(model), out / "weights.safetensors")


if __name__ == "__main__":
    main()
