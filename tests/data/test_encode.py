"""Words looked up give the ids that the tokenizer gives to the whole text."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from honed.data import encode
from honed.data.encode import Encoder, cut, divide, split, split_patterns

TEXT = [
    "the quick brown fox isn't 12 years old",
    "def f(x):\n    return x  # why\n\n",
    "中文 é déjà, vu!\r\n\tdone",
] * 4
QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

STEPS: dict[str, Callable[[], list[Any]]] = {
    "byte level": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digits": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "split": lambda: [
        pre_tokenizers.Split(pattern=regex(QWEN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def make(steps: list[Any], *, special: bool = True) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if special:
        tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def usual(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


texts_like_rows = st.lists(
    st.text(
        alphabet=st.one_of(
            st.sampled_from(" \n\t'.,()<|>=ab1AZé中\u0301\u3000😀\0\r"), st.characters(exclude_categories=["Cs"])
        ),
        max_size=40,
    )
    | st.sampled_from(["<|end|>", "a <|end|> b", " <|end|>", "x<|end|>y z", "can't  stop ", "  two", ""]),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_the_tokenizers_own(name: str, special: bool) -> None:
    tokenizer = make(STEPS[name](), special=special)
    encoder = Encoder(tokenizer, usual=0)
    assert encoder.by_words() is special  # without a special token to join words by, nothing is looked up

    @settings(max_examples=150, deadline=None)
    @given(texts_like_rows)
    def holds(texts: list[str]) -> None:
        assert [ids.tolist() for ids in encoder(texts)] == usual(tokenizer, texts)

    holds()


def test_real_rows_and_a_real_vocabulary(shared_data: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer")
    lines = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    lines += (shared_data / "medicalgpt_medical_sft_1k.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    encoder = Encoder(tokenizer, usual=0)
    assert encoder.by_words()
    found = [ids.tolist() for start in range(0, len(lines), 64) for ids in encoder(lines[start : start + 64])]
    assert found == usual(tokenizer, lines)


class MergesAcrossSpaces:
    """A tokenizer whose pre-tokenizer does not split at all: merges may cross a space."""

    def __new__(cls) -> Any:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(["a b " * 50], trainer)
        tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_tokenizer_that_merges_across_spaces_is_found_out() -> None:
    tokenizer = MergesAcrossSpaces()
    encoder = Encoder(tokenizer, usual=0)
    assert not encoder.by_words()
    assert encoder(["a b a"])[0].tolist() == usual(tokenizer, ["a b a"])[0]


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}])
def test_tokens_that_take_the_spaces_beside_them_are_found_out(flags: dict[str, bool]) -> None:
    tokenizer = make(STEPS["byte level"]())
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|strip|>", special=True, **flags)]})
    assert not Encoder(tokenizer, usual=0).by_words()


def test_the_first_texts_are_encoded_as_usual() -> None:
    encoder = Encoder(make(STEPS["split"]()), usual=10)
    assert not encoder.by_words()
    encoder(["twelve chars"])
    assert encoder.by_words()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MOST_TOKENS", 50)
    tokenizer = make(STEPS["split"]())
    encoder = Encoder(tokenizer, usual=0)
    for number in range(40):
        texts = [f"word{number} other{number} {number}" * 3]
        assert [ids.tolist() for ids in encoder(texts)] == usual(tokenizer, texts)
    assert encoder._words is not None and len(encoder._words._ids) < 50 + 60


@given(st.text(alphabet=" \n\tab"))
def test_words_joined_by_single_spaces_are_the_text(text: str) -> None:
    words = cut(text)
    assert " ".join(words) == text
    inner = [*(word[-1:] for word in words[:-1]), *(word[:1] for word in words[1:])]
    assert not any(edge == "" or edge.isspace() for edge in inner)


@given(st.lists(st.lists(st.integers(1, 5)), min_size=1))
def test_divide_is_the_inverse_of_joining_by_the_mark(parts: list[list[int]]) -> None:
    joined = [i for part in parts for i in (0, *part)][1:]
    assert divide(joined, 0) == parts


def test_patterns_of_unknown_pre_tokenizers_are_not_guessed() -> None:
    assert split_patterns(make([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])) == []


def test_a_pattern_that_loses_characters_splits_nothing() -> None:
    import re

    assert split("a-b", [re.compile(r"\w")]) == ["a-b"]
    assert split("ab", [re.compile(r"\w")]) == ["a", "b"]
