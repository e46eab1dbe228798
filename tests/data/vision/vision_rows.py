"""Rows with images, and processors for them."""

from __future__ import annotations

import io
from typing import Any

import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from vision_models import MAKERS

from honed.data.example import Conversation, Source
from honed.data.prepare.options import PrepareOptions
from honed.data.read.messages import read_messages

HERE = Source(file="row", row=1)
OPTIONS = PrepareOptions()


def make_processor(family: str) -> Any:
    """The family's processor, unless this version of transformers or an absent package keeps it from being made."""
    try:
        return MAKERS[family]()[0]
    except ImportError as error:
        pytest.skip(f"{family}: {str(error).strip().splitlines()[0]}")


def row(content: Any = "which colour ?", images: Any = None, answer: Any = "red", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **({"images": images} if images is not None else {}), **more}


def part(image: Any = None, **keys: Any) -> dict[str, Any]:
    return {"type": "image", **({"image": image} if image is not None else {}), **keys}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def conversation(content: Any, images: tuple[Any, ...] = ()) -> Conversation:
    return Conversation(messages=read_messages(row(content)["messages"]), images=images, source=HERE)


# --- where images may come from -------------------------------------------------------------------------------------


def as_bytes(image: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
