"""No key, token or password of a recipe or a command line is written down."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.recipe import load_recipe, recipe_from
from honed.train.run_folder.secrets import MASK, masked, masked_command, masked_values, masked_yaml

HUB = "hf_" + "aB3" * 11
KEYS = ("token", "hub_token", "HF_TOKEN", "push_to_hub_token", "use_auth_token", "api_key", "WANDB_API_KEY", "password")
VALUES = st.text(min_size=8, alphabet=st.characters(codec="utf-8")).filter(lambda text: text.strip("-\n #") == text)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "form", ["{}: {}", "{}={}", "{}='{}'", '"{}": "{}"', "{{'{}': '{}', 'x': 1}}", "x: [{{{}: {}}}]"]
)
def test_by_name(key: str, form: str) -> None:
    assert masked(form.format(key, "pa55.w/rd")) == form.format(key, MASK)


@pytest.mark.parametrize(
    "text",
    [
        "eos_token: <|im_end|>",
        "pad_token=<pad>",
        "max_new_tokens: 96",
        "token_metrics: true",
        "token: true",
        "hub_token: null",
        "api_key: ''",
        "include_num_input_tokens_seen: all",
        "tokenizer: secretary/passwords",
        "hf://datasets/owner/name@main",
        "someone@example.com, git+ssh://git@github.com/a/b",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "secret",
    [HUB, "sk-proj-" + "x1" * 20, "AKIA" + "A1" * 8, "ghp_" + "a" * 36, "xoxb-1234567890-abc", "AIza" + "a" * 35],
)
def test_by_form(secret: str) -> None:
    assert masked(f"model: {secret} and more") == f"model: {MASK} and more"


@pytest.mark.parametrize("user", ["bob:hunter2", ":hunter2", "x" * 40])
def test_in_urls(user: str) -> None:
    assert masked(f"data: https://{user}@host/rows.jsonl") == f"data: https://{MASK}@host/rows.jsonl"


@settings(deadline=None)
@given(VALUES)
def test_whatever_the_value_a_recipe_can_be_read_back_without_it(value: str) -> None:
    train = {"hub_token": value, "model_init_kwargs": {"token": value, "revision": "main"}, "seed": 3}
    text = masked_yaml(recipe_from({"train": train, "lora": None}))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        hidden = {"hub_token": MASK, "model_init_kwargs": {"token": MASK, "revision": "main"}, "seed": 3}
        assert load_recipe(file) == recipe_from({"train": hidden, "lora": None})


@given(VALUES)
def test_whatever_the_value_a_command_is_shown_without_it(value: str) -> None:
    shown = masked_command(shlex.join(["honed", "train", "--model", "m", f"train.hub_token={value}", "a=it's"]))
    assert shlex.split(shown) == ["honed", "train", "--model", "m", f"train.hub_token={MASK}", "a=it's"]


def test_a_command_that_is_no_shells() -> None:
    assert masked_command("it's token=abc") == f"it's token={MASK}"


def test_texts_inside_json() -> None:
    record = {"command": f"honed train model_init_kwargs='{{token: {HUB}}}'", "steps": [1, None, "token=abc"]}
    shown = json.dumps(masked_values(record))
    assert HUB not in shown and "abc" not in shown
    assert masked_values(record)["steps"][:2] == [1, None]
