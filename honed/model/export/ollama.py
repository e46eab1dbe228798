"""A Modelfile for Ollama: the chat template in Ollama's template language, and the trained stop tokens.

Ollama does not read Jinja. Most templates only put fixed texts around each message, depending on its role. These texts
are found by rendering probes and tested by composing other chats from them; other templates are refused.
Source: the pages "Modelfile Reference" and "Template" of Ollama's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from honed.errors import TemplateError

PROBE = "\u241fprobe\u241f"
ROLES = ("system", "user", "assistant")
CHATS = (
    [("user", "a b")],
    [("user", "why?\n\nso"), ("assistant", "because 1 < 2"), ("user", "x")],
    [("system", "be brief"), ("user", "hi"), ("assistant", "ho"), ("user", "2"), ("assistant", "3"), ("user", "4")],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTexts:
    """The texts around each role's content, before a chat without a system prompt, and before an answer."""

    around: dict[str, tuple[str, str]]
    without_system: str
    generation: str

    def compose(self, chat: list[tuple[str, str]]) -> str:
        """The prompt for a chat, as Ollama would render it."""
        parts = "".join(self.around[role][0] + text + self.around[role][1] for role, text in chat)
        has_system = any(role == "system" for role, _ in chat)
        return ("" if has_system else self.without_system) + parts + self.generation


def modelfile(tokenizer: Any, stops: list[str], *, source: str = ".") -> str:
    """The Modelfile's text.

    Args:
        stops: texts of the tokens at which answers end.
        source: the value of FROM; "." for the model's folder.

    Raises:
        TemplateError: the template does more than put texts around each message.
    """
    texts = _bos_left_to_ollama(role_texts(tokenizer), tokenizer)
    lines = [f"FROM {source}", f'TEMPLATE """{go_template(texts)}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def role_texts(tokenizer: Any) -> RoleTexts:
    """The texts around each role's content, tested on `CHATS`.

    Raises:
        TemplateError: see `modelfile`.
    """
    try:
        texts = _found(tokenizer)
        proven = texts is not None and all(_render(tokenizer, chat, True) == texts.compose(chat) for chat in CHATS)
    except Exception as error:  # a template may raise anything
        raise TemplateError(f"The chat template refuses a chat: {error}", fix="write the Modelfile by hand") from None
    if texts is None or not proven or "{{" in texts.compose(CHATS[2]) or '"""' in texts.compose(CHATS[2]):
        raise TemplateError(
            "The chat template does more than put texts around each message; only that is translated.",
            fix="write the Modelfile by hand",
        )
    return texts


def go_template(texts: RoleTexts) -> str:
    """The texts as a Go template that loops over Ollama's `.Messages`."""
    branches = [
        f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, (before, after) in texts.around.items()
    ]
    loop = "{{ range .Messages }}{{ " + "{{ else ".join(branches) + "{{ end }}{{ end }}"
    default = f"{{{{ if not .System }}}}{texts.without_system}{{{{ end }}}}" if texts.without_system else ""
    return default + loop + texts.generation


def _bos_left_to_ollama(texts: RoleTexts, tokenizer: Any) -> RoleTexts:
    """The texts without the initial BOS if the tokenizer adds it itself, because then Ollama adds it too."""
    bos, ids = tokenizer.bos_token, tokenizer("a")["input_ids"]
    if bos is None or ids[:1] != [tokenizer.bos_token_id]:
        return texts
    before, after = texts.around["system"]
    around = {**texts.around, "system": (before.removeprefix(bos), after)}
    return replace(texts, around=around, without_system=texts.without_system.removeprefix(bos))


def _found(tokenizer: Any) -> RoleTexts | None:
    with_system = _render(tokenizer, [("system", PROBE), ("user", PROBE), ("assistant", PROBE), ("user", PROBE)], True)
    pieces = with_system.split(PROBE)
    if len(pieces) != 5:
        return None
    # the text between two contents ends one message and begins the next; shorter chats show where to split it
    until_user = _render(tokenizer, [("system", PROBE), ("user", PROBE)], False).split(PROBE)
    until_answer = _render(tokenizer, [("system", PROBE), ("user", PROBE), ("assistant", PROBE)], False).split(PROBE)
    system_alone = _render(tokenizer, [("system", PROBE)], False).split(PROBE)
    if [len(until_user), len(until_answer), len(system_alone)] != [3, 4, 2]:
        return None
    ends = {"system": system_alone[-1], "user": until_user[-1], "assistant": until_answer[-1]}
    begins = {
        "system": pieces[0],
        "user": pieces[1].removeprefix(ends["system"]),
        "assistant": pieces[2].removeprefix(ends["user"]),
    }
    default = _render(tokenizer, [("user", PROBE)], False).split(begins["user"] + PROBE)[0]
    generation = pieces[4].removeprefix(ends["user"])
    return RoleTexts(
        around={role: (begins[role], ends[role]) for role in ROLES}, without_system=default, generation=generation
    )


def _render(tokenizer: Any, chat: list[tuple[str, str]], generation: bool) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
