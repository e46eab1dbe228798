"""What preparation should give, straight from `apply_chat_template` and the tokenizer: none of honed's code is used."""

from __future__ import annotations

import itertools
import re
from typing import Any

Document = tuple[tuple[int, ...], tuple[float, ...]]  # ids, weights
MARKED = re.compile("\ufdd0(.*?)\ufdd1", re.DOTALL)  # a control token that a row spells


def encoded(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Ids, and where each begins in the text without marks; what is marked is text."""
    ids, starts, before = [], [], 0
    for number, part in enumerate(MARKED.split(text)):
        way = {"add_special_tokens": False, "split_special_tokens": number % 2 == 1}
        own = tokenizer([part], return_offsets_mapping=True, **way)
        ids += own["input_ids"][0]
        starts += [before + start for start, _ in own["offset_mapping"][0]]
        before += len(part)
    return ids, starts


def documents_of(meaning: Any, tokenizer: Any, train_on: str) -> list[tuple[list[int], list[float]]]:
    """The documents of a row, before the length policy.

    Args:
        meaning: messages, a pair of texts, or a list of one pair of ids and weights.
    """
    if isinstance(meaning, tuple):
        prompt, completion = (encoded(tokenizer, text)[0] for text in meaning)
        closed = [*completion, tokenizer.eos_token_id][: len(completion) + (completion[-1] != tokenizer.eos_token_id)]
        return [(prompt + closed, [float(train_on == "all")] * len(prompt) + [1.0] * len(closed))]
    if isinstance(meaning[0], tuple):
        return list(meaning)
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens + list(tokenizer.get_added_vocab()))))
    shown = [{"role": m["role"], "content": special.sub("\ufdd0\\g<0>\ufdd1", m["content"])} for m in meaning]

    def render(count: int, prompt: bool) -> str:
        return tokenizer.apply_chat_template(shown[:count], tokenize=False, add_generation_prompt=prompt)

    if train_on == "all" or (train_on == "completion" and all(m.get("train") is not False for m in meaning)):
        ids = encoded(tokenizer, render(len(shown), False))[0]
        return [(ids, [1.0] * len(ids))]
    answers = [n for n, m in enumerate(meaning) if m["role"] == "assistant"][-1 if train_on == "last" else 0 :]
    whole, turns = render(len(shown), False), []
    for n in (n for n in answers if meaning[n].get("train") is not False):
        served, text = render(n, True), render(n + 1, False)
        assert text.startswith(served)
        unmarked = MARKED.sub(lambda found: "\0" * len(found[0]), text)
        end = special.search(unmarked, text.index(shown[n]["content"].strip(), len(served))).end()
        turns.append((served, text, end, meaning[n].get("weight", 1.0)))
    if not all(whole.startswith(text[:end]) for _, text, end, _ in turns):  # history is rewritten: one text per answer
        return [_masked(tokenizer, turn[1], [turn]) for turn in turns]
    return [_masked(tokenizer, whole, turns)]


def _masked(tokenizer: Any, text: str, turns: list[tuple[str, str, int, float]]) -> tuple[list[int], list[float]]:
    ids, starts = encoded(tokenizer, text)
    weights = [0.0] * len(ids)
    for served, own, end, weight in turns:
        prompt = encoded(tokenizer, served)[0]
        assert ids[: len(prompt)] == prompt, "what is trained is not what is served"
        first, last = len(MARKED.sub(r"\1", served)), len(MARKED.sub(r"\1", own[:end]))
        weights = [weight if first <= s < last else w for s, w in zip(starts, weights, strict=True)]
    return ids, weights


def cut(documents: list[tuple[list[int], list[float]]], limit: int | None, how: str) -> list[Document]:
    """Within the limit; the first token of a document is predicted by nothing."""
    parts = []
    for ids, weights in documents:
        size = limit or len(ids)
        starts = range(0, len(ids), size) if how == "split" or len(ids) <= size else [0] if how == "truncate" else []
        parts += [(tuple(ids[s : s + size]), (0.0, *weights[s + 1 : s + size])) for s in starts]
    return [part for part in parts if any(part[1])]


def rewrapped(documents: list[Document], size: int) -> list[Document]:
    """End to end, cut after every `size` tokens."""
    parts, place = [], 0
    for ids, weights in documents:
        cuts = [0, *range(-place % size or size, len(ids), size), len(ids)]
        parts += [(ids[a:b], (0.0, *weights[a + 1 : b])) for a, b in itertools.pairwise(cuts)]
        place += len(ids)
    return parts
