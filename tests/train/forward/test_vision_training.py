"""Vision-language models in the trainer, held against the models' own loss on their processors' own output."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL", reason="images need Pillow: pip install pillow")
from vision_models import FAMILIES, make_vlm, picture

from honed import SFTConfig, SFTTrainer
from honed.data.prepare.options import PrepareOptions
from honed.data.vision.prepare import prepare_vision
from honed.errors import DataError, HonedError, ModelError, RecipeError
from honed.model.load.load import load_model, load_processor
from honed.model.load.vocabulary import with_pad_token
from honed.train.forward.vision import VisionCollator, vision_tower, with_tokenizer

ROW = dict[str, Any]


def vlm(family: str) -> tuple[Any, Any]:
    try:
        return make_vlm(family)
    except ImportError as error:
        pytest.skip(f"{family}: {str(error).strip().splitlines()[0]}")


def row(content: Any = "which colour ?", answer: str = "red", **more: Any) -> ROW:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def part(image: Any) -> ROW:
    return {"type": "image", "image": image}


def text(value: str) -> ROW:
    return {"type": "text", "text": value}


def mixed_rows() -> list[ROW]:
    """One image; two of other shapes between words; none."""
    return [
        row([part(picture()), text("which colour ?")]),
        row([text("this "), part(picture("blue", (24, 60))), text(" or "), part(picture("green", (70, 24)))]),
        row("what is it ?", "yes"),
    ]


def arguments(folder: Path, **changes: Any) -> SFTConfig:
    given = {"train_on": "assistant", "report_to": [], "save_strategy": "no", "disable_tqdm": True, "max_steps": 1}
    return SFTConfig(output_dir=str(folder), **{**given, "per_device_train_batch_size": 4, **changes})


def trainer_of(model: Any, processor: Any, rows: Any, folder: Path, **changes: Any) -> SFTTrainer:
    more = {key: changes.pop(key) for key in ("peft_config", "data_collator", "eval_dataset") if key in changes}
    return SFTTrainer(model, args=arguments(folder, **changes), train_dataset=rows, processing_class=processor, **more)


def plain_loss(model: Any, processor: Any, rows: list[ROW]) -> torch.Tensor:
    """The mean over all trained tokens of the model's own loss, row by row, on what the processor makes of the row."""
    total, count = torch.zeros(()), 0
    for example in rows:
        messages = [{**m, "content": m["content"] if isinstance(m["content"], list) else [text(m["content"])]}
                    for m in example["messages"]]  # fmt: skip
        answer = {**messages[1], "content": [text(messages[1]["content"][0]["text"])]}
        prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
        whole = processor.apply_chat_template([messages[0], answer])
        ended = whole.rstrip() if whole.rstrip().endswith(">") else whole.rstrip() + processor.tokenizer.eos_token
        images = [p["image"] for p in messages[0]["content"] if p["type"] == "image"]
        adds = processor.tokenizer.bos_token is None or not prompt.startswith(processor.tokenizer.bos_token)
        options = {"return_tensors": "pt", "add_special_tokens": adds, "images": [images] if images else None}
        length = processor(text=[prompt], **options)["input_ids"].shape[1]
        inputs = processor(text=[ended], **options)
        labels = inputs["input_ids"].clone()
        labels[:, :length] = -100
        trained = int((labels != -100).sum())
        total, count = total + model(**inputs, labels=labels).loss * trained, count + trained
    return total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_models_own(family: str, tmp_path: Path) -> None:
    """A padded batch of three rows against each row by itself: image features, positions and token types are right."""
    model, processor = vlm(family)
    rows = mixed_rows()
    trainer = trainer_of(model, processor, rows, tmp_path)
    [batch] = trainer.get_train_dataloader()
    model.train()
    with trainer._seams_open():
        loss = trainer.compute_loss(model, batch)
        loss.backward()
    found = gradients(model)
    expected = plain_loss(model, processor, rows)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5, atol=1e-5)
    own, tower = gradients(model), vision_tower(model)
    for module in (model, tower):  # by norm: some gradients (of biases of keys) are zero but for rounding
        names = [name for name, p in model.named_parameters() if any(p is q for q in module.parameters())]
        differ = torch.cat([(found[name] - own[name]).flatten() for name in names]).norm()
        scale = torch.cat([own[name].flatten() for name in names]).norm()
        assert scale > 1e-3 and differ < 1e-4 * scale


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """All gradients, which are cleared; 0 where there is none."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_images_is_trained(family: str, tmp_path: Path) -> None:
    model, processor = vlm(family)
    rows = [row(), row("what is it ?", "yes")]
    trainer = trainer_of(model, processor, rows, tmp_path)
    model.train()
    [batch] = trainer.get_train_dataloader()
    assert not any("pixel" in key for key in batch)
    with trainer._seams_open():
        loss = trainer.compute_loss(model, batch)
    assert torch.allclose(loss, plain_loss(model, processor, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_answers_depend_on_the_image(family: str, tmp_path: Path) -> None:
    """Red or blue: without the picture, no model does better than log 2 nats an answer. Held-out pictures, too."""
    model, processor = vlm(family)

    def rows(sizes: range) -> list[ROW]:
        pairs = [(colour, (size, 24)) for size in sizes for colour in ("red", "blue")]
        return [row(answer=colour, images=[picture(colour, size)]) for colour, size in pairs]

    held_out = rows(range(60, 63))
    trainer = trainer_of(
        model, processor, rows(range(24, 36)), tmp_path,
        eval_dataset=held_out, max_steps=40, learning_rate=6e-3, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    tokens = trainer.ledger.trained_tokens / trainer.ledger.rows_trained
    bound = math.log(2) / tokens
    assert trainer.evaluate()["eval_loss"] < bound / 2
    for example in held_out[:2]:
        question = [{"role": "user", "content": [part(example["images"][0]), text("which colour ?")]}]
        prompt = processor.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        answer = model.eval().generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        said = processor.tokenizer.decode(answer, skip_special_tokens=True)
        assert said.strip() == example["messages"][1]["content"]


# --- the way of the TRL guide ---------------------------------------------------------------------------------------


def test_the_guides_own_collator_works_unchanged(tmp_path: Path) -> None:
    model, processor = vlm("llava")
    datasets = pytest.importorskip("datasets")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Who is this?"}, {"type": "image", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Barack Obama"}]},
    ]
    train_dataset = datasets.Dataset.from_dict(
        {"messages": [messages] * 4, "images": [[picture("red")], [picture("blue")]] * 2},
    ).cast_column("images", datasets.List(datasets.Image()))

    def collate_fn(examples: list[Any]) -> Any:
        texts = [processor.apply_chat_template(example["messages"], tokenize=False) for example in examples]
        images = [example["images"][0] for example in examples]
        # the guide passes texts and images by position, which transformers has since swapped
        batch = processor(text=texts, images=images, return_tensors="pt", padding=True)
        labels = batch["input_ids"].clone()
        labels[labels == processor.tokenizer.pad_token_id] = -100
        batch["labels"] = labels
        return batch

    for processing_class in (processor.tokenizer, processor):
        training_args = SFTConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        training_args.remove_unused_columns = False
        training_args.dataset_kwargs = {"skip_prepare_dataset": True}
        trainer = SFTTrainer(
            model=model,
            args=training_args,
            data_collator=collate_fn,
            train_dataset=train_dataset,
            processing_class=processing_class,
        )
        batch = collate_fn([train_dataset[0], train_dataset[1]])
        assert list(batch) == ["input_ids", "attention_mask", "pixel_values", "labels"]
        with torch.no_grad():
            expected = float(model.eval()(**batch).loss)
            found = float(trainer.compute_loss(model, batch))
        assert found == pytest.approx(expected, rel=1e-6)
        before = model.get_input_embeddings().weight.clone()
        assert math.isfinite(trainer.train().training_loss)
        assert not torch.equal(before, model.get_input_embeddings().weight)


# --- options --------------------------------------------------------------------------------------------------------


def test_padding_is_on_the_right_and_to_a_multiple() -> None:
    _, processor = vlm("qwen2_vl")
    rows = prepare_vision(mixed_rows(), processor, PrepareOptions()).rows
    batch = VisionCollator(processor=processor, multiple_of=64)([rows[2], rows[0]])
    assert batch["input_ids"].shape == batch["mm_token_type_ids"].shape == (2, 64)
    for number, found in enumerate((rows[2], rows[0])):
        length = len(found.input_ids)
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (64 - length)
        assert batch["input_ids"][number, :length].tolist() == found.input_ids.tolist()
    image = batch["input_ids"] == processor.image_token_id
    assert torch.equal(batch["mm_token_type_ids"], image.long()) and image.sum() > 0


def test_pixels_are_in_the_models_format_and_each_kind_of_types_covers_the_batch(tmp_path: Path) -> None:
    """Ernie 4.5's experts have token types of their own, which mark the tokens around an image as well."""
    model, processor = vlm("gemma3")

    class WithMoreTypes(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen = super().__call__(*args, **kwargs)
            around = seen["input_ids"] == self.tokenizer.convert_tokens_to_ids("<start_of_image>")
            seen["moe_mm_token_type_ids"] = seen["token_type_ids"] + around.long()
            return seen

    trainer = trainer_of(model.bfloat16(), processor, mixed_rows(), tmp_path)
    [batch] = trainer.get_train_dataloader()
    assert batch["pixel_values"].dtype is torch.bfloat16 and batch["input_ids"].dtype is torch.int64
    processor.__class__ = WithMoreTypes
    rows = prepare_vision(mixed_rows(), make_vlm("gemma3")[1], PrepareOptions()).rows
    batch = VisionCollator(processor=processor)([rows[2], rows[1]])
    assert batch["pixel_values"].dtype is torch.float32
    start, soft = processor.tokenizer.convert_tokens_to_ids(["<start_of_image>", "<image_soft_token>"])
    assert torch.equal(batch["token_type_ids"], (batch["input_ids"] == soft).long())
    assert torch.equal(
        batch["moe_mm_token_type_ids"], torch.isin(batch["input_ids"], torch.tensor([start, soft])).long()
    )


def test_an_image_that_vanishes_after_preparing_is_named(tmp_path: Path) -> None:
    _, processor = vlm("gemma3")
    picture().save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(images=["a.png"])))
    rows = prepare_vision(str(tmp_path / "rows.jsonl"), processor, PrepareOptions()).rows
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"rows\.jsonl:1: an image has changed since the data were prepared"):
        VisionCollator(processor=processor)([rows[0]])


