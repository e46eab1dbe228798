"""Which layers recompute their activations, and that it changes memory alone: gradients stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from honed import SFTConfig, SFTTrainer
from honed.errors import RecipeError
from honed.model import memory
from honed.model.adapters.adapters import lora_config
from honed.model.adapters.trainable import train_only
from honed.model.plan import plan
from honed.train.forward import checkpointing
from honed.train.forward.checkpointing import decide, decoder_layers, largest_batch
from honed.train.forward.seams import find_seams, opened
from honed.train.loop.config import LoopConfig
from honed.train.loop.loop import begin, train_step
from honed.train.ranks import joined

LAYERS = 4
ROWS = [{"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "word " * n}]}
        for n in (2, 9, 5, 3)]  # fmt: skip


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama", num_hidden_layers=LAYERS).double()


@pytest.fixture
def make(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., SFTTrainer]:
    def trainer(*, peft_config: Any = None, **options: Any) -> SFTTrainer:
        own = {"max_steps": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        args = SFTConfig(output_dir=str(tmp_path), **{**own, "train_on": "assistant", "template": "plain", **options})
        return SFTTrainer(model, args, train_dataset=ROWS, processing_class=tiny_tokenizer, peft_config=peft_config)

    return trainer


def recomputing(model: Any) -> list[bool]:
    return [layer.gradient_checkpointing for layer in decoder_layers(model)]


class Seen:
    """The gradients and the flags of a step, taken while training runs."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.flags: list[bool] = []
        clip = trainer.accelerator.clip_grad_norm_

        def look(*args: Any, **kwargs: Any) -> Any:
            self.flags = recomputing(trainer.model)
            self.gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            return clip(*args, **kwargs)

        trainer.accelerator.clip_grad_norm_ = look
        trainer.train()


WAYS = {"selective": [True, True, False, False], "full": [True] * 4, "none": [False] * 4, "auto": [False] * 4}


@pytest.mark.parametrize("changes", [{}, {"packing": True, "max_length": 256}, {"share_prefixes": True}], ids=str)
@pytest.mark.parametrize("adapter", [False, True])
def test_every_way_gives_the_gradients_of_none(
    adapter: bool, changes: dict[str, Any], model: Any, make: Callable[..., SFTTrainer]
) -> None:
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = {}
    for way, flags in WAYS.items():
        config = lora_config(r=2, dropout=0.0 if "share_prefixes" in changes else 0.3) if adapter else None
        trainer = make(gradient_checkpointing=way, peft_config=config, **changes)
        torch.manual_seed(0)
        found[way] = Seen(trainer)
        assert found[way].flags == flags
        if adapter:
            trainer.model.unload()
        model.load_state_dict(state)
    assert found["none"].gradients
    for seen in found.values():
        assert seen.gradients.keys() == found["none"].gradients.keys()
        for name, expected in found["none"].gradients.items():
            torch.testing.assert_close(seen.gradients[name], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_the_plain_loop_recomputes_the_first_layers_and_gets_the_same_gradients(
    count: int, model: Any, make: Callable[..., SFTTrainer]
) -> None:
    trainer = make(gradient_checkpointing=False)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(ROWS))])
    norms, seams = [], find_seams(model)
    for config in (LoopConfig(), LoopConfig(gradient_checkpointing=count > 0, recomputed_layers=count)):
        with joined("cpu") as ranks, opened(model, seams) as head:
            run = begin(model.train(), trainer.train_dataset, config, ranks=ranks, head=head, folder=None)
            state = {name: weight.clone() for name, weight in model.state_dict().items()}
            norms.append(train_step(run, [batch]))
        model.load_state_dict(state)
    assert recomputing(model) == [n < count for n in range(LAYERS)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-12, atol=0)


def test_the_budget_is_for_the_weights_that_are_trained(make: Callable[..., SFTTrainer], model: Any) -> None:
    """A model that freezes the others is no model with an adapter, which keeps other activations."""
    args = make(gradient_checkpointing=False).args
    train_only(model, [rf"layers\.{LAYERS - 1}\."])
    job = checkpointing.job_in(model, args, 64, 4)
    assert job.adapter is None and job.idle_layers == LAYERS - 1
    assert job.trained_weights == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_smaller_budget_recomputes_more_layers_and_says_so(make: Callable[..., SFTTrainer], model: Any) -> None:
    job = checkpointing.job_in(model, make(gradient_checkpointing=False).args, *(4 * 512, 4))
    args = make(gradient_checkpointing="auto", memory_budget=1.0).args
    args.gradient_checkpointing = "auto"
    peaks = [plan.estimate(replace(job, checkpointing=n > 0, recomputed=n)).peak for n in range(LAYERS + 1)]
    assert peaks[:LAYERS] == sorted(peaks[:LAYERS], reverse=True)
    for layers in range(LAYERS):
        args.memory_budget = peaks[layers] / plan.GB
        found = decide(args, model, (4 * 512, 4))
        assert found.layers == layers
        assert (found.note is None) == (layers == 0)  # where all fits there is nothing to tell
        assert found.note is None or ("memory_budget" in found.note and "more operations" in found.note)
    args.memory_budget = 0.001
    found = decide(args, model, (4 * 512, 4))
    assert found.layers == LAYERS and "that is too much" in str(found.note)


def test_without_a_budget_the_free_memory_decides(
    make: Callable[..., SFTTrainer], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = make(gradient_checkpointing=False).args
    args.gradient_checkpointing = "auto"
    for free, layers in ((10**12, 0), (1, LAYERS), (None, LAYERS)):
        monkeypatch.setattr(checkpointing, "free_memory", lambda device, free=free: free)
        assert decide(args, model, (4 * 512, 4)).layers == layers


def test_what_cannot_be_planned_recomputes_all(make: Callable[..., SFTTrainer], model: Any) -> None:
    args = make(gradient_checkpointing=False).args
    args.gradient_checkpointing = "auto"
    for found in (decide(args, model, None), decide(args, model, (64, 1), is_multimodal=True)):
        assert found.layers == LAYERS and "all layers, because" in str(found.note)


def test_the_largest_micro_batch_is_that_of_the_longest_rows(make: Callable[..., SFTTrainer]) -> None:
    trainer = make(gradient_checkpointing=False, per_device_train_batch_size=2)
    lengths = sorted(sum(trainer.train_dataset[n].lengths) for n in range(len(ROWS)))
    assert largest_batch(trainer.train_dataset, trainer.args) == (sum(lengths[-2:]), 2)
    assert largest_batch(trainer.train_dataset, trainer.args, padded=True) == (2 * lengths[-1], 2)
    assert largest_batch(None, trainer.args) == (2 * trainer.args.max_length, 2)
    trainer.args.max_length = None
    assert largest_batch(None, trainer.args) is None


@pytest.mark.parametrize(("given", "value"), [("full", True), ("none", False), ("True", True), ("auto", "auto")])
def test_words_become_values_under_both_names(given: str, value: bool | str, tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), gradient_checkpointing=given, use_cpu=True)
    assert args.gradient_checkpointing == value
    assert getattr(args, "activation_checkpointing", value) == value


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gradient_checkpointing is 'some'"):
        SFTConfig(output_dir=str(tmp_path), gradient_checkpointing="some")


def test_free_memory_of_the_host_is_below_its_total() -> None:
    total, free = memory.host_memory()
    assert 0 < free < total
    assert memory.free_memory(torch.device("cpu")) == pytest.approx(free, rel=0.5)
    assert memory.free_memory(torch.device("meta")) is None
