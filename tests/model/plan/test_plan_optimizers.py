"""What optimizers keep and need: the real ones take steps, and their tensors are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import OptimizerNames

from benchmarks.alive import Alive
from honed import SFTConfig, SFTTrainer
from honed.errors import RecipeError
from honed.model.plan import plan
from honed.model.plan.optimizers import (
    BITSANDBYTES,
    DEFAULT,
    KNOWN,
    ROUNDED_AT_A_TIME,
    TORCHAO,
    Optimizer,
    optimizer_for,
    paged_bytes,
    state_bytes,
    step_bytes,
)
from honed.model.plan.sizes import Tensors, trained_tensors
from honed.train.optimizers.stochastic_rounding import CHUNK_ELEMENTS
from honed.train.options.optim import planned

# Matrices above and below what is quantised (4,096 numbers), some that blocks of 256 do not fill.
SHAPE = {"hidden_size": 64, "intermediate_size": 101, "vocab_size": 400, "head_dim": 16}
ROWS = [{"input_ids": [3, 4, 5, 6, 7, 8]}] * 4
MAPS = ("qmap1", "qmap2")  # bitsandbytes' tables, which all weights share
EXTRA = {
    "sgd with momentum": ("sgd", "momentum=0.9"),
    "rmsprop centered": ("rmsprop", "momentum=0.5,centered=true"),
    "stochastic rounding": ("adamw_torch", "bf16_stochastic_round=True"),
}
PACKAGES = {"stable_adamw": "optimi", "schedule_free": "schedulefree", **dict.fromkeys(BITSANDBYTES, "bitsandbytes")}


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """bitsandbytes keeps for the whole process which weights stay in 32 bits, by their address."""
    yield
    try:
        from bitsandbytes.optim import GlobalOptimManager
    except ImportError:
        return
    GlobalOptimManager.get_instance().initialize()


@pytest.fixture
def make(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., tuple[Any, Optimizer]]:
    """A model's optimizer as `SFTTrainer` makes it, and as it is planned."""

    def build(model: Any, name: str, optim_args: str | None = None, **options: Any) -> tuple[Any, Optimizer]:
        for part, package in PACKAGES.items():
            if part in name:
                pytest.importorskip(package)
        args = SFTConfig(
            output_dir=str(tmp_path),
            optim=name,
            optim_args=optim_args,
            max_steps=1,
            bf16=False,
            use_cpu=True,
            report_to=[],
            train_on="all",
            **options,
        )
        trainer = SFTTrainer(model, args, train_dataset=ROWS, processing_class=tiny_tokenizer)
        return trainer.create_optimizer(), planned(args, in_backward=args.optimizer_in_backward)

    return build


def take_step(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.randn_like(weight)
    getattr(optimizer, "train", lambda: None)()  # schedule-free ones have a mode
    for group in optimizer.param_groups:
        if "triton" in group:  # optimi looks for a GPU where triton is installed
            group["triton"] = False
    optimizer.step()


def held(optimizer: Any) -> int:
    """Bytes of the tensors of its state."""
    tensors = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in MAPS
    ]
    return sum({id(t): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.filterwarnings("ignore")  # paged memory is CUDA's; a model in bfloat16 is told off
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted({*KNOWN, *EXTRA} - set(TORCHAO)))
def test_state_is_planned_to_the_byte(name: str, dtype: Any, make: Callable[..., Any], tiny_model: Any) -> None:
    model = tiny_model("llama", dtype=dtype, **SHAPE)
    optimizer, as_planned = make(model, *EXTRA.get(name, (name,)))
    take_step(optimizer)
    config = model.config
    job = plan.job_for(config, method="full", device="cpu", dtype=str(dtype).removeprefix("torch."))
    assert plan.estimate(replace(job, optimizer=as_planned)).parts.optimizer == held(optimizer)


@pytest.mark.parametrize("name", ["muon", "adafactor", "adamw_torch_fused", "adamw_8bit", "lion_8bit"])
def test_states_of_experts_and_of_heads_of_their_own(name: str, make: Callable[..., Any], tiny_model: Any) -> None:
    model = tiny_model("qwen3_moe", num_experts=4, num_experts_per_tok=2, tie_word_embeddings=False, **SHAPE)
    optimizer, as_planned = make(model, name)
    take_step(optimizer)
    job = plan.job_for(model.config, method="full", device="cpu")
    assert plan.estimate(replace(job, optimizer=as_planned)).parts.optimizer == held(optimizer)


@pytest.mark.parametrize("name", ["muon", "adafactor", "adamw_torch_fused", "paged_adamw_8bit"])
def test_state_of_an_adapter(name: str, make: Callable[..., Any], tiny_model: Any) -> None:
    pytest.importorskip("peft")
    from honed.model.adapters.adapters import lora_config, ready_to_train
    from honed.recipe import LoraRecipe

    model = tiny_model("llama", **SHAPE)
    job = plan.job_for(model.config, device="cpu", lora=LoraRecipe(r=8))
    model, _ = ready_to_train(model, lora_config(r=8), checkpointing=False)
    optimizer, as_planned = make(model, name)
    with pytest.warns(UserWarning) if "paged" in name else memoryview(b""):  # type: ignore[attr-defined]
        take_step(optimizer)
    assert plan.estimate(replace(job, optimizer=as_planned)).parts.optimizer == held(optimizer)
    assert trained_tensors(model) == job.trained


@pytest.mark.parametrize(("name", "bits"), TORCHAO.items())
def test_torchaos_states(name: str, bits: int) -> None:
    """Their steps want a compiler; their states are there before it."""
    optim = pytest.importorskip("torchao.optim")
    kind = optim.AdamW8bit if bits == 8 else optim.AdamW4bit
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 64), (100, 41), (128,), (300, 64))]
    optimizer = kind(weights, block_size=256)
    with torch.compiler.set_stance("force_eager"):
        take_step(optimizer)
    found = 0
    for state in optimizer.state.values():
        for value in state.values():
            parts = (
                [value] if type(value) is torch.Tensor else [getattr(value, n) for n in value.__tensor_flatten__()[0]]
            )
            found += sum(part.nbytes for part in parts)
    tensors = [Tensors(shape=tuple(weight.shape)) for weight in weights]
    assert state_bytes(Optimizer(name=name), tensors, weight=4) == found


