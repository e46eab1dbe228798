"""Rows with images: where images stand, where they may come from, and ids that are those of serving."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from vision_models import FAMILIES, MAKERS, ONEVISION_PUBLISHED, picture

from honed.data.example import Conversation, Message, RowError, Source
from honed.data.prepare.options import PrepareOptions
from honed.data.read.messages import read_messages
from honed.data.vision.images import ImageRef, image_ref, load
from honed.data.vision.prepare import prepare_vision
from honed.data.vision.render import Expansions
from honed.data.vision.template import IMAGE, VisionMessage, VisionTemplate, shown, shows_images
from honed.errors import DataError, RecipeError, TemplateError

HERE = Source(file="row", row=1)
OPTIONS = PrepareOptions()
# What the model is to say behind each family's prompt for the answer "red": its template's text, or EOS where
# that closes no turn.
ANSWERS = {
    **dict.fromkeys(("llava", "llava_next"), " red<eos>"),
    **dict.fromkeys(("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "red<|im_end|>"),
    **dict.fromkeys(("idefics3", "smolvlm"), " red<end_of_utterance>"),
    "gemma3": "red<end_of_turn>",
}


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


# --- where images stand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "images", "expected", "values"),
    [
        ([part("a.png"), text("what?")], (), f"{IMAGE}what?", ("a.png",)),
        ([text("this "), part(), text(" or "), part()], ("a", "b"), f"this {IMAGE} or {IMAGE}", ("a", "b")),
        ([part(index=1), part(index=0)], ("a", "b"), IMAGE * 2, ("b", "a")),
        ([{"type": "image_url", "image_url": {"url": "a.png"}}], (), IMAGE, ("a.png",)),
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


# --- where images may come from -------------------------------------------------------------------------------------


def as_bytes(image: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


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


# --- ids and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_that_the_processor_serves(family: str) -> None:
    """The prompt is what `apply_chat_template` gives, the whole what the processor makes of the same text in one go."""
    processor = make_processor(family)
    contents = [
        [part(picture()), text("which colour ?")],
        [text("this "), part(picture("blue", (24, 60))), text(" or "), part(picture("green", (70, 24)))],
        [text("which colour ?")],
    ]
    prepared = prepare_vision([row(content) for content in contents], processor, OPTIONS)
    assert prepared.ledger.rows_trained == 3 and len(prepared.rows) == 3
    for content, found in zip(contents, prepared.rows, strict=True):
        messages = [{"role": "user", "content": content}]
        served = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [p["image"] for p in content if p["type"] == "image"]
        bos = processor.tokenizer.bos_token
        whole = processor(
            text=[prompt + ANSWERS[family]],
            images=[images] if images else None,
            add_special_tokens=bos is None or not prompt.startswith(bos),
        )
        ids, length = found.input_ids.tolist(), len(served["input_ids"][0])
        assert ids[:length] == list(served["input_ids"][0])
        trained = processor.tokenizer.decode(found.input_ids[found.weights > 0])
        assert trained == ANSWERS[family] and not found.weights[:length].any()
        assert ids[: len(whole["input_ids"][0])] == list(whole["input_ids"][0])
        assert len(found.images) == len(images)


USERS_TOO = {"train_roles": ("user", "assistant")}  # where the template lets the user's words be located


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {"train_on": "all"}) for family in FAMILIES), ("qwen2_vl", USERS_TOO), ("gemma3", USERS_TOO)],
    ids=str,
)
def test_image_tokens_are_never_trained(family: str, changes: dict[str, Any]) -> None:
    processor = make_processor(family)
    rows = [row([text("is "), part(picture()), text(" it ?")]), row([part(picture("blue", (70, 24))), text("is it ?")])]
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image_soft_token>" if family == "gemma3" else processor.image_token)
    for found in prepare_vision(rows, processor, PrepareOptions(**changes)).rows:
        at_image = found.input_ids == image
        assert at_image.sum() >= 4 and not found.weights[at_image].any()
        trained = tokenizer.decode(found.input_ids[found.weights > 0])
        assert "is" in trained and "it ?" in trained and "red" in trained


def test_a_text_that_spells_the_placeholder_stays_text() -> None:
    processor = make_processor("qwen2_vl")
    spelled = row([text("what is <|image_pad|> ?"), part(picture())])
    found = prepare_vision([spelled], processor, OPTIONS).rows[0]
    image = processor.image_token_id
    alone = prepare_vision([row([text("what is x ?"), part(picture())])], processor, OPTIONS).rows[0]
    assert (found.input_ids == image).sum() == (alone.input_ids == image).sum()
    assert "what is <|image_pad|> ?" in processor.tokenizer.decode(found.input_ids)


def test_a_placeholder_that_is_no_special_token_cannot_be_text() -> None:
    processor = make_processor("llava")
    processor.image_token = "picture"  # a word
    told = prepare_vision([row("hi"), row("which picture ?")], processor, PrepareOptions(bad_rows="drop")).ledger
    assert told.rows_dropped == {"the text spells the placeholder of images": 1}


def test_expansions_ask_the_processor_once_for_each_shape() -> None:
    class Counting:
        image_token = "<image>"
        asked = 0

        def __call__(self, text: list[str], images: Any, **_: Any) -> dict[str, Any]:
            self.asked += 1
            told = [{"type": "image", "replacement": "<image>" * image.size[0]} for image in images[0]]
            return {"text_replacement_offsets": [told]}

    processor = Counting()
    expand = Expansions(processor)
    small, large = picture(size=(2, 2)), picture(size=(3, 2))
    assert expand([small, large]) == ["<image>" * 2, "<image>" * 3] == expand([picture("blue", (2, 2)), large])
    assert expand([large]) == ["<image>" * 3] and expand([]) == []
    assert processor.asked == 2


def test_llava_onevisions_published_template_is_refused_with_its_fault() -> None:
    processor = make_processor("llava_onevision")
    processor.chat_template = ONEVISION_PUBLISHED
    with pytest.raises(TemplateError, match="does not begin an answer the way its generation prompt does"):
        prepare_vision([row(images=[picture()])], processor, OPTIONS)


def test_a_processor_that_serves_other_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = make_processor("gemma3")

    class Other(type(processor)):  # type: ignore[misc]
        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            served = super().apply_chat_template(*args, **kwargs)
            served["input_ids"] = [[5, *ids] for ids in served["input_ids"]]
            return served

    processor.__class__ = Other
    with pytest.raises(TemplateError, match="not what would be trained"):
        prepare_vision([row(images=[picture()])], processor, OPTIONS)


def test_a_template_that_leaves_images_out_is_refused() -> None:
    processor = make_processor("gemma3")
    processor.chat_template = processor.chat_template.replace("<start_of_image>", "")
    told = prepare_vision([row("hi"), row(images=[picture()])], processor, PrepareOptions(bad_rows="drop")).ledger
    assert told.rows_dropped == {"the chat template does not show every image": 1}


def test_later_images_are_not_in_views_of_earlier_turns() -> None:
    """LLaVA's template closes no turn, so each answer is a document of its own, with the images shown so far."""
    processor = make_processor("llava")
    turns = [*row(images=[1])["messages"], *row()["messages"]]
    turns[2] = {"role": "user", "content": [part(picture("blue")), text("and this ?")]}
    turns[0] = {"role": "user", "content": [part(picture("red")), text("which colour ?")]}
    rows = prepare_vision([{"messages": turns}], processor, OPTIONS).rows
    tokens = [int((found.input_ids == processor.image_token_id).sum()) for found in rows]
    assert [len(found.images) for found in rows] == [1, 2] and tokens == [16, 32]


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_rows_with_bad_images_are_in_the_ledger_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(as_bytes(picture()))
    (tmp_path / "bad.png").write_bytes(b"no image")
    named = ["good.png", "bad.png", "nowhere.png", "http://a.b/c.png", "../x.png"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row(images=[name])) for name in named))
    file = str(tmp_path / "rows.jsonl")
    processor = make_processor("gemma3")
    told = prepare_vision(file, processor, PrepareOptions(bad_rows="drop")).ledger
    assert told.rows_dropped == {
        "broken image": 1,
        "image not found": 1,
        "image is a URL": 1,
        "image outside the data folder": 1,
    }
    assert told.rows_in == 5 and told.rows_trained == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:2: broken image"):
        prepare_vision(file, processor, OPTIONS)


