"""The packaged starter data: its form, its variety, and the counts on its card."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

STARTER = files("honed.data") / "starter"

# One sentence a line: nothing that ends a sentence may come before the end of the line.
ENGLISH = re.compile(r"In short: (S)\nWhy: (S)\nTry: (S)".replace("S", r"\S+(?:(?<![.!?]) \S+)*(?<=[.!?])"))
CHINESE = re.compile(r"简答：(S)\n原因：(S)\n试试：(S)".replace("S", r"[^\s。！？][^\n。！？]*[。！？]"))


def read_lines(name):
    text = (STARTER / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ROWS = [row["messages"] for row in read_lines("train.jsonl")]
PROMPTS = [row["prompt"] for row in read_lines("held_out.jsonl")]
QUESTIONS = [turn["content"] for row in ROWS for turn in row if turn["role"] == "user"]
ANSWERS = [turn["content"] for row in ROWS for turn in row if turn["role"] == "assistant"]


def is_chinese(text):
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def size(text):
    """Characters without line ends for Chinese, words between spaces for English."""
    return len(text.replace("\n", "")) if is_chinese(text) else len(text.split())


def split_by_language(items, text_of=lambda item: item):
    chinese = [item for item in items if is_chinese(text_of(item))]
    return [item for item in items if item not in chinese], chinese


def features(text):
    """The set of words of an English text, of character pairs of a Chinese one."""
    if is_chinese(text):
        letters = re.sub(r"\W", "", text.lower())
        return {letters[i : i + 2] for i in range(len(letters) - 1)} or {letters}
    return set(re.findall(r"\w+", text.lower()))


def jaccard(one, other):
    a, b = features(one), features(other)
    return len(a & b) / len(a | b)


def test_counts():
    english, chinese = split_by_language(ROWS, lambda row: row[0]["content"])
    assert len(ROWS) >= 176
    assert len(english) >= 140
    assert len(chinese) >= 36
    assert sum(len(row) == 4 for row in ROWS) == 8
    assert [len(part) for part in split_by_language(PROMPTS)] == [12, 4]


def test_rows_hold_only_user_and_assistant_turns_in_order():
    for row in ROWS:
        assert [turn["role"] for turn in row] in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(set(turn) == {"role", "content"} for turn in row)


def test_every_answer_follows_the_form_in_the_language_of_its_question():
    for row in ROWS:
        for question, answer in zip(row[::2], row[1::2], strict=True):
            form = CHINESE if is_chinese(question["content"]) else ENGLISH
            assert form.fullmatch(answer["content"]), answer["content"]


@pytest.mark.parametrize(
    "answer",
    [
        "In short: Yes.\nWhy: It is.",
        "In short: Yes.\nWhy: It is.\nTry: Look.\n",
        "In short: Yes\nWhy: It is.\nTry: Look.",
        "In short: \nWhy: It is.\nTry: Look.",
        "In short: Yes. It is.\nWhy: It is.\nTry: Look.",
        "In short:  Yes.\nWhy: It is.\nTry: Look.",
    ],
)
def test_the_rule_refuses_a_broken_form(answer):
    assert not ENGLISH.fullmatch(answer)


def test_answers_keep_their_length():
    english, chinese = split_by_language(ANSWERS)
    assert all(25 <= size(answer) <= 45 for answer in english)
    assert all(40 <= size(answer) <= 75 for answer in chinese)


def test_no_question_and_no_answer_comes_twice():
    assert len({"".join(question.lower().split()) for question in QUESTIONS}) == len(QUESTIONS)
    assert len(set(ANSWERS)) == len(ANSWERS)


def test_held_out_prompts_are_far_from_the_questions_and_each_other():
    for prompt in PROMPTS:
        nearest = max(QUESTIONS, key=lambda question: jaccard(prompt, question))
        assert jaccard(prompt, nearest) <= 0.6, (prompt, nearest)
    assert all(jaccard(one, other) <= 0.6 for one, other in combinations(PROMPTS, 2))


@pytest.mark.parametrize("line", range(3))
def test_no_opening_is_used_in_more_than_five_percent_of_the_answers(line):
    for answers, form in zip(split_by_language(ANSWERS), (ENGLISH, CHINESE), strict=True):
        bodies = [form.fullmatch(answer)[line + 1] for answer in answers]
        openings = Counter(body[:4] if form is CHINESE else tuple(body.split()[:4]) for body in bodies)
        opening, times = openings.most_common(1)[0]
        assert times <= 0.05 * len(answers), opening


def test_the_card_states_the_counts_of_the_files():
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| ([^|]+?) \| ([\d, |]+?) \|$", card, flags=re.MULTILINE))

    def count(items, text_of=lambda item: item):
        english, chinese = split_by_language(items, text_of)
        return f"{len(items):,} | {len(english):,} | {len(chinese):,}"

    def first(row):
        return row[0]["content"]

    def total(texts, language):
        return f"{sum(map(size, split_by_language(texts)[language])):,}"

    assert stated == {
        "Training rows": count(ROWS, first),
        "of these, rows with two exchanges": count([row for row in ROWS if len(row) == 4], first),
        "User turns": count(QUESTIONS),
        "Assistant turns": count(ANSWERS),
        "Held-out prompts": count(PROMPTS),
        "English words": f"{total(QUESTIONS, 0)} | {total(ANSWERS, 0)}",
        "Chinese characters": f"{total(QUESTIONS, 1)} | {total(ANSWERS, 1)}",
    }
