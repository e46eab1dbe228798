"""`honed new`: a tokenizer and models from nothing, that `honed train` and `honed generate` take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from honed.model.load.load import load_model, load_tokenizer
from honed.model.minimind.minimind import MiniMindForCausalLM
from honed.model.minimind.pth import save_pth

CPU = torch.device("cpu")
TINY = ("--dim", "32", "--layers", "2", "--heads", "4")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(str(folder), device=CPU).state_dict()


@pytest.fixture
def tokenizer(honed: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    assert honed("new", "tokenizer", folder, "--vocab", 500).status == 0
    return folder


def test_a_tokenizer_learns_rows_of_every_format(honed: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "wombat " * 9},
        {"prompt": "quokka " * 9, "completion": "numbat " * 9},
        {"instruction": "dingo " * 9, "output": "bilby " * 9},
        {"messages": [{"role": "user", "content": "emu " * 9}, {"role": "assistant", "content": "galah " * 9}]},
        {"input_ids": [1, 2], "loss_mask": [1, 1]},
        {"messages": []},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shown = honed("new", "tokenizer", tmp_path / "made" / "here", "--data", file, "--vocab", 5000)
    assert shown.status == 0, shown.err
    assert "note: 1 row was left out: token ids, which have no text" in shown.out
    assert "note: 1 row was left out: no messages" in shown.out
    assert "tokens, not 5,000" in shown.out
    made = AutoTokenizer.from_pretrained(tmp_path / "made" / "here")
    for word in ("wombat", "quokka", "numbat", "dingo", "bilby", "emu", "galah"):
        assert len(made.encode(f" {word}")) == 1, word


def test_a_model_can_be_trained_and_asked(honed: Any, tmp_path: Path, tokenizer: Path, rows_file: Path) -> None:
    shown = honed("new", "minimind", tmp_path / "model", *TINY, "--tokenizer", tokenizer)
    assert shown.status == 0, shown.err
    assert "0.047 million parameters (dense, 2 layers of 32, vocabulary 500)" in shown.out
    run = ("--model", tmp_path / "model", "--data", rows_file, "--output", tmp_path / "run", "lora=null", "max_steps=2")
    assert honed("train", *run, "data.packing=true", "data.max_length=128").status == 0
    assert type(load_model(str(tmp_path / "run"), device=CPU)) is MiniMindForCausalLM
    assert honed("generate", tmp_path / "run", "why?", "--max-new-tokens", 3).status == 0


def test_experts(honed: Any, tmp_path: Path, tokenizer: Path) -> None:
    shown = honed(
        "new", "minimind", tmp_path / "m", *TINY, "--moe", "--experts", 3, "--top-k", 1, "--tokenizer", tokenizer
    )
    assert "3 experts" in shown.out
    config = load_model(str(tmp_path / "m"), device=CPU).config
    assert (config.use_moe, config.num_experts, config.num_experts_per_tok) == (True, 3, 1)


def test_the_seed_decides_the_weights(honed: Any, tmp_path: Path, tokenizer: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        honed("new", "minimind", tmp_path / name, *TINY, "--tokenizer", tokenizer, "--seed", seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_without_a_tokenizer_one_is_trained(honed: Any, tmp_path: Path) -> None:
    shown = honed("new", "minimind", tmp_path / "m", *TINY, "--vocab", 300, "--thinking")
    assert "vocabulary 300" in shown.out
    tokenizer = load_tokenizer(str(tmp_path / "m"))
    assert len(tokenizer) == 300 and "<think>" in tokenizer.chat_template
    generation = load_model(str(tmp_path / "m"), device=CPU).generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (0, 1, 2)


def test_weights_of_a_minimind_file(honed: Any, tmp_path: Path, tokenizer: Path) -> None:
    honed("new", "minimind", tmp_path / "a", "--dim", 32, "--layers", 2, "--tokenizer", tokenizer)
    model = load_model(str(tmp_path / "a"), device=CPU)
    save_pth(model, tmp_path / "minimind_sft_32.pth")
    imported = ("--weights", tmp_path / "minimind_sft_32.pth", "--tokenizer", tokenizer)
    shown = honed("new", "minimind", tmp_path / "b", *imported)
    assert shown.status == 0, shown.err
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    refused = honed("new", "minimind", tmp_path / "c", "--weights", tmp_path / "minimind_sft_32.pth", "--vocab", 501)
    assert refused.status == 2 and "501 tokens, the weights only 500" in refused.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("minimind", "NEW", "--heads", "3", "--kv-heads", "2", "--vocab", "300"), "cannot be divided"),
        (("minimind", "NEW", "--moe", "--top-k", "9", "--vocab", "300"), "9 of 4 experts"),
        (("minimind", "NEW", "--experts", "3"), "add --moe"),
        (("minimind", "NEW", "--weights", "absent.pth"), "No such file: absent.pth"),
        (("minimind", "NEW", "--tokenizer", "TOKENIZER", "--vocab", "300"), "leave one of them out"),
        (("minimind", "NEW", "--tokenizer", "./absent"), "No such model folder"),
        (("minimind", "TOKENIZER"), "exists already"),
        (("tokenizer", "TOKENIZER"), "exists already"),
        (("tokenizer", "NEW", "--vocab", "20"), "too small"),
        (("tokenizer", "NEW", "--data", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_what_cannot_be_made_is_refused(
    arguments: tuple[str, ...], says: str, honed: Any, tmp_path: Path, tokenizer: Path
) -> None:
    places = {"NEW": tmp_path / "new", "TOKENIZER": tokenizer}
    shown = honed("new", *(places.get(argument, argument) for argument in arguments))
    assert shown.status == 2 and says in shown.err and "fix:" in shown.err
    assert not (tmp_path / "new").exists()


def test_a_broken_tokenizer_is_named(honed: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{", encoding="utf-8")
    shown = honed("new", "minimind", tmp_path / "new", "--tokenizer", tmp_path / "broken")
    assert shown.status == 2 and "broken cannot be read" in shown.err


@pytest.mark.parametrize("option", [("--dim", "0"), ("--layers", "-1"), ("--seed", "-1"), ("--vocab", "x")])
def test_numbers_out_of_range_are_the_parsers_to_refuse(option: tuple[str, str], honed: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        honed("new", "minimind", tmp_path / "new", *option)
    assert stopped.value.code == 2


def test_the_recipes_train_from_random_weights_to_answers(
    honed: Any, tmp_path: Path, tokenizer: Path, rows_file: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "the quick brown fox " * 40}) + "\n" for _ in range(9)))
    honed("new", "minimind", tmp_path / "model", *TINY, "--moe", "--tokenizer", tokenizer)
    short = ("max_steps=2", "data.max_length=64")
    places = (f"model={tmp_path / 'model'}", f"output={tmp_path / 'pretrained'}")
    shown = honed("train", "minimind_pretrain", f"data.files={texts}", *places, *short)
    assert shown.status == 0, shown.err
    assert "packed rows" in shown.out
    places = (f"model={tmp_path / 'pretrained'}", f"output={tmp_path / 'sft'}", "samples.prompts=null")
    shown = honed("train", "minimind_sft", "--data", rows_file, *places, *short)
    assert shown.status == 0, shown.err
    before, after = weights(tmp_path / "pretrained"), weights(tmp_path / "sft")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"} <= moved
