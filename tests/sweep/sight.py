"""What is tried on a tiny model of an image-text type, each against plain transformers.

The oracle gives each row alone to the type's own processor and the unmodified model, with torch's cross entropy over
the answer, which is the end of the row. Rows of text alone go the way of checks.py as well, with the tokenizer.

Shapes: L tokens of a row, V vocabulary.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checks import (
    SPREAD,
    as_wide,
    distance,
    generation,
    losses,
    make_rows,
    oracle,
    spread,
    step,
    tried,
)
from sight_shapes import make_processor, picture, tiny_sight_config
from sight_special import SIGHT
from torch import nn

LONGEST = 4096
Row = dict[str, Any]


def make_sight(kind: str) -> tuple[Any, nn.Module]:
    """The processor and the model; in float64 where the model computes in it."""
    from transformers import AutoModelForImageTextToText

    processor = make_processor(kind)
    config = tiny_sight_config(kind, processor)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters())
    if size > 2 * 10**6:
        raise MemoryError(f"{size:,} weights: the shape is not tiny")
    torch.manual_seed(0)
    model = spread(AutoModelForImageTextToText.from_config(config, dtype=torch.float32))
    return processor, as_wide(model, lambda model: Plain(processor)(model, seen_rows(kind)))


def seen_rows(kind: str) -> list[Row]:
    """One image, two of other shapes between words, none; where a type takes one image only, one twice."""
    first, wide, tall = (picture(size, seed) for seed, size in enumerate(((40, 24), (70, 24), (24, 60))))
    two = [text("this "), part(wide), *([] if "one" in SIGHT.get(kind, {}) else [text(" or "), part(tall)])]
    return [row([part(first), text("which colour ?")], "red"), row(two, "blue green"), *plain_rows()[:1]]


def plain_rows() -> list[Row]:
    """Rows without images."""
    return [row([text("what is it ?")], "yes"), row([text("which colour is this ?")], "red blue")]


def row(content: list[Row], answer: str) -> Row:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [text(answer)]}]}


def part(image: Any) -> Row:
    return {"type": "image", "image": image}


def text(value: str) -> Row:
    return {"type": "text", "text": value}


class Plain:
    """The losses of the answers' tokens, each row by itself through the processor and the plain model."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, model: nn.Module, rows: list[Row]) -> torch.Tensor:
        """1-D, all rows in order."""
        return torch.cat([self.of_row(model, row) for row in rows])

    def of_row(self, model: nn.Module, row: Row) -> torch.Tensor:
        """The answer is what the whole row has more than its prompt."""
        question, answer = row["messages"]
        prompt = self.processor.apply_chat_template([question], add_generation_prompt=True)
        whole = f"{prompt}{answer['content'][0]['text']}<|im_end|>"
        images = [part["image"] for part in question["content"] if part["type"] == "image"]
        count = self.seen(prompt, images)["input_ids"].shape[1]
        inputs = self.seen(whole, images)
        answer_A = inputs["input_ids"][0, count:]
        options = {"use_cache": False} if takes_cache(model) else {}
        logits_LV = model(**in_format(inputs, model), **options).logits[0]
        return F.cross_entropy(logits_LV[-len(answer_A) - 1 : -1], answer_A, reduction="none")

    def seen(self, written: str, images: list[Any]) -> Any:
        return self.processor(text=[written], images=[images] if images else None, return_tensors="pt")


def takes_cache(model: nn.Module) -> bool:
    return hasattr(model.config.get_text_config(), "use_cache")  # type: ignore[operator,union-attr]


def in_format(inputs: Any, model: nn.Module) -> dict[str, Any]:
    """The inputs with pixels in the model's format."""
    dtype = next(model.parameters()).dtype
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


def seeing(kind: str, model: nn.Module, processor: Any) -> dict[str, Any]:
    """How far each way of training on rows with images is from the oracle."""
    rows, report, plain = seen_rows(kind), {}, Plain(processor)
    loss, gradients = oracle(model, rows, plain)
    report["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")

    def compare(rows: list[Row] = rows, expected: Any = (loss, gradients), **options: Any) -> float:
        trainer, own_loss, own = step(model, rows, processor, **look(options))
        report["notes"] = trainer.notes
        if trainer.ledger.rows_trained != len(rows):
            raise AssertionError(f"rows left out: {dict(trainer.ledger.rows_dropped)}")
        return max(abs(own_loss - expected[0]) / expected[0] / 100, distance(own, expected[1]))

    single = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    report["batch"] = tried(compare)
    report["one by one"] = tried(lambda: compare(**single, gradient_accumulation_steps=len(rows)))
    alone = plain_rows()
    report["without images"] = tried(lambda: compare(alone, oracle(model, alone, plain)))
    return report