def test_workers_open_the_images(tmp_path: Path) -> None:
    model, processor = vlm("gemma3")
    trainer = trainer_of(model, processor, mixed_rows(), tmp_path, dataloader_num_workers=1)
    [batch] = trainer.get_train_dataloader()
    assert batch["pixel_values"].shape[0] == 3


def test_lora_leaves_the_vision_tower_out_unless_layers_are_named(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for targets, reaches in (("all-linear", False), (["q_proj"], True)):
        model, processor = vlm("llava")
        given = peft.LoraConfig(r=2, target_modules=targets)
        trainer = trainer_of(model, processor, mixed_rows(), tmp_path, peft_config=given)
        adapted = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        assert any("vision_tower" in name for name in adapted) is reaches
        assert any("language_model" in name for name in adapted) and given.exclude_modules is None
        assert any("does not cover the vision tower" in note for note in trainer.notes) is not reaches
        if not reaches:
            assert any("multi_modal_projector" in name for name in adapted)
            assert math.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_tower_can_be_frozen(family: str, tmp_path: Path) -> None:
    model, processor = vlm(family)
    trainer = trainer_of(model, processor, mixed_rows(), tmp_path, freeze_vision=True, learning_rate=1e-2)
    tower = {name: p.clone() for name, p in vision_tower(model).named_parameters()}
    head = model.get_output_embeddings().weight.clone()
    trainer.train()
    assert tower and all(torch.equal(tower[name], p) for name, p in vision_tower(model).named_parameters())
    assert not torch.equal(head, model.get_output_embeddings().weight)
    assert any("the vision tower is frozen" in note for note in trainer.notes)


def test_a_model_of_text_alone_has_no_tower(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="has no vision tower"):
        vision_tower(tiny_model())


@pytest.mark.parametrize("option", ["packing", "streaming"])
def test_what_does_not_work_with_images_is_refused(option: str, tmp_path: Path) -> None:
    model, processor = vlm("gemma3")
    with pytest.raises(RecipeError, match=f"{option}=True does not work with images"):
        trainer_of(model, processor, mixed_rows(), tmp_path, **{option: True})


def test_a_processor_without_a_pad_token_is_not_changed() -> None:
    _, processor = vlm("gemma3")
    processor.tokenizer.pad_token = None
    padded = with_tokenizer(processor, with_pad_token(processor.tokenizer))
    assert processor.tokenizer.pad_token is None and padded.tokenizer.pad_token == "<eos>"
    assert with_tokenizer(padded, with_pad_token(padded.tokenizer)) is padded


# --- from folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its processor, and rows with images beside it."""
    model, processor = vlm("gemma3")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = [row(answer=colour, images=[f"{colour}.png"]) for colour in ("red", "blue")] + [row("hi", "yes")]
    for colour in ("red", "blue"):
        picture(colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_model_and_processor_are_loaded_by_name_where_rows_show_images(folder: Path) -> None:
    trainer = SFTTrainer(
        str(folder / "model"), args=arguments(folder / "out"), train_dataset=str(folder / "rows.jsonl")
    )
    assert type(trainer.model).__name__ == "Gemma3ForConditionalGeneration"
    assert trainer.processing_class.image_processor is not None
    assert trainer.ledger.rows_trained == 3 and math.isfinite(trainer.train().training_loss)


def test_a_model_of_text_alone_refuses_rows_with_images_one_by_one(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    rows = [row("hi"), row(images=[picture()])]
    trainer = SFTTrainer(str(tmp_path), args=arguments(tmp_path / "out", bad_rows="drop"), train_dataset=rows)
    assert trainer.ledger.rows_dropped == {"images in a text-only template": 1}


def test_a_model_that_comes_with_images_only_is_loaded_so_for_text(tmp_path: Path) -> None:
    model, processor = vlm("qwen2_vl")
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device=torch.device("cpu"))
    assert type(loaded).__name__ == "Qwen2VLForConditionalGeneration"


def test_a_folder_without_a_processor_is_refused(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(HonedError, match="No processor could be loaded"):
        load_processor(str(tmp_path))
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(HonedError, match="sees no images"):
        load_processor(str(tmp_path))


def test_the_recipe_trains_answers_and_saves_what_transformers_loads(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from honed.cli.main import main

    (folder / "questions.jsonl").write_text('{"prompt": "hi"}')
    out = folder / "run"
    changes = [f"model={folder / 'model'}", f"data.files={folder / 'rows.jsonl'}", f"output={out}", "lora=null",
               "samples.max_new_tokens=3", f"samples.prompts={folder / 'questions.jsonl'}", "dtype=float32",
               "dataloader_num_workers=0"]  # fmt: skip
    assert main(["train", "vlm", *changes]) == 0
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["rows_trained"] == 3 and (out / "report.html").exists() and (out / "samples.json").exists()
    processor = AutoProcessor.from_pretrained(out)
    model = AutoModelForImageTextToText.from_pretrained(out)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [part(picture()), text("which colour ?")]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_data_check_and_show_know_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from honed.cli.main import main

    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text() + "\n" + json.dumps(row(images=["x.png"])))
    assert main(["data", "check", str(folder / "rows.jsonl"), "--model", str(folder / "model")]) == 1
    out = capsys.readouterr().out
    assert "4 rows in, 3 trained, 1 dropped" in out and "image not found" in out
    assert main(["data", "show", str(folder / "rows.jsonl"), "--row", "1", "--model", str(folder / "model")]) == 0
    out = capsys.readouterr().out
    assert out.count("<image_soft_token>") == 4 and "«red<end_of_turn>»" in out
    assert main(["data", "show", str(folder / "rows.jsonl"), "--row", "4", "--model", str(folder / "model")]) == 0
    assert "image not found" in capsys.readouterr().out
