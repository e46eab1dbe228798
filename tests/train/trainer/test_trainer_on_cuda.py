"""Whole training by SFTTrainer on a CUDA device that is not there: what makes the host wait for it, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from fake_cuda import GPU, FakeCuda, fake_cuda, needs_fake_cuda, to_gpu
from transformers import TrainerCallback

from honed import SFTTrainer

pytestmark = needs_fake_cuda
ROUNDED = {"optim": "adamw_torch_fused", "optim_args": "bf16_stochastic_round=True"}
IN_BACKWARD = {"optimizer_in_backward": True, "optim": "adamw_torch_fused"}
CASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"optim": "adamw_torch_fused", "max_grad_norm": 1.0},
    "accumulated, noise, every second layer recomputed": {
        "gradient_accumulation_steps": 2, "neftune_noise_alpha": 5.0, "gradient_checkpointing": "selective",
    },
    "shared prefixes, offloaded": {"share_prefixes": True, "activation_offloading": True},
    "steps by tokens, float32": {"tokens_per_step": 300, "bf16": False},
    "rounded": {**ROUNDED, "weights": torch.bfloat16},
    "rounded in backward": {**ROUNDED, **IN_BACKWARD, "weights": torch.bfloat16},
}  # fmt: skip


class Waits(TrainerCallback):
    """What waited in each step, before its log."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu, self.steps = gpu, list[Counter[str]]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.gpu.waits.clear()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(Counter(wait.rpartition(" ")[2] for wait in self.gpu.waits))


def put_on(trainer: SFTTrainer, patch: pytest.MonkeyPatch) -> None:
    """What the trainer would have done by itself, were there such a device."""
    for state in (PartialState, AcceleratorState):
        patch.setitem(state._shared_state, "device", GPU)
    patch.setitem(trainer.args.__dict__, "_setup_devices", GPU)
    patch.setattr(trainer.args, "dataloader_pin_memory", True)
    trainer.create_accelerator_and_postprocess()
    patch.setattr(trainer.args, "dataloader_pin_memory", False)  # which torch cannot do here
    patch.setattr(trainer.model, "to", lambda *_, **__: trainer.model)
    to_gpu(trainer.model)
    trainer.metrics = trainer._new_metrics()


@pytest.mark.filterwarnings("ignore:Deterministic")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_thing_is_read_in_a_step(
    case: dict[str, Any], make: Callable[..., SFTTrainer], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the step is finite, which must be known before it is taken. With the optimizer in the backward pass the
    norm is looked at as well: that step has been taken."""
    draw = np.random.default_rng(0)
    rows = [{"input_ids": [*range(3, 43), *draw.integers(3, 400, 20 + n % 5)]} for n in range(24)]
    options = {"bf16": True, "max_steps": 3, "per_device_train_batch_size": 2, "train_on": "all", "logging_steps": 3}
    case = dict(case)
    model = tiny_model("qwen3", dtype=case.pop("weights", torch.float32))
    trainer = make(rows, model=model, **{**options, **case})
    with monkeypatch.context() as patch, fake_cuda(patch) as gpu:
        put_on(trainer, patch)
        waits = Waits(gpu)
        trainer.add_callback(waits)
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    expected = Counter({"_finite": 1} | ({"_get_grad_norm": 1} if "optimizer_in_backward" in case else {}))
    assert waits.steps == [expected] * 3
