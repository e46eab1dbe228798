"""LoRA layers as one function against peft's own, on whole models: same numbers, same names, same files, all undone."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.model.adapters.adapters import load_with_adapter, lora_config
from honed.model.adapters.fused_lora import FusedForward, coverage, fused_lora
from honed.model.load.load import load_model
from honed.model.load.quantize import find_spec, quantization_config

peft = pytest.importorskip("peft")
CPU = torch.device("cpu")
ALL: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 4}
IDS_BL = torch.arange(3, 33).view(2, 15)
LAYERS = 14  # linear layers in the tiny Llama

# name: (family, changes of the model, LoraConfig, layers that compute as one function)
COVERED: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "plain": ("llama", {}, {}, LAYERS),
    "dropout": ("llama", {}, {"lora_dropout": 0.3}, LAYERS),
    "rslora": ("llama", {}, {"use_rslora": True}, LAYERS),
    "bias in the base": ("qwen2", {}, {}, LAYERS),
    "trained bias": ("qwen2", {}, {"bias": "all"}, LAYERS),
    "fan in, fan out": ("gpt2", {"n_embd": 32, "n_head": 2}, {"fan_in_fan_out": True}, 8),
    "some layers": ("llama", {}, {"target_modules": ["q_proj", "v_proj"]}, 4),
    "head": ("llama", {"tie_word_embeddings": False}, {"target_modules": ["lm_head"]}, 1),
    "trained whole": ("llama", {"tie_word_embeddings": False}, {"modules_to_save": ["lm_head"]}, LAYERS),
    "token rows": ("llama", {}, {"trainable_token_indices": [5, 9]}, LAYERS),
    "named weights": ("llama", {}, {"target_modules": ["q_proj"], "target_parameters": ["gate_proj.weight"]}, 4),
    "other ranks": ("llama", {}, {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"k_proj": 3}}, LAYERS),
    "dora": ("llama", {}, {"use_dora": True}, 0),
    "adapter bias": ("qwen2", {}, {"lora_bias": True, "target_modules": ["q_proj"]}, 0),
}
Models = Callable[..., Any]


@pytest.fixture
def adapted(tiny_model: Models) -> Models:
    """A model with LoRA, all of whose weights are random: B is zero at first, and A would have no gradient."""

    def make(family: str = "llama", model: dict[str, Any] | None = None, **config: Any) -> Any:
        plain = tiny_model(family, **{"dtype": torch.float64, **(model or {})})
        made = peft.get_peft_model(plain, peft.LoraConfig(**{**ALL, **config}))
        return scramble(made).train()

    return make


def scramble(model: Any) -> Any:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def step(model: Any) -> dict[str, torch.Tensor]:
    """Loss and gradients, with dropout's draws from one seed."""
    torch.manual_seed(2)
    model.zero_grad()
    loss = model(input_ids=IDS_BL, labels=IDS_BL, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def stand_ins(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FusedForward)]


@pytest.mark.parametrize("case", COVERED)
def test_loss_and_gradients_are_pefts(case: str, adapted: Models) -> None:
    family, changes, config, count = COVERED[case]
    model = adapted(family, changes, **config)
    expected, (fused, left) = step(model), coverage(model)
    assert (fused, bool(left)) == (count, count == 0)
    with fused_lora(model):
        assert_same(step(model), expected)
    assert_same(step(model), expected)


def test_a_named_weight_is_one_graph(adapted: Models) -> None:
    """peft's own forward of it registers a parametrization and takes it back, in each call."""
    model = adapted(target_modules=["q_proj"], target_parameters=["gate_proj.weight"])
    x_BLI = torch.randn(2, 5, 32, dtype=torch.float64)
    expected = model.base_model.model.model.layers[0].mlp.gate_proj(x_BLI)
    with fused_lora(model):
        layer = model.base_model.model.model.layers[0].mlp.gate_proj
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x_BLI), expected)


