"""Chat tokens: added, given rows, agreed on everywhere; untrained rows are found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from honed.errors import ModelError, TemplateError
from honed.model.adapters.adapters import attach, lora_config
from honed.model.load.chat_tokens import clone_chat_template, new_token_rows, setup_chat_format, template_tokens
from honed.model.load.load import load_model, load_tokenizer
from honed.model.smollm2 import smollm2


@pytest.fixture
def bare_tokenizer(tiny_tokenizer: Any) -> Any:
    """A tokenizer of a base model: no template, no chat tokens, no pad."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    tokenizer.eos_token = tokenizer.bos_token = "<|endoftext|>"
    tokenizer.pad_token = None
    return tokenizer


@pytest.fixture
def source(tiny_tokenizer: Any, tmp_path: Path) -> str:
    """A tokenizer with other chat tokens than the model's, saved."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(
        [AddedToken("<turn>", special=True), AddedToken("</turn>", special=True), AddedToken("<calls>")]
    )
    tokenizer.eos_token = "</turn>"
    tokenizer.chat_template = (
        "{%- for m in messages %}{{- '<turn>' + m['role'] + '\n' + m['content'] + '</turn>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<turn>assistant\n' }}{%- endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def sized(tiny_model: Callable[..., Any], tokenizer: Any, **changes: Any) -> Any:
    return tiny_model(vocab_size=len(tokenizer), **changes)


@pytest.mark.parametrize("tied", [True, False])
def test_clone_gives_template_tokens_and_mean_rows(
    tied: bool, tiny_model: Callable[..., Any], bare_tokenizer: Any, source: str
) -> None:
    model = sized(tiny_model, bare_tokenizer, tie_word_embeddings=tied)
    matrices = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    n_before, text = len(bare_tokenizer), "why the fox, 狐狸?"
    same, tokenizer, added = clone_chat_template(model, bare_tokenizer, source)
    assert same is model
    assert (len(bare_tokenizer), bare_tokenizer.chat_template) == (n_before, None)
    names = tokenizer.convert_ids_to_tokens(added)
    assert names[:3] == ["<turn>", "</turn>", "<calls>"]
    assert all(name == f"<extra_id_{i}>" for i, name in enumerate(names[3:]))
    assert len(tokenizer) == model.vocab_size == -(-(n_before + 3) // 64) * 64
    assert tokenizer(text)["input_ids"] == bare_tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer("<turn>user")["input_ids"][0]) == "<turn>"
    for module, before in zip((model.get_input_embeddings(), model.get_output_embeddings()), matrices, strict=True):
        torch.testing.assert_close(module.weight[:n_before], before)
        torch.testing.assert_close(module.weight[added], before.mean(0).expand(len(added), -1))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_the_vocabulary_is_not_read_for_each_row_that_is_left_over(
    tiny_model: Callable[..., Any], bare_tokenizer: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen has 271 such rows and 151,665 tokens: reading them all for each row took minutes."""
    read, calls = type(bare_tokenizer).get_vocab, []
    monkeypatch.setattr(type(bare_tokenizer), "get_vocab", lambda self: calls.append(1) or read(self))
    n_calls = []
    for multiple in (64, 2048):
        calls.clear()
        _, _, added = clone_chat_template(sized(tiny_model, bare_tokenizer), bare_tokenizer, source, multiple)
        n_calls.append(len(calls))
    assert len(added) > 1000 and n_calls[0] == n_calls[1]


