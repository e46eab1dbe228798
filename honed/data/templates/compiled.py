"""Compiles a tokenizer's chat template once: the output of `apply_chat_template` without its overhead.

Templates are untrusted programs. They run in transformers' sandbox, without access to files or Python's internals, and
each text has a time limit, so an endless loop becomes an error.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from honed.data.example import RowError
from honed.errors import TemplateError

SECONDS_FOR_A_TEXT = 10.0

T = TypeVar("T")
Message = Mapping[str, Any]
Render = Callable[[list[Message], list[Any] | None, bool], str]


class ChatJinja:
    """Renders messages with a tokenizer's own template.

    Args:
        tokenizer: a transformers tokenizer with a chat template; not changed.
        arguments: additional variables of the template.
        seconds: time limit per text.

    Attributes:
        source: the template's text, or that of all templates if the tokenizer has several.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any], *, seconds: float = SECONDS_FOR_A_TEXT) -> None:
        self.source = str(tokenizer.chat_template)
        self._slow = _as_transformers(tokenizer, arguments)
        self._fast = _compiled(tokenizer, arguments)
        self._seconds = seconds
        self._render: Render | None = None
        self._refusal: TemplateError | None = None

    def __call__(self, messages: Sequence[Message], tools: Sequence[Any], *, prompt: bool = False) -> str:
        """Renders the text; with `prompt`, up to the start of the next answer.

        Raises:
            RowError: the template refuses this conversation.
            TemplateError: the template itself cannot be used: it does not parse, does something the sandbox forbids, or
                exceeds the time limit.
        """
        if self._refusal is not None:
            raise self._refusal
        announced = [_plain(dict(tool)) for tool in tools] or None
        try:
            if self._render is None:
                self._render = self._tried(list(messages), announced, prompt)
            with time_limit(self._seconds):
                return self._render(list(messages), announced, prompt)
        except Exception as error:
            # Jinja's own errors, and errors of the template's expressions on unexpected data
            if (problem := _fault_of_the_template(error)) is not None:
                self._refusal = TemplateError(problem, fix="use another chat template (data.template=FILE.jinja)")
                raise self._refusal from None
            raise RowError("the chat template refuses this conversation", f"{type(error).__name__}: {error}") from None

    def _tried(self, messages: list[Message], tools: list[Any] | None, prompt: bool) -> Render:
        """The fast renderer if its output equals that of transformers, else the slow one."""
        expected = within(self._seconds, lambda: self._slow(messages, tools, prompt))
        if self._fast is None:
            return self._slow
        try:
            return self._fast if self._fast(messages, tools, prompt) == expected else self._slow
        except Exception:  # transformers' internals have changed
            return self._slow


def _as_transformers(tokenizer: Any, arguments: Mapping[str, Any]) -> Render:
    def render(messages: list[Message], tools: list[Any] | None, prompt: bool) -> str:
        # as a batch of one, because transformers refuses an empty conversation on its own
        [text] = tokenizer.apply_chat_template(
            [messages], tools=tools, tokenize=False, add_generation_prompt=prompt, **arguments
        )
        return str(text)

    return render


def _compiled(tokenizer: Any, arguments: Mapping[str, Any]) -> Render | None:
    """Does what `apply_chat_template` does for one plain conversation; None if transformers' internals have changed."""
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template
    except ImportError:
        return None
    variables = {"documents": None, **_plain({**tokenizer.special_tokens_map, **arguments})}

    @lru_cache  # templates named "tool_use": the choice depends on whether there are tools
    def template_for(tools: bool) -> tuple[Any, dict[str, Any]]:
        template = compile_template(tokenizer.get_chat_template(tools=[{}] if tools else None))
        return template, {**template.globals, **variables}

    def render(messages: list[Message], tools: list[Any] | None, prompt: bool) -> str:
        template, known = template_for(tools is not None)
        given = {"messages": list(map(_plain_message, messages)), "tools": tools, "add_generation_prompt": prompt}
        # Jinja's `render` would collect the globals again for every text
        context = template.new_context({**known, **given}, shared=True)
        return "".join(template.root_render_func(context))

    return render


def _plain_message(message: Message) -> Message:
    """The message without null keys; a message of role and content only, the usual case, is not copied."""
    if len(message) == 2 and isinstance(message.get("content"), str):
        return message
    return {key: _plain(value) for key, value in message.items() if value is not None}


def _plain(value: Any) -> Any:
    """A copy with JSON types only: methods of richer objects could break out of the sandbox."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "tolist"):  # numpy arrays and numbers
        return _plain(value.tolist())
    return value + 0 if isinstance(value, (int, float)) else f"<{type(value).__name__}>"


def _fault_of_the_template(error: Exception) -> str | None:
    """Describes a fault of the template itself; None if the conversation is at fault."""
    import jinja2

    if isinstance(error, TimeoutError):
        return f"This chat template does not terminate: {error}."
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"This chat template does not parse: line {error.lineno}: {error.message}"
    forbidden = (jinja2.exceptions.SecurityError, OverflowError, MemoryError, jinja2.TemplateNotFound)
    # Jinja raises a plain TypeError for this
    if isinstance(error, forbidden) or "no loader for this environment" in str(error):
        return f"This chat template does what the sandbox forbids: {type(error).__name__}: {error}"
    return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A cheap time limit for many short calls; no limit without an interval timer, or if the timer is in use.

    Raises:
        TimeoutError: in the block, when the time limit is reached.
    """
    ours = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not ours or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"no text within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Stopped(BaseException):
    """Raised in a thread that has exceeded its time limit."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Runs `call` in another thread, which is stopped at the time limit, and returns its result.

    Raises:
        TimeoutError: the time limit was reached.
        Exception: any exception of `call`.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # CPython's way to raise in another thread; takes effect at its next bytecode
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped))
        thread.join(seconds)
        raise TimeoutError(f"no text within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
