"""Quantised bases, for real: bitsandbytes' CPU kernels on tiny models, held against their own dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationMethod

from honed.errors import MissingExtraError, ModelError
from honed.model.adapters.adapters import lora_config, ready_to_train
from honed.model.load import quantize
from honed.model.load.load import load_model
from honed.train.forward.seams import find_seams

CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(
    quantize.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'honed[quant]'"
)
# bitsandbytes rounds the inputs of 8-bit products to float16, and says so
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any]) -> str:
    """A tiny model with layers of a few quantisation blocks each."""
    tiny_model(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1).save_pretrained(tmp_path)
    return str(tmp_path)


def loaded(folder: str, **options: Any) -> Any:
    return load_model(folder, device=CPU, dtype=torch.float32, **options)


def adapter_gradients(model: Any, ids_BL: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of all adapter weights; B of LoRA is not zero, so that A has one, too."""
    generator = torch.Generator().manual_seed(1)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    model.zero_grad()
    model(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_gradients_through_4_bits_are_those_of_the_dequantised_weights(kind: str, folder: str) -> None:
    """Also after an evaluation, when bitsandbytes on some CPUs has packed the weights in a way without a backward."""
    config = quantize.quantization_config(kind, dtype=torch.float32)
    ids_BL = torch.arange(3, 23)[None]
    model, _ = ready_to_train(loaded(folder, quantization_config=config), lora_config(r=4))
    with torch.no_grad():
        model.eval()(ids_BL)
    found = adapter_gradients(model.train(), ids_BL)
    plain, _ = ready_to_train(
        quantize.dequantized(loaded(folder, quantization_config=config), torch.float32), lora_config(r=4)
    )
    expected = adapter_gradients(plain.train(), ids_BL)
    assert found.keys() == expected.keys()
    for name in expected:
        assert expected[name].norm() > 0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@needs_bitsandbytes
def test_weights_that_are_packed_for_inference_are_not_trained(folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with torch.no_grad():
        model.eval()(torch.arange(3, 23)[None])
    if not model.model.layers[0].self_attn.q_proj.support_avx512bf16_for_cpu:
        ready_to_train(model, lora_config(r=2))  # this CPU has no such kernel, and nothing was packed
        return
    with pytest.raises(ModelError, match="load the model anew"):
        ready_to_train(model, lora_config(r=2))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_models_stay_near_the_plain_one(kind: str, folder: str) -> None:
    """And the embedding, the norms and the head keep their format."""
    model = loaded(folder, quantization_config=quantize.quantization_config(kind, dtype=torch.float32)).eval()
    plain = loaded(folder).eval()
    assert quantize.is_quantized(model) and not quantize.is_quantized(plain)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        difference = (model(ids).logits - plain(ids).logits).pow(2).mean().sqrt() / plain(ids).logits.std()
    assert difference < {"nf4": 0.4, "int8": 0.05}[kind]
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert model.get_input_embeddings().weight.dtype is torch.float32


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("options", "flat"),
    [
        ({"load_in_4bit": True}, True),
        ({"load_in_8bit": True, "llm_int8_threshold": 0.0}, True),
        # columns with outliers are looked for over the whole batch, so documents change each other's rounding
        ({"load_in_8bit": True, "llm_int8_threshold": 0.5}, False),
    ],
)
def test_seams_fit_quantised_models(options: dict[str, Any], flat: bool, folder: str) -> None:
    model, _ = ready_to_train(loaded(folder, **options), lora_config(r=2))
    found = find_seams(model)
    assert (found.flat, found.scoring) == (flat, True), found.notes


@needs_bitsandbytes
def test_the_short_form_of_keywords(folder: str) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    given = dict(options)
    config = loaded(folder, **options).config.quantization_config
    assert options == given
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype is torch.float32  # the model's own


@needs_bitsandbytes
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(reentrant: bool, folder: str) -> None:
    ids_BL = torch.arange(3, 23)[None]
    gradients = []
    for checkpointing in (False, True):
        model, _ = ready_to_train(
            loaded(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"), lora_config(r=4), checkpointing=checkpointing
        )
        if checkpointing:
            old_name = "gradient_checkpointing_enable"  # deprecated in transformers 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old_name)
            enable({"use_reentrant": reentrant})
        gradients.append(adapter_gradients(model.train(), ids_BL))
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)


@needs_bitsandbytes
def test_a_saved_4_bit_model_is_quantised_when_it_comes_back(folder: str, tmp_path: Path) -> None:
    model = loaded(folder, load_in_4bit=True)
    model.save_pretrained(tmp_path / "bits")
    again = load_model(str(tmp_path / "bits"), device=CPU)
    assert quantize.is_quantized(again)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)
    with pytest.raises(ModelError, match="own weights cannot be trained"):
        ready_to_train(again)


