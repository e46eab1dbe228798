"""What "all-linear" leaves out, and that what it adapts is in use, is told, and comes back from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from honed.errors import ModelError
from honed.model.adapters.adapters import attach, lora_config, ready_to_train
from honed.model.adapters.targets import lost_on_loading, unfit_layers

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 4}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2}
LAGUNA = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_attention_heads_per_layer": [4, 4],
}  # fmt: skip
IDS = torch.arange(5, 14)[None]


def with_random_adapter(model: Any) -> Any:
    adapted = attach(model, lora_config(r=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3)
    return adapted.eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("llama", {}, []),
        ("falcon", {"head_dim": None}, []),  # a linear layer of its own, that is one
        ("mamba", MAMBA, ["mixer.dt_proj", "mixer.out_proj", "mixer.x_proj"]),
        ("jamba", JAMBA, ["mamba.dt_proj", "mamba.out_proj", "mamba.x_proj"]),
        ("llama4_text", {**EXPERTS, "intermediate_size_mlp": 64}, ["feed_forward.router"]),
        ("phimoe", EXPERTS, ["mlp.router"]),
    ],
)
def test_layers_that_no_adapter_fits(
    family: str, options: dict[str, Any], expected: list[str], tiny_model: Callable[..., Any]
) -> None:
    options = {name: value for name, value in options.items() if value is not None}
    if family == "falcon":
        pytest.importorskip("transformers.models.falcon")
        from transformers import AutoConfig, AutoModelForCausalLM

        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 400}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **shape))
    else:
        model = tiny_model(family, **options)
    assert unfit_layers(model) == expected


@pytest.mark.parametrize(("family", "options"), [("mamba", MAMBA), ("jamba", JAMBA)])
def test_an_adapter_is_in_use_and_merges(family: str, options: dict[str, Any], tiny_model: Callable[..., Any]) -> None:
    """Adapters on a Mamba layer's dt_proj get no gradient, and merging them would change the model."""
    adapted = with_random_adapter(tiny_model(family, **options))
    adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    idle = [name for name, p in adapted.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    before = logits_of(adapted)
    torch.testing.assert_close(logits_of(adapted.merge_and_unload()), before, rtol=1e-4, atol=1e-3)


def test_what_all_linear_leaves_out_is_told(tiny_model: Callable[..., Any]) -> None:
    _, [note] = ready_to_train(tiny_model("gpt_oss", **EXPERTS), lora_config(r=2))
    assert "mlp.experts.gate_up_proj" in note and "mlp.experts.down_proj" in note and "self_attn" not in note
    assert ready_to_train(tiny_model(), lora_config(r=2))[1] == []
    assert ready_to_train(tiny_model("gpt_oss", **EXPERTS), lora_config(r=2, target_modules=["q_proj"]))[1] == []


def test_the_adapter_comes_back_from_its_file(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    """peft 0.21 does not find the adapters of Laguna's shared experts again."""
    pytest.importorskip("transformers.models.laguna")
    adapted = with_random_adapter(tiny_model("laguna", **LAGUNA))
    assert not lost_on_loading(adapted)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("laguna", **LAGUNA), str(tmp_path)).eval()
    assert torch.equal(logits_of(again), logits_of(adapted))


def test_layers_that_would_be_lost_are_refused_by_name(tiny_model: Callable[..., Any]) -> None:
    pytest.importorskip("transformers.models.laguna")
    with pytest.raises(ModelError, match=r"not load again.*shared_expert"):
        attach(tiny_model("laguna", **LAGUNA), LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"]))
    with pytest.raises(ModelError, match="not load again"):  # a pattern of the user's own is not changed
        attach(tiny_model("laguna", **LAGUNA), LoraConfig(r=2, target_modules="all-linear", exclude_modules=".*o_proj"))
