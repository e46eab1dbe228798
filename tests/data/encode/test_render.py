"""Ids and weights: the golden row of the lesson, texts without a template, and tokenizers with manners of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from honed.data.encode.render import Renderer
from honed.data.example import Conversation, Document, Message, PromptCompletion, RowError, Source, Tokens
from honed.data.read.formats import ReadOptions, read_example
from honed.data.templates.jinja import JinjaTemplate
from honed.data.templates.plain import PLAIN_SYSTEM_PROMPT, PlainTemplate
from honed.errors import DataError

SOURCE = Source(file="f", row=1)
ANSWER = (
    "1.Eat a balanced diet and make sure to include plenty of fruits and vegetables. \n2. Exercise regularly to keep "
    "your body active and strong. \n3. Get enough sleep and maintain a consistent sleep schedule."
)
GOLDEN_ROW = {"instruction": "Give three tips for staying healthy.", "input": "", "output": ANSWER}
# printed by the PyTorch lesson on SFT (shared/reference/1_sft_by_pytorch.txt)
GOLDEN_IDS = [
    151644, 198, 2, 46487, 25, 105043, 30709, 99949, 100857, 100168, 31914, 11, 14880, 99464, 100700, 102104, 20002,
    13872, 43589, 86119, 198, 2, 6448, 25, 35127, 2326, 10414, 369, 19429, 9314, 13, 198, 2, 4939, 3846, 2821, 25,
    16, 5142, 266, 264, 23831, 9968, 323, 1281, 2704, 311, 2924, 11260, 315, 25322, 323, 23880, 13, 715, 17, 13,
    32818, 15502, 311, 2506, 697, 2487, 4541, 323, 3746, 13, 715, 18, 13, 2126, 3322, 6084, 323, 10306, 264, 12966,
    6084, 9700, 13, 151645,
]  # fmt: skip
GOLDEN_UNTRAINED = 37


def lesson(messages: list[tuple[str, str]], tokenizer: Any) -> tuple[list[int], list[float]]:
    """The lesson's own loop, word for word in its arithmetic."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    ids, trained = ids_of("<|im_start|>"), [0.0]
    for role, content in messages:
        if role == "assistant":
            head, answer = ids_of("\n#ASSISTANT:"), ids_of(content)
            ids += head + answer + ids_of("<|im_end|>")
            trained += [0.0] * len(head) + [1.0] * (len(answer) + 1)
        else:
            text = ids_of(f"\n#{role.upper()}:{content}")
            ids += text
            trained += [0.0] * len(text)
    return ids, trained


def rendered(example: Any, tokenizer: Any, template: Any = None, **options: Any) -> Any:
    [[view]] = Renderer(tokenizer, template, **options).render([example])
    return view


def plain_example(row: dict[str, Any]) -> Any:
    return read_example(row, SOURCE, ReadOptions(alpaca_separator=PlainTemplate().alpaca_separator))


def test_golden_row_of_the_lesson(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer")
    view = rendered(plain_example(GOLDEN_ROW), tokenizer, PlainTemplate())
    assert view.input_ids.tolist() == GOLDEN_IDS
    assert view.weights.tolist() == [0.0] * GOLDEN_UNTRAINED + [1.0] * (len(GOLDEN_IDS) - GOLDEN_UNTRAINED)
    assert [(turn.start, turn.end, turn.stop) for turn in view.turns] == [(37, len(GOLDEN_IDS), GOLDEN_IDS[-1])]
    roles = [("system", PLAIN_SYSTEM_PROMPT), ("user", GOLDEN_ROW["instruction"]), ("assistant", ANSWER)]
    assert lesson(roles, tokenizer)[0] == GOLDEN_IDS


def test_structure_of_a_plain_row(tiny_tokenizer: Any) -> None:
    row = {"instruction": "why", "input": " the fox", "output": "yes "}
    view = rendered(plain_example(row), tiny_tokenizer, PlainTemplate())
    decode = tiny_tokenizer.decode
    assert decode(view.input_ids) == (
        f"<|im_start|>\n#SYSTEM:{PLAIN_SYSTEM_PROMPT}\n#USER:why the fox\n#ASSISTANT:yes <|im_end|>"
    )
    assert decode(view.input_ids[view.weights > 0]) == "yes <|im_end|>"
    assert view.turns[0].stop == tiny_tokenizer.eos_token_id


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=12).filter(str.strip)), max_size=5
    )
)
def test_plain_rows_equal_the_lesson_s_loop(tiny_tokenizer: Any, turns: list[tuple[str, str]]) -> None:
    turns = [("system", "be kind"), *turns, ("user", "?\n"), ("assistant", "\nno")]
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    view = rendered(Conversation(messages=messages, source=SOURCE), tiny_tokenizer, PlainTemplate())
    assert (view.input_ids.tolist(), view.weights.tolist()) == lesson(turns, tiny_tokenizer)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(prompt=st.text(max_size=12), completion=st.text(max_size=12).filter(str.strip))