@pytest.mark.parametrize("overlong", ["truncate", "split", "drop"])
def test_overlong_rows_are_dropped_and_never_cut(overlong: str) -> None:
    processor = make_processor("qwen2_vl")
    rows = [row(images=[picture()]), row(images=[picture(size=(48, 48))] * 3), row("which colour ? " * 30)]
    prepared = prepare_vision(rows, processor, PrepareOptions(max_length=60, overlong=overlong))
    assert prepared.ledger.rows_dropped == {"overlong": 2} and len(prepared.rows) == 1
    assert any("would cut images" in note for note in prepared.ledger.notes) is (overlong != "drop")
    with pytest.raises(DataError, match=r"row:2: .* tokens, more than max_length 60"):
        prepare_vision(rows, processor, PrepareOptions(max_length=60, overlong="error"))


def test_packing_is_refused() -> None:
    with pytest.raises(RecipeError, match="packing=True, but rows with images cannot share one"):
        prepare_vision([row(images=[picture()])], make_processor("gemma3"), PrepareOptions(packing=True))


def test_plain_text_with_images_is_refused_and_not_ignored() -> None:
    rows = [row("hi"), {"text": "a picture of a cat", "images": [picture()]}]
    told = prepare_vision(rows, make_processor("gemma3"), PrepareOptions(bad_rows="drop")).ledger
    assert told.rows_dropped == {"images beside plain text": 1}


