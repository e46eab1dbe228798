"""bf16=True: every product of the seams in bfloat16, every weight, gradient and moment in float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from honed.errors import RecipeError
from honed.ops import products
from honed.train.forward import seams
from honed.train.optimizers.precision import notes_on_masters
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.linear", "scaled_dot_product", "_linear_pointwise")


class ProductFormats(TorchDispatchMode):
    """Counts the formats of what matrix products and attention are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        outer = "bmm" in name and args[0].shape[-1] == 1  # rotary angles, which transformers computes in float32
        if any(word in name for word in PRODUCTS) and not outer:
            given = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
            self.seen.update((name, arg.dtype) for arg in given[:3])
        return func(*args, **(kwargs or {}))


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_products_are_bfloat16_and_masters_float32(  # noqa: PLR0917 - fixtures
    family: str,
    adapter: bool,
    make: Trainers,
    tiny_model: Callable[..., Any],
    chat_rows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 1)  # so that oneDNN's way would be open
    options: dict[str, Any] = {"bf16": True, "optim": "adamw_torch", "max_steps": 1, "peft_config": None}
    trainer = make(chat_rows, model=tiny_model(family), **{**options, "peft_config": lora() if adapter else None})
    assert trainer.seams.flat and trainer.seams.scoring and trainer.seams.lora is adapter
    formats = ProductFormats()
    with formats:
        trainer.train()
    assert {dtype for _, dtype in formats.seen} == {torch.bfloat16}, formats.seen
    assert sum(formats.seen.values()) > 50
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    states = [trainer.optimizer.state[p] for p in trained]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {state[name].dtype for state in states for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}


def test_gradients_are_as_near_as_the_plain_model_s(
    make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    model = tiny_model()
    trainer = make(chat_rows, model=model, bf16=True, gradient_checkpointing=False)
    batch = trainer.data_collator([trainer.train_dataset[1]])  # one document, so that the plain model can take it

    def gradient(opened: seams.Seams, *, autocast: bool) -> torch.Tensor:
        model.zero_grad()
        with seams.opened(model, opened) as head, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores, _ = seams.token_scores(model, batch, head)
        scores.loss.backward()
        found = [p.grad for p in model.parameters()]
        assert {g.dtype for g in found} == {torch.float32}
        return torch.cat([g.flatten() for g in found])

    exact = gradient(seams.Seams(), autocast=False)
    ours, plain = (gradient(way, autocast=True) for way in (trainer.seams, seams.Seams()))
    assert 0 < (ours - exact).norm() < 1.5 * (plain - exact).norm() < 0.1 * exact.norm()


def test_weights_in_float16_are_told_and_refused_beside_a_scaler(
    make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any, quick: dict[str, Any]
) -> None:
    """Else torch says "Attempting to unscale FP16 gradients." in the first step, or the loss explodes after some."""
    half = tiny_model(dtype=torch.float16)
    assert any("weights are trained in float16, without a scaler" in note for note in make(chat_rows, model=half).notes)
    args = SFTConfig(**quick)
    args.fp16 = True  # which transformers refuses on a CPU by itself
    with pytest.raises(RecipeError, match="weights are trained in float16"):
        notes_on_masters(half, args)
    half.requires_grad_(False)
    assert notes_on_masters(half, args) == notes_on_masters(tiny_model(), args) == []
