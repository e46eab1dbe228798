"""Peaks of whole steps: every tensor of a real one is counted while it is alive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.alive import Alive
from honed import SFTConfig, SFTTrainer
from honed.model.plan import plan
from honed.train.options.optim import planned

# Activations count for most with many tokens and few words, gradients with few tokens and many words.
SHAPE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 24}
MANY_TOKENS = {"length": 160, "rows": 2, "vocab_size": 400}
LAST_LAYERS = [r"layers\.[23]\."]
MANY_WORDS = {"length": 8, "rows": 1, "vocab_size": 3000}


@pytest.mark.parametrize(
    "case",
    [
        MANY_TOKENS,
        {**MANY_TOKENS, "gradient_checkpointing": True},
        {**MANY_TOKENS, "bf16": True},
        {**MANY_TOKENS, "optimizer_in_backward": True, "max_grad_norm": 0.0},
        MANY_WORDS,
        {**MANY_WORDS, "bf16": True},
        {**MANY_WORDS, "optim": "muon"},
        {**MANY_WORDS, "optim": "adafactor"},
        {**MANY_WORDS, "optimizer_in_backward": True, "max_grad_norm": 0.0},
        {**MANY_WORDS, "gradient_accumulation_steps": 2},
        {**MANY_WORDS, "tie_word_embeddings": False},
        {**MANY_WORDS, "family": "gemma3_text"},
        {**MANY_TOKENS, "trainable": LAST_LAYERS},
        {**MANY_TOKENS, "trainable": LAST_LAYERS, "bf16": True},
        {**MANY_TOKENS, "trainable": LAST_LAYERS, "gradient_checkpointing": True},
        {**MANY_WORDS, "trainable": LAST_LAYERS},
        {**MANY_WORDS, "trainable": [*LAST_LAYERS, "lm_head"], "tie_word_embeddings": False},
        {**MANY_WORDS, "trainable": ["!embed_tokens"], "tie_word_embeddings": False, "gradient_accumulation_steps": 2},
    ],
    ids=lambda case: "-".join(f"{name}={value}" for name, value in case.items() if name not in ("length", "rows")),
)
def test_peak_of_a_step(case: dict[str, Any], tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"family": "llama", "tie_word_embeddings": True, "gradient_checkpointing": False, **case}
    length, rows, family = (options.pop(name) for name in ("length", "rows", "family"))
    shape = {name: options.pop(name) for name in ("tie_word_embeddings", "vocab_size")}
    model = tiny_model(family, **shape, **SHAPE)
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, max_length=length, per_device_train_batch_size=rows, train_on="all",
        use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True, **{"bf16": False, **options},
    )  # fmt: skip
    data = [{"input_ids": torch.randint(3, 400, (length,)).tolist()} for _ in range(4 * rows)]
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tiny_tokenizer)
    with Alive([*model.parameters(), *model.buffers()]) as alive:
        trainer.train()
    steps = args.gradient_accumulation_steps
    how = {"length": length, "rows": rows, "accumulation": steps, "trainable": args.trainable}
    job = plan.job_for(model.config, method="full", device="cpu", **how)
    formats = replace(job.formats, compute=2 if args.bf16 else 4)
    job = replace(
        job,
        optimizer=planned(args, in_backward=args.optimizer_in_backward),
        checkpointing=bool(args.gradient_checkpointing),
        formats=formats,
    )
    parts = plan.estimate(job).parts
    assert parts.total - parts.overhead - parts.weights == pytest.approx(alive.most, rel=0.06)
