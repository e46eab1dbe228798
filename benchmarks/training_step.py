"""Optimizer steps of honed's SFTTrainer against TRL's: python benchmarks/training_step.py [--case NAME] [--out FILE]

Both train the same model (random weights) on the same tokens in the same batches, float32, one thread, one process per
run, in turn. honed runs with its defaults. TRL runs with its own (padded batches, gradient checkpointing), without
checkpointing, and with flat batches (padding_free=True) as well; the fastest is its best. In TRL 1.16
loss_type="chunked_nll" is another name for the default loss, and packing would make other batches, so neither is a
separate setting here; both sides have bf16=False.

Before anything is timed, the gradients of the first step are compared; a ratio is printed only if they agree. Time is
processor time per step, after the first step: with one thread it equals the wall clock on an idle machine, and hardly
changes when others use the machine too. Peak memory is that of the whole process; the training's own is how much it
exceeds the resident memory at the start of training, plus the model's weights; this excludes the interpreter, the
libraries and the tokenizer, which are the same on both sides.

Rows: question and answer pairs of five files in ../shared/data, answers trained, up to 512 tokens; without that folder
the packaged starter set. Token ids are taken modulo the case's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from data_preparation import SHARED, THREADS, distinct_pairs, load_tokenizer, machine, peak_gb
from growth import resident

MAX_LENGTH = 512
# Settings of each side beyond the common ones.
SETTINGS: dict[str, dict[str, Any]] = {
    "honed": {},
    "trl": {},
    "trl-no-checkpointing": {"gradient_checkpointing": False},
    "trl-padding-free": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
}
SIDES = tuple(SETTINGS)
SAME = 1e-4  # relative error of float32 gradients that were summed in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The shape of a Llama and how it is trained."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokenizer: str = "qwen_tokenizer"
    lora: bool = False
    batch: int = 8


SMOLLM2 = {"hidden": 576, "intermediate": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocabulary": 49_152}
CASES = {
    "head-heavy": Case(hidden=384, intermediate=1024, layers=5, heads=6, kv_heads=2, vocabulary=151_936),
    "smollm2-135m": Case(**SMOLLM2),
    "minimind": Case(
        hidden=512,
        intermediate=1408,
        layers=8,
        heads=8,
        kv_heads=2,
        vocabulary=6_400,
        tokenizer="minimind_tokenizer",
    ),
    "smollm2-135m-lora": Case(**SMOLLM2, lora=True),
}


def main() -> None:
    args = arguments()
    if args.one:
        side, name = args.one
        print(json.dumps(train(side, CASES[name], Path(args.rows), steps=args.steps, gradients=args.gradients)))
        return
    if args.quick:
        args.case, args.steps, args.repeats = args.case or "minimind", 2, 1
    results = []
    for name in [args.case] if args.case else CASES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(name, Path(folder), steps=args.steps, repeats=args.repeats))
        print(describe(results[-1]), flush=True)
    if args.out:
        record = {"date": date.today().isoformat(), "machine": machine(), "versions": versions(), "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--steps", type=int, default=3, help="of which the first is not timed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="one model, one round: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "CASE"), help="one run, in this process")
    parser.add_argument("--rows")
    parser.add_argument("--gradients", help="train one step and keep its gradients in this file")
    return parser.parse_args()


def compare(name: str, folder: Path, *, steps: int, repeats: int) -> dict[str, Any]:
    """Medians of all sides and of the ratios within a round; stops if gradients differ."""
    case = CASES[name]
    rows = folder / "rows.json"
    rows.write_text(json.dumps(rows_of(case, steps * case.batch)), encoding="utf-8")
    for side in SIDES:
        measure(side, name, rows, steps=1, gradients=folder / side)
    errors = {side: gradient_error(folder / side, folder / SIDES[0]) for side in SIDES[1:]}
    if max(errors.values()) > SAME:
        raise SystemExit(f"{name}: the sides did not compute the same gradients: {errors}")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, measured in found.items():
            measured.append(measure(side, name, rows, steps=steps))
    best = min(SIDES[1:], key=lambda side: median(found[side], "seconds"))
    return {
        "case": name,
        **asdict(case),
        "gradient_errors": {side: float(f"{error:.1e}") for side, error in errors.items()},
        "seconds_per_step": {side: round(median(m, "seconds"), 3) for side, m in found.items()},
        "peak_gb": {side: round(median(m, "peak_gb"), 3) for side, m in found.items()},
        "training_gb": {side: round(median(m, "training_gb"), 3) for side, m in found.items()},
        "losses": {side: m[0]["losses"] for side, m in found.items()},
        "best": best,
        **{
            f"speed_over_{label}": ratio(found, side, "seconds") for label, side in (("best", best), ("default", "trl"))
        },
        "memory_of_best": round(1 / ratio(found, best, "peak_gb"), 2),
        "memory_of_default": round(1 / ratio(found, "trl", "peak_gb"), 2),
        "training_memory_of_best": round(1 / ratio(found, best, "training_gb"), 2),
    }


def ratio(found: dict[str, list[dict[str, Any]]], side: str, key: str) -> float:
    pairs = zip(found[side], found["honed"], strict=True)
    return round(statistics.median(theirs[key] / ours[key] for theirs, ours in pairs), 2)


def measure(side: str, name: str, rows: Path, *, steps: int, gradients: Path | None = None) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--one",
        side,
        name,
        "--rows",
        str(rows),
        "--steps",
        str(steps),
    ]
    command += ["--gradients", str(gradients)] if gradients else []
    environment = {**os.environ, **THREADS, "CUDA_VISIBLE_DEVICES": "", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def train(side: str, case: Case, file: Path, *, steps: int, gradients: str | None) -> dict[str, Any]:
    """Seconds of processor time per step after the first, peak memory, and the logged losses."""
    import torch
    from transformers import PrinterCallback

    torch.set_num_threads(1)
    rows = json.loads(file.read_text(encoding="utf-8"))
    model, tokenizer = model_of(case), load(case)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": case.batch,
            "train_sampling_strategy": "sequential",
            "max_length": MAX_LENGTH,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **SETTINGS[side],
        }
        trainer = (honed_trainer if side == "honed" else trl_trainer)(model, options, rows, tokenizer)
        trainer.remove_callback(PrinterCallback)
        watch = watching(gradients)
        trainer.add_callback(watch)
        others = resident("VmRSS") / 1e3 - sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
        trainer.train()
        losses = [round(line["loss"], 5) for line in trainer.state.log_history if "loss" in line]
        ends = watch.ends
        seconds = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0
        peak = peak_gb()
        return {"seconds": seconds, "peak_gb": peak, "training_gb": peak - others, "losses": losses}


def honed_trainer(model: Any, options: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    from honed import SFTConfig, SFTTrainer

    return SFTTrainer(model, args=SFTConfig(**options), train_dataset=rows, processing_class=tokenizer)


def trl_trainer(model: Any, options: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    dataset = datasets.Dataset.from_list(rows)
    return SFTTrainer(model, args=SFTConfig(**options), train_dataset=dataset, processing_class=tokenizer)


def watching(file: str | None) -> Any:
    """A callback that records when steps end, and saves the first step's gradients if a file is given."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if file:
                gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
                torch.save(gradients, file)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.process_time())

    return Watch()


