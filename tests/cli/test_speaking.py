"""`honed generate` and `honed chat` on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from honed.data.example import Message
from honed.generate import answer

Asked = list[list[tuple[str, str]]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts lines on the keyboard; after the last comes Ctrl-D."""

    def lines(*texts: str) -> None:
        waiting = list(texts)

        def read(prompt: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", read)

    return lines


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Asked, list[answer.Answer]]:
    """The conversations that reach the model, and its answers."""
    conversations: Asked = []
    given: list[answer.Answer] = []
    real = answer.answers

    def answers(model: Any, tokenizer: Any, template: Any, wanted: Sequence[Sequence[Message]], **options: Any) -> Any:
        conversations.extend([(m.role, m.content) for m in messages] for messages in wanted)
        given.extend(real(model, tokenizer, template, wanted, **options))
        return given[-len(wanted) :]

    monkeypatch.setattr(answer, "answers", answers)
    return conversations, given


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, whatever this machine is best at, so that another program gives the same answer."""
    import torch

    monkeypatch.setattr("honed.model.load.pick_dtype", lambda device: torch.float32)


@pytest.mark.usefixtures("exact")
def test_generate_prints_what_transformers_would(honed: Callable[..., Any], model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why 狐狸?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(new, skip_special_tokens=True)
    shown = honed("generate", model_folder, "why 狐狸?", "--system", "be short", "--max-new-tokens", "6")
    assert (shown.status, shown.out) == (0, expected + "\n")
    assert ("cut after 6 tokens" in shown.err) is (model.generation_config.eos_token_id not in new)


def test_generate_samples_by_its_seed(honed: Callable[..., Any], model_folder: Path) -> None:
    def said(seed: int, temperature: float) -> str:
        options = ("--max-new-tokens", "12", "--seed", str(seed), "--temperature", str(temperature))
        return str(honed("generate", model_folder, "why", *options).out)

    assert said(1, 5.0) == said(1, 5.0)
    assert len({said(seed, 5.0) for seed in range(3)}) == 3
    assert said(1, 0.0) == said(2, 0.0)


def test_chat_remembers_until_reset(
    honed: Callable[..., Any],
    model_folder: Path,
    typed: Callable[..., None],
    asked: tuple[Asked, list[answer.Answer]],
) -> None:
    typed("one", "", "  two  ", "/reset", "three", "/exit", "never asked")
    shown = honed("chat", model_folder, "--max-new-tokens", "4", "--system", "be short")
    conversations, given = asked
    assert shown.status == 0
    system = ("system", "be short")
    assert conversations == [
        [system, ("user", "one")],
        [system, ("user", "one"), ("assistant", given[0].text), ("user", "two")],
        [system, ("user", "three")],
    ]
    assert all(reply.text in shown.out for reply in given)
    assert "(begun anew)" in shown.out
    assert shown.out.count("[cut after 4 tokens]") == sum(not reply.stopped for reply in given)


def test_chat_ends_with_the_input(
    honed: Callable[..., Any],
    model_folder: Path,
    typed: Callable[..., None],
    asked: tuple[Asked, list[answer.Answer]],
) -> None:
    typed("hello")
    assert honed("chat", model_folder, "--max-new-tokens", "2").status == 0
    assert asked[0] == [[("user", "hello")]]


def test_chat_ends_with_ctrl_c(honed: Callable[..., Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", read)
    shown = honed("chat", model_folder)
    assert shown.status == 130
    assert "Traceback" not in shown.err