@needs_bitsandbytes
def test_dequantised_is_what_the_layers_compute_with(folder: str) -> None:
    model = loaded(folder, load_in_4bit=True)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        plain = quantize.dequantized(model, torch.float32).eval()
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not quantize.is_quantized(plain)
    assert not hasattr(plain.config, "quantization_config")


def test_full_fine_tuning_of_a_plain_model_is_left_alone(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    assert ready_to_train(model) == (model, [])


@needs_bitsandbytes
def test_what_is_said_twice() -> None:
    config = quantize.quantization_config("int8", dtype=torch.float32)
    with pytest.raises(ModelError, match="both given"):
        quantize.with_quantization_config({"load_in_4bit": True, "quantization_config": config}, dtype=torch.float32)
    with pytest.raises(ModelError, match="quantised twice"):
        quantize.quantized_options({"load_in_8bit": True}, config)


def test_unknown_kind() -> None:
    with pytest.raises(ModelError, match="known are nf4, fp4, int8"):
        quantize.quantization_config("q4_k_m", dtype=torch.float32)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'honed\[quant\]'"):
        loaded(folder, load_in_4bit=True)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        quantize.quantization_config("nf4", dtype=torch.float32)


def effective(model: Any, folder: str) -> Any:
    """A plain model with the weights that the quantised one's layers compute with: what they make of the identity."""
    plain, layers = loaded(folder), dict(model.named_modules())
    with torch.no_grad():
        for name, layer in plain.named_modules():
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                layer.weight.copy_(layers[name](torch.eye(layer.in_features)).T)
    return plain


@pytest.mark.filterwarnings("ignore")  # torchao's and quanto's own
@pytest.mark.parametrize("kind", ["torchao int8", "torchao fp8", "quanto int8"])
def test_other_libraries_bases_carry_adapters(kind: str, folder: str) -> None:
    library, bits = kind.split()
    if library == "torchao":
        ao = pytest.importorskip("torchao.quantization", reason="pip install torchao")
        how = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}[bits]
        config: Any = TorchAoConfig(getattr(ao, how)())
    else:
        pytest.importorskip("optimum.quanto", reason="pip install optimum-quanto")
        config = QuantoConfig(weights=bits)
    ids_BL = torch.arange(3, 23)[None]
    base = loaded(folder, quantization_config=config)
    plain, _ = ready_to_train(effective(base, folder), lora_config(r=4))
    with pytest.raises(ModelError, match="own weights cannot be trained"):
        ready_to_train(base)
    model, _ = ready_to_train(base, lora_config(r=4))
    assert find_seams(model).flat and find_seams(model).scoring
    found, expected = adapter_gradients(model.train(), ids_BL), adapter_gradients(plain.train(), ids_BL)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_compressed_base_is_refused_with_the_form_that_can_be_trained(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    model.is_quantized, model.quantization_method = True, QuantizationMethod.COMPRESSED_TENSORS
    with pytest.raises(ModelError, match="dequantize=True"):
        ready_to_train(model, lora_config(r=4))


@needs_bitsandbytes
def test_loftq_takes_back_what_rounding_did(folder: str) -> None:
    """At full rank all of it; at a small one what the best approximation of that rank can, whatever the scaling."""
    ids = torch.arange(3, 23)[None]
    plain = loaded(folder).eval()
    changes = []
    for r, alpha in ((2, 4), (8, 4), (64, 4)):
        config = lora_config(r=r, alpha=alpha, init="loftq")
        model, _ = ready_to_train(loaded(folder, quantization="nf4"), config)
        assert config.init_lora_weights == "loftq" and find_seams(model).scoring
        with torch.no_grad():
            changes.append(float((model.eval()(ids).logits - plain(ids).logits).norm() / plain(ids).logits.norm()))
    assert changes[0] > changes[1] > 10 * changes[2]
    assert changes[2] < 1e-4


@needs_bitsandbytes
def test_loftq_leaves_what_no_pair_of_its_rank_can_take(folder: str) -> None:
    """Eckart and Young: the singular values behind the rank."""
    name = "model.layers.0.mlp.up_proj"
    model, _ = ready_to_train(loaded(folder, quantization="nf4"), lora_config(r=8, init="loftq"))
    layer = model.get_base_model().get_submodule(name)
    weight = loaded(folder).get_submodule(name).weight
    rounded = quantize.dequantized(loaded(folder, quantization="nf4"), torch.float32).get_submodule(name).weight
    left = weight - rounded - layer.get_delta_weight("default")
    expected = torch.linalg.svdvals(weight - rounded)[8:].norm()
    torch.testing.assert_close(left.norm(), expected, rtol=1e-4, atol=0)


def test_loftq_needs_4_bits(folder: str) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'honed[quant]'")
    with pytest.raises(ModelError, match="quantization: nf4"):
        ready_to_train(loaded(folder), lora_config(r=4, init="loftq"))
