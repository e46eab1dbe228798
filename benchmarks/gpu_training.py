"""Optimizer steps on a CUDA GPU in bfloat16: honed's settings against TRL's.

    python benchmarks/gpu_training.py --out benchmarks/results/gpu-training-gpu-DATE.json [--only CASE ...]
        [--sides SIDE ... | all] [--steps 8] [--rounds 1] [--minutes 9]

    llama-3-8b, LoRA         rank 16 on all linear layers; 4,096 tokens per step, documents packed
    llama-3-8b, LoRA, whole  the same, but the row is one document
    qwen3-0.6b, qwen3-1.7b   full fine-tuning, float32 weights, autocast; 4 and 2 rows of 4,096 tokens
    mistral-7b, QLoRA        frozen weights in NF4 (bitsandbytes), rank 16; 4 rows of 512 tokens

Shapes and sides are in gpu_cases.py. honed runs with its defaults and with its own options. TRL 1.16 runs with its
defaults (padded batches, checkpointing) and with flat batches (as packing makes them of the same documents), with and
without checkpointing; through flash_attention_2 if installed, otherwise sdpa, and through flex_attention; with Liger's
layers and the Hub's kernels if installed. The fastest is its best. TRL's head never computes whole logits.

Weights are random. Rows are real, from ../shared/data, or from the packaged starter set if that folder is missing.
Every side trains on the same documents in the same order, in one micro-batch per step; all steps of a case have the
same number of tokens. Each run is a separate process, with the sides in turn. Runs that fail or exceed the memory are
listed with the reason. Recorded runs are not repeated: an interrupted command resumes when it is given again, and
`--minutes` stops it in time.

Compared first, on a few evenly spaced elements of every parameter's gradient: the first step of a slice of two layers
with a float32 run (plain transformers, one document at a time), and the first timed step with honed's. Losses of the
warm-up steps are listed. A ratio is given only if these agree (limits in gpu_compare.py).

Seconds: wall clock between two synchronisations around all timed steps; CUDA events give each step's. Memory: the peak
of torch's allocator since training began (`reserved`: including its cache). Tokens exclude padding; trained tokens are
counted separately. MFU: 6 N operations per token, with N the weights of all linear layers including the head (2
forward, 4 backward; frozen ones count the same, recomputation does not), plus, separately, attention's 12 L T d per
token, with T the length of its document and the causal half not subtracted; divided by the dense bfloat16 peak of the
data sheet (`card.PEAK_TFLOPS`), and by the speed of an 8,192-wide product measured in the same command. `done` counts
what LoRA really multiplies: 4 per frozen weight.

`--quick` runs on a CPU with tiny shapes, all sides of a package in one process, to check that everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from apart import Record, Run, answer, carry_out, left, open_record, write
from card import gemm_tflops, name_of_device, one_gpu, versions
from gpu_cases import (
    CASES,
    FIRST_SIDES,
    REFERENCE,
    SIDES,
    SLICE_LAYERS,
    Case,
    Side,
    attention_of,
    missing,
    model_of,
    rows_file,
    steps_of,
    tiny,
    tokenizer_of,
)
from gpu_compare import compared, describe, settle
from gpu_watch import looked_at, memory_in_use, watching

WARM_UP = 3
TOKENIZER = "tokenizer"  # its folder, next to the rows
SLICE_DOCUMENTS = 4
OTHERS = ("trl", "peft", "accelerate", "triton", "bitsandbytes", "flash-attn", "kernels", "liger-kernel", "torchao")
QUICK_SQUARE = 256
QUICK_SIDES = ("honed", "trl", "trl-flat-no-checkpointing")
QUICK_CASES = ("llama-3-8b, LoRA", "qwen3-0.6b", "mistral-7b, QLoRA")


def main() -> None:
    args = arguments()
    if args.job:
        answer(args.job, measure)
        return
    device = device_of(args)
    out = Path(args.out) if args.out else None
    names = [name for name in CASES if name in (args.only or (QUICK_CASES if args.quick else CASES))]
    cases = {name: tiny(CASES[name]) if args.quick else CASES[name] for name in names}
    facts = {"machine": name_of_device(device), "versions": versions(*OTHERS), "quick": args.quick, "steps": args.steps}
    record = open_record(out, {"date": date.today().isoformat(), **facts})
    with tempfile.TemporaryDirectory() as folder:
        runs = planned(cases, args, device, Path(folder))
        tokenizer_of().save_pretrained(Path(folder) / TOKENIZER)  # once, because looking for one may take long
        for name, case in cases.items():
            if any(run["case"] == name for run in left(runs, record)):
                rows = json.dumps(steps_of(case, WARM_UP + args.steps))
                rows_file(Path(folder), name).write_text(rows, encoding="utf-8")
        all_done = carry_out(
            __file__, runs, record, out=out, minutes=args.minutes, guess=35, together=args.quick, settle=settle
        )
    record["results"] = [compared(name, {**asdict(case)}, record) for name, case in cases_in(record).items()]
    print("\n".join(describe(result) for result in record["results"]))
    write(out, record)
    sys.exit(not all_done)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--sides", nargs="+", choices=(*SIDES, "all"), metavar="SIDE", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--steps", type=int, default=8, help=f"that are timed, after {WARM_UP} that are not")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no run that would not end within so many")
    parser.add_argument("--quick", action="store_true", help="tiny shapes on the CPU: whether it works")
    parser.add_argument("--out")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.steps, args.rounds = (2, 1) if args.quick else (args.steps, args.rounds)
    return args


def device_of(args: argparse.Namespace) -> str:
    import torch

    if args.quick:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    one_gpu()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here, which these shapes need. --quick tries the script on a CPU.")
    return "cuda"


def cases_in(record: Record) -> dict[str, Case]:
    """The cases with runs in the record, in the order of CASES."""
    return {
        name: tiny(case) if record["quick"] else case
        for name, case in CASES.items()
        if any(run["case"] == name for run in record["runs"])
    }


def planned(cases: dict[str, Case], args: argparse.Namespace, device: str, folder: Path) -> list[Run]:
    """All runs in order: for every case the float32 slice and the first sides, then for every case the other sides,
    then all sides again."""
    common = {"device": device, "quick": args.quick, "steps": args.steps}
    runs = [{"case": "device", "side": "gemm", "round": 0, "package": "torch", "turn": 0, **common}]
    for name, case in cases.items():
        sides = args.sides or case.sides
        here = {"case": name, "rows": str(rows_file(folder, name)), **common}
        lacking = missing(Side(package="torch"), case, device)
        runs.append({**here, "side": REFERENCE, "round": 0, "package": "torch", "turn": 0, "missing": lacking})
        for number in range(args.rounds):
            for place, side in enumerate(SIDES if "all" in sides else sides):
                here["turn"] = 2 * number + (place >= FIRST_SIDES)
                if args.quick and case.lora and side not in (args.sides or QUICK_SIDES):
                    continue  # full fine-tuning has tried it
                package, lacking = SIDES[side].package, missing(SIDES[side], case, device)
                runs.append({**here, "side": side, "round": number, "package": package, "missing": lacking})
    return sorted(runs, key=lambda run: run["turn"])


def measure(run: Run) -> Run:
    """Measures one side of one case, in a separate process."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1 if run["device"] == "cpu" else torch.get_num_threads())
    if run["side"] == "gemm":
        speed = gemm_tflops(run["device"], *([QUICK_SQUARE] if run["quick"] else []))
        return {"gemm_tflops": round(speed, 2), "summary": f"{speed:.1f} TFLOP/s"}
    case = tiny(CASES[run["case"]]) if run["quick"] else CASES[run["case"]]
    steps = json.loads(Path(run["rows"]).read_text(encoding="utf-8"))
    if run["side"] == REFERENCE:
        return float32_slice(case, steps[0][:SLICE_DOCUMENTS], run["device"])
    side = SIDES[run["side"]]
    result = timed(case, side, run, steps)
    if run["round"] == 0:
        result["slice"] = slice_gradients(case, side, run, steps[0][:SLICE_DOCUMENTS])
    return result


