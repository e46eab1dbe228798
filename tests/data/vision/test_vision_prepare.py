"""Files of rows with images: the ledger, the length policy, mixtures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from PIL import Image
from vision_models import picture
from vision_rows import OPTIONS, as_bytes, make_processor, part, row, text

from honed.data.prepare.options import PrepareOptions
from honed.data.vision.images import load
from honed.data.vision.prepare import prepare_vision
from honed.data.vision.template import VisionTemplate
from honed.errors import DataError, RecipeError, TemplateError

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
