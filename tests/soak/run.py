"""Trains a tiny model for many steps and looks for what grows: memory, open files, time per step.

    python tests/soak/run.py                       2,000 steps, a few minutes
    python tests/soak/run.py --steps 300 --out benchmarks/results/soak-cpu-DATE.json

Checkpoints (three are kept), evaluation and answers come again and again, as in a real run. The steps are looked at in
tenths; the last three are compared with the first three after the warm-up. The resident memory may be at most 2%
larger, the number of open files not larger at all, and a step may take at most 10% more of the processor's time.
Other programs share the machine, its caches and its frequency, so that time is told in units of a yardstick: the same
forward pass of a model that is not trained, after each step, in a process of its own, which nothing that grows in this
one can slow down. Times on the clock are reported and not judged.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

GROWTH = 0.02  # of the resident memory
SLOWER = 0.10  # of a step's processor time over the yardstick's
TENTHS, WARM_UP, COMPARED = 10, 2, 3  # in the first two tenths allocators and caches fill


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
    with tempfile.TemporaryDirectory() as place, yardstick() as measure:
        readings = soak(args.steps, Path(place), measure)
    result = judged(readings, args.steps)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def soak(steps: int, place: Path, measure: Callable[[], float]) -> Readings:
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
        callbacks=[watching(readings, measure, every=often)],
    )
    trainer.train()
    return readings


def watching(readings: Readings, measure: Callable[[], float], *, every: int) -> Any:
    """A callback that reads after every step, and lets the model answer as often as it is evaluated."""
    import psutil
    from transformers import TrainerCallback

    process = psutil.Process()

    class Watch(TrainerCallback):
        started = time.perf_counter(), time.process_time()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            readings.seconds.append(time.perf_counter() - self.started[0])
            readings.processor_seconds.append(time.process_time() - self.started[1])
            readings.yardsticks.append(measure())
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


@contextmanager
def yardstick() -> Iterator[Callable[[], float]]:
    """A function that gives the processor seconds of the same work each time, in a process that does nothing else."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work_when_asked, args=(there,), daemon=True)
    process.start()

    def measure() -> float:
        here.send(True)
        return float(here.recv())

    yield measure
    here.send(False)
    process.join()


def work_when_asked(asked: Any) -> None:
    """The other process: a forward pass of a model that is not trained, for each True."""
    import torch

    torch.set_num_threads(1)
    model, ids_BL = tiny_model().eval(), torch.arange(4 * 64).view(4, 64)
    with torch.no_grad():
        while asked.recv():
            started = time.process_time()
            model(input_ids=ids_BL, use_cache=False)
            asked.send(time.process_time() - started)


def answer(model: Any, processing_class: Any) -> None:
    """Answers two questions, as `honed train` does before and after."""
    from honed.data.prepare.options import PrepareOptions
    from honed.data.prepare.prepare import make_template
    from honed.generate.answer import answers, ask, need_template

    template = need_template(make_template(processing_class, PrepareOptions()), "tiny")
    asked = [ask("why 1 fox", None), ask("why 2", None)]
    answers(model, processing_class, template, asked, max_new_tokens=16, desc="Answering")


def judged(readings: Readings, steps: int) -> dict[str, Any]:
    """The readings in numbers, and whether they hold."""
    memory = tenths(readings.memory_mb)
    processor, measured, clock = (
        [1e3 * seconds for seconds in tenths(series)]
        for series in (readings.processor_seconds, readings.yardsticks, readings.seconds)
    )
    in_yardsticks = [a / b for a, b in zip(processor, measured, strict=True)]
    held, spent = compared(memory, GROWTH), compared(in_yardsticks, SLOWER)
    warm = len(readings.files) * WARM_UP // TENTHS
    files = {"after_warm_up": readings.files[warm], "end": max(readings.files[warm:])}
    flat = all(found["growth"] < found["bound"] for found in (held, spent)) and files["end"] <= files["after_warm_up"]
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(),
        "steps": len(readings.seconds),
        "evaluations": readings.evaluations,
        "checkpoints": readings.checkpoints,
        "answers": readings.answers,
        "memory_mb": held,
        "open_files": files,
        "yardsticks_per_step": spent,
        "medians_of_each_tenth": {
            "memory_mb": [round(value, 1) for value in memory],
            "yardsticks_per_step": [round(value, 2) for value in in_yardsticks],
            "processor_ms_per_step": [round(value, 2) for value in processor],
            "processor_ms_of_the_yardstick": [round(value, 3) for value in measured],
            "clock_ms_per_step": [round(value, 2) for value in clock],
        },
        "passed": flat and len(readings.seconds) == steps,
    }


def tenths(series: list[float]) -> list[float]:
    """The median of each tenth."""
    edges = [len(series) * tenth // TENTHS for tenth in range(TENTHS + 1)]
    return [statistics.median(series[start:end]) for start, end in itertools.pairwise(edges)]


def compared(values: list[float], bound: float) -> dict[str, float]:
    """How much larger the last tenths are than the first after the warm-up: of each three, the median."""
    early, late = (statistics.median(part) for part in (values[WARM_UP : WARM_UP + COMPARED], values[-COMPARED:]))
    return {
        "after_warm_up": round(early, 2),
        "end": round(late, 2),
        "growth": round(late / early - 1, 4),
        "bound": bound,
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
    from honed.model.minimind.tokenizer import train_tokenizer

    return train_tokenizer((row["messages"][0]["content"] for row in rows(50)), vocab_size=400)


if __name__ == "__main__":
    sys.exit(main())
