"""Ids of rows with images are those of serving, and image tokens are never trained."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from vision_models import FAMILIES, ONEVISION_PUBLISHED, picture
from vision_rows import OPTIONS, make_processor, part, row, text

from honed.data.example import Message
from honed.data.prepare.options import PrepareOptions
from honed.data.vision.prepare import prepare_vision
from honed.data.vision.render import Expansions
from honed.data.vision.template import VisionTemplate
from honed.errors import TemplateError

# What the model is to say behind each family's prompt for the answer "red": its template's text, or EOS where
# that closes no turn.
ANSWERS = {
    **dict.fromkeys(("llava", "llava_next"), " red<eos>"),
    **dict.fromkeys(("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "red<|im_end|>"),
    **dict.fromkeys(("idefics3", "smolvlm"), " red<end_of_utterance>"),
    "gemma3": "red<end_of_turn>",
}


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


@pytest.mark.parametrize("images", [[picture()], None])
def test_a_processor_that_serves_other_ids_is_refused(images: Any) -> None:
    processor = make_processor("gemma3")

    class Other(type(processor)):  # type: ignore[misc]
        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            served = super().apply_chat_template(*args, **kwargs)
            served["input_ids"] = [[5, *ids] for ids in served["input_ids"]]
            return served

    processor.__class__ = Other
    with pytest.raises(TemplateError, match="not what would be trained"):
        prepare_vision([row(images=images)], processor, OPTIONS)


def test_a_processor_that_pads_pads_no_text_of_ours() -> None:
    """Gemma 4's, Cohere's and others pad by default, which stays set in the tokenizer that they share with us."""
    processor = make_processor("gemma3")
    rows = [row([part(picture()), text("which colour ?")]), row("what is it ?", answer="yes no one two red")]
    expected = [found.input_ids.tolist() for found in prepare_vision(rows, processor, OPTIONS).rows]

    class Padding(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, padding: bool = True, **kwargs: Any) -> Any:
            return super().__call__(*args, padding=padding, **kwargs)

    processor.__class__ = Padding
    assert [found.input_ids.tolist() for found in prepare_vision(rows, processor, OPTIONS).rows] == expected


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


def test_prompts_for_answers_are_made_as_in_training() -> None:
    from honed.data.encode.render import Renderer

    processor = make_processor("llava")
    template = VisionTemplate(processor, OPTIONS)
    own = Renderer(processor.tokenizer, template).prompt_ids(template.prompt([Message(role="user", content="hi")]))
    served = processor.apply_chat_template(
        [{"role": "user", "content": [text("hi")]}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert own == list(served["input_ids"][0])
