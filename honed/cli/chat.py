"""Talk with a trained model; answers appear as they are made.

  honed chat runs/demo

/reset begins anew, /exit (or Ctrl-D) ends.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from honed.cli.generate import add_sampling, sampling

if TYPE_CHECKING:
    from honed.cli.console import Speaker
    from honed.data.example import Message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="DIR", help="folder of a run or a model, or a model's name")
    add_sampling(parser)


def run(args: argparse.Namespace, command: str) -> int:
    """Reads questions until the input ends."""
    from honed.cli.console import load_speaker, quiet_libraries
    from honed.data.example import Message

    quiet_libraries()
    speaker = load_speaker(args.model, seed=args.seed)
    system = args.system or speaker.system
    opening = [Message(role="system", content=system)] if system else []
    messages = list(opening)
    print("Ask something; /reset begins anew, /exit ends.")
    while (question := _read()) not in (None, "/exit"):
        if question == "/reset":
            messages = list(opening)
            print("(begun anew)")
        elif question:
            messages.append(Message(role="user", content=question))
            text = _stream(speaker, messages, args)
            messages.append(Message(role="assistant", content=text))
    return 0


def _read() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None


def _stream(speaker: Speaker, messages: list[Message], args: argparse.Namespace) -> str:
    from transformers import TextStreamer

    from honed.generate.answer import answers

    streamer = TextStreamer(speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {**sampling(args), "streamer": streamer, "max_new_tokens": args.max_new_tokens}
    answer = answers(speaker.model, speaker.tokenizer, speaker.template, [messages], show=False, **options)[0]
    if not answer.stopped:
        print(f"[cut after {answer.tokens} tokens]")
    return answer.text
