"""Held-out loss against a plain float64 model that scores one document at a time, and the labels of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from honed.cli.eval import opened_scorer
from honed.data.prepare.options import PrepareOptions
from honed.data.prepare.prepare import make_template
from honed.errors import DataError
from honed.evaluate.held_out import KINDS, ROLES, HeldOut, batches, loss_measures, read_held_out, score

TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "why fox"},
    {"role": "assistant", "content": "yes yes"},
    {"role": "user", "content": "and two"},
    {"role": "assistant", "content": "no, three one two"},
]
# Earlier answers are shown in another form once a later turn follows, so every answer becomes a document of its own.
REWRITES = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{{- m['content'] if loop.last or m['role'] != 'assistant' else 'quick' }}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def held(data: Any, tokenizer: Any, **options: Any) -> HeldOut:
    made = PrepareOptions(**options)
    return read_held_out(data, tokenizer, make_template(tokenizer, made), made)


def texts(found: HeldOut, tokenizer: Any, document: int = 0) -> list[tuple[str, str, str]]:
    """Role, kind and text of runs of trained tokens."""
    one = found.documents[document]
    runs: list[tuple[str, str, str]] = []
    for token, role, kind, trained in zip(
        one.packed.input_ids.tolist(), one.role_T.tolist(), one.kind_T.tolist(), one.trained_T.tolist(), strict=True
    ):
        if trained:
            key = (ROLES[role], KINDS[kind])
            before = runs.pop()[2] if runs and runs[-1][:2] == key else ""
            runs.append((*key, before + tokenizer.decode([token])))
    return runs


def plain_nll(model: Any, found: HeldOut) -> list[torch.Tensor]:
    """Each document alone, whole logits, float64."""
    losses = []
    for document in found.documents:
        ids = torch.from_numpy(document.packed.input_ids).long()
        with torch.no_grad():
            logp = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        nll = -logp[:-1].gather(1, ids[1:, None])[:, 0]
        losses.append(nll[torch.from_numpy(document.trained_T[1:])])
    return losses


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 caps its logits behind the head
def test_losses_are_those_of_a_plain_model(
    family: str, tmp_path: Path, chat_rows: list[Any], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    weighted = {"messages": [{**TALK[1]}, {**TALK[2], "weight": 0.25}, {**TALK[3]}, {**TALK[4]}]}
    files = [write(tmp_path / "a.jsonl", chat_rows), write(tmp_path / "b.jsonl", [weighted, {"messages": TALK}])]
    found = held(list(map(str, files)), tiny_tokenizer, train_roles=("user", "assistant"))
    model = tiny_model(family, dtype=torch.float64).eval()
    expected = plain_nll(model, found)
    with opened_scorer(model, tiny_tokenizer) as (scorer, collate):
        scores = score([document.packed for document in found.documents], scorer, collate)
    for one, nll in zip(scores, expected, strict=True):
        np.testing.assert_allclose(one.nll_N, nll.numpy(), rtol=1e-6)

    sums: dict[str, list[float]] = {}
    for document, nll in zip(found.documents, expected, strict=True):
        places = np.flatnonzero(document.trained_T)
        for place, loss in zip(places.tolist(), nll.tolist(), strict=True):
            weight = float(document.packed.weights[place])
            file = found.examples[document.row].source.file
            names = ("loss", f"loss.role.{ROLES[document.role_T[place]]}", f"loss.source.{file}")
            for name in (*names, f"loss.kind.{KINDS[document.kind_T[place]]}"):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += weight * loss
                total[1] += weight
    measures = loss_measures(found, scores)
    assert {m.name for m in measures} == set(sums)
    assert len(sums) == 1 + 2 + 2 + 3
    for m in measures:
        assert m.ratio.value == pytest.approx(sums[m.name][0] / sums[m.name][1], rel=1e-6)
        assert m.ratio.weights_N.sum() == pytest.approx(sums[m.name][1])


def test_the_loss_is_the_trainers(tmp_path: Path, chat_rows: list[Any], tiny_model: Any, tiny_tokenizer: Any) -> None:
    from honed import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        train_on="assistant",
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_eval_batch_size=len(chat_rows),  # of several batches transformers takes the mean of their means
    )
    trainer = SFTTrainer(
        model=tiny_model(), args=args, train_dataset=chat_rows, eval_dataset=chat_rows, processing_class=tiny_tokenizer
    )
    expected = trainer.evaluate()["eval_loss"]
    model = tiny_model().eval()
    found = held(chat_rows, tiny_tokenizer)
    with opened_scorer(model, tiny_tokenizer) as (scorer, collate):
        scores = score([document.packed for document in found.documents], scorer, collate)
    assert loss_measures(found, scores)[0].ratio.value == pytest.approx(expected, rel=1e-5)


def test_labels_by_role_and_kind(tiny_tokenizer: Any) -> None:
    found = held([{"messages": TALK}], tiny_tokenizer, train_roles=("user", "assistant"))
    runs = texts(found, tiny_tokenizer)
    assert [run[:2] for run in runs if run[1] == "first token"] == [
        (r, "first token") for r in ("user", "assistant") * 2
    ]
    assert all(text == "<|im_end|>" for role, kind, text in runs if kind == "end of turn")
    assert len([1 for _, kind, _ in runs if kind == "end of turn"]) == 4
    said = "".join(text for role, _, text in runs if role == "assistant")
    assert said == "yes yes<|im_end|>no, three one two<|im_end|>"


def test_turns_in_documents_of_their_own(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", REWRITES)
    found = held([{"messages": TALK}, {"messages": TALK[:3]}], tiny_tokenizer)
    assert [document.row for document in found.documents] == [0, 0, 1]
    assert [texts(found, tiny_tokenizer, n)[-1] for n in range(3)] == [("assistant", "end of turn", "<|im_end|>")] * 3


def test_rows_of_other_kinds(tiny_tokenizer: Any) -> None:
    rows = [{"prompt": "why", "completion": " yes"}, {"text": "the quick brown fox"}, {"input_ids": [5, 6, 7]}]
    found = held(rows, tiny_tokenizer)
    roles = [{ROLES[role] for role in document.role_T[document.trained_T]} for document in found.documents]
    assert roles == [{"completion"}, {"text"}, {"other"}]
    assert {KINDS[kind] for kind in found.documents[2].kind_T.tolist()} == {"outside turns"}


def test_the_whole_text_where_all_is_trained(tiny_tokenizer: Any) -> None:
    found = held([{"messages": TALK}], tiny_tokenizer, train_on="all")
    assert {run[0] for run in texts(found, tiny_tokenizer)} == {"other"}


def test_long_rows_are_scored_up_to_the_limit_and_counted(tiny_tokenizer: Any, chat_rows: list[Any]) -> None:
    whole = held(chat_rows, tiny_tokenizer)
    longest = max(len(document.packed.input_ids) for document in whole.documents)
    cut = held(chat_rows, tiny_tokenizer, max_length=longest - 1)
    assert cut.ledger.rows_cut.total() >= 1 and cut.ledger.rows_trained == len(chat_rows)
    for before, after in zip(whole.documents, cut.documents, strict=True):
        kept = len(after.packed.input_ids)
        assert kept == min(len(before.packed.input_ids), longest - 1)
        for name in ("role_T", "kind_T"):
            assert np.array_equal(getattr(after, name), getattr(before, name)[:kept])
    long = {"messages": [{"role": "user", "content": "why " * 40}, {"role": "assistant", "content": "yes"}]}
    found = held([long, {"messages": TALK}], tiny_tokenizer, max_length=30)
    assert found.ledger.rows_dropped == {"overlong": 1} and [d.row for d in found.documents] == [0]
    assert found.ledger.rows_in == found.ledger.rows_trained + found.ledger.rows_dropped.total()


def test_bad_rows_are_counted_and_none_left_is_an_error(tiny_tokenizer: Any) -> None:
    found = held([{"messages": TALK}, {"nothing": 1}], tiny_tokenizer)
    assert found.ledger.rows_dropped.total() == 1
    with pytest.raises(DataError, match="No row can be scored"):
        held([{"nothing": 1}], tiny_tokenizer)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(10, 100))
def test_batches_hold_every_document_once(lengths: list[int], tokens: int) -> None:
    made = batches(lengths, tokens)
    assert sorted(n for batch in made for n in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= tokens
    assert len(made) <= math.ceil(sum(lengths) / tokens) + len(lengths)
