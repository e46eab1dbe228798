"""`honed generate` and `honed chat` on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from honed.data.example import Message
from honed.generate import talk
from honed.generate.request import Completion, Piece

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
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Asked, list[Completion]]:
    """The conversations that reach the model, and its answers."""
    conversations: Asked = []
    given: list[Completion] = []
    real = talk.Talker.reply

    def reply(talker: talk.Talker, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        conversations.append([(m.role, m.content) for m in messages])
        for piece in real(talker, messages, **options):
            given.extend([piece.done] if piece.done else [])
            yield piece

    monkeypatch.setattr(talk.Talker, "reply", reply)
    return conversations, given


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, whatever this machine is best at, so that another program gives the same answer."""
    import torch

    monkeypatch.setattr("honed.model.load.load.pick_dtype", lambda device: torch.float32)


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
    asked: tuple[Asked, list[Completion]],
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
    asked: tuple[Asked, list[Completion]],
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


def test_ctrl_c_stops_an_answer_and_not_the_talk(
    honed: Callable[..., Any], model_folder: Path, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = talk.Talker.reply

    def reply(talker: talk.Talker, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        pieces = real(talker, messages, **options)
        yield next(pieces)
        if messages[-1].content == "stop me":
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(talk.Talker, "reply", reply)
    typed("stop me", "go on")
    shown = honed("chat", model_folder, "--max-new-tokens", "4")
    assert shown.status == 0
    assert shown.out.count("[stopped]") == 1


def test_commands_change_the_talk(
    honed: Callable[..., Any],
    model_folder: Path,
    typed: Callable[..., None],
    asked: tuple[Asked, list[Completion]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "talk.jsonl"
    typed("one", "/undo", "/system be kind", "/params max_new_tokens=2", "two", f"/save {file}", "/nope", "/help")
    shown = honed("chat", model_folder, "--max-new-tokens", "5")
    assert shown.status == 0
    conversations, given = asked
    assert conversations == [[("user", "one")], [("system", "be kind"), ("user", "two")]]
    assert [len(one.ids) <= limit for one, limit in zip(given, (5, 2), strict=True)] == [True, True]
    answer = {"role": "assistant", "content": given[1].text}
    [row] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert row["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "two"}, answer]
    for text in ("(taken back: one)", "(system: be kind)", "max_new_tokens=2", "there is no /nope", "/undo "):
        assert text in shown.out


def test_what_can_be_mended_does_not_end_a_talk(
    honed: Callable[..., Any], model_folder: Path, typed: Callable[..., None], asked: tuple[Asked, list[Completion]]
) -> None:
    typed("/params temperature=1 top_p=0", "one", "/params top_p=1", "two")
    shown = honed("chat", model_folder, "--max-new-tokens", "2")
    assert shown.status == 0
    assert "top_p is 0.0" in shown.out
    assert asked[0] == [[("user", "one")], [("user", "two")]]


@pytest.fixture
def base(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """Another model than `model_folder`."""
    folder = tmp_path / "base"
    tiny_model(num_hidden_layers=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("wide", [True, False])
def test_two_models_answer_the_same_questions(
    wide: bool, base: Path, asked: tuple[Asked, list[Completion]], request: pytest.FixtureRequest
) -> None:
    honed, model_folder, typed, monkeypatch = map(
        request.getfixturevalue, ("honed", "model_folder", "typed", "monkeypatch")
    )
    monkeypatch.setenv("COLUMNS", "120" if wide else "80")
    typed("one", "two")
    shown = honed("chat", model_folder, "--compare", base, "--max-new-tokens", "4")
    conversations, given = asked
    assert shown.status == 0
    assert [told[-1] for told in conversations] == [("user", "one")] * 2 + [("user", "two")] * 2
    assert [told[-2] for told in conversations[2:]] == [("assistant", given[n].text) for n in (0, 1)]
    assert given[0].text != given[1].text
    assert (" | " in shown.out) is wide
    assert f"[{base}]" in shown.out or wide


def test_a_batch_from_a_file(honed: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"fox {n}"}) + "\n" for n in range(3)))
    out = tmp_path / "out.jsonl"
    options = ("--prompt-template", "Say: {text}", "--samples", "2", "--temperature", "2", "--max-new-tokens", "6")
    shown = honed("generate", model_folder, "--data", rows, "--out", out, *options)
    assert shown.status == 0
    ledger = json.loads(Path(f"{out}.ledger.json").read_text())
    assert (ledger["prompts"], ledger["answers"]) == (3, 6)
    assert ledger["kept"] + sum(ledger["dropped"].values()) == 6
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(found) == ledger["kept"] > 0
    assert found[0]["messages"][0] == {"role": "user", "content": "Say: fox 0"}
    assert f"{ledger['kept']} kept" in shown.out
    again = honed("generate", model_folder, "--data", rows, "--out", out, *options)
    assert "6 of them made before" in again.out


def test_vllm_alone_loads_the_weights(
    honed: Callable[..., Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "fox"}) + "\n")
    asked: list[Any] = []

    class Double:
        def __init__(self, name: str) -> None:
            assert name == str(model_folder)

        def run(self, requests: Any, *, pieces: bool = False) -> Any:
            for number, request in enumerate(requests):
                asked.append(request)
                done = Completion(ids=(5,), text="told", reason="stop")
                yield Piece(request=number, answer=request.first, text=done.text, done=done)

    monkeypatch.setattr("honed.generate.vllm_engine.VllmEngine", Double)
    monkeypatch.setattr(
        "honed.model.adapters.load_trained.load_for_generation", lambda *_, **__: pytest.fail("the weights are loaded")
    )
    out = tmp_path / "out.jsonl"
    shown = honed("generate", model_folder, "--data", rows, "--out", out, "--engine", "vllm")
    assert shown.status == 0, shown.err
    assert json.loads(out.read_text())["messages"][-1]["content"] == "told"
    assert asked[0].stop_ids == {2}  # of the model's configuration


@pytest.mark.usefixtures("exact")
def test_new_tasks_from_seeds(honed: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"prompt": f"task {n}"}) + "\n" for n in range(4)))
    out = tmp_path / "out.jsonl"
    # a newline ends a task, and this model's text has one now and then
    options = ("--shots", "2", "--count", "40", "--temperature", "2", "--max-new-tokens", "80", "--stop", "a")
    shown = honed("generate", model_folder, "--seeds", seeds, "--out", out, *options)
    assert shown.status == 0, shown.err
    tasks = [json.loads(line) for line in Path(f"{out}.tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    ledger = json.loads(Path(f"{out}.ledger.json").read_text())
    assert ledger["prompts"] == len(tasks) > 0
    assert all("\n" not in row["messages"][-1]["content"] for row in tasks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to answer"),
        (("why", "--data", "x.jsonl"), "prompt and data"),
        (("--data", "x.jsonl"), "--out"),
        (("--data", "x.jsonl", "--out", "y.jsonl", "--samples", "2"), "temperature 0"),
        (("--data", "no-such.jsonl", "--out", "y.jsonl"), "no-such.jsonl"),
    ],
)
def test_what_cannot_be_answered(
    arguments: tuple[str, ...], says: str, honed: Callable[..., Any], model_folder: Path
) -> None:
    shown = honed("generate", model_folder, *arguments)
    assert shown.status == 2
    assert says in shown.err
    assert "fix:" in shown.err
