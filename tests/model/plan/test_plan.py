"""Plans: what is counted against published totals, what fits, and what must hold for any job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from honed.errors import ModelError, RecipeError
from honed.model.plan import parts, plan
from honed.model.plan.activations import formats_of
from honed.model.plan.shapes import find_config
from honed.model.plan.sizes import positions_of, sizes_of
from honed.model.plan.step_time import flops_per_step, seconds_per_step
from honed.recipe import LoraRecipe, recipe_from

# As their makers' safetensors files count them.
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.3-70B": 70_553_706_496,
    "Gemma-3-1B": 999_885_952,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert sizes_of(find_config(name)).parameters == PUBLISHED[name]


def test_names() -> None:
    for name in ("Qwen/Qwen3-8B", "qwen3-8b-base", "Qwen3-8B"):
        assert find_config(name).hidden_size == 4096
    assert find_config("google/gemma-3-1b-it").model_type == "gemma3_text"
    assert find_config("smollm2-135m-instruct").num_hidden_layers == 30
    with pytest.raises(ModelError, match=r"did you mean Qwen3-8B\?.*folder"):
        find_config("Qwen3-9B")
    with pytest.raises(ModelError, match="is not here, and HF_HUB_OFFLINE"):
        find_config("somebody/Qwen3-8B")  # anybody may have changed the shape: asked for, and tests are offline
    with pytest.raises(ModelError, match="No such model folder"):
        find_config("./nowhere/at/all")


def test_folder(tmp_path: Any, tiny_model: Any) -> None:
    model = tiny_model("qwen3")
    model.config.save_pretrained(tmp_path)
    assert sizes_of(find_config(str(tmp_path))).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The following rank_pattern", "ignore:The following alpha_pattern")
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_adapter_is_pefts(family: str, tiny_model: Any) -> None:
    pytest.importorskip("peft")
    from honed.model.adapters.adapters import attach, lora_config

    model = tiny_model(family, **({"num_experts": 4, "num_experts_per_tok": 2} if family == "qwen3_moe" else {}))
    job = plan.job_for(model.config, lora=LoraRecipe(r=3))
    attached = attach(model, lora_config(r=3))
    assert job.adapter is not None
    assert job.adapter.weights == sum(p.numel() for p in attached.parameters() if p.requires_grad)
    assert job.adapter.merges_experts == (family == "qwen3_moe")


def test_qwen_7b_qlora_fits_into_8_gb() -> None:
    """8 x 10^9 bytes, so into 8 GiB as well; CUDA's context and slack are among them."""
    pytest.importorskip("peft")
    job = plan.job_for("Qwen2.5-7B", method="qlora", length=512, checkpointing=True)
    found = plan.estimate(job)
    assert plan.fits(job, 8 * plan.GB)
    assert found.parts.overhead > plan.CUDA_CONTEXT
    # by hand: 6,525,288,448 in the linear layers, two matrices of 152,064 x 3,584, norms and biases
    linear = 6_525_288_448 * (0.5 + 1 / 64 + 1 / 4096)
    assert found.parts.weights == pytest.approx(linear + 2 * (7_615_616_512 - 6_525_288_448), rel=1e-6)
    assert not plan.fits(plan.job_for("Qwen2.5-7B", method="lora", length=512, checkpointing=True), 8 * plan.GB)


def test_full_training_by_hand() -> None:
    """Weights, gradients and two AdamW states of float32 for each parameter."""
    job = plan.job_for("SmolLM2-135M", method="full", length=8, device="cpu")
    found = plan.estimate(job).moments["gradients"]
    assert (found.weights, found.gradients) == (4 * 134_515_008, 4 * 134_515_008)
    assert found.optimizer == 8 * 134_515_008 + 4 * (30 * 9 + 2)  # a count of steps for each tensor
    assert found.working == 8 * 576 * 4  # the embedding's rows go to the head's gradient
    half = replace(job, formats=formats_of("full", device="cpu", dtype="bfloat16"))
    assert plan.estimate(half).moments["gradients"].working == 2 * 2 * 49152 * 576 + 8 * 576 * 4


JOB = plan.job_for("Qwen3-0.6B", method="full", length=64)


@given(
    length=st.integers(1, 5000),
    rows=st.integers(1, 20),
    checkpointing=st.booleans(),
    device=st.sampled_from(["cuda", "cpu"]),
)
def test_more_takes_more(length: int, rows: int, checkpointing: bool, device: str) -> None:
    formats = formats_of("full", device=device)
    job = replace(JOB, length=length, rows=rows, checkpointing=checkpointing, device=device, formats=formats)
    peak = plan.estimate(job).peak
    for more in (replace(job, length=length + 100), replace(job, rows=rows + 1), replace(job, accumulation=2)):
        assert plan.estimate(more).peak >= peak
        assert flops_per_step(more) > flops_per_step(job)
    assert plan.estimate(replace(job, length=rows, rows=length)).peak == peak  # a flat row has no shape