IN_ONE_GO = ("adamw_torch", "adagrad", "rmsprop", "stable_adamw", "sgd with decay")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "device"),
    [
        *((name, "cpu") for name in (*IN_ONE_GO, "adamw_torch_fused", "sgd", "adafactor", "muon", "lion_32bit")),
        *((name, "cpu") for name in ("schedule_free_adamw", "schedule_free_sgd", "stochastic rounding")),
        *((name, "cuda") for name in IN_ONE_GO),
    ],
)
def test_temporaries_of_a_step(name: str, device: str, dtype: Any, make: Callable[..., Any], tiny_model: Any) -> None:
    """On CUDA torch works on all weights at once ("foreach"), which a CPU does where it is told to."""
    model = tiny_model("llama", dtype=dtype, **SHAPE)
    options = {"weight_decay": 0.1} if name == "sgd with decay" else {}
    optimizer, as_planned = make(model, *EXTRA.get(name, (name.partition(" with ")[0],)), **options)
    if device == "cuda":
        for group in optimizer.param_groups:
            group["foreach"] = True
    take_step(optimizer)
    weights = list(model.parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    with Alive([*weights, *(w.grad for w in weights if w.grad is not None), *states]) as alive:
        optimizer.step()
    said = step_bytes(as_planned, trained_tensors(model), weight=dtype.itemsize, device=device)
    assert 0.8 * said - 100 <= alive.most <= 1.01 * said + 100


def test_names_are_those_of_a_run(tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    assert args.optim.value == DEFAULT
    assert {kind.value for kind in OptimizerNames} | {"muon"} >= KNOWN
    assert ROUNDED_AT_A_TIME == CHUNK_ELEMENTS
    unknown = Optimizer(name="galore_adamw")
    tensors = [Tensors(shape=(10, 20), count=3)]
    assert "galore_adamw is not known" in unknown.doubt and not Optimizer().doubt
    assert state_bytes(unknown, tensors, weight=4) == state_bytes(Optimizer(), tensors, weight=4) == 3 * (1600 + 4)


def test_what_can_be_paged_out_are_states_of_large_tensors() -> None:
    small, large = Tensors(shape=(100, 100)), Tensors(shape=(1000, 256), count=2)
    paged = Optimizer(name="paged_adamw_32bit")
    assert paged_bytes(paged, [small, large], weight=4) == 2 * 8 * 256_000
    assert paged_bytes(Optimizer(name="adamw_8bit"), [small, large], weight=4) == 0


def test_an_option_that_is_no_number() -> None:
    with pytest.raises(RecipeError, match="'fast' is not a valid momentum"):
        state_bytes(optimizer_for("sgd", "momentum=fast"), [Tensors(shape=(2, 2))], weight=4)