def test_everything_looks_as_before(adapted: Models, tmp_path: Path) -> None:
    model = adapted()
    modules, state = list(model.modules()), model.state_dict()
    options = {"save_embedding_layers": False}  # peft 0.20 would ask the Hub for the vocabulary of this nameless model
    model.save_pretrained(tmp_path / "before", **options)
    with pytest.raises(ZeroDivisionError), fused_lora(model) as count:
        assert count == len(stand_ins(model)) == LAYERS
        with fused_lora(model) as inner:
            assert inner == 0
        assert all(isinstance(module, peft.tuners.lora.Linear) for module in stand_ins(model))
        assert {n: v.data_ptr() for n, v in model.state_dict().items()} == {n: v.data_ptr() for n, v in state.items()}
        model.save_pretrained(tmp_path / "within", **options)
        copied = copy.deepcopy(model)
        assert not stand_ins(copied), "copies are peft's own"
        assert_same(step(copied), step(model))
        written = io.BytesIO()
        torch.save(model, written)
        written.seek(0)
        assert not stand_ins(torch.load(written, weights_only=False))
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "within" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_pefts_own_methods_work_within(adapted: Models) -> None:
    """Each leaves the model with the answer that it has without the block."""

    def answers(model: Any) -> Iterator[torch.Tensor]:
        def answer() -> torch.Tensor:
            with torch.no_grad():
                return model(input_ids=IDS_BL).logits

        yield answer()
        with model.disable_adapter():
            yield answer()
        model.add_adapter("other", peft.LoraConfig(**{**ALL, "r": 2}))
        model.set_adapter("other")
        scramble(model)
        yield answer()
        model.base_model.set_adapter(["default", "other"])  # two at once are peft's own
        yield answer()
        model.set_adapter("default")
        model.merge_adapter()
        yield answer()
        model.unmerge_adapter()
        yield answer()
        yield model.merge_and_unload()(input_ids=IDS_BL).logits

    expected, model = list(answers(adapted())), adapted()
    with fused_lora(model):
        found = list(answers(model))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert not stand_ins(model) and not torch.equal(expected[0], expected[2])


def test_what_is_left_to_peft_is_counted_with_the_reason(adapted: Models) -> None:
    model = adapted()
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.Linear)]
    layers[0].lora_A["default"].register_forward_hook(lambda module, args, output: output * 2)
    layers[1].lora_B["default"] = torch.nn.Sequential(layers[1].lora_B["default"])  # stands for a wrapper
    layers[1].lora_B["default"].weight = layers[1].lora_B["default"][0].weight
    fused, left = coverage(model)
    assert fused == LAYERS - 2 and sorted(left.values()) == [1, 1]
    assert any("hooks" in reason for reason in left)


def test_hooks_are_called(adapted: Models) -> None:
    model, calls = adapted(), []
    layer = next(module for module in model.modules() if isinstance(module, peft.tuners.lora.Linear))
    layer.register_forward_hook(lambda *_: calls.append("layer"))
    layer.base_layer.register_forward_hook(lambda *_: calls.append("base"))
    expected = step(model)
    with fused_lora(model):
        assert_same(step(model), expected)
    assert calls == ["base", "layer"] * 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, adapted: Models) -> None:
    model = adapted(lora_dropout=0.3)
    expected = step(model)
    model.enable_input_require_grads()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    with fused_lora(model):
        assert_same(step(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_formats(dtype: torch.dtype, adapted: Models) -> None:
    """Float32 with autocast, and a base in bfloat16 with peft's float32 adapter: near the float32 gradients."""
    model = adapted(model={"dtype": torch.float32, "initializer_range": 0.1})
    exact = step(model)
    half = dtype == torch.bfloat16
    if half:
        for layer in (m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)):
            layer.base_layer.to(dtype)
            layer.register_forward_pre_hook(lambda module, args: (args[0].to(torch.bfloat16),))
            layer.register_forward_hook(lambda module, args, output: output.float())

    def error() -> float:
        with nullcontext() if half else torch.autocast("cpu", torch.bfloat16):
            found = step(model)
        return max(float((found[n] - g).norm() / g.norm()) for n, g in exact.items())

    theirs = error()
    with fused_lora(model) as count:
        assert count == LAYERS and error() < 1.5 * theirs


def test_data_parallel(adapted: Models, tmp_path: Path) -> None:
    expected = step(adapted())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = adapted()
        with fused_lora(model):
            found = step(torch.nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert_same({name.removeprefix("module."): value for name, value in found.items()}, expected)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_quantised_bases(kind: str, dropout: float, tiny_model: Models, tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.1}
    tiny_model(**shape).save_pretrained(tmp_path)
    config = quantization_config(kind, dtype=torch.float32)
    base = load_model(str(tmp_path), device=CPU, dtype=torch.float32, quantization_config=config)
    model = scramble(peft.get_peft_model(base, peft.LoraConfig(**ALL, lora_dropout=dropout))).train()
    expected = step(model)
    with fused_lora(model) as count:
        assert count == LAYERS == coverage(model)[0]
        assert_same(step(model), expected, bound=1e-4)


def test_peft_loads_what_is_saved_within(tiny_model: Models, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"), device=CPU, dtype=torch.float32)
    model = scramble(peft.get_peft_model(base, lora_config(r=4))).eval()
    with fused_lora(model), torch.no_grad():
        model.save_pretrained(tmp_path / "adapter")
        expected = model(input_ids=IDS_BL).logits
    again = load_with_adapter(str(tmp_path / "adapter"), device=CPU, dtype=torch.float32).eval()
    torch.testing.assert_close(again(input_ids=IDS_BL).logits, expected, rtol=1e-4, atol=1e-4)
