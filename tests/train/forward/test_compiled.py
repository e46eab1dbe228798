"""torch_compile: one graph for all layers and lengths, the same gradients, and a model that is its own again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from honed.data.batch.collate import FlatCollator
from honed.errors import ModelError, RecipeError
from honed.train.forward import seams
from honed.train.forward.compiled import compiled_layers, repeated_layers
from honed.train.options import rules
from honed.train.options.config import SFTConfig
from honed.train.trainer.trainer import SFTTrainer

Trainers = Callable[..., SFTTrainer]
BACKEND = "aot_eager"  # traces and differentiates as inductor does, and writes no code
JOB: dict[str, Any] = {"optim": "adamw_torch", "max_steps": 3, "per_device_train_batch_size": 2}
pytestmark = pytest.mark.filterwarnings(  # of torch about itself, while it imports what compiles, and traces
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning", "ignore:.torch.jit:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_gradients_graphs_and_lengths(
    checkpointed: bool, make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    model = tiny_model("qwen3", dtype=torch.float64, num_hidden_layers=3)
    trainer = make(chat_rows, model=model, gradient_checkpointing=checkpointed)
    if checkpointed:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # transformers renamed it on the way to v6
    model.train()
    rows = trainer.train_dataset
    batches = [FlatCollator()([rows[n] for n in numbers]) for numbers in ([0, 1], [2], [3, 4, 5], [6, 7, 8, 9])]
    assert len({batch["input_ids"].shape for batch in batches}) == 4

    def gradients(head: Any) -> Iterator[torch.Tensor]:
        for batch in batches:
            model.zero_grad()
            seams.token_scores(model, batch, head)[0].loss.backward()
            yield torch.cat([p.grad.flatten() for p in model.parameters()])

    with seams.opened(model, trainer.seams) as head:
        plain = list(gradients(head))
        names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
        with compiled_layers(model, backend=BACKEND, checkpointed=checkpointed) as n_regions:
            first = gradients(head)
            found = [next(first)]
            after_one = graphs()
            found += first
        assert n_regions == (12 if checkpointed else 3)
        assert names == list(model.state_dict()) and kinds == [type(module) for module in model.modules()]
    assert 0 < after_one <= 5  # before and behind attention, forward and backward being one; not one for each layer
    assert graphs() == after_one  # nor for each length
    assert not [reason for reason in counters["graph_break"] if "document_attention" not in reason]
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours - theirs).norm() < 1e-10 * theirs.norm()
    assert not [module for module in model.modules() if module._compiled_call_impl is not None]


def test_an_adapter_s_run_learns_and_saves_the_same(
    make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    runs = []
    for backend in (None, BACKEND):
        torch.manual_seed(0)
        options = {**JOB, "torch_compile_backend": backend, "output_dir": str(tmp_path / str(backend))}
        options |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = tiny_model(dtype=torch.float64)
        trainer = make(chat_rows, model=model, eval_dataset=chat_rows[:2], peft_config=adapter, **options)
        trainer.train()
        runs.append(trainer)
    assert graphs() > 0
    plain, compiled = runs
    for ours, theirs in zip(compiled.state.log_history[:-1], plain.state.log_history[:-1], strict=True):
        for key in {"loss", "eval_loss", "grad_norm"} & set(theirs):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9), key
    files = [load_file(tmp_path / name / "checkpoint-2" / "adapter_model.safetensors") for name in ("None", BACKEND)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.allclose(files[0][key], files[1][key], atol=1e-9) for key in files[0])


def test_the_layers_of_families(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    assert repeated_layers(model) == list(model.model.layers)
    with pytest.raises(ModelError, match="no repeated layers"), compiled_layers(nn.Linear(1, 1), backend=BACKEND):
        pass


def test_a_block_within_another_changes_nothing(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    with compiled_layers(model, backend=BACKEND) as outer, compiled_layers(model, backend=BACKEND) as inner:
        assert (outer, inner) == (2, 0)


def test_what_cannot_be_compiled_is_refused(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def check(**options: Any) -> list[str]:
        return rules.check(SFTConfig(**{**quick, "torch_compile": True, **options}))

    with pytest.raises(RecipeError, match="recomputed activations"):
        check(torch_compile_mode="reduce-overhead")
    notes = check(torch_compile_mode="reduce-overhead", gradient_checkpointing=False)
    assert any("recorded for each length" in note for note in notes)
    assert not check(torch_compile_mode="reduce-overhead", gradient_checkpointing=False, pad_to_multiple_of=256)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match="C\\+\\+ compiler"):
        check()


def test_padded_flat_batches_have_one_shape_and_the_same_gradient(
    make: Trainers, tiny_model: Callable[..., Any], chat_rows: Any
) -> None:
    """What CUDA graphs need; on a CPU the shapes are counted, and what padding may not change is."""
    shapes: list[set[Any]] = []
    losses = []
    for multiple in (None, 128):
        options = {**JOB, "optim": "sgd", "packing": True, "max_length": 64, "pad_to_multiple_of": multiple}
        trainer = make(chat_rows, model=tiny_model(dtype=torch.float64), **options)
        batches = list(trainer.get_train_dataloader())
        shapes.append({batch["input_ids"].shape for batch in batches})
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        losses.append([(line["loss"], line["grad_norm"], line["num_tokens"]) for line in lines])
    assert len(shapes[0]) > 1 and shapes[1] == {torch.Size([1, 128])}
    for plain, padded in zip(*losses, strict=True):
        assert padded == pytest.approx(plain, rel=1e-9)
