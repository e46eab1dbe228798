"""Steps of the plain loop on a CUDA device that is not there: where tensors are, in which format, and what waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import GPU, fake_cuda, needs_fake_cuda, to_gpu
from transformers import AutoConfig, AutoModelForCausalLM

from honed.data.batch.collate import FlatCollator
from honed.data.batch.table import PackedRow
from honed.model.adapters.adapters import attach, lora_config
from honed.model.plan import plan
from honed.recipe import LoraRecipe
from honed.train.forward.seams import Seams, base_model, opened
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.loop.state import Run
from honed.train.ranks import Ranks

pytestmark = needs_fake_cuda
SHAPE = {"vocab_size": 400, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
BF16, HALF = {"dtype": "bfloat16"}, torch.bfloat16
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"options": BF16},
    "bfloat16 weights": {"weights": HALF},
    "float16": {"options": {"dtype": "float16"}},
    "untied": {"options": BF16, "shape": {"tie_word_embeddings": False}},
    "lora, recomputed": {"options": {**BF16, "gradient_checkpointing": True}, "weights": HALF, "lora": True},
    "window": {"options": BF16, "family": "gemma3_text", "shape": {"sliding_window": 32}},
    "soft cap": {"options": BF16, "family": "gemma2", "shape": {"sliding_window": 32}},
    "sinks, experts with biases": {
        "options": BF16, "family": "gpt_oss", "shape": {"num_local_experts": 4, "num_experts_per_tok": 2},
    },
    "experts": {"options": BF16, "family": "qwen3_moe", "shape": MOE},
    "shared prefixes": {"options": BF16, "share": True},
    "shared prefixes, float32": {"share": True},
    "accumulated, noise, muon": {"options": {**BF16, "accumulation": 2, "neftune_alpha": 5.0, "optimizer": "muon"}},
}  # fmt: skip


def rows_of(count: int, length: int, vocabulary: int) -> list[PackedRow]:
    """Two documents each, which begin alike."""
    draw, rows = np.random.default_rng(0), []
    for _ in range(count):
        ids = draw.integers(3, vocabulary, length).astype(np.int32)
        ids[:20] = ids[length // 2 : length // 2 + 20] = np.arange(20)
        weights = np.ones(length, dtype=np.float32)
        weights[[0, length // 2]] = 0.0
        rows.append(PackedRow(input_ids=ids, weights=weights, lengths=(length // 2, length - length // 2)))
    return rows


def model_of(family: str, shape: dict[str, Any], weights: torch.dtype = torch.float32, *, lora: bool = False) -> Any:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).to(weights)
    return attach(model, lora_config(r=4)) if lora else model


@contextmanager
def begun(model: Any, *, lora: bool = False, rows: int = 2, **options: Any) -> Iterator[Run]:
    """A run at its step 0, on the fake device."""
    to_gpu(model).train()
    config = LoopConfig(max_steps=2, batch_size=rows, **options)
    with opened(model, Seams(flat=True, scoring=True, lora=lora)) as head:
        yield loop.begin(model, rows_of(rows, 40, 400), config, ranks=Ranks(device=GPU), head=head, folder=None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_waits_for_the_device_between_two_logs(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: no tensor is made on the wrong device (an operation would refuse it), none is in float64, and none holds
    the logits of more tokens than a tile has."""
    family, lora = case.get("family", "llama"), case.get("lora", False)
    model = model_of(family, {**SHAPE, **case.get("shape", {})}, case.get("weights", torch.float32), lora=lora)
    monkeypatch.setattr("honed.ops.linear_cross_entropy._rows", lambda *_, **__: 64)  # tokens of a tile
    batch = FlatCollator(share_prefixes=case.get("share", False))(rows_of(2, 160, 400))
    made: list[tuple[torch.dtype, torch.Size]] = []
    with fake_cuda(monkeypatch) as gpu, begun(model, lora=lora, **case.get("options", {})) as run:
        gpu.seen = lambda tensor: made.append((tensor.dtype, tensor.shape))
        gpu.waits.clear()
        norm = loop.train_step(run, [batch] * run.config.accumulation)
        assert not gpu.waits
        assert not [shape for dtype, shape in made if dtype == torch.float64 and shape]  # a scalar is the scaler's
        vocabulary = model.get_input_embeddings().weight.shape[0]
        assert max(shape.numel() for _, shape in made if shape[-1:] == (vocabulary,)) == 64 * vocabulary
        assert loop.measured(run, norm)["memory_gb"] == gpu.most / 1e9
        assert len(gpu.waits) == 5  # the loss, the norm, three sums


LARGE = {"vocab_size": 32_000, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
         "intermediate_size": 3072, "num_hidden_layers": 3, "tie_word_embeddings": False}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The following")  # of peft, about patterns that it sets itself
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_the_planned_peak_is_that_of_the_step(
    family: str, lora: bool, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what torch's allocator hands out; context, workspaces and fragments are the plan's `overhead`."""
    shape = {
        **LARGE,
        **({"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512} if "moe" in family else {}),
    }
    model = model_of(family, shape, HALF if lora else torch.float32, lora=lora)
    job = plan.job_for(
        base_model(model).config,
        method="lora" if lora else "full",
        length=1024,
        rows=4,
        checkpointing=recomputed,
        lora=LoraRecipe(r=4),
    )
    batch = FlatCollator()(rows_of(4, 1024, 32_000))
    options = {**BF16, "gradient_checkpointing": recomputed, "router_aux_loss_coef": 0.0 if "moe" in family else None}
    with fake_cuda(monkeypatch) as gpu, begun(model, lora=lora, rows=4, **options) as run:
        for _ in range(2):  # the first has no states yet
            loop.train_step(run, [batch])
    parts = plan.estimate(job).parts
    assert parts.total - parts.overhead == pytest.approx(gpu.most, rel=0.1)
