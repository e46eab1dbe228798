"""A byte-level BPE tokenizer with chat tokens, trained on texts.

The special tokens, their ids and the chat format are those of MiniMind (and of ChatML):

    0  <|endoftext|>   padding only
    1  <|im_start|>    begins a turn; the tokenizer's BOS
    2  <|im_end|>      ends a turn; the tokenizer's EOS
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from honed.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKING = ("<think>", "</think>")
BYTES = 256
MODEL_MAX_LENGTH = 32768

# ASSISTANT and PROMPT are replaced with what follows the assistant header in answers and in the generation prompt.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}ASSISTANT{%- endif %}"
    "{{- message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}PROMPT{%- endif %}"
)
REASONING = (
    "{{- '<think>\\n' + (message.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}",
    "{{- '<think>\\n' if open_thinking else '<think>\\n\\n</think>\\n\\n' }}",
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 6400, thinking: bool = False) -> PreTrainedTokenizerFast:
    """Trains a lossless tokenizer: every text, in any script, is decoded to itself.

    Args:
        texts: the training texts; read once. The same texts give the same tokenizer.
        vocab_size: maximum number of tokens, including special ones; fewer if the texts have no more pairs to merge.
        thinking: use the template of MiniMind 3, in which every answer begins with its reasoning between <think> and
            </think>, possibly empty; both become tokens. The generation prompt has the empty form, unless the
            template's variable `open_thinking` is true.

    Returns:
        A transformers tokenizer with a chat template; save it with `save_pretrained(folder)`.

    Raises:
        ModelError: the vocabulary is too small for the bytes and the special tokens.
        DataError: there is no text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    added = THINKING if thinking else ()
    least = BYTES + len(SPECIAL) + len(added)
    if vocab_size < least:
        raise ModelError(f"A vocabulary of {vocab_size} tokens is too small.", fix=f"take {least} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *added],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some_text(texts), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(thinking=thinking),
    )


def chat_template(*, thinking: bool) -> str:
    """ChatML in Jinja; with `thinking`, an answer begins with its reasoning."""
    answer, prompt = REASONING if thinking else ("", "")
    return CHAT_TEMPLATE.replace("ASSISTANT", answer).replace("PROMPT", prompt)


def _some_text(texts: Iterable[str]) -> Iterable[str]:
    """The texts, unchanged.

    Raises:
        DataError: at the end, if all texts were empty.
    """
    found = False
    for text in texts:
        found = found or bool(text)
        yield text
    if not found:
        raise DataError("There is no text to train a tokenizer on.", fix="name files that hold some")
