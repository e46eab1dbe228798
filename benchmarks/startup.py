"""Seconds from the command to the end of the first optimizer step: `honed train` against a script around TRL's trainer.

    python benchmarks/startup.py [--rows 1000] [--repeats 5] [--quick] [--out benchmarks/results/NAME.json]

1,000 conversations in a JSONL file, a two-layer Llama in a folder, full fine-tuning in float32 on the CPU, one thread,
8 rows per batch in file order. With the packaged model's tokenizer the step itself costs little; with Qwen's (if
../shared exists) it includes logits of 151,936 tokens. Every run is a separate process, with the sides in turn.
`trainer` and `plain` are honed's two engines from the command line. TRL's side is the shortest script that does the
same, with the settings that start fastest: no network, no tracker, no checkpointing, no progress bars. `script` is that
script with honed's names in place of TRL's. `bare` is no trainer: a script with torch and transformers alone, collector
off, that loads the same model and tokenizer, and encodes and trains one batch only.

The clock starts before the process and stops in a torch hook that is called after any optimizer's step, the same on all
sides. `cold` means that nothing is left from earlier runs: neither honed's cache nor that of `datasets`. `warm` means
that both exist. Compiled Python files exist in both cases.

All sides must log the same loss at that step (the same rows, masks and weights), to within 1e-4; otherwise no ratio is
printed. Each ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from data_preparation import SHARED, THREADS, distinct_pairs, load_tokenizer, packaged_tokenizer, write

SIDES = ("trainer", "plain", "script", "bare", "trl")
BATCH, MAX_LENGTH = 8, 1024
TOLERANCE = 1e-4


def main() -> None:
    args = arguments()
    if args.one:
        one(args.one, Path(args.folder))
        return
    rows, repeats = (100, 1) if args.quick else (args.rows, args.repeats)
    results = []
    for tokenizer in tokenizers()[:1] if args.quick else tokenizers():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(distinct_pairs()[:rows], "messages", folder / "rows.jsonl")
            save_model(folder / "model", tokenizer)
            found = measured(folder, repeats)
        common = {"vocabulary": len(tokenizer), "first_loss": common_loss(found)}
        for state, sides in found.items():
            results.append(common | result(state, sides))
            print(describe(results[-1]), flush=True)
    if args.out:
        record: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "versions": versions()}
        record |= {"rows": rows, "repeats": repeats, "results": results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="100 rows, one round: whether it works, not how fast it is"
    )
    parser.add_argument("--out")
    parser.add_argument("--one", choices=SIDES, help="one run, in this process")
    parser.add_argument("--folder")
    return parser.parse_args()


def tokenizers() -> list[Any]:
    """The packaged model's tokenizer, and Qwen's if available."""
    return [packaged_tokenizer(), *([load_tokenizer()] if (SHARED / "qwen_tokenizer").is_dir() else [])]


def save_model(folder: Path, tokenizer: Any) -> None:
    """Saves a two-layer Llama with random weights, and a real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measured(folder: Path, repeats: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The results of every run, by state of the caches and by side, without the first round, which compiles."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for state in ("cold", "warm"):
        found[state] = {side: [] for side in SIDES}
        for number in range(repeats + 1):
            for side in SIDES:
                if state == "cold":
                    shutil.rmtree(folder / f"cache-{side}", ignore_errors=True)
                told = start(side, folder)
                if number:
                    found[state][side].append(told)
    return found


def start(side: str, folder: Path) -> dict[str, float]:
    """One run in a new process: wall and processor seconds until the end of the first step, and its loss."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    cache = str(folder / f"cache-{side}")
    environment = {**os.environ, **THREADS, "HONED_CACHE": cache, "HF_DATASETS_CACHE": cache}
    environment |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", __file__, "--one", side, "--folder", str(folder)]
    began = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    told: dict[str, float] = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    return {"seconds": told["moment"] - began, "cpu_seconds": told["cpu_seconds"], "loss": told["loss"]}


def one(side: str, folder: Path) -> None:
    """Trains one step and writes its end time and loss to told.json."""
    told = watch_first_step()
    run = bare if side == "bare" else script if side in ("script", "trl") else honed_command
    told["loss"] = run(folder, side)
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


def watch_first_step() -> dict[str, float]:
    """A dict that receives the end time of the first step. Does not import torch: each side does so in its own way."""
    told: dict[str, float] = {}

    def note(*_: Any) -> None:
        told.setdefault("moment", time.time())
        told.setdefault("cpu_seconds", time.process_time())

    def watch(event: str, _: Any) -> None:  # Python's audit events; each import is one
        register = getattr(sys.modules.get("torch.optim.optimizer"), "register_optimizer_step_post_hook", None)
        if event == "import" and register is not None and not watching:
            watching.append(True)
            register(note)

    watching: list[bool] = []
    sys.addaudithook(watch)
    return told


def honed_command(folder: Path, engine: str) -> float:
    """`python -m honed train ...`, in this process so that the hook is there."""
    options = {
        "model": folder / "model",
        "data.files": folder / "rows.jsonl",
        "data.max_length": MAX_LENGTH,
        "data.overlong": "truncate",
        "lora": "null",
        "engine": engine,
        "output": folder / "run",
        "max_steps": 1,
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
        "warmup_steps": 0,
        "report_to": "none",
    }
    sys.argv = ["honed", "train", *(f"{key}={value}" for key, value in options.items())]
    try:
        runpy.run_module("honed", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(next(line["loss"] for line in lines if "loss" in line))


def script(folder: Path, side: str) -> float:
    from datasets import load_dataset

    if side == "trl":
        from trl import SFTConfig, SFTTrainer
    else:
        from honed import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        str(folder / "model"),
        args=SFTConfig(
            output_dir=str(folder / "run"),
            max_steps=1,
            per_device_train_batch_size=BATCH,
            train_sampling_strategy="sequential",
            learning_rate=2e-4,
            max_length=MAX_LENGTH,
            assistant_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train"),
    )
    trainer.train()
    return float(next(line["loss"] for line in trainer.state.log_history if "loss" in line))


def bare(folder: Path, _: str) -> float:
    """One step on the first batch with torch and transformers alone. Answers and ends of turns are trained."""
    gc.disable()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        talks = [json.loads(next(file))["messages"] for _ in range(BATCH)]
    rows = [tokenizer.apply_chat_template(talk, return_dict=False)[:MAX_LENGTH] for talk in talks]
    starts = [
        len(tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)) for talk in talks
    ]
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)  # the line feed behind it is not trained
        labels[row, :start] = labels[row, end:] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    optimizer.step()
    return float(loss)


def common_loss(found: dict[str, dict[str, list[dict[str, float]]]]) -> float:
    """The loss of all runs; stops if they differ."""
    losses = {side: [told["loss"] for sides in found.values() for told in sides[side]] for side in SIDES}
    every = [loss for some in losses.values() for loss in some]
    if max(every) - min(every) > TOLERANCE:
        raise SystemExit(f"the sides did not train the same step; losses: {losses}")
    return round(every[0], 5)


def result(state: str, sides: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians by side, and of the ratios within a round."""
    line: dict[str, Any] = {"caches": state}
    for key in ("seconds", "cpu_seconds"):
        line[key] = {side: round(statistics.median(told[key] for told in runs), 2) for side, runs in sides.items()}
        line[f"ratio_of_{key}"] = {
            engine: round(
                statistics.median(b[key] / a[key] for a, b in zip(sides[engine], sides["trl"], strict=True)), 2
            )
            for engine in SIDES[:-1]
        }
    return line


def describe(line: dict[str, Any]) -> str:
    seconds, cpu = line["seconds"], line["cpu_seconds"]
    rows = [
        f"vocabulary {line['vocabulary']:,}, caches {line['caches']}:"
        f"  TRL {seconds['trl']:.2f} s to the first step ({cpu['trl']:.2f} s of CPU)"
    ]
    for engine in SIDES[:-1]:
        rows.append(
            f"  {engine:8}{seconds[engine]:6.2f} s  {line['ratio_of_seconds'][engine]:5.2f}x sooner"
            f"   CPU {cpu[engine]:5.2f} s  {line['ratio_of_cpu_seconds'][engine]:5.2f}x"
        )
    return "\n".join(rows)


def machine() -> dict[str, Any]:
    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "system": platform.system()}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("honed", "trl", "torch", "transformers", "datasets")}


if __name__ == "__main__":
    main()