def test_clone_agrees_on_the_ends(tiny_model: Callable[..., Any], bare_tokenizer: Any, source: str) -> None:
    model, tokenizer, _ = clone_chat_template(sized(tiny_model, bare_tokenizer), bare_tokenizer, source, None)
    eos = tokenizer.convert_tokens_to_ids("</turn>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == eos
    assert tokenizer.pad_token == "<|endoftext|>"  # the source's, which this tokenizer has
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    assert tokenizer.bos_token_id == model.config.bos_token_id == model.generation_config.bos_token_id
    assert len(tokenizer) == model.vocab_size


def test_clone_takes_rows_that_are_there_already_and_never_shrinks(
    tiny_model: Callable[..., Any], bare_tokenizer: Any, source: str
) -> None:
    """Qwen's embedding has more rows than its tokenizer has tokens."""
    n = len(bare_tokenizer)
    model = tiny_model(vocab_size=n + 90)
    before = model.get_input_embeddings().weight.clone()
    _, tokenizer, added = clone_chat_template(model, bare_tokenizer, source, None)
    assert model.vocab_size == n + 90 == len(tokenizer)
    assert added == list(range(n, n + 90))
    torch.testing.assert_close(model.get_input_embeddings().weight[n], before[:n].mean(0))


def test_a_clone_of_the_same_vocabulary_adds_nothing(tiny_model: Callable[..., Any], source: str) -> None:
    tokenizer = load_tokenizer(source)
    model = sized(tiny_model, tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    _, clone, added = clone_chat_template(model, tokenizer, source, None)
    assert added == []
    assert clone.get_vocab() == tokenizer.get_vocab()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_what_clone_refuses(tiny_model: Callable[..., Any], bare_tokenizer: Any, source: str, tmp_path: Path) -> None:
    bare_tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(TemplateError, match="has no chat template"):
        clone_chat_template(sized(tiny_model, bare_tokenizer), bare_tokenizer, str(tmp_path / "bare"))
    with pytest.raises(ModelError, match="before the adapter"):
        clone_chat_template(attach(sized(tiny_model, bare_tokenizer), lora_config()), bare_tokenizer, source)


def test_setup_chat_format(tiny_model: Callable[..., Any], bare_tokenizer: Any) -> None:
    bare_tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model, tokenizer = setup_chat_format(sized(tiny_model, bare_tokenizer), bare_tokenizer, resize_to_multiple_of=64)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<pad>")
    assert model.vocab_size % 64 == 0
    for config in (model.config, model.generation_config):
        ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(TemplateError, match="has a chat template already"):
        setup_chat_format(model, tokenizer)
    with pytest.raises(TemplateError, match="not known"):
        setup_chat_format(model, bare_tokenizer, format="llama")


def test_the_templates_tokens(tiny_tokenizer: Any, bare_tokenizer: Any, source: str) -> None:
    assert tiny_tokenizer.convert_ids_to_tokens(template_tokens(tiny_tokenizer)) == ["<|im_start|>", "<|im_end|>"]
    assert bare_tokenizer.convert_ids_to_tokens(template_tokens(bare_tokenizer)) == ["<|endoftext|>"]
    assert load_tokenizer(source).convert_ids_to_tokens(template_tokens(load_tokenizer(source))) == [
        "<turn>",
        "</turn>",
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_untrained_rows_are_found(tied: bool, tiny_model: Callable[..., Any]) -> None:
    """Zeros, tiny numbers, the mean, transformers' own resizing, twins; and nothing else."""
    model = tiny_model(tie_word_embeddings=tied)
    model.resize_token_embeddings(404)  # the mean with a little noise
    weight = model.get_output_embeddings().weight.data
    weight[7] = 0
    weight[8] *= 1e-3
    weight[9] = weight[:400].mean(0)
    weight[10] = weight[11]
    assert new_token_rows(model, range(404)) == [7, 8, 9, 10, 11, 400, 401, 402, 403]
    assert new_token_rows(model, [3, 8, 402, 402]) == [8, 402]
    assert new_token_rows(model, []) == []


@pytest.mark.real_model
def test_untrained_rows_of_a_real_model() -> None:
    """SmolLM2 was trained on its template's tokens, and not on some of those that it reserves."""
    folder = smollm2.converted_path()
    if smollm2.converted_fault(folder) is not None:
        pytest.skip(f"not in the cache ({folder}): `honed demo` puts it there")
    model, tokenizer = load_model(str(folder), device=torch.device("cpu")), load_tokenizer(str(folder))
    assert template_tokens(tokenizer) == [1, 2]
    assert new_token_rows(model, template_tokens(tokenizer)) == []
    reserved = tokenizer.convert_tokens_to_ids(["<file_sep>", "<jupyter_start>", "<empty_output>"])
    assert new_token_rows(model, [*reserved, *range(1000, 1050)]) == reserved
