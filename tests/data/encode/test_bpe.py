"""tiktoken, where it is used, gives the ids of the tokenizer itself."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from honed.data.encode import bpe
from honed.data.encode.bpe import FastBPE, made_of, may_be_fast, prove, ranks, split_pattern
from honed.data.encode.encode import usual_encoder

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


def ids(fast: FastBPE, texts: list[str]) -> list[list[int]]:
    return [own.tolist() for own in fast(texts)]


texts_like_rows = st.lists(
    st.text(
        alphabet=st.one_of(
            st.sampled_from(" \n\t'.,()<|>=ab1AZé中\u0301\u3000😀\0\r"), st.characters(exclude_categories=["Cs"])
        ),
        max_size=40,
    )
    | st.sampled_from(["a\ufdd0", "\ufdd0\ufdd1"])
    | st.sampled_from(["<|end|>", "a <|end|> b", " <|end|>", "x<|end|>y z", "can't  stop ", "  two", ""]),
    min_size=1,
    max_size=6,
)


def fast_one(tokenizer: Any) -> FastBPE | None:
    encode = usual_encoder(tokenizer)
    proven = prove(tokenizer.backend_tokenizer.to_str(), encode) if may_be_fast(tokenizer) else None
    return None if proven is None else made_of(proven, encode)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_the_tokenizers_own(name: str, special: bool) -> None:
    tokenizer = make(STEPS[name](), special=special)
    fast = fast_one(tokenizer)
    assert fast is not None

    @settings(max_examples=150, deadline=None)
    @given(texts_like_rows)
    def holds(texts: list[str]) -> None:
        assert ids(fast, texts) == usual(tokenizer, texts)

    holds()


@pytest.mark.parametrize("name", ["qwen_tokenizer", "minimind_tokenizer"])
def test_real_rows_and_a_real_vocabulary(shared_data: Any, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / name)
    lines = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    lines += (shared_data / "medicalgpt_medical_sft_1k.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    fast = fast_one(tokenizer)
    assert fast is not None
    assert ids(fast, lines) == usual(tokenizer, lines)


merges_of_small_alphabets = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=4), st.text("abc", min_size=1, max_size=4)), max_size=14
)


def bpe_model(pairs: list[tuple[str, str]], *, ignore_merges: bool = False) -> dict[str, Any]:
    """A vocabulary of these merges, in this order; pairs of tokens that are not there are left out."""
    vocabulary = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in dict.fromkeys(pairs):
        if left in vocabulary and right in vocabulary:
            vocabulary.setdefault(left + right, len(vocabulary))
            merges.append((left, right))
    return {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": ignore_merges}


@settings(max_examples=400, deadline=None)
@given(merges_of_small_alphabets, st.lists(st.text("abc", max_size=12), min_size=1, max_size=8), st.booleans())
def test_whatever_the_merges_what_is_not_refused_is_the_same(
    pairs: list[tuple[str, str]], texts: list[str], ignore_merges: bool
) -> None:
    model = bpe_model(pairs, ignore_merges=ignore_merges)
    known = ranks(model, set())
    if known is None:
        return
    import tiktoken

    theirs = Tokenizer(models.BPE(model["vocab"], model["merges"], ignore_merges=ignore_merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ours = tiktoken.Encoding("test", pat_str=r"[\s\S]+", mergeable_ranks=known, special_tokens={})
    assert [ours.encode(text) for text in texts] == [coded.ids for coded in theirs.encode_batch(texts)]


def test_most_trained_vocabularies_are_not_refused() -> None:
    assert ranks(bpe_model([("a", "b"), ("ab", "c"), ("ab", "ab"), ("abab", "c")]), set()) is not None


def test_a_token_that_no_merge_can_reach_is_not_made() -> None:
    # b and c merge first, so "ab" never stands beside "c"
    known = ranks(bpe_model([("b", "c"), ("a", "b"), ("ab", "c")]), set())
    assert known is not None
    assert b"abc" not in known and b"ab" in known


def test_merges_out_of_order_are_refused() -> None:
    model = bpe_model([("a", "b"), ("b", "c")])
    model["merges"].reverse()
    assert ranks(model, set()) is None


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"byte_fallback": True}, {"end_of_word_suffix": "</w>"}])
def test_options_that_tiktoken_lacks_are_refused(option: dict[str, Any]) -> None:
    assert ranks({**bpe_model([("a", "b")]), **option}, set()) is None


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_tokens_that_look_beside_them_are_refused(flags: dict[str, bool]) -> None:
    tokenizer = make(STEPS["byte level"]())
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|strip|>", special=True, **flags)]})
    assert fast_one(tokenizer) is None


def test_a_token_inside_another_is_refused() -> None:
    tokenizer = make(STEPS["byte level"]())
    tokenizer.add_tokens([AddedToken("<|end|>s", normalized=False)])
    assert fast_one(tokenizer) is None


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.Metaspace()],
    ],
)
def test_pre_tokenizers_that_are_not_known_are_not_guessed(steps: list[Any]) -> None:
    assert fast_one(make(steps)) is None


def test_a_tokenizer_without_pre_tokenizer_has_no_pattern() -> None:
    assert split_pattern(None) is None


def test_a_pattern_that_the_engines_read_differently_is_found_out() -> None:
    # in Ruby's syntax, which `tokenizers` reads, {2}+ is "pairs, again and again"; elsewhere it is possessive
    steps = [
        pre_tokenizers.Split(pattern=regex(r"\p{N}{2}+|\p{N}|\D+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = make(steps)
    fast = fast_one(tokenizer)
    assert fast is None or ids(fast, ["a1234b", "12345"]) == usual(tokenizer, ["a1234b", "12345"])


def test_characters_without_an_id_are_left_to_the_tokenizer() -> None:
    tokenizer = make(STEPS["byte level"]()).backend_tokenizer
    state = json.loads(tokenizer.to_str())
    for token in ("\u0104", "Ľ"):  # the bytes 4 and 0x9b
        del state["model"]["vocab"][token]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    fast = fast_one(wrapped)
    assert fast is not None
    texts = ["abc", "a\x04b", "aěb", "zab"]
    assert ids(fast, texts) == usual(wrapped, texts)
    assert [fast.fits(text) for text in texts] == [True, False, False, True]


def test_texts_that_would_be_normalised_are_left_to_the_tokenizer() -> None:
    from tokenizers import normalizers

    tokenizer = make(STEPS["split"]())
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    fast = fast_one(tokenizer)
    assert fast is not None and not fast.fits("e\u0301") and fast.fits("é")
    assert ids(fast, ["e\u0301a", "é"]) == usual(tokenizer, ["e\u0301a", "é"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert fast_one(tokenizer) is None


def test_many_texts_are_encoded_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make(STEPS["split"]())
    fast = fast_one(tokenizer)
    assert fast is not None
    texts = [f"{n} fox " * (n % 5) for n in range(40)]
    for size in (1, 7, 1000):
        monkeypatch.setattr(bpe, "_AT_A_TIME", size)
        assert ids(fast, texts) == usual(tokenizer, texts)


def test_a_token_that_could_end_a_text_among_others_is_refused() -> None:
    tokenizer = make(STEPS["byte level"]())
    tokenizer.add_tokens([AddedToken("x\ufdd0", normalized=False)])
    assert fast_one(tokenizer) is None


def test_very_long_texts_are_left_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_LONGEST", 5)
    fast = fast_one(make(STEPS["split"]()))
    assert fast is not None and fast.fits("abcde") and not fast.fits("abcdef")
