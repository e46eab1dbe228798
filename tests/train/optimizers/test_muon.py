"""Muon with AdamW: steps are torch's own, each weight has its right optimizer, a resumed run is the whole one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftConfig, get_peft_model
from torch import nn

from honed.errors import RecipeError, RunError
from honed.train.loop import loop
from honed.train.loop.config import LoopConfig
from honed.train.optimizers.muon import MuonWithAdamW, make_muon, muon_options, note_on_muon, split
from honed.train.trainer.trainer import SFTTrainer

Models = Callable[..., Any]
Trainers = Callable[..., SFTTrainer]
HYPER = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RUN = {"optim": "muon", "learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 1.0, "lr_scheduler_type": "linear"}


def names_of_muon(model: nn.Module) -> set[str]:
    """Which weights are Muon's, and that none is lost or given twice."""
    matrices, others = split(model)
    of = {id(p): name for name, p in model.named_parameters()}
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, [*matrices, *others])) == sorted(trained)
    return {of[id(p)] for p in matrices}


def backward(model: nn.Module, seed: int) -> None:
    """Gradients of one batch."""
    ids_BL = torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids_BL, labels=ids_BL).loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_steps_are_those_of_torchs_muon_and_adamw_apart(dtype: torch.dtype, tied: bool, tiny_model: Models) -> None:
    one = tiny_model("qwen2", dtype=dtype, tie_word_embeddings=tied)  # has biases
    two = copy.deepcopy(one)
    ours = make_muon(one, **HYPER)
    hidden = [p for n, p in two.named_parameters() if p.ndim == 2 and ".layers." in n]
    tables = [p for n, p in two.named_parameters() if p.ndim == 2 and ".layers." not in n]
    vectors = [p for p in two.parameters() if p.ndim < 2]
    assert len(tables) == (1 if tied else 2) and len(hidden) == 14
    options = {"lr": HYPER["lr"], "weight_decay": HYPER["weight_decay"]}
    muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options)
    adamw = torch.optim.AdamW([{"params": tables}, {"params": vectors, "weight_decay": 0.0}], fused=True, **HYPER)
    rate = HYPER["lr"]
    for step in range(4):
        for model, optimizers in ((one, [ours]), (two, [muon, adamw])):
            for optimizer in optimizers:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = rate / (step + 1)
            backward(model, seed=step)
            for optimizer in optimizers:
                optimizer.step()
        for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b), f"{name} in step {step}"