def gradient_error(file: Path, reference: Path) -> float:
    """The largest relative error, in norm, of all parameters' gradients; both files must have all parameters."""
    import torch

    found, expected = torch.load(file), torch.load(reference)
    if found.keys() != expected.keys():
        raise SystemExit(f"other parameters have gradients: {sorted(found.keys() ^ expected.keys())[:4]}")
    errors = [(found[name] - gradient).norm() / gradient.norm().clamp_min(1e-30) for name, gradient in expected.items()]
    return float(max(errors))


def model_of(case: Case, **changes: Any) -> Any:
    """A Llama of this shape with random weights; `changes` override its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": case.vocabulary,
        "hidden_size": case.hidden,
        "intermediate_size": case.intermediate,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**options | changes))
    return with_adapter(model) if case.lora else model


def with_adapter(model: Any) -> Any:
    """Adds LoRA of rank 16 to all linear layers except the head."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # initially zero, which would leave lora_A without a gradient to compare
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def rows_of(case: Case, count: int) -> list[dict[str, list[int]]]:
    """Tokens and labels: the answer and its end are trained."""
    tokenizer = load(case)
    rows: list[dict[str, list[int]]] = []
    for question, answer in distinct_pairs():
        prompt, completion = (fold(tokenizer.encode(text), case) for text in (f"{question}\n", answer))
        completion.append(tokenizer.eos_token_id % case.vocabulary)
        if len(prompt) + len(completion) <= MAX_LENGTH:
            rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
        if len(rows) == count:
            break
    return rows


def fold(ids: list[int], case: Case) -> list[int]:
    return [i % case.vocabulary for i in ids]


def load(case: Case) -> Any:
    from transformers import AutoTokenizer

    there = (SHARED / case.tokenizer).is_dir()
    tokenizer = AutoTokenizer.from_pretrained(SHARED / case.tokenizer) if there else load_tokenizer()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # within every case's vocabulary
    return tokenizer


def describe(result: dict[str, Any]) -> str:
    seconds, peak = result["seconds_per_step"], result["peak_gb"]
    return "\n".join(
        [
            f"{result['case']}: honed {result['speed_over_best']:.2f}x TRL's best ({result['best']}),"
            f" {result['speed_over_default']:.2f}x its default; memory {result['memory_of_best']:.2f}x,"
            f" {result['memory_of_default']:.2f}x; its own {result['training_memory_of_best']:.2f}x",
            *(f"  {side:22}{seconds[side]:8.2f} s/step {peak[side]:7.2f} GB" for side in SIDES),
            "  relative error of the first step's gradients: "
            + ", ".join(f"{side} {error:.0e}" for side, error in result["gradient_errors"].items()),
        ]
    )


def median(measured: list[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in measured)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "trl", "torch", "transformers", "peft")}


if __name__ == "__main__":
    main()