def timed(case: Case, side: Side, run: Run, steps: list[list[Any]]) -> Run:
    """Seconds per step, memory, losses, and parts of the first step's gradients."""
    model = model_of(case, device=run["device"], dtype=side.dtype, attention=attention_of(side))
    weights = weights_of(model)
    trainer = trainer_of(side, case, run, model, steps)
    watch = watching(run["device"], warm_up=WARM_UP)
    trainer.add_callback(watch)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    tokens = [[len(row["input_ids"]) for row in step] for step in steps]
    seconds = watch.seconds / (len(steps) - WARM_UP)
    peak, reserved = memory_in_use(run["device"])
    return {
        "seconds": round(seconds, 5),
        "seconds_of_steps": watch.of_steps(),
        "peak_gb": round(peak, 3),
        "reserved_gb": round(reserved, 3),
        "losses": [round(line["loss"], 5) for line in lines],
        "cut_for_memory": sum(int(line.get("out_of_memory", 0)) for line in lines),
        "tokens": sum(tokens[0]),
        "trained": round(sum(trained(step) for step in steps[WARM_UP:]) / (len(steps) - WARM_UP)),
        "documents": len(steps[0]),
        "operations": operations(weights, case, tokens[WARM_UP:]),
        "attention": attention_of(side) or "its own",
        "notes": [str(note)[:300] for note in getattr(trainer, "notes", [])],
        "gradients": watch.gradients,
        "summary": f"{seconds * 1e3:9.1f} ms a step {sum(tokens[0]) / seconds:9,.0f} tokens/s {peak:7.2f} GB",
    }


