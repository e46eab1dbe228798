"""A tokenizer's own chat template, unpatched: renders it to find where answers begin and end."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from honed.data.example import Conversation, Message, RowError, Source
from honed.data.templates.compiled import ChatJinja
from honed.data.templates.control_tokens import choose_marks, find, marked, marked_message, unmarked
from honed.data.templates.plain import refuse_images
from honed.data.templates.shapes import Form, LookedAt, Shapes, opaque
from honed.data.templates.shown import INLINE_REASONING, need_tools_shown, shown_content
from honed.data.templates.talk import Talk
from honed.data.templates.turn import TextTurn, joined
from honed.data.templates.view import TRAIN_ON, Masks, Piece, View, any_of, special_tokens, trained_turns
from honed.errors import TemplateError

_NOWHERE = Source(file="prompt", row=0)
_MOST_ARGUMENTS = 256  # cached templates with variables from rows


class JinjaTemplate:
    """Any chat template of a tokenizer, unmodified.

    Args:
        tokenizer: a transformers tokenizer with a chat template; transformers renders it (sandboxed).
        arguments: additional variables of the template (`enable_thinking`, ...).
        masks: which turns, and which parts of them, are trained.

    Attributes:
        treated_apart: finds contents for which no form (see `Shapes`) can be used.
    """

    alpaca_separator = "\n"

    def __init__(
        self, tokenizer: Any, *, arguments: Mapping[str, Any] | None = None, masks: Masks | None = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                "The tokenizer has no chat template.",
                fix="set data.template=plain, or data.template=FILE.jinja",
            )
        self._tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self._jinja = ChatJinja(tokenizer, self.arguments)
        self._masks = masks or Masks()
        self._with_arguments: dict[str, JinjaTemplate] = {}
        self._special = any_of(special_tokens(tokenizer))
        self.treated_apart = re.compile(f"{self._special.pattern}|{INLINE_REASONING.pattern}")
        self._shapes = {
            mode: Shapes(self._jinja.source, partial(self._any_views, train_on=mode, apart=False), self.treated_apart)
            for mode in TRAIN_ON
        }

    def views(self, conversation: Conversation, *, train_on: str, apart: bool = False) -> list[View]:
        refuse_images(conversation)
        if own := conversation.template_arguments:
            plain = replace(conversation, template_arguments={})
            return self._with(own).views(plain, train_on=train_on, apart=apart)
        if apart:
            return self._any_views(conversation, train_on=train_on, apart=True)
        return self._shapes[train_on].views(conversation)

    def form(self, conversation: Conversation, *, train_on: str) -> tuple[bool, Form | None]:
        """See `Shapes.form`."""
        return self._shapes[train_on].form(conversation)

    def _with(self, own: Mapping[str, Any]) -> JinjaTemplate:
        """Returns the template with a row's own variables, which override those of all rows, as in TRL.

        Raises:
            RowError: they are not valid variables of a template, or spell control tokens.
        """
        key = json.dumps(own, sort_keys=True, default=repr)
        if key not in self._with_arguments:
            options = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys() - {"documents"}
            if taken := own.keys() & {*options, *self._tokenizer.special_tokens_map, "messages"}:
                raise RowError("chat_template_kwargs that are no variables", f"found {', '.join(sorted(taken))}")
            if find(own, self._special):
                raise RowError("control tokens in chat_template_kwargs", f"in {key:.80}")
            if len(self._with_arguments) >= _MOST_ARGUMENTS:
                self._with_arguments.clear()
            every = {**self.arguments, **own}
            self._with_arguments[key] = JinjaTemplate(self._tokenizer, arguments=every, masks=self._masks)
        return self._with_arguments[key]

    def _any_views(self, conversation: Conversation, hide: bool = False, *, train_on: str, apart: bool) -> list[View]:
        """Returns the views of any conversation; with `hide`, raises LookedAt if the template inspects its contents."""
        talk = self._talk(conversation)
        if hide:
            talk = Talk(partial(_hidden, self._jinja), talk.messages, talk.tools)
        views = self._views(talk, train_on, apart)
        return [unmarked(view, talk.marks) for view in views] if talk.marks else views

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Piece, ...]:
        talk = self._talk(Conversation(messages=tuple(messages), tools=tuple(tools), source=_NOWHERE))
        view = View(pieces=(Piece(text=talk.text(len(messages), prompt=True)),))
        return (unmarked(view, talk.marks) if talk.marks else view).pieces

    def _talk(self, conversation: Conversation) -> Talk:
        """Returns the conversation, with control tokens marked if there are any."""
        messages, tools = conversation.messages, conversation.tools
        control = self._special
        if not any(find(m.content, control) or (m.extra and find(m.extra, control)) for m in messages) and not (
            tools and find(tools, control)
        ):
            return Talk(self._jinja, messages, tools)
        marks = choose_marks(*(message.as_template_input() for message in messages), tools)
        shown = tuple(marked_message(message, control, marks) for message in messages)
        return Talk(self._jinja, shown, marked(tools, control, marks), marks, plain=Talk(self._jinja, messages, tools))

    def _views(self, talk: Talk, train_on: str, apart: bool) -> list[View]:
        if train_on == "all":
            return [View(pieces=(Piece(text=talk.text(len(talk.messages)), weight=1.0),))]
        chosen = trained_turns(talk.messages, train_on, self._masks.roles)
        turns = [self._turn(talk, number, weight) for number, weight in chosen.items()]
        need_tools_shown(talk.tools, turns[-1].text)
        if apart or any(turn.open for turn in turns[:-1]):
            return [turn.alone() for turn in turns]
        last = turns[-1]
        whole = last.text if last.number == len(talk.messages) - 1 else talk.text(len(talk.messages))
        together = joined(whole, turns)
        return [together] if together else [turn.alone() for turn in turns]

    def _turn(self, talk: Talk, number: int, weight: float) -> TextTurn:
        if talk.messages[number].role != "assistant":
            return self._unserved(talk, number, weight)
        turn = self._answer(talk, number, weight)
        masks, message = self._masks, talk.messages[number]
        mutes: list[tuple[int, int]] = []
        if not masks.reasoning and (message.reasoning or INLINE_REASONING.search(message.content)):
            mutes.append(talk.reasoning_span(number))
        if not masks.tool_calls and message.extra.get("tool_calls"):
            end = self._last_token(turn.text[: turn.end], talk) if not turn.open else turn.end
            mutes.append(talk.calls_span(number, turn.start, end))
        return replace(turn, mutes=tuple(mutes)) if mutes else turn

    def _unserved(self, talk: Talk, number: int, weight: float) -> TextTurn:
        """Returns a turn that inference never generates: its content, and the special token that closes it."""
        start, end = talk.content_span(number)
        text = talk.text(number + 1)
        ahead = self._special.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        end = ahead.end() if ahead else end
        return TextTurn(number=number, text=text, start=start, end=end, weight=weight, served=False)

    def _answer(self, talk: Talk, number: int, weight: float) -> TextTurn:
        """Returns the answer `messages[number]`, with its start and end in the text up to and including it."""
        context = talk.text(number, prompt=True)
        text = talk.text(number + 1)
        if not text.startswith(context):
            text = _behind_prompt(text, context, talk.prompt_from_question(number))
        if not text.startswith(context):
            raise TemplateError(
                "This chat template does not begin an answer the way its generation prompt does, so what is trained "
                f"would not be what is served.\n  prompt ends:   {context[-60:]!r}\n"
                f"  text there:    {text[max(0, len(context) - 60) : len(context)]!r}",
                fix="set template arguments (data.template_arguments) so that both agree, or use another template",
            )
        tail = text[len(context) :]
        content = shown_content(talk.messages[number], tail)
        stop = self._stop(tail, content, talk)
        return TextTurn(
            number=number,
            text=text,
            start=len(context),
            end=len(context) + (stop if stop is not None else len(tail.rstrip()) or len(tail)),
            open=stop is None,
            weight=weight,
        )

    def _stop(self, tail: str, content: str | None, talk: Talk) -> int | None:
        """Returns the end of the special token that closes the answer in `tail`; None if there is none."""
        ends = [end for end in self._special.finditer(tail) if not talk.is_literal(tail, end.start())]
        if content is None:
            return ends[-1].end() if ends else None
        # From the right: the template's own text before the content (reasoning, a channel's name) may contain the same
        # words and special tokens; the end token follows the content.
        closing = [end for end in reversed(ends) if tail[: end.start()].rstrip().endswith(content)]
        after = tail.find(content) + len(content)
        later = [end for end in ends if end.start() >= after]
        return next((end.end() for end in closing + later), None)

    def _last_token(self, text: str, talk: Talk) -> int:
        """Returns the start of the last special token in `text`."""
        found = [end.start() for end in self._special.finditer(text) if not talk.is_literal(text, end.start())]
        return found[-1] if found else len(text)


def _hidden(jinja: ChatJinja, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, prompt: bool) -> str:
    """Renders with opaque contents; raises LookedAt if the text differs from that with the real ones."""
    text = jinja(messages, tools, prompt=prompt)
    if jinja(list(map(opaque, messages)), tools, prompt=prompt) != text:
        raise LookedAt
    return text


def _behind_prompt(text: str, context: str, ending: str) -> str:
    """Puts the answer after the prompt used at inference, if the template changes the text before the question.

    Mistral's templates print the system prompt only while its question is the last message: the prompt is "[INST] Be
    kind. Why?[/INST]", but the whole conversation is "[INST] Why?[/INST] Because.". From the question on (`ending` of
    the prompt) both must agree; otherwise `text` is returned.
    """
    if not ending or text.count(ending) != context.count(ending):
        return text
    return context + text[text.rfind(ending) + len(ending) :]
