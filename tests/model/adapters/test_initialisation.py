"""Initial values of LoRA that peft could not make, would leave out, or could not load again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from honed.errors import ModelError
from honed.model.adapters.adapters import fit_config, load_with_adapter, lora_config, ready_to_train

CPU = torch.device("cpu")
IDS = torch.arange(3, 20)[None]


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.fixture
def saved(tiny_model: Callable[..., Any], tmp_path: Path) -> Callable[[str], tuple[str, str, torch.Tensor]]:
    """Saves a base and an adapter of peft's own with an initialisation; gives both folders and the logits."""

    def save(init: str) -> tuple[str, str, torch.Tensor]:
        base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
        tiny_model().save_pretrained(base)
        config = LoraConfig(r=4, init_lora_weights=init, target_modules=["q_proj", "down_proj"])
        model = get_peft_model(tiny_model().from_pretrained(base), config)
        model.save_pretrained(adapter)
        return base, adapter, logits_of(model)

    return save


def test_a_random_pissa_cannot_be_loaded_again(
    saved: Callable[[str], tuple[str, str, torch.Tensor]], tiny_model: Callable[..., Any]
) -> None:
    base, adapter, logits = saved("pissa_niter_1")
    plain = tiny_model().from_pretrained(base)
    torch.manual_seed(1)  # as in a process that loads the adapter later
    by_peft = PeftModel.from_pretrained(plain, adapter)
    assert (logits_of(by_peft) - logits).abs().max() > 0.1  # why it is refused
    with pytest.raises(ModelError, match="draws random numbers"):
        load_with_adapter(adapter, device=CPU, dtype=torch.float32)
    with pytest.raises(ModelError, match="'pissa_niter_1' draws random numbers"):
        fit_config(tiny_model(), lora_config(init="pissa_niter_1"))


def test_an_exact_pissa_can(saved: Callable[[str], tuple[str, str, torch.Tensor]]) -> None:
    _, adapter, logits = saved("pissa")
    torch.testing.assert_close(logits_of(load_with_adapter(adapter, device=CPU, dtype=torch.float32)), logits)


@pytest.mark.parametrize("init", ["pissa", "mica", "orthogonal"])
def test_values_made_of_weights_need_an_unquantised_base(init: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    packed = torch.zeros(2, 2, dtype=torch.uint8)  # as bitsandbytes keeps 4-bit weights
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ModelError, match=f"'{init}' needs the weights of the base in 16 or 32 bits"):
        fit_config(model, lora_config(init=init))


def test_values_made_of_data_that_nobody_passed(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="needs gradients of the base"):
        fit_config(model, lora_config(init="lora_ga"))
    model.model.layers[0].self_attn.q_proj._peft_loraga_grad = torch.zeros(1)  # by peft's preprocess_loraga
    assert fit_config(model, lora_config(init="lora_ga"))[1] == []
    with pytest.warns(UserWarning, match="eva_config"):
        _, notes = fit_config(model, lora_config(init="eva"))
    assert "starts like the default until you call" in notes[0]


@pytest.mark.parametrize("own", [False, True])
def test_alora_is_refused(own: bool, tiny_model: Callable[..., Any]) -> None:
    """In a flat batch peft finds the last invocation only, and adapts nothing before it."""
    config = LoraConfig(alora_invocation_tokens=[5, 6], target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config) if own else tiny_model()
    with pytest.raises(ModelError, match="aLoRA needs padded batches"):
        ready_to_train(model, None if own else config)