def test_prompt_and_completion_are_encoded_apart(tiny_tokenizer: Any, prompt: str, completion: str) -> None:
    """Inference encodes the prompt alone, so tokens must not merge over the border."""
    view = rendered(PromptCompletion(prompt=prompt, completion=completion, source=SOURCE), tiny_tokenizer)
    before, after = (tiny_tokenizer(text)["input_ids"] for text in (prompt, completion))
    expected = [*before, *after, tiny_tokenizer.eos_token_id]
    assert view.input_ids.tolist() == expected
    weights = [0.0] * len(before) + [1.0] * (len(after) + 1)
    assert view.weights.tolist() == [0.0, *weights[1:]]  # nothing stands before the first token


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (Document(text="the fox<|im_end|>", source=SOURCE), "the fox<|im_end|>"),
        (PromptCompletion(prompt="why<|im_end|>", completion=" yes<|im_end|>", source=SOURCE),
         "why<|im_end|> yes<|im_end|>"),
    ],
)  # fmt: skip
def test_end_tokens_of_the_row_itself_are_neither_lost_nor_doubled(
    tiny_tokenizer: Any, example: Any, text: str
) -> None:
    assert tiny_tokenizer.decode(rendered(example, tiny_tokenizer).input_ids) == text


@pytest.mark.parametrize("adds", ["<|endoftext|> $A", "$A <|im_end|>", "<|endoftext|> $A <|im_end|>"])
def test_tokenizers_that_add_bos_and_eos(tiny_tokenizer: Any, adds: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    special = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=adds, special_tokens=special)
    bos = "<|endoftext|>" if adds.startswith("<|endoftext|>") else ""
    asked = rendered(PromptCompletion(prompt="why", completion=" yes", source=SOURCE), tokenizer)
    assert tokenizer.decode(asked.input_ids) == f"{bos}why yes<|im_end|>"
    assert tokenizer.decode(asked.input_ids[asked.weights > 0]) == " yes<|im_end|>"
    read = rendered(Document(text="why yes<|im_end|>", source=SOURCE), tokenizer)
    assert tokenizer.decode(read.input_ids) == f"{bos}why yes<|im_end|>"
    chat = Conversation(
        messages=(Message(role="user", content="why"), Message(role="assistant", content="yes")), source=SOURCE
    )
    text = "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert tokenizer.decode(rendered(chat, tokenizer, JinjaTemplate(tokenizer)).input_ids) == text


def spaced_tokenizer(scheme: str) -> Any:
    """As Llama 2, Mistral and Phi have it: a space is put before a text ("first"), or before each part ("always")."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<unk>", "<s>", "</s>", *map(chr, range(10, 127)), "▁"]
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(characters)}, merges=[], unk_token="<unk>"))
    if scheme == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
    )


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_space_slips_in_before_an_answer(scheme: str) -> None:
    tokenizer = spaced_tokenizer(scheme)
    turns = [("user", "why"), ("assistant", "yes\nno"), ("user", "b"), ("assistant", "no")]
    chat = Conversation(messages=tuple(Message(role=r, content=c) for r, c in turns), source=SOURCE)
    view = rendered(chat, tokenizer, JinjaTemplate(tokenizer))
    whole = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in turns], tokenize=True, return_dict=False
    )
    assert view.input_ids.tolist() == whole
    asked = rendered(PromptCompletion(prompt="why", completion=" yes", source=SOURCE), tokenizer)
    assert tokenizer.convert_ids_to_tokens(asked.input_ids.tolist()) == [*"▁why▁yes", "</s>"]


@pytest.mark.parametrize(
    ("example", "train_on", "trained"),
    [
        (PromptCompletion(prompt="why", completion=" yes", source=SOURCE), "assistant", " yes<|im_end|>"),
        (PromptCompletion(prompt="why", completion=" yes", source=SOURCE), "completion", " yes<|im_end|>"),
        (PromptCompletion(prompt="\nwhy", completion=" yes", source=SOURCE), "all", "why yes<|im_end|>"),
        (Document(text="\nwhy yes", source=SOURCE), "completion", "why yes<|im_end|>"),
    ],
)
def test_train_on_of_texts(tiny_tokenizer: Any, example: Any, train_on: str, trained: str) -> None:
    """The first token of a document is never trained; here that is the newline."""
    view = rendered(example, tiny_tokenizer, train_on=train_on)
    assert tiny_tokenizer.decode(view.input_ids[view.weights > 0]) == trained


def test_tokens_pass_as_they_are(tiny_tokenizer: Any) -> None:
    weights = (1.0, 0.0, 0.5)
    view = rendered(Tokens(input_ids=(7, 8, 9), weights=weights, source=SOURCE), tiny_tokenizer)
    np.testing.assert_array_equal(view.input_ids, [7, 8, 9])
    np.testing.assert_array_equal(view.weights, np.float32([0.0, 0.0, 0.5]))
    assert (view.trained, view.input_ids.dtype, view.weights.dtype) == (1, np.int32, np.float32)


@pytest.mark.parametrize("where", ["user", "assistant"])
def test_half_a_surrogate_pair_is_the_row_s_fault(tiny_tokenizer: Any, where: str) -> None:
    """JSON can spell it, tokenizers cannot read it."""
    texts = {"user": "why", "assistant": "yes", where: "\ud83e"}
    chat = Conversation(messages=tuple(Message(role=r, content=c) for r, c in texts.items()), source=SOURCE)
    with pytest.raises(RowError, match="not valid Unicode"):
        Renderer(tiny_tokenizer, PlainTemplate()).plan(chat)


def test_conversation_without_a_template(tiny_tokenizer: Any) -> None:
    chat = Conversation(messages=(Message(role="assistant", content="yes"),), source=SOURCE)
    with pytest.raises(DataError, match="set chat_template_path"):
        Renderer(tiny_tokenizer, None).plan(chat)
