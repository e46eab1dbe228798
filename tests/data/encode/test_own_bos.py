"""Texts that begin with BOS themselves, as a chat template writes them, get no second one, whichever way they go."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from honed.data.encode.render import Renderer
from honed.data.example import Document, PromptCompletion, Source
from honed.data.lint.lint import check
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import Prepared, prepare
from honed.data.prepare.stream import RowStream

SOURCE = Source(file="f", row=1)
FAMILIES = ("qwen", "llama3", "gemma", "llama2", "mistral", "glm")


def family(name: str, tiny_tokenizer: Any) -> Any:
    """A tokenizer that opens texts as this family's does; "qwen" adds nothing, "glm" two tokens, "gemma" also EOS."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = copy.deepcopy(tiny_tokenizer)
    if name in ("llama2", "mistral"):  # a space is put before each part, or before the text
        characters = ["<unk>", "<s>", "</s>", *map(chr, range(10, 127)), "▁"]
        model = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(characters)}, merges=[], unk_token="<unk>"))
        if name == "llama2":
            model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    else:
        added = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "[gMASK]")]
        tokenizer.add_tokens(added)
        tokenizer.bos_token = "<s>"
    opening = {"qwen": [], "glm": ["[gMASK]", "<s>"]}.get(name, ["<s>"])
    closing = [tokenizer.eos_token] if name == "gemma" else []
    if opening:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=" ".join([*opening, "$A", *closing]),
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in (*opening, *closing)],
        )
    return tokenizer


def opening_of(name: str) -> str:
    return "[gMASK]<s>" if name == "glm" else "<s>"


def plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def rendered(tokenizer: Any, example: Any, **options: Any) -> Any:
    [[view]] = Renderer(tokenizer, None, **options).render([example])
    return view


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", ["why yes", "[INST] why [/INST] yes", "", "a<s>b"])
def test_a_text_with_its_own_bos_is_what_the_tokenizer_makes_of_it(name: str, text: str, tiny_tokenizer: Any) -> None:
    tokenizer, own = family(name, tiny_tokenizer), opening_of(name) + text
    view = rendered(tokenizer, Document(text=own, source=SOURCE))
    assert view.input_ids.tolist() == [*plain(tokenizer, own), tokenizer.eos_token_id]
    assert view.weights.tolist() == [0.0] + [1.0] * (len(view) - 1)
    assert view.brings_opening is (name != "qwen")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", ["why", " <s>", "why<s>", "< s>"])
def test_other_texts_get_what_the_tokenizer_adds(name: str, text: str, tiny_tokenizer: Any) -> None:
    tokenizer = family(name, tiny_tokenizer)
    view = rendered(tokenizer, Document(text=text, source=SOURCE))
    with_own, eos = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    assert view.input_ids.tolist() == (with_own if with_own[-1] == eos else [*with_own, eos])
    assert not view.brings_opening


@pytest.mark.parametrize("name", ["llama3", "gemma", "glm", "qwen"])
@pytest.mark.parametrize("prompt", ["why?", ""])
@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_a_prompt_with_its_own_bos_is_trained_as_one_without(
    name: str, prompt: str, train_on: str, tiny_tokenizer: Any
) -> None:
    tokenizer, opening = family(name, tiny_tokenizer), opening_of(name)
    own, same = (
        rendered(tokenizer, PromptCompletion(prompt=text, completion=" so", source=SOURCE), train_on=train_on)
        for text in (opening + prompt, prompt)
    )
    expected = plain(tokenizer, opening + prompt) + plain(tokenizer, " so") + [tokenizer.eos_token_id]
    assert own.input_ids.tolist() == expected
    if name != "qwen":
        assert same.input_ids.tolist() == expected
        assert (own.weights.tolist(), own.turns) == (same.weights.tolist(), same.turns)
    assert (own.brings_opening, same.brings_opening) == (name != "qwen", False)


@pytest.mark.parametrize("name", ["llama3", "glm"])
def test_where_the_prompt_is_empty_the_completion_may_bring_it(name: str, tiny_tokenizer: Any) -> None:
    tokenizer, opening = family(name, tiny_tokenizer), opening_of(name)
    own, same = (
        rendered(tokenizer, PromptCompletion(prompt="", completion=text, source=SOURCE))
        for text in (f"{opening}so", "so")
    )
    assert own.input_ids.tolist() == same.input_ids.tolist() == [*tokenizer("so")["input_ids"], tokenizer.eos_token_id]
    assert (own.weights.tolist(), own.turns) == (same.weights.tolist(), same.turns)


