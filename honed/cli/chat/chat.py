"""Chat with a trained model; answers are streamed.

  honed chat runs/demo
  honed chat runs/demo --compare smollm2-135m-instruct

/help lists the commands: /reset, /undo, /system, /params, /save. Ctrl-C stops an answer, /exit (or Ctrl-D) ends.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from honed.cli.sampling import SAMPLING, add_sampling, sampling
from honed.errors import HonedError
from honed.quantities import counted

if TYPE_CHECKING:
    from honed.cli.chat.session import Session
    from honed.generate.request import Completion
    from honed.generate.talk import Talker

WIDE = 100  # minimum columns to show two answers side by side
PARAMS = (*SAMPLING, "max_new_tokens", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run or a model, or a model's name")
    parser.add_argument("--compare", metavar="BASE", help="another model, which answers the same questions")
    add_sampling(parser)


def run(args: argparse.Namespace, command: str) -> int:
    """Reads questions until the end of the input."""
    from honed.cli.chat.session import Session, system_of_rows
    from honed.cli.console import data_of, load_speaker, quiet_libraries
    from honed.generate.talk import open_talker

    quiet_libraries()
    names = [args.model, *([args.compare] if args.compare else [])]
    speakers = [load_speaker(name, seed=args.seed) for name in names]
    session = Session(system=args.system or speakers[0].system, params={name: getattr(args, name) for name in PARAMS})
    with ExitStack() as stack:
        talkers = [stack.enter_context(open_talker(s.model, s.tokenizer, s.template)) for s in speakers]
        for talker in talkers:
            if talker.note:
                print(f"honed: {talker.note}", file=sys.stderr)
        if session.system is None and (trained := system_of_rows(data_of(Path(args.model)))):
            print(f"honed: the training rows have a system prompt, which this chat has not: {trained!r:.200}")
            print("  /system TEXT (or --system TEXT) sets it")
        print("Ask something; /help lists the commands, /exit ends.")
        while (line := _read()) not in (None, "/exit"):
            if line and line.startswith("/"):
                print(session.command(line))
            elif line:
                _ask(names, talkers, session, line)
    return 0


def _ask(names: Sequence[str], talkers: Sequence[Talker], session: Session, question: str) -> None:
    """Asks one question and shows the answers; an error that the user can fix does not end the chat."""
    try:
        session.turns.append((question, _answers(names, talkers, session, question)))
    except HonedError as error:
        print(f"honed: {error}")


def _read() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None


def _answers(names: Sequence[str], talkers: Sequence[Talker], session: Session, question: str) -> list[str]:
    """Each speaker's answer, streamed, or side by side if the terminal is wide enough."""
    width = shutil.get_terminal_size((80, 24)).columns
    if len(talkers) == 2 and width >= WIDE:
        found = [_reply(talker, session, question, number, show=False) for number, talker in enumerate(talkers)]
        texts = [[name, text, *([note] if note else [])] for name, (text, note) in zip(names, found, strict=True)]
        print(side_by_side(texts, width=width))
        return [text for text, _ in found]
    answers = []
    for number, talker in enumerate(talkers):
        if len(talkers) > 1:
            print(f"[{names[number]}]")
        text, note = _reply(talker, session, question, number, show=True)
        print(f"\n{note}" if note else "")
        answers.append(text)
    return answers


def _reply(talker: Talker, session: Session, question: str, speaker: int, *, show: bool) -> tuple[str, str]:
    """The answer, and a note on how it ended if the model did not end it."""
    params = session.params
    options = sampling(argparse.Namespace(**params))
    told = session.messages(question, speaker=speaker)
    text, done = "", None
    limits: dict[str, Any] = {"max_new_tokens": params["max_new_tokens"], "seed": params["seed"]}
    try:
        for piece in talker.reply(told, sampling=options, **limits):
            text, done = text + piece.text, piece.done
            if show:
                print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        return text, "[stopped]"
    return text, _ending(done)


def _ending(done: Completion | None) -> str:
    if done is None or done.stopped:
        return ""
    if done.reason == "context":
        return f"[cut after {counted(len(done.ids), 'token')}: the model's context is full; /reset starts over]"
    return f"[cut after {counted(len(done.ids), 'token')}]"


def side_by_side(texts: Sequence[Sequence[str]], *, width: int) -> str:
    """Formats two lists of paragraphs in two columns."""
    from honed.cli.console import two_columns, wrap

    column = (width - 3) // 2
    left, right = ([line for text in side for line in wrap(text, column)] for side in texts)
    return "\n".join(two_columns(left, right, column))
