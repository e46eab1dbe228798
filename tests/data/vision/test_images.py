"""Where images stand in rows, where they may come from, and what is read of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from vision_models import picture
from vision_rows import HERE, OPTIONS, as_bytes, conversation, make_processor, part, row, text

from honed.data.example import Conversation, Message, RowError, Source
from honed.data.read.messages import read_messages
from honed.data.vision.images import ImageRef, image_ref, load, shrunk
from honed.data.vision.prepare import prepare_vision
from honed.data.vision.template import IMAGE, VisionMessage, shown, shows_images

# --- where images stand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "images", "expected", "values"),
    [
        ([part("a.png"), text("what?")], (), f"{IMAGE}what?", ("a.png",)),
        ([text("this "), part(), text(" or "), part()], ("a", "b"), f"this {IMAGE} or {IMAGE}", ("a", "b")),
        ([part(index=1), part(index=0)], ("a", "b"), IMAGE * 2, ("b", "a")),
        ([{"type": "image_url", "image_url": {"url": "a.png"}}], (), IMAGE, ("a.png",)),
        ([part("a.png"), text("the column has it too")], ("a.png",), f"{IMAGE}the column has it too", ("a.png",)),
        ([part(path="a.png"), {"type": "input_image", "image_url": "b.png"}], (), IMAGE * 2, ("a.png", "b.png")),
        ("<image>\nwhat?", ("a",), f"{IMAGE}what?", ("a",)),
        ("both <image> and <image>", ("a", "b"), f"both {IMAGE} and {IMAGE}", ("a", "b")),
        ("what?", ("a", "b"), f"{IMAGE}{IMAGE}what?", ("a", "b")),
        ("what does <image> mean?", (), "what does <image> mean?", ()),
    ],
)
def test_each_way_to_show_an_image(content: Any, images: tuple[Any, ...], expected: str, values: Any) -> None:
    found, refs = shown(conversation(content, images))
    assert (found.messages[0].content, refs) == (expected, values)
    assert not found.has_images  # nothing is left that the text templates would refuse


@pytest.mark.parametrize(
    ("content", "images", "reason"),
    [
        ([part(), text("what?")], (), "images and their marks differ"),
        ([part(), text("what?")], ("a", "b"), "images and their marks differ"),
        ([part(index=3)], ("a",), "images and their marks differ"),
        ([part("a.png"), text("another one")], ("b.png",), "images and their marks differ"),
        ([part("a.png"), part()], ("b.png", "a.png"), "images and their marks differ"),
        ("<image> <image>", ("a",), "images and their marks differ"),
        ([{"type": "video", "video": "a.mp4"}], (), "video or audio"),
        (f"a{IMAGE}", (), "text is not valid Unicode"),
    ],
)
def test_what_cannot_be_shown_is_refused(content: Any, images: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(RowError) as error:
        shown(conversation(content, images))
    assert error.value.reason == reason


def test_answers_show_no_images() -> None:
    turns = read_messages(row("draw", answer=[text("here "), part("a.png")])["messages"])
    with pytest.raises(RowError, match="image in an answer"):
        shown(Conversation(messages=turns, source=HERE))


@given(
    st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda t: IMAGE not in t)))
)
def test_parts_survive_the_way_through_a_message(parts: list[str | None]) -> None:
    """Neighbouring texts are one; nothing else changes."""
    content = "".join(IMAGE if part is None else part for part in parts)
    typed = VisionMessage.of(Message(role="user", content=content)).as_template_input()["content"]
    assert "".join(IMAGE if p["type"] == "image" else p["text"] for p in typed) == content
    assert sum(p["type"] == "image" for p in typed) == parts.count(None)


def test_first_rows_tell_whether_images_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in [row("hi"), row([part("a.png")])]))
    assert shows_images(str(file)) and shows_images([row(images=["a"])])
    assert not shows_images([row("hi"), row("<image>")]) and not shows_images(iter([row(images=["a"])]))
    assert not shows_images(None)


def test_every_kind_of_image_is_the_same_image(tmp_path: Path) -> None:
    image = picture()
    data = as_bytes(image)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for value in ("a.png", str(tmp_path / "a.png"), data, {"bytes": data}, {"bytes": None, "path": "a.png"}, url,
                  image, np.asarray(image)):  # fmt: skip
        assert np.array_equal(np.asarray(load(image_ref(value, HERE, tmp_path))), np.asarray(image))


def test_images_are_upright_and_rgb_as_transformers_loads_them(tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    image = picture(size=(30, 20)).convert("RGBA").convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6  # lay on its side
    image.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    found = load(image_ref("a.jpg", HERE, tmp_path))
    assert found.size == (20, 30) and found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(load_image(str(tmp_path / "a.jpg"))))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/a.png", "image is a URL"),
        ("s3://bucket/a.png", "image is a URL"),
        ("../secret.png", "image outside the data folder"),
        ("/etc/passwd", "image outside the data folder"),
        ("link/secret.png", "image outside the data folder"),
        ("nowhere.png", "image not found"),
        ("truncated.jpg", "broken image"),
        ("text.png", "broken image"),
        ("figure.eps", "broken image"),
        ("a\0.png", "not an image"),
        ("data:image/png;base64,!!!", "broken image"),
        (b"no image", "broken image"),
        (7, "not an image"),
        (None, "not an image"),
    ],
)
def test_images_that_cannot_or_may_not_be_read(tmp_path: Path, value: Any, reason: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(as_bytes(picture()))
    (folder / "link").symlink_to(tmp_path)
    (folder / "truncated.jpg").write_bytes(as_bytes(picture(size=(200, 200)), "JPEG")[:2000])
    (folder / "text.png").write_text("no image")
    # Pillow would start Ghostscript for it
    (folder / "figure.eps").write_bytes(as_bytes(picture(), "EPS"))
    with pytest.raises(RowError) as error:
        load(image_ref(value, HERE, folder))
    assert error.value.reason == reason


def test_paths_start_at_the_file_that_names_them_unless_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "rows.jsonl"
    file.write_text(json.dumps(row(images=["a.png"])))
    (tmp_path / "rows" / "a.png").write_bytes(as_bytes(picture("red")))
    (tmp_path / "a.png").write_bytes(as_bytes(picture("blue")))
    processor = make_processor("gemma3")
    near = prepare_vision(str(file), processor, OPTIONS).rows[0].images
    far = prepare_vision(str(file), processor, OPTIONS, image_folder=tmp_path).rows[0].images
    assert [ref.value for ref in (*near, *far)] == [tmp_path / "rows" / "a.png", tmp_path / "a.png"]


def test_an_image_ref_tells_its_row() -> None:
    ref = image_ref(b"no image", Source(file="rows.jsonl", row=7), None)
    assert isinstance(ref, ImageRef) and str(ref.source) == "rows.jsonl:7"


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), most=st.integers(1, 400_000))
def test_large_images_are_shrunk_in_proportion(width: int, height: int, most: int) -> None:
    image = Image.new("1", (width, height))
    small = shrunk(image, most)
    if width * height <= most:
        assert small is image
        return
    assert small.width * small.height <= max(most, width, height)  # of a thread-like one a side of 1 is kept
    factor = (most / (width * height)) ** 0.5
    assert abs(small.width - width * factor) <= 1.001
    assert abs(small.height - height * factor) <= 1.001
    assert shrunk(image, None) is image


def test_what_is_prepared_is_that_of_an_image_shrunk_beforehand() -> None:
    processor, large = make_processor("qwen2_vl"), picture(size=(56, 42))
    small = large.resize((28, 21))
    limited = prepare_vision([row([part(large), text("what?")])], processor, OPTIONS, max_pixels=28 * 21).rows[0]
    expected = prepare_vision([row([part(small), text("what?")])], processor, OPTIONS).rows[0]
    assert limited.input_ids.tolist() == expected.input_ids.tolist()
    assert np.array_equal(np.asarray(load(limited.images[0])), np.asarray(small))
    whole = prepare_vision([row([part(large), text("what?")])], processor, OPTIONS).rows[0]
    assert len(whole.input_ids) > len(limited.input_ids)
