"""Teach a model to call a function: rows with tools, the mask of one row, LoRA, then a question and its call.

python examples/tool_calling.py
"""

import json
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers.utils import get_json_schema

import honed
from honed import SFTConfig, SFTTrainer

TEMPLATE = str(Path(__file__).with_suffix(".jinja"))
WEATHER = {"Rome": "sunny", "Oslo": "snow", "Lima": "fog", "Cairo": "hot", "Dublin": "rain", "Quito": "mild"}


def get_weather(city: str) -> str:
    """The weather of today.

    Args:
        city: name of the city
    """
    return WEATHER.get(city, "unknown")


def row(city: str) -> dict[str, Any]:
    """A question, the call it needs, the function's result, and the answer."""
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    messages = [
        {"role": "user", "content": f"How is the weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get_weather", "content": get_weather(city)},
        {"role": "assistant", "content": f"{city}: {get_weather(city)}."},
    ]
    return {"messages": messages, "tools": [get_json_schema(get_weather)]}


def answer(trainer: SFTTrainer, messages: list[dict[str, Any]], max_new_tokens: int = 128) -> str:
    """The model's next message, without the token that ends its turn."""
    tokenizer, model = trainer.processing_class, trainer.model.eval()
    inputs = tokenizer.apply_chat_template(
        messages, tools=[get_weather], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls in an answer; calls that are not JSON are left out, so check the text if one is missing."""
    calls = []
    for found in re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL):
        try:
            calls.append(json.loads(found))
        except json.JSONDecodeError:
            print(f"not a call: {found!r}")
    return calls


def main(model: str = "smollm2-135m-instruct", cities: tuple[str, ...] = tuple(WEATHER), **options: Any) -> list[Any]:
    """Trains, asks, calls and asks again; returns the messages. `options` are SFTConfig's."""
    rows = [row(city) for city in cities]
    given = {"output_dir": "runs/tools", "num_train_epochs": 10, "learning_rate": 1e-3, **options}
    args = SFTConfig(**{"chat_template_path": TEMPLATE, "assistant_only_loss": True, "logging_steps": 1, **given})
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model, train_dataset=rows, args=args, peft_config=config)
    # The call and the answer are trained, each with the token that ends it; tools and the function's result are not.
    # In a shell: honed data show rows.jsonl --row 1 --model MODEL --template examples/tool_calling.jinja
    honed.show(rows, trainer.processing_class, template=TEMPLATE)
    trainer.train()

    messages: list[dict[str, Any]] = [{"role": "user", "content": f"How is the weather in {cities[0]}?"}]
    said = answer(trainer, messages)
    calls = calls_in(said)
    if not calls:
        return [*messages, {"role": "assistant", "content": said}]
    functions = [{"type": "function", "function": call} for call in calls]
    messages.append({"role": "assistant", "content": "", "tool_calls": functions})
    for call in calls:
        result = get_weather(**call["arguments"]) if call["name"] == "get_weather" else "no such function"
        messages.append({"role": "tool", "name": call["name"], "content": result})
    return [*messages, {"role": "assistant", "content": answer(trainer, messages)}]


if __name__ == "__main__":
    for message in main():
        print(message)
