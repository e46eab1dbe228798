"""Responses found by their text: hand-checked labels, context-dependent tokens, and rows where nothing is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from honed import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer
from honed.errors import RecipeError

ONE = "### Question:\nwhy\n### Answer:\nyes<|im_end|>"
TWO = "### Question:\nwhy\n### Answer: yes\n### Question:\nand\n### Answer: no<|im_end|>"


def shown(collator: Any, tokenizer: Any, *texts: str) -> list[list[str]]:
    """The trained stretches of each row, as text."""
    batch = collator([{"input_ids": tokenizer(text)["input_ids"], "text": text} for text in texts])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        assert all(label in (-100, i) for i, label in zip(ids.tolist(), labels.tolist(), strict=True))
        assert (labels[mask == 0] == -100).all()
        marked = [(i, label >= 0) for i, label in zip(ids.tolist(), labels.tolist(), strict=True)]
        stretches: list[list[int]] = [[]]
        for i, trained in marked:
            if trained:
                stretches[-1].append(i)
            elif stretches[-1]:
                stretches.append([])
        found.append([tokenizer.decode(part) for part in stretches if part])
    return found


@pytest.mark.parametrize(
    ("response", "instruction", "text", "trained"),
    [
        ("### Answer:\n", None, ONE, ["yes<|im_end|>"]),
        ("### Answer:", None, ONE, ["\nyes<|im_end|>"]),
        ("### Answer:", None, TWO, [" no<|im_end|>"]),
        ("### Answer:", "### Question:", TWO, [" yes\n", " no<|im_end|>"]),
        ("### Answer:", "### Question:", TWO.replace("### Question:\nwhy\n", ""), [" yes\n", " no<|im_end|>"]),
        ("### Answer:", "### Question:", f"{TWO}\n### Question: so", [" yes\n", " no<|im_end|>\n"]),
        ("### Answer:", None, "### Answer: 答案🦊<|im_end|>", [" 答案🦊<|im_end|>"]),
        ("狐:", "问:", "问:why狐:yes 问:and狐:no", ["yes ", "no"]),
    ],
)
def test_what_is_trained(tiny_tokenizer: Any, response: str, instruction: str | None, text: str, trained: Any) -> None:
    collator = DataCollatorForCompletionOnlyLM(response, instruction, tokenizer=tiny_tokenizer)
    assert shown(collator, tiny_tokenizer, f"three {text}", text)[1] == trained
    assert collator.not_found == 0


def merging_tokenizer() -> Any:
    """ "\\n##" is one token here, so "### Answer:" alone has ids that a row never holds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<eos>", *letters, "Ċ#", "Ċ##", "##"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "#"), ("Ċ#", "#"), ("#", "#")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_tokens_that_depend_on_what_stands_before_them() -> None:
    tokenizer = merging_tokenizer()
    alone, row = tokenizer("### A:")["input_ids"], tokenizer("Q\n### A:so")["input_ids"]
    assert not any(row[n : n + len(alone)] == alone for n in range(len(row))), "the ids occur: nothing is tested"
    for template in ("### A:", alone, tokenizer("\n### A:")["input_ids"]):
        collator = DataCollatorForCompletionOnlyLM(template, tokenizer=tokenizer)
        labels = collator([row])["labels"][0].tolist()
        assert labels == [-100] * (len(row) - 2) + row[-2:]


def test_a_token_across_the_border_is_trained() -> None:
    tokenizer = merging_tokenizer()
    row = tokenizer("Q\n##x")["input_ids"]  # Q, "\n##", x
    labels = DataCollatorForCompletionOnlyLM("Q\n", tokenizer=tokenizer)([row])["labels"][0].tolist()
    assert labels == [-100, *row[1:]]


def test_eos_is_trained_where_it_is_the_pad_token_too(tiny_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    collator = DataCollatorForCompletionOnlyLM("### Answer:\n", tokenizer=tokenizer)
    assert shown(collator, tokenizer, ONE, ONE.replace("why", "why why why")) == [["yes<|im_end|>"]] * 2


def test_rows_without_a_response_are_told_of_and_counted(tiny_tokenizer: Any) -> None:
    collator = DataCollatorForCompletionOnlyLM("### Answer:", "### Question:", tokenizer=tiny_tokenizer)
    with pytest.warns(UserWarning, match=r"'### Answer:' and '### Question:' not found.*'### Reply: yes"):
        found = shown(collator, tiny_tokenizer, "### Reply: yes", TWO)
    assert found == [[], [" yes\n", " no<|im_end|>"]]
    with pytest.warns(UserWarning, match=r"2 so far"):
        shown(collator, tiny_tokenizer, "### Question: why ### Answer:")
    assert collator.not_found == 2


def test_padding_free_batches(tiny_tokenizer: Any) -> None:
    rows = [tiny_tokenizer(text)["input_ids"] for text in (ONE, "### Answer:\nno")]
    collator = DataCollatorForCompletionOnlyLM(
        "### Answer:\n", tokenizer=tiny_tokenizer, padding_free=True, ignore_index=-7
    )
    batch = collator(rows)
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"][0].tolist() == rows[0] + rows[1]
    assert batch["position_ids"][0].tolist() == [*range(len(rows[0])), *range(len(rows[1]))]
    trained = batch["input_ids"][batch["labels"] >= 0]
    assert tiny_tokenizer.decode(trained) == "yes<|im_end|>no" and (batch["labels"] == -7).any()


@pytest.mark.parametrize("arguments", [{}, {"mlm": True}, {"response_template": ""}, {"response_template": []}])
def test_arguments_that_cannot_be(tiny_tokenizer: Any, arguments: dict[str, Any]) -> None:
    given = {"response_template": "a", "tokenizer": tiny_tokenizer if arguments else None, **arguments}
    with pytest.raises(RecipeError):
        DataCollatorForCompletionOnlyLM(**given)


@pytest.mark.parametrize("way", ["text field", "formatting_func"])
def test_an_old_script_trains(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, way: str) -> None:
    import torch
    from datasets import Dataset

    pairs = [{"q": f"why {n}", "a": "yes " * (n % 3 + 1)} for n in range(6)]
    as_text = "### Question:\n{q}\n### Answer:\n{a}".format_map
    rows = pairs if way == "formatting_func" else [{"body": as_text(pair)} for pair in pairs]

    def formatting(batch: Any) -> list[str]:
        return [as_text({"q": batch["q"][n], "a": batch["a"][n]}) for n in range(len(batch["q"]))]

    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=6, max_steps=1, dataset_text_field="body", logging_steps=1, learning_rate=0.0,
    )  # fmt: skip
    collator = DataCollatorForCompletionOnlyLM("### Answer:\n", tokenizer=tiny_tokenizer)
    trainer = SFTTrainer(
        tiny_model(), args=args, data_collator=collator, train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer, formatting_func=formatting if way == "formatting_func" else None,
    )  # fmt: skip
    features = [trainer.train_dataset[n] for n in range(6)]
    assert [tiny_tokenizer.decode(f["input_ids"]) for f in features] == [as_text(p) + "<|im_end|>" for p in pairs]
    trainer.train()
    batch = collator(features)
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert trainer.ledger is not None and trainer.ledger.rows_trained == 6 and collator.not_found == 0
