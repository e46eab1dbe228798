"""The harness's requests, answered; against a plain float64 model and transformers' own generation.

lm-eval is an extra that brings dozens of packages, so a double of its `LM` stands in for it here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from honed.cli.eval import opened_scorer
from honed.errors import MissingExtraError, RecipeError
from honed.evaluate.lm_eval_model import Requests, as_lm, before_stops, run_tasks

PAIRS = [("why fox", " yes"), ("why fox ", "no, three"), ("", "the quick brown"), ("<|im_start|>user\nwhy\n", "yes")]


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


@pytest.fixture
def requests(tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Requests]:
    model = tiny_model(dtype=torch.float64).eval()
    with opened_scorer(model, tiny_tokenizer) as (scorer, collate):
        yield Requests(model, tiny_tokenizer, scorer=scorer, collate=collate, max_length=64)


def plain(requests: Requests, context: str, continuation: str) -> tuple[float, bool]:
    def ids(text: str) -> list[int]:
        return list(requests.tokenizer(text, add_special_tokens=False)["input_ids"])

    before = ids(context.rstrip())
    whole = ids(context + continuation)
    if not before:
        before, whole = [requests.tokenizer.bos_token_id], [requests.tokenizer.bos_token_id, *whole]
    with torch.no_grad():
        logp = requests.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    picked = [
        (float(logp[n - 1, whole[n]]), int(logp[n - 1].argmax()) == whole[n]) for n in range(len(before), len(whole))
    ]
    return sum(value for value, _ in picked), all(greedy for _, greedy in picked)


def test_log_likelihoods_are_those_of_a_plain_model(requests: Requests) -> None:
    found = requests.loglikelihood([asked(*pair) for pair in PAIRS])
    for (value, greedy), pair in zip(found, PAIRS, strict=True):
        expected, likeliest = plain(requests, *pair)
        assert value == pytest.approx(expected, rel=1e-6)
        assert greedy is likeliest
    assert requests.cut == 0


def test_what_greedy_decoding_says_is_greedy(requests: Requests) -> None:
    [text] = requests.generate_until([asked("why fox", {"until": [], "max_gen_toks": 3})])
    prompt = requests.tokenizer("why fox", return_tensors="pt", add_special_tokens=False)
    output = requests.model.generate(**prompt, max_new_tokens=3, do_sample=False)
    new = output[0, prompt["input_ids"].shape[1] :]
    assert text == requests.tokenizer.decode(new, skip_special_tokens=True)
    if requests.tokenizer("why fox" + text)["input_ids"] == output[0].tolist():  # the same ids when read again
        assert requests.loglikelihood([asked("why fox", text)])[0][1]


def test_long_contexts_lose_their_beginning(requests: Requests) -> None:
    context = "why " * 80
    [(value, _)] = requests.loglikelihood([asked(context, "yes")])
    ids = requests.tokenizer(context + "yes", add_special_tokens=False)["input_ids"][-64:]
    with torch.no_grad():
        logp = requests.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    own = len(requests.tokenizer(context + "yes")["input_ids"]) - len(requests.tokenizer(context.rstrip())["input_ids"])
    assert value == pytest.approx(sum(float(logp[n - 1, ids[n]]) for n in range(64 - own, 64)), rel=1e-6)
    assert requests.cut == 1
    with pytest.raises(RecipeError, match="does not fit"):
        requests.loglikelihood([asked("why", "quick brown " * 80)])


def test_requests_with_arguments_of_their_own(requests: Requests) -> None:
    wanted = [
        ("why", {"until": ["\n"], "max_gen_toks": 2}),
        ("fox", {"max_gen_toks": 5}),
        ("yes", {"until": "\n", "max_gen_toks": 2}),
    ]
    found = requests.generate_until([asked(*one) for one in wanted])
    assert found == [requests.generate_until([asked(*one)])[0] for one in wanted]


def test_stops() -> None:
    assert before_stops("a b\nc", ["\n", "b"]) == "a "
    assert before_stops("a b", "b") == "a "
    assert before_stops("a b", ["", "x"]) == "a b"


def test_text_of_a_chat(requests: Requests) -> None:
    text = requests.apply_chat_template([{"role": "user", "content": "why"}])
    assert text == "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"
    assert requests.chat_template(True) == requests.tokenizer.chat_template


def test_running_text_is_refused(requests: Requests) -> None:
    with pytest.raises(RecipeError, match="perplexity of running text"):
        requests.loglikelihood_rolling([asked("why")])


def test_without_the_package(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("honed.evaluate.lm_eval_model.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'honed\[eval\]'"):
        as_lm(requests)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A double: asks for one log-likelihood and one answer, and gives numbers in the harness's shape."""

    class LM:
        def __init__(self) -> None:
            self.cache_hook = "made"

    def simple_evaluate(model: Any, tasks: list[str], **options: Any) -> Any:
        assert isinstance(model, LM) and model.cache_hook == "made"
        assert options["apply_chat_template"] is True
        if "unknown" in tasks:
            raise KeyError("unknown")
        context = model.apply_chat_template([{"role": "user", "content": "why"}])
        [(value, _)] = model.loglikelihood([asked(context, "yes")])
        [text] = model.generate_until([asked(context, {"max_gen_toks": 2})])
        numbers = {
            "alias": "t",
            "ll,none": value,
            "said,none": len(text),
            "ll_stderr,none": "N/A",
            "nan,none": float("nan"),
        }
        return {"results": dict.fromkeys(tasks, numbers)}

    package, api, module = ModuleType("lm_eval"), ModuleType("lm_eval.api"), ModuleType("lm_eval.api.model")
    package.simple_evaluate, module.LM = simple_evaluate, LM  # type: ignore[attr-defined]
    for name, made in (("lm_eval", package), ("lm_eval.api", api), ("lm_eval.api.model", module)):
        monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr("honed.evaluate.lm_eval_model.find_spec", lambda name: object())
    return package


@pytest.mark.usefixtures("harness")
def test_tasks_of_the_double(requests: Requests) -> None:
    found = run_tasks(as_lm(requests), ["one", "two"], limit=2, seed=0)
    expected, _ = plain(requests, "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n", "yes")
    assert set(found) == {"one", "two"}
    assert set(found["one"]) == {"ll,none", "said,none"}
    assert found["one"]["ll,none"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RecipeError, match="unknown"):
        run_tasks(as_lm(requests), ["unknown"], limit=None, seed=0)


@pytest.mark.usefixtures("harness")
def test_the_count_of_cut_contexts_comes_back(requests: Requests) -> None:
    lm = as_lm(requests)
    lm.loglikelihood([asked("why " * 80, "yes")])
    assert lm.cut == 1