def speaking(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """How far training on text alone, with the tokenizer, is from the oracle of checks.py."""
    rows, report = make_rows(), {}
    loss, gradients = oracle(model, rows)

    def compare(**options: Any) -> float:
        trainer, own_loss, own = step(model, rows, tokenizer, **options)
        report.setdefault("flat", trainer.seams.flat)
        return max(abs(own_loss - loss) / loss / 100, distance(own, gradients))

    report["batch"] = tried(compare)
    report["packed"] = tried(lambda: compare(packing=True))
    report["padded"] = tried(lambda: compare(padded=True))
    return report


def look(options: Any) -> dict[str, Any]:
    return {"train_on": "assistant", "max_length": LONGEST, **options}


def adapted(kind: str, model: nn.Module, processor: Any) -> dict[str, Any]:
    """LoRA as a recipe without further options has it, with images; saved, merged, and read by plain transformers."""
    from honed.model.adapters.adapters import lora_config, ready_to_train
    from honed.recipe import LoraRecipe
    from honed.train.forward.vision import language_only

    config, notes = language_only(lora_config(**asdict(LoraRecipe())), model)
    peft_model, more = ready_to_train(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(2)
    named = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in named.values():
            parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
    rows, plain = seen_rows(kind), Plain(processor)
    loss, gradients = oracle(peft_model, rows, plain)

    def compare() -> float:
        _, own_loss, own = step(peft_model, rows, processor, **look({}))
        return max(abs(own_loss - loss) / loss / 100, distance(own, gradients))

    return {
        "notes": notes + more,
        "adapted": sorted({name.partition(".lora_")[0].removeprefix("base_model.model.") for name in named}),
        "gradients": tried(compare),
        "export": tried(lambda: merged(kind, model, peft_model, processor)),
    }


def merged(kind: str, model: nn.Module, adapted: Any, processor: Any) -> float:
    """The adapter merged into the model by honed, on rows with images: relative difference of the answers' losses."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from honed.model.export.export import Probe, export

    with tempfile.TemporaryDirectory() as place:
        base, run, out = (str(Path(place) / name) for name in ("base", "run", "out"))
        copy.deepcopy(model).float().save_pretrained(base)
        processor.save_pretrained(base)
        processor.save_pretrained(run)
        tuned = copy.deepcopy(adapted).float()
        for config in tuned.peft_config.values():
            config.base_model_name_or_path = base
        tuned.save_pretrained(run)
        export(run, out, probes=[Probe(ids=make_rows()[1]["input_ids"], n_prompt=4)])
        again = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
        return apart(kind, again, AutoProcessor.from_pretrained(out), tuned, processor)


def kept(kind: str, model: nn.Module, processor: Any) -> float:
    """What SFTTrainer saves, as plain transformers loads it: relative difference of the answers' losses."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trainer, *_ = step(model, seen_rows(kind), processor, **look({}))
    with tempfile.TemporaryDirectory() as place:
        trainer.save_model(place)
        again = AutoModelForImageTextToText.from_pretrained(place, dtype=next(model.parameters()).dtype)
        return apart(kind, again, AutoProcessor.from_pretrained(place), model, processor)


@torch.no_grad()
def apart(kind: str, found: nn.Module, found_processor: Any, expected: nn.Module, processor: Any) -> float:
    """Relative difference of the losses that two models with their processors give rows with images."""
    rows = seen_rows(kind)
    written = processor.apply_chat_template(rows[0]["messages"])
    images = [rows[0]["messages"][0]["content"][0]["image"]]
    own, other = (Plain(p).seen(written, images)["input_ids"] for p in (processor, found_processor))
    if not torch.equal(own, other):
        raise AssertionError("the saved processor gives other ids")
    # its pixels may differ, as transformers may choose another backend
    a, b = (Plain(processor)(model.eval(), rows) for model in (found, expected))
    return float((a - b).norm() / b.norm())


def check_sight(kind: str) -> dict[str, Any]:
    """Everything about one type."""
    pair = tried(lambda: make_sight(kind))
    if isinstance(pair, str):
        return {"made": pair}
    processor, model = pair
    plain = tried(lambda: Plain(processor)(copy.deepcopy(model), seen_rows(kind)))
    if isinstance(plain, str):
        return {"made": plain}
    tokenizer = processor.tokenizer
    alone = tried(lambda: losses(copy.deepcopy(model), make_rows()))
    runs: dict[str, Callable[[], Any]] = {
        "seeing": lambda: seeing(kind, model, processor),
        "adapted": lambda: adapted(kind, model, processor),
        "kept": lambda: kept(kind, model, processor),
        "text": lambda: alone if isinstance(alone, str) else speaking(model, tokenizer),
        "generation": lambda: generation(model, tokenizer),
    }
    return {"made": True, **{name: tried(run) for name, run in runs.items()}}