def test_closures_are_called_with_gradients(tiny_model: Models) -> None:
    model = tiny_model()
    optimizer = make_muon(model, **HYPER)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        backward(model, seed=0)
        return torch.tensor(1.5)

    assert optimizer.step(closure) == 1.5 and len(optimizer.state) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_are_adamws(tied: bool, tiny_model: Models) -> None:
    names = names_of_muon(tiny_model(tie_word_embeddings=tied))
    kinds = {name.split(".")[-2] for name in names}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_gpt2s_layers_are_matrices_and_its_places_a_table(tiny_model: Models) -> None:
    names = names_of_muon(tiny_model("gpt2", n_embd=32, n_head=4))
    expected = {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert {name.split(".", 3)[-1] for name in names} == expected


def test_stacked_experts_are_adamws_and_their_router_is_muons(tiny_model: Models) -> None:
    model = tiny_model("qwen3_moe", **MOE)
    names = names_of_muon(model)
    assert not [name for name in names if "experts" in name]
    assert [name for name in names if name.endswith("mlp.gate.weight")]
    stacked = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    assert stacked > 0 and f"{stacked:,} of them in three-dimensional weights" in note_on_muon(model)


def test_biases_of_all_experts_are_no_matrix(tiny_model: Models) -> None:
    model = tiny_model("gpt_oss", num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2)
    biases = [n for n, p in model.named_parameters() if p.ndim == 2 and n.endswith("bias")]
    assert biases and not names_of_muon(model) & set(biases)


LORA = {"r": 4, "task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, tuple[PeftConfig, set[str]]] = {  # and the ends of the names of what Muon trains
    "lora": (LoraConfig(target_modules="all-linear", **LORA), {"lora_A.default.weight", "lora_B.default.weight"}),
    "dora": (
        LoraConfig(target_modules=["q_proj"], use_dora=True, **LORA),
        {"lora_A.default.weight", "lora_B.default.weight"},
    ),
    "tables": (
        LoraConfig(target_modules=["q_proj", "embed_tokens", "lm_head"], **LORA),
        {"q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"},
    ),
    "whole head": (
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"], **LORA),
        {"q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"},
    ),
    "whole layer": (
        LoraConfig(target_modules=["q_proj"], modules_to_save=["o_proj"], **LORA),
        {"q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight", "o_proj.modules_to_save.default.weight"},
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_and_b_of_lora_are_muons(name: str, tiny_model: Models) -> None:
    config, ends = ADAPTERS[name]
    names = names_of_muon(get_peft_model(tiny_model(tie_word_embeddings=False), config))
    assert all(name.endswith(tuple(ends)) for name in names)
    assert ends == {end for end in ends if any(name.endswith(end) for name in names)}
    assert not [name for name in names if "embed_tokens" in name or "lm_head" in name or "magnitude" in name]


def test_lora_of_stacked_experts_is_adamws(tiny_model: Models) -> None:
    model = tiny_model("qwen3_moe", **MOE)
    stacked = LoraConfig(
        target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"], **LORA
    )
    names = names_of_muon(get_peft_model(model, stacked))
    assert names and all("q_proj" in name for name in names)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_matrix_it_is_refused(tiny_model: Models) -> None:
    angles = OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0, task_type="CAUSAL_LM")
    with pytest.raises(RecipeError, match="needs matrices of hidden layers to train"):
        split(get_peft_model(tiny_model(), angles))


def test_matrices_in_parts_are_refused(tiny_model: Models) -> None:
    model = tiny_model()
    model.model.layers[0].self_attn.q_proj.weight.full_tensor = lambda: None  # as a DTensor has
    with pytest.raises(RecipeError, match="is split over several devices"):
        split(model)


def test_options_reach_muon_alone(make: Trainers, chat_rows: Any) -> None:
    options = "lr=0.5, momentum=0.9,nesterov=False,ns_steps=3,adjust_lr_fn=original"
    trainer = make(chat_rows, **{**RUN, "optim_args": options}, max_steps=1)
    *adamw, muon = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in adamw] == [0.01] * len(adamw) and muon["lr"] == 0.5
    assert (muon["momentum"], muon["nesterov"], muon["ns_steps"], muon["adjust_lr_fn"]) == (0.9, False, 3, "original")


@pytest.mark.parametrize("text", ["ns_step=3", "ns_steps=many", "nesterov=perhaps", "adjust_lr_fn=mine", "momentum"])
def test_options_that_there_are_not_are_refused(text: str, make: Trainers, chat_rows: Any) -> None:
    with pytest.raises(RecipeError, match="optim_args"):
        make(chat_rows, **{**RUN, "optim_args": text})


def test_no_options_are_none() -> None:
    assert muon_options(None) == muon_options("") == {}


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear", **LORA)], ids=["full", "lora"])
def test_the_loss_falls(adapter: Any, make: Trainers, tiny_model: Models, chat_rows: Any) -> None:
    changes = {"learning_rate": 0.01} if adapter is None else {"learning_rate": 0.05, "peft_config": adapter}
    job = {**RUN, "max_steps": 12, "per_device_train_batch_size": 12, **changes}
    trainer = make(chat_rows, model=tiny_model(), **job)
    assert any(note.startswith("optim='muon': Muon trains") for note in trainer.notes)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert isinstance(trainer.optimizer.optimizer, MuonWithAdamW)


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear", **LORA)], ids=["full", "lora"])
def test_a_resumed_run_is_bit_equal(
    adapter: Any, make: Trainers, tiny_model: Models, chat_rows: Any, tmp_path: Path
) -> None:
    job = {**RUN, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    job |= {} if adapter is None else {"peft_config": adapter}
    whole = make(chat_rows, model=tiny_model(), **job)
    whole.train()
    resumed = make(chat_rows, model=tiny_model(), **job)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    ends = [trainer.state.log_history[-2]["grad_norm"] for trainer in (whole, resumed)]
    assert ends[0] == ends[1]


def test_a_checkpoint_of_adamw_is_told(make: Trainers, tiny_model: Models, chat_rows: Any, tmp_path: Path) -> None:
    job = {**RUN, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make(chat_rows, model=tiny_model(), **{**job, "optim": "adamw_torch"}).train()
    with pytest.raises(RunError, match="not Muon with AdamW"):
        make(chat_rows, model=tiny_model(), **job).train(str(tmp_path / "out" / "checkpoint-1"))


def test_in_float16_steps_go_through_the_scaler(make: Trainers, tiny_model: Models, chat_rows: Any) -> None:
    """The scaler knows one optimizer; its overflow check must stop both parts."""
    model = tiny_model()
    optimizer = make_muon(model, **HYPER)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, seed=0)
    scaler.scale(torch.ones(()))
    next(model.parameters()).grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**9


def test_the_plain_engine_takes_the_same_steps(tiny_model: Models) -> None:
    one = tiny_model()
    two = copy.deepcopy(one)
    config = LoopConfig(optimizer="muon", learning_rate=0.02, weight_decay=0.1, betas=(0.8, 0.95), epsilon=1e-6)
    for model, optimizer in ((one, loop.make_optimizer(one, config)), (two, make_muon(two, **HYPER))):
        backward(model, seed=0)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
