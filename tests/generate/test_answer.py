"""Answers of a batch are those of transformers to each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from honed.data.example import Message
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import make_template
from honed.errors import ModelError, TemplateError
from honed.generate.answer import Answer, answers, ask, need_template, stop_ids

QUESTIONS = ("why", "the quick brown fox asks why and answers", "狐狸", "a", "one two three " * 9)
NEW = 12


@pytest.fixture
def template(tiny_tokenizer: Any) -> Any:
    return make_template(tiny_tokenizer, PrepareOptions())


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    """In float64 no rounding decides which token is likeliest."""
    return tiny_model(dtype=torch.float64)


def alone(model: Any, tokenizer: Any, question: str) -> list[int]:
    """New ids of transformers' own generation, one prompt, nothing padded."""
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return list(output[0, inputs["input_ids"].shape[1] :].tolist())


def told(
    model: Any, tokenizer: Any, template: Any, questions: Sequence[str] = QUESTIONS, **options: Any
) -> list[Answer]:
    conversations = [ask(question) for question in questions]
    return answers(model, tokenizer, template, conversations, max_new_tokens=NEW, show=False, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_padded_batch_answers_as_each_prompt_alone(
    batch_size: int, model: Any, tiny_tokenizer: Any, template: Any
) -> None:
    expected = [alone(model, tiny_tokenizer, question) for question in QUESTIONS]
    assert len({tuple(ids) for ids in expected}) == len(QUESTIONS)
    found = told(model, tiny_tokenizer, template, batch_size=batch_size)
    assert [answer.text for answer in found] == [
        tiny_tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]


@pytest.mark.parametrize("as_list", [True, False])
def test_stopped_and_tokens(as_list: bool, model: Any, tiny_tokenizer: Any, template: Any) -> None:
    """The third token that the first answer would have becomes the stop token: it ends there, others go on."""
    free = [alone(model, tiny_tokenizer, question) for question in QUESTIONS]
    stop = free[0][2]
    assert stop not in free[0][:2]
    model.generation_config.eos_token_id = [stop, 399] if as_list else stop
    stops = {stop, 399} if as_list else {stop}
    ends = [next((n for n, token in enumerate(ids) if token in stops), None) for ids in free]
    assert None in ends, "all stop: choose another seed"
    found = told(model, tiny_tokenizer, template)
    assert [answer.stopped for answer in found] == [end is not None for end in ends]
    assert [answer.tokens for answer in found] == [NEW if end is None else end + 1 for end in ends]
    assert found[0].text == tiny_tokenizer.decode(free[0][:2], skip_special_tokens=True)


def test_padding_with_the_stop_token_is_no_stop(model: Any, tiny_tokenizer: Any, template: Any) -> None:
    """pad == eos, as many tokenizers have it: an answer that was cut is not counted as stopped."""
    free = [alone(model, tiny_tokenizer, question) for question in QUESTIONS]
    unused = next(token for token in range(400) if all(token not in ids for ids in free))
    model.generation_config.eos_token_id = tiny_tokenizer.pad_token_id if unused == 0 else unused
    found = told(model, tiny_tokenizer, template)
    assert not any(answer.stopped for answer in found)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training: bool, model: Any, tiny_tokenizer: Any, template: Any) -> None:
    model.train(training)
    modes: list[bool] = []
    handle = model.register_forward_pre_hook(lambda *_: modes.append(model.training))
    told(model, tiny_tokenizer, template)
    handle.remove()
    assert (set(modes), model.training) == ({False}, training)


def test_sampling_is_by_the_seed(model: Any, tiny_tokenizer: Any, template: Any) -> None:
    options = {"do_sample": True, "temperature": 3.0, "top_k": 7}
    found = [told(model, tiny_tokenizer, template, seed=seed, **options) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    torch.manual_seed(5)
    by_torch = told(model, tiny_tokenizer, template, **options)
    assert by_torch != told(model, tiny_tokenizer, template, **options)
    torch.manual_seed(5)
    assert by_torch == told(model, tiny_tokenizer, template, **options)


def test_options_that_only_transformers_knows_go_there(
    model: Any, tiny_tokenizer: Any, template: Any, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []
    real = model.generate
    model.generate = lambda **options: (taken.append(options["num_beams"]), real(**options))[1]
    with caplog.at_level("WARNING", logger="honed"):
        found = told(model, tiny_tokenizer, template, num_beams=3)
    assert taken.count(3) == 1 and set(taken) <= {1, 3}  # it is tried first whether prompts can share a batch
    assert "does not know num_beams" in caplog.text
    before = len(taken)
    assert found != told(model, tiny_tokenizer, template)
    assert len(taken) == before


def test_no_questions_no_answers(model: Any, tiny_tokenizer: Any, template: Any) -> None:
    assert told(model, tiny_tokenizer, template, ()) == []


def test_history_is_part_of_the_prompt(model: Any, tiny_tokenizer: Any, template: Any) -> None:
    history = (*ask("why", system="be short"), Message(role="assistant", content="yes"), *ask("why"))
    found = answers(model, tiny_tokenizer, template, [history, ask("why")], max_new_tokens=NEW, show=False)
    assert found[0] != found[1]


def test_ask() -> None:
    assert [(m.role, m.content) for m in ask("q", "s")] == [("system", "s"), ("user", "q")]
    assert [(m.role, m.content) for m in ask("q")] == [("user", "q")]


def test_a_template_that_refuses_is_an_error_to_mend(model: Any, tiny_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{- raise_exception('users only') }}"
    with pytest.raises(TemplateError, match="users only"):
        told(model, tokenizer, make_template(tokenizer, PrepareOptions()))


def test_need_template(template: Any) -> None:
    assert need_template(template, "m") is template
    with pytest.raises(ModelError, match="m has no chat template"):
        need_template(None, "m")


@pytest.mark.parametrize(("eos", "expected"), [(None, []), (5, [5]), (0, [0]), ([7, 5], [7, 5])])
def test_stop_ids(eos: Any, expected: list[int], model: Any) -> None:
    model.generation_config.eos_token_id = eos
    assert stop_ids(model) == expected