def trained(step: list[Any]) -> int:
    """Number of trained tokens; nothing predicts a document's first token."""
    return sum(label >= 0 for row in step for label in row["labels"][1:])


def trainer_of(side: Side, case: Case, run: Run, model: Any, steps: list[list[Any]], **more: Any) -> Any:
    """The side's trainer over these steps' documents, each step one batch."""
    from transformers import AutoTokenizer, PrinterCallback

    options: dict[str, Any] = {
        "output_dir": str(Path(run["rows"]).parent / "output"),
        "max_steps": len(steps),
        "per_device_train_batch_size": len(steps[0]),
        "train_sampling_strategy": "sequential",
        "max_length": case.length,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": True,
        "use_cpu": run["device"] == "cpu",
        **side.options,
        **more,
    }
    if run["quick"] and options.get("torch_compile"):
        options["torch_compile_backend"] = "eager"  # saves the time of compiling
    if side.kernels:
        model.set_use_kernels(True)
    rows = [row for step in steps for row in step]
    make = honed_trainer if side.package == "honed" else trl_trainer
    tokenizer = AutoTokenizer.from_pretrained(Path(run["rows"]).parent / TOKENIZER)
    trainer = make(model, options, rows, tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def honed_trainer(model: Any, options: dict[str, Any], rows: list[Any], tokenizer: Any) -> Any:
    from honed import SFTConfig, SFTTrainer

    return SFTTrainer(model, args=SFTConfig(**options), train_dataset=rows, processing_class=tokenizer)


def trl_trainer(model: Any, options: dict[str, Any], rows: list[Any], tokenizer: Any) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    dataset = datasets.Dataset.from_list(rows)
    return SFTTrainer(model, args=SFTConfig(**options), train_dataset=dataset, processing_class=tokenizer)


def weights_of(model: Any) -> dict[str, int]:
    """Number of weights in linear layers, trained and frozen; packed 4-bit ones count with their true size."""
    import torch

    found = {"trained": 0, "frozen": 0}
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            found["trained" if layer.weight.requires_grad else "frozen"] += layer.in_features * layer.out_features
    return found


def operations(weights: dict[str, int], case: Case, lengths: list[list[int]]) -> dict[str, float]:
    """Operations of a step, by the conventions in the module's docstring."""
    tokens = sum(map(sum, lengths)) / len(lengths)
    squares = sum(length**2 for step in lengths for length in step) / len(lengths)
    shape = case.shape
    width = shape["num_attention_heads"] * shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"])
    return {
        "six_n_tokens": 6 * sum(weights.values()) * tokens,
        "done": (6 * weights["trained"] + 4 * weights["frozen"]) * tokens,
        "attention": 12 * shape["num_hidden_layers"] * width * squares,
    }


def slice_gradients(case: Case, side: Side, run: Run, documents: list[Any]) -> dict[str, str]:
    """The first step's gradients of a model of two layers, as the side's trainer computes them."""
    import torch

    if run["device"] == "cuda":
        torch.cuda.empty_cache()
    more: dict[str, Any] = {"max_grad_norm": 0.0}
    if "optimizer_in_backward" in side.options:  # leaves no gradients to compare
        more["optimizer_in_backward"] = False
    model = model_of(case, device=run["device"], dtype=side.dtype, attention=attention_of(side), layers=SLICE_LAYERS)
    trainer = trainer_of(side, case, run, model, [documents], **more)
    watch = watching(run["device"], warm_up=1)
    trainer.add_callback(watch)
    trainer.train()
    return watch.gradients


def float32_slice(case: Case, documents: list[Any], device: str) -> Run:
    """The same gradients by plain transformers in float32, one document at a time, with the same weights."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    model = model_of(case, device=device, dtype="float32", layers=SLICE_LAYERS)
    if case.nf4:
        from honed.model.load.quantize import dequantized

        model.base_model.model = dequantized(model.base_model.model, torch.float32)
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name)
    model = model.float().train()
    count = trained(documents)
    total = 0.0
    for row in documents:
        ids, labels = (torch.tensor([row[key]], device=device) for key in ("input_ids", "labels"))
        logits = model(input_ids=ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / count
        loss.backward()
        total += loss.item()
    return {"slice": looked_at(model), "loss": round(total, 5), "summary": f"loss {total:.4f}"}


if __name__ == "__main__":
    main()
