"""What "all-linear" leaves out, and that what it adapts is in use, is told, and comes back from a file."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from honed.errors import ModelError
from honed.model.adapters.adapters import attach, lora_config, ready_to_train
from honed.model.adapters.fused_lora import fused_lora
from honed.model.adapters.targets import lost_on_loading, unfit_layers

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 4}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2}
LAGUNA = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_attention_heads_per_layer": [4, 4],
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
ROUTED = {**FEW, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
# families with experts that peft knows, and with linear layers that are named like an expert's
NAMED_ALIKE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**ROUTED, **LATENT, "num_key_value_heads": 4},
    "deepseek_v3": {**ROUTED, **LATENT, "num_key_value_heads": 4},
    "glm4_moe": ROUTED,
    "afmoe": {**FEW, "num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1},
    "ernie4_5_moe": {
        "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
    },
    "longcat_flash": {
        **LATENT, "num_layers": 1, "n_routed_experts": 4, "moe_topk": 2, "expert_ffn_hidden_size": 32,
        "ffn_hidden_size": 48, "zero_expert_num": 1, "num_key_value_heads": 4,
    },
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
        ("longcat_flash", NAMED_ALIKE["longcat_flash"], ["router.classifier"]),
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


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # peft's, of a pattern that it sets itself
@pytest.mark.parametrize("family", NAMED_ALIKE)
def test_shared_experts_and_dense_layers_are_adapted(
    family: str, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    """peft takes the names of their layers for stacked experts', and would pass them by."""
    pytest.importorskip(f"transformers.models.{family}")
    plain = tiny_model(family, **NAMED_ALIKE[family])
    linear = {
        name
        for name, layer in plain.named_modules()
        if isinstance(layer, nn.Linear) and layer is not plain.get_output_embeddings() and "classifier" not in name
    }
    adapted = with_random_adapter(plain)
    owners = {name.partition(".lora_A")[0].removeprefix("base_model.model.") for name, _ in adapted.named_parameters()}
    assert linear <= owners and any("shared" in name or "mlps" in name for name in linear)
    adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.any() for name, p in adapted.named_parameters() if p.requires_grad)
    before = logits_of(adapted)
    with fused_lora(adapted) as fused:
        assert fused == len(linear)
        torch.testing.assert_close(logits_of(adapted), before, rtol=1e-4, atol=1e-3)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(family, **NAMED_ALIKE[family]), str(tmp_path)).eval()
    assert torch.equal(logits_of(again), before)
    torch.testing.assert_close(logits_of(adapted.merge_and_unload()), before, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
def test_what_the_user_says_of_layers_holds_for_those_that_are_named_alike(tiny_model: Callable[..., Any]) -> None:
    config = LoraConfig(
        r=2,
        target_modules="all-linear",
        exclude_modules=["shared_experts.up_proj"],
        rank_pattern={"shared_experts.down_proj": 5, "q_proj": 3},
        alpha_pattern={"mlp.gate_proj": 7},
    )
    given = copy.deepcopy(config)
    adapted = attach(tiny_model("glm4_moe", **ROUTED), config)
    a_weights = {name.partition(".lora_A")[0]: p for name, p in adapted.named_parameters() if ".lora_A." in name}
    ranks = {".".join(name.split(".")[-2:]): len(weight) for name, weight in a_weights.items()}
    assert (ranks["shared_experts.down_proj"], ranks["shared_experts.gate_proj"]) == (5, 2)
    assert (ranks["self_attn.q_proj"], ranks["self_attn.k_proj"]) == (3, 2)
    assert "shared_experts.up_proj" not in ranks
    assert adapted.get_submodule("base_model.model.model.layers.0.mlp.gate_proj").lora_alpha == {"default": 7}
    assert config == given


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "qwen2_moe"])
def test_other_families_have_pefts_own_targets(family: str, tiny_model: Callable[..., Any]) -> None:
    own = get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    ours = attach(tiny_model(family), lora_config(r=2))
    assert ours.active_peft_config.target_modules == own.active_peft_config.target_modules
    assert not ours.active_peft_config.target_parameters
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in own.named_parameters()]


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
    with pytest.raises(ModelError, match=r"could not reload.*shared_expert"):
        attach(tiny_model("laguna", **LAGUNA), LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"]))
    with pytest.raises(ModelError, match="could not reload"):  # a pattern of the user's own is not changed
        attach(tiny_model("laguna", **LAGUNA), LoraConfig(r=2, target_modules="all-linear", exclude_modules=".*o_proj"))
