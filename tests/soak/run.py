"""Trains a tiny model for many steps and looks for what grows: memory, open files, time per step.

    python tests/soak/run.py                       2,000 steps, a few minutes
    python tests/soak/run.py --steps 300 --out benchmarks/results/soak-cpu-DATE.json

Checkpoints (three are kept), evaluation and answers come again and again, as in a real run. The last tenth of the steps
is compared with the tenth after the warm-up: the resident memory may be at most 2% larger, the number of open files
not larger at all, and a step may take at most 10% more of the processor's time. Other programs share the machine and
its caches, so the time is told in units of a yardstick: the same forward pass of a model that is not trained, after
each step. Times on the clock are reported and not judged.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

GROWTH = 0.02  # of the resident memory
SLOWER = 0.10  # of a step's processor time over the yardstick's
WARM_UP = 0.2  # share of the steps in which allocators and caches fill


@dataclass(slots=True)
class Readings:
    """One number per optimizer step."""

    memory_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)
    answers: int = 0
    evaluations: int = 0
    checkpoints: int = 0


def main() -> int:
    """Runs, prints and writes what was found; 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        readings = soak(args.steps, Path(place))
    result = judged(readings, args.steps)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def soak(steps: int, place: Path) -> Readings:
    """Trains and reads after every step."""
    import torch

    from honed import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads that wait for each other would spend processor time on it
    readings = Readings()
    often = max(1, steps // 20)
    trainer = SFTTrainer(
        tiny_model(),
        args=SFTConfig(
            output_dir=str(place),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            packing=True,
            max_length=256,
            save_steps=often,
            save_total_limit=3,
            eval_strategy="steps",
            eval_steps=often,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=False,
        ),
        train_dataset=rows(400),
        eval_dataset=rows(40),
        processing_class=tokenizer(),
        callbacks=[watching(readings, every=often)],
    )
    trainer.train()
    return readings


def watching(readings: Readings, *, every: int) -> Any:
    """A callback that reads after every step, and lets the model answer as often as it is evaluated."""
    import psutil
    from transformers import TrainerCallback

    process, yardstick = psutil.Process(), make_yardstick()

    class Watch(TrainerCallback):
        started = time.perf_counter(), time.process_time()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            readings.seconds.append(time.perf_counter() - self.started[0])
            readings.processor_seconds.append(time.process_time() - self.started[1])
            readings.yardsticks.append(processor_seconds(yardstick))
            readings.memory_mb.append(process.memory_info().rss / 1e6)
            readings.files.append(process.num_fds() if hasattr(process, "num_fds") else len(process.open_files()))
            if state.global_step % every == 0:
                answer(kwargs["model"], kwargs["processing_class"])
                readings.answers += 1
                gc.collect()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            readings.evaluations += 1

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            readings.checkpoints += 1

    return Watch()


def make_yardstick() -> Callable[[], Any]:
    """Work that is the same each time."""
    import torch

    model, ids_BL = tiny_model().eval(), torch.arange(4 * 64).view(4, 64)
    return torch.no_grad()(lambda: model(input_ids=ids_BL, use_cache=False))


def processor_seconds(work: Callable[[], Any]) -> float:
    """What it takes of this process's time."""
    started = time.process_time()
    work()
    return time.process_time() - started


def answer(model: Any, processing_class: Any) -> None:
    """Answers two questions, as `honed train` does before and after."""
    from honed.data.prepare import PrepareOptions, make_template
    from honed.generate.answer import answers, ask, need_template

    template = need_template(make_template(processing_class, PrepareOptions()), "tiny")
    asked = [ask("why 1 fox", None), ask("why 2", None)]
    answers(model, processing_class, template, asked, max_new_tokens=16, desc="Answering")


def judged(readings: Readings, steps: int) -> dict[str, Any]:
    """The readings in numbers, and whether they hold."""
    tenth = max(1, steps // 10)
    warm = int(steps * WARM_UP)
    early, late = slice(warm, warm + tenth), slice(steps - tenth, steps)
    memory = [statistics.median(readings.memory_mb[part]) for part in (early, late)]
    files = [max(readings.files[part]) for part in (early, late)]
    clock, processor, yardstick = (
        [statistics.median(series[part]) * 1e3 for part in (early, late)]
        for series in (readings.seconds, readings.processor_seconds, readings.yardsticks)
    )
    in_yardsticks = [a / b for a, b in zip(processor, yardstick, strict=True)]
    growth, slower = memory[1] / memory[0] - 1, in_yardsticks[1] / in_yardsticks[0] - 1
    whole = len(readings.seconds) == steps
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(),
        "steps": len(readings.seconds),
        "evaluations": readings.evaluations,
        "checkpoints": readings.checkpoints,
        "answers": readings.answers,
        "memory_mb": {"after_warm_up": round(memory[0], 1), "end": round(memory[1], 1), "growth": round(growth, 4)},
        "open_files": {"after_warm_up": files[0], "end": files[1]},
        "yardsticks_per_step": {
            "after_warm_up": round(in_yardsticks[0], 3),
            "end": round(in_yardsticks[1], 3),
            "growth": round(slower, 4),
        },
        "processor_ms_per_step": {"after_warm_up": round(processor[0], 2), "end": round(processor[1], 2)},
        "clock_ms_per_step": {"after_warm_up": round(clock[0], 2), "end": round(clock[1], 2)},
        "passed": growth < GROWTH and files[1] <= files[0] and slower < SLOWER and whole,
    }


def versions() -> dict[str, str]:
    """Of what is measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "torch", "transformers")}


def rows(count: int) -> list[dict[str, Any]]:
    """Conversations of many lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"why {number} " + "fox " * (number % 23)},
                {"role": "assistant", "content": "yes " * (number % 17 + 1)},
            ]
        }
        for number in range(count)
    ]


def tiny_model() -> Any:
    """Two layers of 32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config)


def tokenizer() -> Any:
    """A byte-level tokenizer with a ChatML template, trained on the spot."""
    from honed.model.tokenizer_training import train_tokenizer

    return train_tokenizer((row["messages"][0]["content"] for row in rows(50)), vocab_size=400)


if __name__ == "__main__":
    sys.exit(main())
