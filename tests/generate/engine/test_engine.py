"""The engine's greedy tokens are those of transformers' generate to each prompt alone, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from honed.errors import DataError, ModelError
from honed.generate.engine.cache import RowCache, plan_step
from honed.generate.engine.engine import Engine
from honed.generate.engine.fits import why_not
from honed.generate.request import Completion, Piece, Request, complete, unpadded
from honed.generate.sampling import Sampling

Make = Callable[..., Any]
Prompts = list[list[int]]
NEW = 15

# float64 leaves no doubt which token is likeliest; experts are computed in float32 or less.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0, "attn_implementation": "eager"},
    "gemma3_text": {"sliding_window": 6, "num_hidden_layers": 6},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "mixtral": {"num_local_experts": 4, "dtype": torch.float32},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 6, "dtype": torch.float32},
}


def make(tiny_model: Make, family: str, **changes: Any) -> Any:
    return tiny_model(family, **{"dtype": torch.float64, **FAMILIES[family], **changes})


def asked(prompts: Prompts, **options: Any) -> list[Request]:
    return [
        Request(prompt_ids=prompt, **{"max_new_tokens": NEW, "stop_ids": frozenset({2}), **options})
        for prompt in prompts
    ]


def told(model: Any, requests: list[Request], tokenizer: Any = None, **options: Any) -> list[list[Completion]]:
    with Engine(model, tokenizer, **options) as engine:
        return complete(engine, requests)


def ids(completions: list[list[Completion]]) -> Prompts:
    return [list(answers[0].ids) for answers in completions]


@pytest.mark.filterwarnings("ignore::UserWarning")  # gpt_oss advises on its rotary scaling
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(
    family: str, tiny_model: Make, prompts: Prompts, alone: Callable[..., Prompts]
) -> None:
    model = make(tiny_model, family)
    expected = alone(model, prompts, NEW)
    assert len({tuple(one) for one in expected}) == len(prompts)
    assert why_not(model) is None
    for slots in (1, 3, 16):  # one by one; refilled; all at once
        assert ids(told(model, asked(prompts), slots=slots)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_logits_are_those_of_the_plain_forward(dtype: torch.dtype, tiny_model: Make) -> None:
    """`why_not` compares them; packed linear layers take part in these formats."""
    assert why_not(tiny_model(dtype=dtype)) is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    side: str, tiny_model: Make, prompts: Prompts, alone: Callable[..., Prompts]
) -> None:
    model = make(tiny_model, "llama")
    width = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        pad = [0] * (width - len(prompt))
        rows.append(pad + prompt if side == "left" else prompt + pad)
        masks.append([0] * len(pad) + [1] * len(prompt) if side == "left" else [1] * len(prompt) + [0] * len(pad))
    found = unpadded(torch.tensor(rows), torch.tensor(masks))
    assert found == prompts
    assert ids(told(model, asked(found), slots=4)) == alone(model, prompts, NEW)


def test_a_refilled_slot_does_not_see_the_row_before_it(tiny_model: Make) -> None:
    """Not by a single bit: the second row's logits are the same after two different first rows."""
    model = tiny_model()
    last = []
    for first in ([5, 6, 7, 8, 9, 10, 11], [90, 80, 70]):
        with Engine(model, slots=1) as engine:
            cache = RowCache(1)
            engine.forward(plan_step(cache, [(0, first)], [], model.device))
            engine.forward(plan_step(cache, [], [(0, 33, len(first))], model.device))
            engine.forward(plan_step(cache, [(0, [40, 41])], [], model.device))
            last.append(engine.forward(plan_step(cache, [], [(0, 42, 2)], model.device)))
    assert torch.equal(*last)


def test_rows_do_not_see_each_other(tiny_model: Make) -> None:
    model = tiny_model()
    logits = []
    for other in ([5, 6, 7], [90, 80, 70]):
        with Engine(model, slots=2) as engine:
            cache = RowCache(2)
            engine.forward(plan_step(cache, [(0, other), (1, [40, 41, 43, 44])], [], model.device))
            step = plan_step(cache, [], [(0, other[0], 3), (1, 42, 4)], model.device)
            logits.append(engine.forward(step)[1])
    assert torch.equal(*logits)


