"""Whole training by SFTTrainer on a CUDA device that is not there: what makes the host wait for it, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from fake_cuda import GPU, FakeCuda, fake_cuda, needs_fake_cuda, to_gpu
from peft import LoraConfig
from torch import is_tensor
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from honed import SFTTrainer
from honed.model.load.load import load_model

# Of peft about patterns that it sets itself, of torch's compiler about what it imports, and of Deterministic
pytestmark = [
    needs_fake_cuda,
    pytest.mark.filterwarnings("ignore:Deterministic", "ignore:The following", "ignore:`torch.jit"),
]
ROUNDED = {"optim": "adamw_torch_fused", "optim_args": "bf16_stochastic_round=True"}
IN_BACKWARD = {"optimizer_in_backward": True, "optim": "adamw_torch_fused"}
OPTIONS = {"bf16": True, "max_steps": 3, "per_device_train_batch_size": 2, "train_on": "all", "logging_steps": 3}
CASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"optim": "adamw_torch_fused", "max_grad_norm": 1.0},
    "accumulated, noise, every second layer recomputed": {
        "gradient_accumulation_steps": 2, "neftune_noise_alpha": 5.0, "gradient_checkpointing": "selective",
    },
    "shared prefixes, offloaded": {"share_prefixes": True, "activation_offloading": True},
    "steps by tokens, float32": {"tokens_per_step": 300, "bf16": False},
    "rounded": {**ROUNDED, "weights": torch.bfloat16},
    "rounded in backward": {**ROUNDED, **IN_BACKWARD, "weights": torch.bfloat16},
    "lora with dropout": {"peft_config": LoraConfig(r=4, lora_dropout=0.1), "weights": torch.bfloat16},
    "sinks, windows, experts": {"family": "gpt_oss", "shape": {"num_local_experts": 4, "num_experts_per_tok": 2}},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager", "gradient_checkpointing": False},
    "evaluated": {"evaluated": True, "eval_strategy": "steps", "eval_steps": 1},
}  # fmt: skip


def rows_of(count: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [{"input_ids": [*range(3, 43), *draw.integers(3, 400, 20 + n % 5)]} for n in range(count)]


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


def waits_of(trainer: SFTTrainer, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """What waited in each step of a training on the fake device."""
    with monkeypatch.context() as patch, fake_cuda(patch) as gpu:
        put_on(trainer, patch)
        waits = Waits(gpu)
        trainer.add_callback(waits)
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    return waits.steps


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_thing_is_read_in_a_step(
    case: dict[str, Any], make: Callable[..., SFTTrainer], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the step is finite, which must be known before it is taken. With the optimizer in the backward pass the
    norm is looked at as well: that step has been taken."""
    case = dict(case)
    model = tiny_model(case.pop("family", "qwen3"), dtype=case.pop("weights", torch.float32), **case.pop("shape", {}))
    case |= {"eval_dataset": rows_of(5)} if case.pop("evaluated", False) else {}
    trainer = make(rows_of(24), model=model, **{**OPTIONS, **case})
    waits = waits_of(trainer, monkeypatch)
    expected = Counter({"_finite": 1} | ({"_get_grad_norm": 1} if "optimizer_in_backward" in case else {}))
    assert waits == [expected] * 3


@pytest.mark.parametrize("shape", [{}, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}],
                         ids=["nf4", "nf4+experts"])  # fmt: skip
def test_one_thing_is_read_in_a_step_of_qlora(
    shape: dict[str, Any],
    make: Callable[..., SFTTrainer],
    tiny_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
    tiny_model("qwen3_moe" if shape else "qwen3", **sizes, **shape).save_pretrained(tmp_path / "base")
    kind = "nf4+experts" if shape else "nf4"
    model = load_model(str(tmp_path / "base"), device=torch.device("cpu"), dtype="bfloat16", quantization=kind)
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = make(rows_of(24), model=model, peft_config=lora, **OPTIONS)
    waits = waits_of(trainer, monkeypatch)
    assert waits == [Counter({"_finite": 1})] * 3


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "barrier")


def test_nccl_gets_tensors_of_the_gpu_alone(
    make: Callable[..., SFTTrainer], tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first of two processes, the other of which has the same: NCCL knows no tensors on the host."""
    sent: list[tuple[str, set[str]]] = []

    def collective(name: str) -> Callable[..., None]:
        def send(*args: Any, **kwargs: Any) -> None:
            sent.append((name, {leaf.device.type for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}))

        return send

    def gather_objects(found: list[Any], mine: Any, **_: Any) -> None:
        found[:] = [mine] * len(found)

    options = {**OPTIONS, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make(rows_of(24), model=tiny_model("qwen3"), eval_dataset=rows_of(5), **options)
    two = {"num_processes": 2, "distributed_type": DistributedType.MULTI_GPU, "backend": "nccl", "device": GPU}
    with monkeypatch.context() as patch, fake_cuda(patch):
        for name in COLLECTIVES:
            patch.setattr(torch.distributed, name, collective(name))
        patch.setattr(torch.distributed, "all_gather_object", gather_objects)
        patch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
        patch.setattr(Accelerator, "prepare_model", lambda self, model, **_: (self._models.append(model), model)[1])
        for state in (PartialState._shared_state, AcceleratorState._shared_state):
            state.update(two)
        trainer.args.distributed_state.__dict__.update(two)
        put_on(trainer, patch)
        gather = trainer.accelerator.gather
        # none was asked to stop, which cannot be read here
        read = {torch.int64: torch.zeros(2)}
        patch.setattr(trainer.accelerator, "gather", lambda mine: read.get(mine.dtype, gather(mine)))
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(sent) > 8 and {name for name, _ in sent} >= {"all_reduce", "all_gather_into_tensor"}
    assert [name for name, devices in sent if devices - {"cuda"}] == []
