"""honed's engine where it fits, transformers' generate where it does not; the same settings for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from honed.generate.choice import open_engine, sampling_of, stop_ids
from honed.generate.engine.engine import Engine
from honed.generate.engine.fits import why_not
from honed.generate.library import TransformersEngine, shares_batches
from honed.generate.request import Request, complete
from honed.generate.sampling import Sampling

Make = Callable[..., Any]
Prompts = list[list[int]]


def test_a_model_that_fits_is_decoded_here(tiny_model: Make, tiny_tokenizer: Any) -> None:
    with open_engine(tiny_model(), tiny_tokenizer) as (engine, note):
        assert isinstance(engine, Engine)
        assert note == ""


@pytest.mark.filterwarnings("ignore")  # mamba advises on kernels that are not installed
def test_a_recurrent_model_is_decoded_by_transformers(
    tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts, alone: Callable[..., Prompts]
) -> None:
    model = tiny_model("mamba", state_size=4, expand=2, dtype=torch.float64)
    expected = alone(model, prompts, 8)
    with open_engine(model, tiny_tokenizer) as (engine, note):
        assert isinstance(engine, TransformersEngine)
        assert "transformers' generate answers" in note
        requests = [Request(prompt_ids=p, max_new_tokens=8, stop_ids=frozenset({2})) for p in prompts]
        # one by one: a recurrent model reads its padding
        found = [complete(engine, [request])[0][0] for request in requests]
    assert [list(one.ids) for one in found] == expected


def test_a_model_with_decoder_and_encoder_does_not_fit() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    assert why_not(T5ForConditionalGeneration(T5Config(**shape))) == "it is an encoder with a decoder"


def test_a_model_that_reads_its_cache_in_its_own_way_does_not_fit(tiny_model: Make) -> None:
    """Keys that change on their way into attention: found by the logits, not by the model's name."""
    model = tiny_model()
    model.model.layers[1].self_attn.layer_idx = 0  # both layers write to one place
    assert why_not(model) is not None
    assert model.config._attn_implementation != "honed_rows"


@pytest.mark.parametrize("name", ["num_beams", "no_repeat_ngram_size", "min_new_tokens"])
def test_settings_of_the_model_that_change_tokens_are_kept(name: str, tiny_model: Make, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    setattr(model.generation_config, name, 3)
    with open_engine(model, tiny_tokenizer) as (engine, note):
        assert isinstance(engine, TransformersEngine)
        assert name in note


def test_sampling_is_read_as_transformers_reads_it(tiny_model: Make) -> None:
    model = tiny_model()
    assert sampling_of(model, {}) == Sampling()
    assert sampling_of(model, {"do_sample": True}) == Sampling(temperature=1.0, top_k=50)
    model.generation_config.update(top_p=0.8, top_k=20, temperature=0.6, repetition_penalty=1.05)
    assert sampling_of(model, {"temperature": 2.0}) == Sampling(repetition_penalty=1.05)
    assert sampling_of(model, {"do_sample": True, "temperature": 2.0}) == Sampling(
        temperature=2.0, top_k=20, top_p=0.8, repetition_penalty=1.05
    )


@pytest.mark.parametrize(("eos", "expected"), [(None, []), (5, [5]), (0, [0]), ([7, 5], [7, 5])])
def test_stop_ids(eos: Any, expected: list[int], tiny_model: Make) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = eos
    assert stop_ids(model) == expected


def test_both_engines_give_the_same(tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts) -> None:
    """Greedy, with stop tokens, stop strings and limits of their own."""
    model = tiny_model(dtype=torch.float64)
    library = TransformersEngine(model, tiny_tokenizer, batch_size=4)
    with Engine(model, tiny_tokenizer) as engine:
        free = complete(engine, [Request(prompt_ids=p, max_new_tokens=20) for p in prompts])
        stops = frozenset({free[0][0].ids[4]})
        strings = (free[1][0].text[5:7], free[2][0].text[3:6])
        requests = [
            Request(prompt_ids=p, max_new_tokens=9 + n % 2 * 9, stop_ids=stops, stop_strings=strings)
            for n, p in enumerate(prompts)
        ]
        own = complete(engine, requests)
    assert own == complete(library, requests)
    assert {one[0].reason for one in own} >= {"stop", "stop_string"}


def test_transformers_draws_by_the_requests_seed(tiny_model: Make, tiny_tokenizer: Any, prompts: Prompts) -> None:
    library = TransformersEngine(tiny_model(), tiny_tokenizer)
    requests = [
        Request(prompt_ids=p, max_new_tokens=9, sampling=Sampling(temperature=3.0), seed=n, answers=2)
        for n, p in enumerate(prompts)
    ]
    state = torch.random.get_rng_state()
    found = complete(library, requests)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found == [complete(library, [request])[0] for request in requests]
    assert all(one.ids != two.ids for one, two in found)


def test_prompts_are_answered_alone_where_a_batch_would_change_the_answers(
    tiny_model: Make, tiny_tokenizer: Any
) -> None:
    """RWKV knows no mask, and its cached steps mix up the rows of a batch."""
    config = AutoConfig.for_model("rwkv", vocab_size=400, hidden_size=32, num_hidden_layers=2, context_length=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    model.generation_config.eos_token_id = None
    assert shares_batches(tiny_model()) and not shares_batches(model)
    prompts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16]]
    alone = [
        model.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :].tolist() for p in prompts
    ]
    with open_engine(model, tiny_tokenizer) as (engine, note):
        found = complete(engine, [Request(prompt_ids=p, max_new_tokens=6) for p in prompts])
    assert "state from token to token" in note
    assert [list(found[n][0].ids) for n in range(3)] == alone
