"""What a row is read as that has the columns of several formats: TRL's order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reading import ALPACA, ANSWER, HUMAN, SOURCE, USER, read

from honed.data.example import Document
from honed.data.read.formats import ReadOptions, formats_of


@pytest.mark.parametrize(
    ("row", "named", "unnamed"),
    [
        ({**ALPACA, "text": "c"}, "text", "alpaca"),
        ({"conversations": [USER, ANSWER], "text": "c"}, "text", "sharegpt"),
        ({"conversations": HUMAN, "text": "c"}, "sharegpt", "sharegpt"),
        ({"messages": [USER, ANSWER], "text": "c"}, "messages", "messages"),
        ({"messages": "not turns", "text": "c"}, "text", "messages"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt_completion", "prompt_completion"),
        ({"prompt": [USER], "completion": [ANSWER], "messages": [USER, ANSWER]}, "prompt_completion",
         "prompt_completion"),
        ({"input_ids": [1], "text": "c"}, "tokens", "tokens"),
        ({**ALPACA, "text": None}, "alpaca", "alpaca"),
        ({"text": "c"}, "text", "text"),
    ],
)  # fmt: skip
def test_what_comes_first_where_several_formats_fit(row: dict[str, Any], named: str, unnamed: str) -> None:
    """The order of TRL 1.16 where a text column is named, as its SFTConfig always does."""
    assert formats_of(row, ReadOptions(text_field="text"))[0] == named
    assert formats_of(row, ReadOptions())[0] == unnamed
    if named == "text":
        assert read(row, text_field="text") == Document(text="c", source=SOURCE)
        assert formats_of(row, ReadOptions(text_field="other"))[0] == unnamed


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ({**ALPACA, "text": "c"}, "text"),
        ({"conversations": [USER, ANSWER], "text": "c"}, "text"),
        ({"conversations": HUMAN, "text": "c"}, "messages"),
        ({"messages": [USER, ANSWER], "text": "c"}, "messages"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "prompt"),
        ({"prompt": [USER], "completion": [ANSWER], "messages": [USER, ANSWER]}, "prompt"),
    ],
)
def test_the_order_is_that_of_trl(row: dict[str, Any], chosen: str, tiny_tokenizer: Any) -> None:
    """Asked of TRL's own preparation, where TRL is installed."""
    trl = pytest.importorskip("trl")
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"this asks functions of TRL 1.16 that are not public; here is {trl.__version__}")
    from types import SimpleNamespace

    from datasets import Dataset

    asked: list[str] = []

    def tokenize(processor: Any, given: Any, **more: Any) -> dict[str, Any]:
        row_of = {json.dumps(row.get(key)): key for key in ("text", "prompt", "messages")}
        asked.append(row_of.get(json.dumps(given), "messages" if isinstance(given, list) else "text"))
        return {"input_ids": [1]}

    module = __import__("trl.trainer.sft_trainer", fromlist=["x"])
    trainer = SimpleNamespace(_tokenizer=tiny_tokenizer, chat_template=None, completion_only_loss=False)
    args = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=False,
        max_length=None,
        shuffle_dataset=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tokenize", tokenize)
        trl.SFTTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tiny_tokenizer, args, False, None, "train")
    assert asked[0] == chosen