def rows(opening: str) -> list[dict[str, str]]:
    kinds: list[Callable[[int], dict[str, str]]] = [
        lambda n: {"text": f"{opening}it is {n}"},
        lambda n: {"text": f"{n} it is"},
        lambda n: {"prompt": f"{opening}why {n}?", "completion": " so"},
        lambda n: {"prompt": f"{n}?", "completion": " so"},
        lambda n: {"prompt": "", "completion": f"{opening}so {n}"},
    ]
    return [kinds[n % len(kinds)](n) for n in range(40)]


def documents(made: Prepared) -> list[tuple[list[int], list[float]]]:
    return [(made.rows[n].input_ids.tolist(), made.rows[n].weights.tolist()) for n in range(len(made.rows))]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_ways_make_the_same_and_count_the_same(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer, own = family(name, tiny_tokenizer), rows(opening_of(name))
    options = PrepareOptions(max_length=64)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in own))
    straight = prepare(own, tokenizer, options)
    expected = documents(straight)
    first = plain(tokenizer, opening_of(name))
    assert {ids[: len(first)] == first for ids, _ in expected} == ({True, False} if name == "qwen" else {True})
    assert not any(ids[len(first) : 2 * len(first)] == first for ids, _ in expected)
    usual = prepare(own, tokenizer, options, formatting_func=lambda row: row)
    assert documents(usual) == expected
    assert documents(prepare(own, tokenizer, options, workers=2)) == expected
    stream = RowStream(str(file), tokenizer, options, shuffle_buffer=0)
    assert [(row.input_ids.tolist(), row.weights.tolist()) for _, row in islice(stream.rows(), 40)] == expected
    checked = check(str(file), options, tokenizer=tokenizer)
    assert checked.ledger.tokens == straight.ledger.tokens
    count = 0 if name == "qwen" else 24
    for ledger in (straight.ledger, usual.ledger, stream.ledger, checked.ledger):
        assert ledger.rows_with_own_bos == count
        assert [note.split(":")[0] for note in ledger.notes] == ["texts of 24 rows begin with BOS already"] * (
            count > 0
        )


def test_workers_count_them_too(tiny_tokenizer: Any) -> None:
    tokenizer = family("llama3", tiny_tokenizer)
    own = rows("<s>") * 60  # several chunks
    alone, together = (prepare(own, tokenizer, PrepareOptions(max_length=64), workers=n) for n in (1, 2))
    assert documents(alone) == documents(together)
    assert alone.ledger == together.ledger
    assert alone.ledger.rows_with_own_bos == 24 * 60


@pytest.mark.parametrize("name", ["llama3", "qwen"])
def test_rows_that_bring_two_are_told_whichever_way_they_go(name: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer, options = family(name, tiny_tokenizer), PrepareOptions(max_length=64)
    own = [{"text": "<s><s>why"}, {"text": "<s>why"}, {"text": "why <s><s>"}, {"input_ids": [5, 5, 6]}]
    own += [{"prompt": "<s>", "completion": "<s>so"}, {"input_ids": [tokenizer.bos_token_id] * 2 + [7]}] * 2
    own.append({"messages": [{"role": "user", "content": "<s><s>"}, {"role": "assistant", "content": "<s><s> yes"}]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in own))
    prepared, stream = prepare(own, tokenizer, options), RowStream(str(file), tokenizer, options, shuffle_buffer=0)
    documents = [row.input_ids.tolist() for _, row in islice(stream.rows(), len(own))]
    two = [1, 0, 0, 0, 1, 1, 1, 1, 0]  # the row of messages spells them; they are text there
    assert [int(ids[:2] == [tokenizer.bos_token_id] * 2) for ids in documents] == two
    checked = check(str(file), options, tokenizer=tokenizer)
    for ledger in (prepared.ledger, stream.ledger, checked.ledger):
        assert ledger.documents_with_two_bos == sum(two)
        assert any(note.startswith("two BOS at the beginning of 5 documents,") for note in ledger.notes)
    [found] = [finding for finding in checked.findings if finding.kind.name == "two_bos"]
    assert found.count == 5 and found.spots[0].source == f"{file}:1"