def test_answers_end_at_their_stop_token_or_limit(
    tiny_model: Make, prompts: Prompts, alone: Callable[..., Prompts]
) -> None:
    model = make(tiny_model, "llama")
    free = alone(model, prompts, NEW)
    stop = free[0][4]
    assert stop not in free[0][:4]
    requests = [
        Request(prompt_ids=prompt, max_new_tokens=NEW - number, stop_ids=frozenset({stop}))
        for number, prompt in enumerate(prompts)
    ]
    found = told(model, requests, slots=2)
    for number, (answers, whole) in enumerate(zip(found, free, strict=True)):
        limit = NEW - number
        end = whole.index(stop) + 1 if stop in whole[:limit] else limit
        assert list(answers[0].ids) == whole[:end]
        assert answers[0].reason == ("stop" if stop in whole[:limit] else "length")
    assert {answers[0].reason for answers in found} == {"stop", "length"}


def test_repetition_penalty_is_that_of_transformers(
    tiny_model: Make, prompts: Prompts, alone: Callable[..., Prompts]
) -> None:
    model = make(tiny_model, "llama")
    expected = alone(model, prompts, NEW, repetition_penalty=1.7)
    assert expected != alone(model, prompts, NEW)
    assert ids(told(model, asked(prompts, sampling=Sampling(repetition_penalty=1.7)))) == expected


def test_draws_depend_on_the_seed_and_not_on_the_batch(tiny_model: Make, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.95)
    requests = [
        Request(prompt_ids=prompt, max_new_tokens=NEW, sampling=sampling, seed=number)
        for number, prompt in enumerate(prompts)
    ]
    together = ids(told(model, requests))
    assert together == [ids(told(model, [request]))[0] for request in requests]
    assert together == ids(told(model, requests[::-1], slots=2))[::-1]
    same_prompt = [Request(prompt_ids=prompts[0], max_new_tokens=NEW, sampling=sampling, seed=n) for n in range(5)]
    assert len({tuple(one) for one in ids(told(model, same_prompt))}) == 5


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
def test_several_answers_are_those_of_requests_of_their_own(slots: int, tiny_model: Make, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    sampling = Sampling(temperature=1.5)
    many = asked(prompts, sampling=sampling, answers=4)
    found = told(model, many, slots=slots)
    for prompt, answers in zip(prompts, found, strict=True):
        single = [asked([prompt], sampling=sampling, first=number)[0] for number in range(4)]
        assert [one.ids for one in answers] == [one[0].ids for one in told(model, single)]
        assert len({one.ids for one in answers}) == 4


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_answers_of_one_token_are_all_given(slots: int, tiny_model: Make, prompts: Prompts) -> None:
    """They end in the step in which they start, and their slots are free at once."""
    model = make(tiny_model, "llama")
    requests = asked(prompts, answers=5, max_new_tokens=1, sampling=Sampling(temperature=2.0))
    found = told(model, requests, slots=slots)
    assert [len(answers) for answers in found] == [5] * len(prompts)
    assert found == told(model, requests)


def test_a_prompt_with_several_answers_is_computed_once(tiny_model: Make, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    lengths: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].numel()))
    told(model, asked(prompts[4:5], answers=5, sampling=Sampling(temperature=1.0), stop_ids=frozenset()), slots=2)
    handle.remove()
    # 30 for the prompt; then every token but an answer's last goes in once
    assert sum(lengths) == 30 + 5 * (NEW - 1)