def test_the_plain_template_cannot_show_images() -> None:
    with pytest.raises(TemplateError, match="template=plain cannot show images"):
        VisionTemplate(make_processor("gemma3"), PrepareOptions(template="plain"))


def test_mixtures_repeat_rows_with_their_images() -> None:
    from honed.data.mix.mixture import Mixture, Part

    parts = (Part(data=[row(images=[picture()])], name="a", repeat=2), Part(data=[row("hi")] * 2, name="b", cap=1))
    prepared = prepare_vision(Mixture(parts=parts), make_processor("gemma3"), OPTIONS)
    assert [len(found.images) for found in prepared.rows] == [1, 1, 0]
    assert prepared.ledger.rows_trained == 2 and prepared.ledger.rows_dropped.total() == 1


def test_images_of_a_data_set_stay_on_disk() -> None:
    """Only the place of an image is kept; what is opened again is the row's own image, whatever column holds it."""
    datasets = pytest.importorskip("datasets")
    colours = ["red", "blue", "green"]
    turns = [row("<image> which colour ?")["messages"] for _ in colours]
    images = [[{"bytes": as_bytes(picture(colour)), "path": None}] for colour in colours]
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
        }
    )
    rows = datasets.Dataset.from_dict({"messages": turns, "images": images}, features=features)
    prepared = prepare_vision(rows, make_processor("gemma3"), OPTIONS).rows
    for number, colour in enumerate(colours):
        [ref] = prepared[number].images
        assert not isinstance(ref.value, (bytes, Image.Image))
        assert np.array_equal(np.asarray(load(ref)), np.asarray(picture(colour)))


def test_neither_rows_nor_processor_are_changed() -> None:
    processor = make_processor("qwen2_vl")
    processor.tokenizer.chat_template = None
    content = [part("a.png"), text("which ?")]
    given = row(content)
    before = json.dumps(given)
    with pytest.raises(DataError):
        prepare_vision([given], processor, OPTIONS)
    assert json.dumps(given) == before and processor.tokenizer.chat_template is None


def test_prompts_for_answers_are_made_as_in_training() -> None:
    from honed.data.encode.render import Renderer

    processor = make_processor("llava")
    template = VisionTemplate(processor, OPTIONS)
    own = Renderer(processor.tokenizer, template).prompt_ids(template.prompt([Message(role="user", content="hi")]))
    served = processor.apply_chat_template(
        [{"role": "user", "content": [text("hi")]}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert own == list(served["input_ids"][0])


def test_an_image_ref_tells_its_row() -> None:
    ref = image_ref(b"no image", Source(file="rows.jsonl", row=7), None)
    assert isinstance(ref, ImageRef) and str(ref.source) == "rows.jsonl:7"