@given(memory=st.floats(1e9, 2e11))
def test_largest_is_the_last_that_fits(memory: float) -> None:
    found = plan.largest(JOB, memory)
    if found:
        assert plan.fits(replace(JOB, length=found), memory)
    if found < (JOB.sizes.positions or 0):
        assert not plan.fits(replace(JOB, length=found + 1), memory)


def test_rows_are_no_longer_than_the_model_has_positions() -> None:
    assert plan.largest(JOB, 1e15) == JOB.sizes.positions == 40960  # as Qwen3's configuration says
    assert plan.largest(JOB, 1e15, field="rows") == plan.LONGEST
    endless = replace(JOB, sizes=replace(JOB.sizes, positions=None))
    assert plan.largest(endless, 1e15) == plan.LONGEST


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "dynamic", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),  # stretched already
        (
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0},
            4096,
        ),
    ],
)  # fmt: skip
def test_stretched_positions(rope: dict[str, Any], positions: int) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(max_position_embeddings=4096, rope_parameters={"rope_theta": 10000.0, **rope})
    assert positions_of(config) == positions


def test_positions_of_models_without_them() -> None:
    from transformers import MambaConfig

    assert positions_of(MambaConfig()) is None
    assert positions_of(find_config("Gemma-3-1B")) == 32768  # one rotation for each kind of layer


def test_time() -> None:
    pytest.importorskip("peft")
    dense = sizes_of(find_config("Llama-3.1-8B"))
    full = plan.job_for("Llama-3.1-8B", method="full", length=1)
    products = dense.linear + dense.head
    assert flops_per_step(full) == pytest.approx(6 * products, rel=1e-3)  # a row of one token sees next to nothing
    lora = plan.job_for("Llama-3.1-8B", length=1, lora=LoraRecipe(r=1))
    assert flops_per_step(lora) == pytest.approx(4 * products, rel=1e-2)
    again = flops_per_step(replace(full, checkpointing=True))
    assert again == pytest.approx(8 * dense.linear + 6 * dense.head, rel=1e-3)
    assert seconds_per_step(full, 1e12, efficiency=0.5) == pytest.approx(flops_per_step(full) / 5e11)
    experts = plan.job_for("Qwen3-30B-A3B", method="full", length=1)  # 3.3 billion active, 0.3 of them embedding
    assert flops_per_step(experts) / 6 == pytest.approx(3.0e9, rel=0.03)


def test_recipe() -> None:
    pytest.importorskip("peft")
    tree = {
        "model": "Qwen3-0.6B",
        "quantization": "nf4",
        "data": {"max_length": 300},
        "lora": {"r": 4, "target_modules": ["q_proj"]},
        "train": {"per_device_train_batch_size": 3, "gradient_checkpointing": True, "optim": "adamw_8bit"},
    }
    job = plan.job_of(recipe_from(tree))
    assert (job.method, job.tokens, job.checkpointing, job.optimizer.name) == ("qlora", 900, True, "adamw_8bit")
    assert job.adapter is not None and job.adapter.weights == 28 * 4 * (1024 + 2048)


def test_refused() -> None:
    for options in ({"method": "half"}, {"length": 0}, {"method": "full", "dtype": "int4"}):
        with pytest.raises(RecipeError):
            plan.job_for("Qwen3-0.6B", **options)
    with pytest.raises(RecipeError, match="per_device_train_batch_size"):
        plan.job_of(recipe_from({"lora": None, "train": {"per_device_train_batch_size": 0}}))


def test_tiles_are_the_heads_own() -> None:
    from honed.ops import linear_cross_entropy as tiles

    assert {"cpu": tiles.TILE_ELEMENTS["cpu"], "cuda": tiles.TILE_ELEMENTS["gpu"]} == parts.TILE_ELEMENTS
    assert parts.TILE_MIN_ROWS == tiles.TILE_MIN_ROWS
    trained = {"cpu": tiles.TILE_MIN_ROWS_TRAINED["cpu"], "cuda": tiles.TILE_MIN_ROWS_TRAINED["gpu"]}
    assert trained == parts.TILE_MIN_ROWS_TRAINED


OTHERS: dict[str, dict[str, Any]] = {
    "gemma4_text": {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400},
    "gemma3n_text": {
        "intermediate_size": [64, 96], "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400,
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mamba": {"state_size": 4, "time_step_rank": 4},
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
def test_layers_that_differ_and_layers_without_attention_are_planned(family: str, tiny_model: Any) -> None:
    model = tiny_model(family, **OTHERS[family])
    assert sizes_of(model.config).parameters == sum(p.numel() for p in model.parameters())
    for method in ("full", "lora"):
        assert plan.estimate(plan.job_for(model.config, method=method, length=32)).peak > 0


def test_a_model_that_sees_is_planned_with_its_eyes() -> None:
    """As it is loaded: transformers' class for this configuration holds the vision tower, too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400, "head_dim": 8}
    eyes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("gemma3", text_config={**text, "intermediate_size": 64}, vision_config=eyes)
    model = AutoModelForCausalLM.from_config(config)
    assert sizes_of(config).parameters == sum(p.numel() for p in model.parameters())