@pytest.mark.parametrize("pieces", [True, False])
def test_pieces_join_to_the_text(pieces: bool, tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    sampling = Sampling(temperature=3.0)  # random bytes: broken characters, special tokens
    texts = [""] * len(prompts)
    done: dict[int, Completion] = {}
    with Engine(model, tiny_tokenizer, slots=3) as engine:
        for piece in engine.run(asked(prompts, sampling=sampling, max_new_tokens=40), pieces=pieces):
            assert piece.request not in done
            texts[piece.request] += piece.text
            if piece.done is not None:
                done[piece.request] = piece.done
    for number, text in enumerate(texts):
        kept = [token for token in done[number].ids if token != 2]
        assert text == done[number].text == tiny_tokenizer.decode(kept, skip_special_tokens=True)


def test_an_answer_begins_before_it_ends(tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts) -> None:
    with Engine(make(tiny_model, "llama"), tiny_tokenizer) as engine:
        found: list[Piece] = list(engine.run(asked(prompts[:1], max_new_tokens=30), pieces=True))
    assert len(found) > 5
    assert [piece.done is None for piece in found] == [True] * (len(found) - 1) + [False]


def test_stop_strings_end_an_answer_inside_a_token(tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    free = told(model, asked(prompts, max_new_tokens=30), tiny_tokenizer)[1][0]
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    found = told(model, asked(prompts[1:2], max_new_tokens=30, stop_strings=(stop,)), tiny_tokenizer)[0][0]
    assert found.reason == "stop_string"
    assert found.text == free.text[: free.text.index(stop)]
    assert found.ids == free.ids[: len(found.ids)]
    assert stop not in tiny_tokenizer.decode(found.ids[:-1])


def test_an_answer_ends_at_the_models_context(tiny_model: Make, prompts: Prompts) -> None:
    model = make(tiny_model, "llama", max_position_embeddings=20)
    found = told(model, asked(prompts, stop_ids=frozenset(), max_new_tokens=18))
    # the last position is computed as well, and a token chosen behind it
    assert [len(one[0].ids) for one in found] == [18, 4, 12, 18, 0, 9]
    assert [one[0].reason for one in found] == ["length", "context", "context", "length", "context", "context"]


def test_the_model_is_left_as_it_was(tiny_model: Make, prompts: Prompts) -> None:
    model = tiny_model().train()
    before, modules = model.config._attn_implementation, [*model.modules()]
    with pytest.raises(ZeroDivisionError), Engine(model) as engine:
        assert not model.training
        for _ in engine.run(asked(prompts)):
            raise ZeroDivisionError
    assert model.training
    assert model.config._attn_implementation == before
    assert [id(module) for module in model.modules()] == [id(module) for module in modules]
    model(input_ids=torch.tensor([prompts[0]])).logits.sum().backward()


def test_requests_are_taken_as_slots_fall_free(tiny_model: Make, prompts: Prompts) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        for number in range(10**9):
            taken.append(number)
            yield Request(prompt_ids=prompts[number % 6], max_new_tokens=3)

    with Engine(tiny_model(), slots=2) as engine:
        run = engine.run(endless())
        assert len({next(run).request for _ in range(5)}) == 5
    assert len(taken) <= 5 + 2 + 1  # answered, in a slot, looked at


def test_long_prompts_are_computed_apart(tiny_model: Make, prompts: Prompts) -> None:
    model = make(tiny_model, "llama")
    widths: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].numel()))
    found = ids(told(model, asked(prompts), prompt_tokens=25))
    handle.remove()
    assert max(widths) <= 30 + 4
    assert found == ids(told(model, asked(prompts)))


def test_bad_requests(tiny_model: Make) -> None:
    with pytest.raises(DataError, match="without tokens"):
        Request(prompt_ids=[])
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        Request(prompt_ids=[1], max_new_tokens=0)
    with pytest.raises(DataError, match="stop string is empty"):
        Request(prompt_ids=[1], stop_strings=("",))
    with Engine(tiny_model()) as engine, pytest.raises(ModelError, match="tokenizer"):
        complete(engine, [Request(prompt_ids=[5], stop_strings=("x",))])
    with pytest.raises(RuntimeError, match="with"):
        complete(Engine(tiny_model()), [Request(prompt_ids=[5])])
    assert told(tiny_model(), []) == []
