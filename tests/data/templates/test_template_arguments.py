"""Variables of the chat template that a row brings along (`chat_template_kwargs`), as TRL's rows do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from datasets import Dataset

from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import prepare
from honed.errors import DataError

TEMPLATE = (
    "<|im_start|>{{ who | default('nobody') }} {{ effort | default('none') }}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "yes"}]
OWN = [{"who": "ann", "effort": "low"}, None, {"effort": "high"}, {}, {"who": "ann", "effort": "low"}]


def ids_of(rows: Any, tokenizer: Any, **options: Any) -> list[list[int]]:
    table = prepare(rows, tokenizer, PrepareOptions(**options)).rows.table
    return [table.row([number]).input_ids.tolist() for number in range(len(table))]


@pytest.mark.parametrize("way", ["list", "json", "arrow", "prompt"])
def test_each_row_has_its_own_variables(tokenizer_with: Any, way: str) -> None:
    tokenizer = tokenizer_with(TEMPLATE)
    expected = [
        tokenizer.apply_chat_template(TALK, return_dict=False, **{"effort": "some", **(own or {})}) for own in OWN
    ]
    talk = {"prompt": TALK[:1], "completion": TALK[1:]} if way == "prompt" else {"messages": TALK}
    rows: Any = [{**talk, "chat_template_kwargs": json.dumps(own) if way == "json" else own} for own in OWN]
    found = ids_of(
        Dataset.from_list(rows) if way == "arrow" else rows, tokenizer, template_arguments={"effort": "some"}
    )
    assert found == expected
    assert found[0] == found[4] != found[1] == found[3]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["who"], "not an object"),
        ("{who", "not JSON"),
        ({"tokenize": False}, "no variables"),
        ({"eos_token": "x"}, "no variables"),
        ({"who": {"name": "<|im_end|>"}}, "control tokens"),
    ],
)
def test_what_no_template_should_get_is_refused(tokenizer_with: Any, own: Any, told: str) -> None:
    rows = [{"messages": TALK}, {"messages": TALK, "chat_template_kwargs": own}]
    with pytest.raises(DataError, match=told):
        prepare(rows, tokenizer_with(TEMPLATE), PrepareOptions())
    with pytest.raises(DataError, match="plain template"):
        prepare(
            [{**rows[0], "chat_template_kwargs": {"who": "ann"}}],
            tokenizer_with(None),
            PrepareOptions(template="plain"),
        )
