"""Tokens that a run asks for: in the tokenizer, the embedding, trained with an adapter, and there when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from honed.errors import ModelError, RecipeError
from honed.model.adapters.adapters import load_with_adapter, lora_config, ready_to_train
from honed.model.load.added_tokens import with_rows, with_tokens

CPU = torch.device("cpu")
NEW = ["<think>", "</think>"]
KNOWN = 322  # tokens of `tiny_tokenizer`


def test_a_text_that_spells_an_added_token_holds_it(tiny_tokenizer: Any) -> None:
    before = tiny_tokenizer("why <think>yes</think>")["input_ids"]
    changed = with_tokens(tiny_tokenizer, roles={}, added=NEW)
    ids = changed("why <think>yes</think>")["input_ids"]
    assert [i for i in ids if i >= KNOWN] == [KNOWN, KNOWN + 1]
    assert changed.decode(ids) == "why <think>yes</think>"
    assert tiny_tokenizer("why <think>yes</think>")["input_ids"] == before  # the caller's is as it was
    assert with_tokens(changed, roles={"eos_token": changed.eos_token}, added=NEW) is changed


def test_roles_go_to_tokens_of_the_vocabulary(tiny_tokenizer: Any) -> None:
    changed = with_tokens(tiny_tokenizer, roles={"pad_token": "<pad>", "unk_token": "<|endoftext|>"}, added=["<pad>"])
    assert (changed.pad_token_id, changed.unk_token_id) == (KNOWN, 0)
    assert changed.eos_token == tiny_tokenizer.eos_token
    with pytest.raises(RecipeError, match="'<pad>', which is not in the tokenizer's vocabulary"):
        with_tokens(tiny_tokenizer, roles={"pad_token": "<pad>"})


@pytest.mark.parametrize("added", [["<a>", "<a>"], [""], [" "]])
def test_lists_without_sense_are_refused(added: list[str], tiny_tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="add_tokens"):
        with_tokens(tiny_tokenizer, roles={}, added=added)


def test_another_bos_is_refused_where_the_tokenizer_would_not_write_it(tiny_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    changed = with_tokens(tiny_tokenizer, roles={"bos_token": "<|endoftext|>"})
    assert changed.bos_token_id == 0
    changed.bos_token = "<|im_start|>"
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    with pytest.raises(RecipeError, match="puts '<\\|im_start\\|>' before each text"):
        with_tokens(changed, roles={"bos_token": "<|endoftext|>"})


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_and_others_stay(tied: bool, tiny_tokenizer: Any, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(tie_word_embeddings=tied, vocab_size=KNOWN)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [end.weight.detach().clone() for end in ends]
    [note] = with_rows(model, with_tokens(tiny_tokenizer, roles={}, added=NEW), NEW)
    assert "324 rows instead of 322" in note
    for end, old in zip([model.get_input_embeddings(), model.get_output_embeddings()], before, strict=True):
        assert torch.equal(end.weight[:KNOWN], old)
        torch.testing.assert_close(end.weight[KNOWN:], old.mean(0).expand(2, -1))
    assert model.config.vocab_size == 324


def test_spare_rows_are_used_and_trained_ones_kept(tiny_tokenizer: Any, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(vocab_size=448)
    weight = model.get_input_embeddings().weight.data
    weight[KNOWN + 1 :] = 0.0
    kept = weight[KNOWN].clone()
    [note] = with_rows(model, with_tokens(tiny_tokenizer, roles={}, added=NEW), NEW)
    assert model.get_input_embeddings().weight.shape[0] == 448
    assert torch.equal(weight[KNOWN], kept)
    torch.testing.assert_close(weight[KNOWN + 1], weight[: KNOWN + 1].mean(0))
    assert "1 row made" in note
    assert "1 more had a trained row" in note


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_the_rows_and_brings_them_along(
    tied: bool, tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    tiny_model(tie_word_embeddings=tied, vocab_size=KNOWN).save_pretrained(tmp_path / "base")
    base = type(tiny_model()).from_pretrained(tmp_path / "base")
    tokenizer = with_tokens(tiny_tokenizer, roles={}, added=NEW)
    with_rows(base, tokenizer, NEW)
    ids_BL = torch.tensor([[5, 322, 9, 323, 7]])
    model, _ = ready_to_train(base, lora_config(r=2, target_modules=["q_proj"]), tokenizer=tokenizer, added=NEW)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids_BL, labels=ids_BL).loss.backward()
    optimizer.step()
    with torch.no_grad():
        expected_BLV = model.eval()(input_ids=ids_BL).logits
        rows = model.get_input_embeddings()(torch.tensor([322, 323]))
    assert not torch.allclose(rows[0], rows[1])  # they began as one
    model.save_pretrained(tmp_path / "adapter")
    again = load_with_adapter(str(tmp_path / "adapter"), device=CPU).eval()
    torch.testing.assert_close(again(input_ids=ids_BL).logits, expected_BLV)
    merged = load_with_adapter(str(tmp_path / "adapter"), device=CPU).merge_and_unload().eval()
    torch.testing.assert_close(merged(input_ids=ids_BL).logits, expected_BLV)


def test_a_token_that_was_there_does_not_narrow_the_mean(tiny_tokenizer: Any, tiny_model: Callable[..., Any]) -> None:
    model, added = tiny_model(vocab_size=KNOWN), ["<|endoftext|>", *NEW]
    with_rows(model, with_tokens(tiny_tokenizer, roles={}, added=added), added)
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[KNOWN], weight[:KNOWN].mean(0))


def test_not_on_a_model_with_an_adapter(tiny_tokenizer: Any, tiny_model: Callable[..., Any]) -> None:
    model, _ = ready_to_train(tiny_model(vocab_size=KNOWN), lora_config(r=2))
    with pytest.raises(ModelError, match="adapter already"):
        with_rows(model, with_tokens(tiny_tokenizer, roles={}, added=NEW), NEW)
