"""Conversations, and chat templates of every kind, for the tests of templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from honed.data.example import Conversation, Message, Source

SOURCE = Source(file="f", row=1)
quick = settings(deadline=None, derandomize=True, max_examples=40)


@dataclass(frozen=True)
class Family:
    """A template like those in use. `answer` gives the trained text without the end; `views` how many for two turns."""

    jinja: str
    end: str
    special: tuple[str, ...] = ()
    lead: str = ""
    strips: bool = False
    views: int = 1

    def answer(self, content: str) -> str:
        return self.lead + (content.strip() if self.strips else content)


FAMILIES = {
    "chatml": Family(
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        end="<|im_end|>",
    ),
    "smollm": Family(
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nYou are helpful"
        "<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        end="<|im_end|>",
    ),
    "llama3": Family(
        "{{ '<|begin|>' }}{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>\\n\\n' + m.content | trim "
        "+ '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}",
        end="<|eot|>",
        special=("<|begin|>", "<|header|>", "<|/header|>", "<|eot|>"),
        strips=True,
    ),
    "gemma": Family(
        "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}",
        end="<end>",
        special=("<bos>", "<turn>", "<end>"),
        strips=True,
    ),
    "mistral": Family(
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
        end="</s>",
        special=("<s>", "</s>"),
        lead=" ",
    ),
    # history loses its reasoning, so each answer is trained where it was given
    "qwen3": Family(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\\nhm\\n</think>\\n\\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        end="<|im_end|>",
        lead="<think>\nhm\n</think>\n\n",
        views=2,
    ),
    # nothing ends an answer, so EOS is added
    "open": Family(
        "{% for m in messages %}{{ m.role + ': ' + m.content | trim + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
        end="<|im_end|>",
        lead=" ",
        strips=True,
        views=2,
    ),
}
fragments = st.sampled_from(
    ["yes", "user", "assistant", "model", "end", "think", "hm", " ", "  ", "\n", "\n\n", "\t", "'s", "?", "🦊", "答案",
     "\u2028", "\u00a0", "<|im_end|>", "<|im_start|>user\n", "<|eot|>", "<end>", "</s>", "[/INST]", "</think>",
     "{{ x }}"]
)  # fmt: skip
contents = st.lists(fragments, max_size=6).map("".join) | st.text(max_size=12)
answers = contents.filter(str.strip)


def conversation(*turns: str | tuple[str, str], **fields: Any) -> Conversation:
    """Texts are user and assistant by turns; pairs bring their own role."""
    pairs = [turn if isinstance(turn, tuple) else (("user", "assistant")[n % 2], turn) for n, turn in enumerate(turns)]
    return Conversation(messages=tuple(Message(role=r, content=c) for r, c in pairs), source=SOURCE, **fields)


def dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content, **message.extra} for message in messages]


def texts_of_turns(tokenizer: Any, views: list[Any]) -> list[str]:
    return [tokenizer.decode(view.input_ids[turn.start : turn.end]) for view in views for turn in view.turns]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained_text(tokenizer: Any, views: list[Any]) -> list[str]:
    return [tokenizer.decode(view.input_ids[view.weights > 0]) for view in views]
